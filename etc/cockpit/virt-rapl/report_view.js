/** The report: what domains used in a time, as a table and as CSV. */

import { report, run } from "./commands.js";
import { element, table } from "./dom.js";
import { UNKNOWN } from "./format.js";
import { localTime } from "./model.js";

const _ = cockpit.gettext;

const TIMES = {
    "this month": [_("This month"), "now"], "last month": [_("Last month"), "this month"],
    today: [_("Today"), "now"], "7d": [_("Last 7 days"), "now"], "this year": [_("This year"), "now"],
};
const ROWS = {
    domain: _("Domains"), project: _("Projects"), day: _("Days"), week: _("Weeks"), month: _("Months"),
    "day,domain": _("Days and domains"), "month,domain": _("Months and domains"), total: _("Total"),
};
const COLUMNS = {
    domain: _("Domain"), project: _("Project"), day: _("Day"), week: _("Week"), month: _("Month"), total: _("Total"),
};

export class ReportView {
    constructor(formats, superuser) {
        this.formats = formats;
        this.superuser = superuser;
        const choice = (texts, changed) => element("select", { class: "control", onchange: changed },
            ...Object.entries(texts).map(([value, text]) => element("option", { value }, text)));
        const times = Object.fromEntries(Object.entries(TIMES).map(([value, [text]]) => [value, text]));
        this.time = choice({ ...times, custom: _("From … to …") }, () => this._chooseTime());
        this.rows = choice(ROWS);
        this.since = element("input", { type: "date", class: "control", required: true });
        this.until = element("input", { type: "date", class: "control", required: true });
        this.dates = element("span", { class: "tools", hidden: true },
            element("label", {}, _("From"), " ", this.since),
            element("label", {}, _("to, not including"), " ", this.until));
        this.result = element("div", { class: "stack", "aria-live": "polite" });
        this.node = element("div", { class: "stack" },
            element("h1", { tabindex: "-1" }, _("Report")),
            element("form", { class: "card tools", onsubmit: event => { event.preventDefault(); this._show() } },
                element("label", {}, _("Time"), " ", this.time), this.dates,
                element("label", {}, _("Rows"), " ", this.rows),
                element("button", { type: "submit", class: "button primary" }, _("Show")),
                element("button", { type: "button", class: "button secondary", onclick: () => this._download() },
                    _("Download CSV"))),
            this.result);
        this._show();
    }

    update() {}

    _chooseTime() {
        this.dates.hidden = this.time.value !== "custom";
    }

    /** Return the options of the report that the form asks for; null while it is not filled in. */
    _options() {
        const isCustom = this.time.value === "custom";
        if (isCustom && !(this.since.reportValidity() && this.until.reportValidity()))
            return null;
        const [since, until] = isCustom
            ? [this.since.value, this.until.value]
            : [this.time.value, TIMES[this.time.value][1]];
        return ["--since", since, "--until", until, "--by", this.rows.value];
    }

    async _show() {
        const options = this._options();
        if (!options)
            return;
        this.asked = options;
        this.result.replaceChildren(element("p", { class: "card muted" }, _("Working …")));
        const made = await report(options, this.superuser);
        if (this.asked === options)
            this.result.replaceChildren(...made.rows ? this._nodes(made) : [failed(made.error)]);
    }

    async _download() {
        const options = this._options();
        if (!options)
            return;
        const { done, output, message, hint } = await run(
            ["virt-rapl", "report", "--format", "csv", ...options], { superuser: this.superuser });
        if (!done) {
            this.result.replaceChildren(failed(hint ? `${message}; ${hint}` : message));
            return;
        }
        const address = URL.createObjectURL(new Blob([output], { type: "text/csv" }));
        element("a", { href: address, download: "virt-rapl.csv" }).click();
        setTimeout(() => URL.revokeObjectURL(address), 60_000);
    }

    _nodes({ since, until, by, host, rows, provenance }) {
        const { energy, money, carbon, percent } = this.formats;
        const kinds = by.split(",");
        const all = [host, ...rows];
        const columns = [
            [_("Energy"), row => energy(row.kwh)],
            [_("Cost"), row => money(row.cost, row.currency), all.some(row => (row.cost ?? null) !== null)],
            [_("CO₂e"), row => carbon(row.grams_co2e), all.some(row => (row.grams_co2e ?? null) !== null)],
            [_("Share"), row => percent(row.share)],
        ].filter(([, , isKnown = true]) => isKnown);
        const line = (names, row) => [
            ...names, ...kinds.slice(names.length).map(() => ""), ...columns.map(([, text]) => text(row))];
        // virt-rapl gives no cost of these: they have none, which is not the same as one that is not known.
        const part = (name, joules) => line([name], { kwh: joules / 3_600_000, share: joules / host.joules })
            .map(cell => cell === UNKNOWN ? "" : cell);
        return [
            element("section", { class: "card" },
                element("h2", {}, `${localTime(since)} – ${localTime(until)}`),
                table(_("Report"), [...kinds.map(kind => COLUMNS[kind]), ...columns.map(([text]) => text)],
                    rows.map(row => line([row.key].flat().map(key => key || COLUMNS.total), row)),
                    [part(_("All domains"), host.domains_joules), part(_("Other work of this host"), host.other_joules),
                     part(_("Idle"), host.idle_joules), line([_("This host")], { ...host, share: 1 })])),
            element("section", { class: "card" },
                element("h2", {}, _("Where these figures come from")),
                element("ul", {}, ...provenance.map(each => element("li", {}, each)))),
        ];
    }
}

function failed(message) {
    return element("div", { class: "notice info", role: "alert" },
        element("strong", {}, _("There is no such report")), element("p", {}, message));
}
