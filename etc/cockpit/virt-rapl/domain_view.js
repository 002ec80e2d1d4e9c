/** One domain: its power, its meter, its vCPUs and zones, and what it used in a day, a month or a year. */

import { Chart } from "./chart.js";
import { report } from "./commands.js";
import { element, renewer, set, show, table } from "./dom.js";
import { actionText, meterNodes } from "./domain_table.js";
import { STEP_SECONDS } from "./curves.js";
import { localTime, timeline } from "./model.js";
import { labels, stateText } from "./texts.js";

const _ = cockpit.gettext;

const RELOAD_MILLISECONDS = 60_000;
const SPANS = {
    day: { text: _("24 hours"), options: ["--since", "24h", "--by", "hour"] },
    month: { text: _("30 days"), options: ["--since", "30d", "--by", "day"] },
    year: { text: _("12 months"), options: ["--since", "365d", "--by", "month"] },
};

export class DomainView {
    constructor(uuid, formats, act, superuser) {
        this.uuid = uuid;
        this.formats = formats;
        this.superuser = superuser;
        this.name = element("h1", { dir: "auto", tabindex: "-1" });
        this.title = element("p", { class: "muted", dir: "auto" });
        this.buttons = element("div", { class: "tools" });
        this.renewButtons = renewer(this.buttons, ({ actions, mayChange }) => actions.map(action => element("button", {
            type: "button", class: `button ${action === "disable" ? "secondary" : "primary"}`, disabled: !mayChange,
            onclick: () => act(this.row, action),
        }, actionText(action))));
        this.power = element("p", { class: "figure" });
        this.facts = element("dl", { class: "facts" });
        this.renewFacts = renewer(this.facts, factNodes);
        this.chart = new Chart({
            label: _("Power of this domain in the last 15 minutes"), shape: "areas", parts: ["domains"],
            describe: index => this._describe(index), mark: formats.powerMark,
            from: _("15 minutes ago"), to: _("now"),
        });
        this.vcpus = element("section", { class: "card" });
        this.renewVcpus = renewer(this.vcpus, lines => [element("h2", {}, _("vCPUs")), table(
            _("vCPUs"), [_("vCPU"), _("Thread"), _("Power"), _("Energy")], lines)]);
        this.zones = element("section", { class: "card" });
        this.renewZones = renewer(this.zones, lines => [element("h2", {}, _("Zones")), table(
            _("Zones"), [_("Zone"), _("Power"), _("Energy")], lines)]);
        this.body = element("div", { class: "stack" },
            element("section", { class: "card" },
                element("div", { class: "split" }, element("div", {}, this.power, this.facts), this.chart.node)),
            this._history(),
            element("div", { class: "columns" }, this.vcpus, this.zones));
        this.gone = element("p", { class: "card nothing", hidden: true },
            _("libvirt does not know this domain any more."));
        this.node = element("div", { class: "stack" },
            element("div", { class: "card-head" }, element("div", {}, this.name, this.title), this.buttons),
            this.gone, this.body);
    }

    update({ document, rows, curves, seconds, mayChange }) {
        const domain = document.domains.find(each => each.uuid === this.uuid);
        this.gone.hidden = Boolean(domain);
        this.body.hidden = this.buttons.hidden = !domain;
        if (!domain) {
            show(this.name, this.name.textContent || this.uuid);
            return;
        }
        this.row = rows.find(each => each.uuid === this.uuid);
        const { watts, joules } = this.formats;
        const power = part => watts(domain.unread ? null : part.power_watts);
        show(this.name, domain.name);
        show(this.title, this.row.title);
        this.renewButtons({ actions: this.row.actions, mayChange });
        show(this.power, this.row.running ? watts(this.row.watts) : stateText(this.row.state));
        this.renewFacts([
            { term: _("State"), text: stateText(domain.state) },
            { term: _("Meter"), meter: {
                labels: labels(this.row), reasons: this.row.reasons, hints: this.row.hints, isExplained: true,
            } },
            { term: _("Helper"), text: domain.helper ? helperText(domain.helper) : "" },
            { term: _("Energy"), text: cockpit.format(_("$0 since $1"), joules(domain.energy_joules),
                this.formats.instant(Date.parse(document.host.since))) },
            { term: "UUID", text: domain.uuid },
        ]);
        this.seconds = seconds;
        const curve = curves.domains.get(this.uuid);
        if (curve)
            this.chart.draw(curve.until(seconds));
        this.renewVcpus(domain.vcpus.map(vcpu => [
            String(vcpu.id), vcpu.tid === null ? "–" : String(vcpu.tid), power(vcpu),
            joules(vcpu.energy_joules)]));
        this.renewZones(Object.entries(domain.zones).map(([kind, zone]) => [
            kind, power(zone), joules(zone.energy_joules)]));
        if (performance.now() > this.loadedAt + RELOAD_MILLISECONDS)
            this._load(this.span);
    }

    _describe(index) {
        const { columns } = this.chart;
        const time = this.formats.timeOfDay((Math.floor(this.seconds / STEP_SECONDS) - columns.length + 1 + index)
            * STEP_SECONDS * 1000);
        return `${time}: ${columns[index] ? this.formats.watts(columns[index][0]) : _("not known")}`;
    }

    /** Make the part with the reports of this domain. */
    _history() {
        this.used = [];
        this.bars = new Chart({
            label: _("Energy of this domain"), shape: "bars", parts: ["domains"],
            describe: index => this._describeUsed(this.used[index]), mark: this.formats.energyMark,
        });
        this.sum = element("p", { class: "muted", role: "status" });
        const lines = element("div");
        this.renewLines = renewer(lines, rows => [this._table(rows)]);
        this.figures = element("details", { hidden: true }, element("summary", {}, _("As a table")), lines);
        const choice = element("select", {
            class: "control", "aria-label": _("Time"), onchange: event => this._load(event.target.value),
        }, ...Object.entries(SPANS).map(([value, { text }]) => element("option", { value }, text)));
        this._load("day");
        return element("section", { class: "card", "aria-labelledby": "used-title" },
            element("div", { class: "card-head" }, element("h2", { id: "used-title" }, _("Energy used")),
                element("div", { class: "tools" }, choice)),
            this.bars.node, this.sum, this.figures);
    }

    async _load(span) {
        this.span = span;
        this.loadedAt = performance.now();
        const made = await report([...SPANS[span].options, "--domain", this.uuid], this.superuser);
        if (this.span !== span)
            return; // another one was chosen meanwhile
        this.used = made.rows ? timeline(made) : [];
        this.bars.draw(this.used.map(row => [row.kwh]), localTime(this.used[0]?.key), localTime(this.used.at(-1)?.key));
        this.figures.hidden = !made.rows;
        show(this.sum, made.error ?? this.formats.energy(made.rows.reduce((sum, row) => sum + row.kwh, 0)));
        this.renewLines(made.rows ?? []);
        set(this.bars.node, "data-empty", this.used.length ? null : "");
    }

    _table(rows) {
        return table(_("Energy used"), [_("Time"), _("Energy"), _("Cost"), _("CO₂e")], rows.map(row => [
            localTime(row.key), this.formats.energy(row.kwh), this.formats.money(row.cost, row.currency),
            this.formats.carbon(row.grams_co2e)]));
    }

    _describeUsed(row) {
        const values = [this.formats.energy(row.kwh)];
        if (row.cost !== null)
            values.push(this.formats.money(row.cost, row.currency));
        if (row.grams_co2e !== null)
            values.push(`${this.formats.carbon(row.grams_co2e)} CO₂e`);
        return `${localTime(row.key)}: ${values.join(", ")}`;
    }
}

function helperText({ backend, pid, healthy }) {
    const state = healthy ? _("works") : _("does not work");
    return [backend, pid === null ? "" : `PID ${pid}`, state].filter(Boolean).join(", ");
}

function factNodes(facts) {
    return facts.filter(({ text, meter }) => text || meter).flatMap(({ term, text, meter }) => [
        element("dt", {}, term), element("dd", {}, ...meter ? meterNodes(meter) : [text])]);
}
