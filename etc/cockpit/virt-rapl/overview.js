/** The first view: what the host uses, what doctor has found, and the table of domains. */

import { Chart } from "./chart.js";
import { element, prose, renewer, show } from "./dom.js";
import { DomainTable } from "./domain_table.js";
import { STEP_SECONDS } from "./curves.js";

const _ = cockpit.gettext;

const PARTS = ["domains", "other", "idle"];

export class Overview {
    constructor(formats, act, check) {
        this.formats = formats;
        this.total = element("p", { class: "figure" });
        this.model = element("p", { class: "muted" });
        this.values = PARTS.map(() => element("dd"));
        const names = [_("Domains"), _("Other work of this host"), _("Idle")];
        const legend = element("dl", { class: "legend" }, ...PARTS.flatMap((part, index) => [
            element("dt", {}, element("span", { class: "swatch", "data-part": part }), names[index]),
            this.values[index],
        ]));
        this.zones = element("dl", { class: "zones" });
        this.chart = new Chart({
            label: _("Power of this host in the last 15 minutes"), shape: "areas", parts: PARTS,
            describe: index => this._describe(index), mark: formats.powerMark,
            from: _("15 minutes ago"), to: _("now"),
        });
        const host = element("section", { class: "card", "aria-labelledby": "host-title" },
            element("div", { class: "card-head" }, element("h2", { id: "host-title" }, _("Power of this host"))),
            element("div", { class: "split" },
                element("div", {}, this.total, legend, this.zones, this.model), this.chart.node));
        this.table = new DomainTable(formats, act);
        this.checks = element("section", { class: "card", hidden: true });
        this.renewChecks = renewer(this.checks, found => checkNodes(found, check));
        this.renewZones = renewer(this.zones, zones => zones.flatMap(
            ([name, watts]) => [element("dt", {}, name), element("dd", {}, watts)]));
        this.node = element("div", { class: "stack" },
            element("h1", { class: "unseen", tabindex: "-1" }, _("VM energy")), host, this.checks, this.table.node);
    }

    update({ document, rows, news, curves, seconds, mayChange, problems }) {
        const { host } = document;
        const watts = [host.domains_watts, host.other_watts, host.idle_watts];
        show(this.total, this.formats.watts(watts.reduce((sum, each) => sum + each)));
        watts.forEach((each, index) => show(this.values[index], this.formats.watts(each)));
        this.renewZones(host.zones.map(zone => [
            zone.name, this.formats.watts(zone.unread ? null : zone.power_watts)]));
        show(this.model, `${host.model ?? _("unknown processor")} (${host.source})`);
        this.seconds = seconds;
        this.chart.draw(curves.host.until(seconds));
        this.checks.hidden = !problems.length;
        this.renewChecks(problems);
        this.table.update(rows, news, curves, seconds, mayChange);
    }

    _describe(index) {
        const { columns } = this.chart;
        const time = this.formats.timeOfDay((Math.floor(this.seconds / STEP_SECONDS) - columns.length + 1 + index)
            * STEP_SECONDS * 1000);
        const values = columns[index];
        if (!values)
            return `${time}: ${_("not known")}`;
        const [domains, other, idle] = values.map(this.formats.watts);
        return `${time}: ${cockpit.format(_("domains $0, other $1, idle $2"), domains, other, idle)}`;
    }
}

function checkNodes(found, check) {
    const failed = found.filter(each => each.state === "failed").length;
    const title = failed
        ? cockpit.format(_("Checks of this host: $0 failed, warnings: $1"), failed, found.length - failed)
        : cockpit.format(_("Checks of this host: warnings: $0"), found.length);
    const items = found.map(({ name, state, message, hint }) => element("li", {},
        element("span", { class: `label ${state === "failed" ? "red" : "orange"}` },
            state === "failed" ? _("failed") : _("warning")),
        ` ${name}: ${message}`,
        hint ? element("p", { class: "hint" }, `${_("What to do:")} `, ...prose(hint)) : null));
    return [element("details", {},
        element("summary", {}, title),
        element("ul", { class: "checks" }, ...items),
        element("button", { type: "button", class: "button small", onclick: check }, _("Check again")))];
}
