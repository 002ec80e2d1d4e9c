/** The table of domains. Its rows stay where they are while somebody points at them. */

import { element, prose, renewer, set, show, svg } from "./dom.js";
import * as geometry from "./geometry.js";
import { filtered, sorted } from "./order.js";
import { labels, stateText } from "./texts.js";

const _ = cockpit.gettext;

const SPARK_STEPS = 60;
const SPARK_HEIGHT = 20;
const RESORT_MILLISECONDS = 5000;
const NEAR = "300px";
const HIDDEN_EVERY = 10; // documents; rows that are scrolled out of sight need not follow each one

export class DomainTable {
    /** `act(row, action)` is called for a button. */
    constructor(formats, act) {
        // Roles are given although the elements have them: as cards, on a phone, they would lose them.
        this.formats = formats;
        this.act = act;
        this.rows = [];
        this.lines = new Map();
        this.order = { key: "name", descending: false };
        this.sortedAt = 0;
        this.updates = 0;
        this.near = new Set();
        this.observer = new IntersectionObserver(entries => this._scrolled(entries), { rootMargin: NEAR });
        this.filter = element("input", {
            type: "search", class: "control", placeholder: _("Filter by name"), "aria-label": _("Filter by name"),
            oninput: () => this._arrange(true),
        });
        this.count = element("span", { class: "muted", role: "status" });
        this.columns = [
            ["name", _("Domain")], ["watts", _("Power")], [null, _("5 minutes")], ["today", _("Today")],
            ["month", _("This month")], ["cost", _("Cost this month")], ["carbon", _("CO₂e this month")],
            ["meter", _("Meter")], [null, ""],
        ];
        this.headings = this.columns.map(([key, text]) => this._heading(key, text));
        this.order_choice = element("select", { class: "control narrow-only", "aria-label": _("Sort by"),
            onchange: event => this._sort(event.target.value) },
            ...this.columns.filter(([key]) => key).map(([key, text]) => element("option", { value: key }, text)));
        this.body = element("tbody", { role: "rowgroup",
            onpointerenter: () => { this.watched = true },
            onpointerleave: () => { this.watched = false },
        });
        this.table = element("table", { class: "domain-table", role: "table", "aria-label": _("Domains") },
            element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...this.headings)), this.body);
        this.nothing = element("p", { class: "nothing", hidden: true });
        this.node = element("section", { class: "card", "aria-labelledby": "domains-title" },
            element("div", { class: "card-head" },
                element("h2", { id: "domains-title" }, _("Domains")), this.count,
                element("div", { class: "tools" }, this.order_choice, this.filter)),
            this.table, this.nothing);
    }

    /** Show rows of the model. `news`: how often reports and checks have come. `seconds`: now, where the curves end. */
    update(rows, news, curves, seconds, mayChange) {
        this.rows = rows;
        const uuids = new Set(rows.map(row => row.uuid));
        let isOther = this.updates === 0; // than the domains that were shown before
        for (const [uuid, line] of this.lines) {
            if (!uuids.has(uuid)) {
                line.node.remove();
                this.observer.unobserve(line.node);
                this.near.delete(line.node);
                this.lines.delete(uuid);
                isOther = true;
            }
        }
        const isTurn = this.updates++ % HIDDEN_EVERY === 0 || news !== this.news;
        this.news = news;
        for (const row of rows) {
            let line = this.lines.get(row.uuid);
            if (!line) {
                line = new Line(this.formats, (...details) => this.act(...details), this.columns);
                this.lines.set(row.uuid, line);
                this.observer.observe(line.node);
                isOther = true;
            }
            line.take(row, curves.domains.get(row.uuid), seconds, mayChange);
            if (isOther || isTurn || this.near.has(line.node))
                line.render();
        }
        set(this.table, "data-cost", rows.some(row => (row.month?.cost ?? null) !== null) ? "" : null);
        set(this.table, "data-carbon", rows.some(row => (row.month?.grams_co2e ?? null) !== null) ? "" : null);
        const isDue = performance.now() > this.sortedAt + RESORT_MILLISECONDS;
        const isWatched = this.watched || this.body.contains(document.activeElement);
        if (isOther || (isDue && !isWatched && this.order.key !== "name"))
            this._arrange();
    }

    _scrolled(entries) {
        for (const { target, isIntersecting } of entries) {
            if (isIntersecting)
                this.near.add(target);
            else
                this.near.delete(target);
        }
        for (const line of this.lines.values())
            if (this.near.has(line.node))
                line.render();
    }

    _heading(key, text) {
        const sort = key && element("button", { type: "button", class: "sort", onclick: () => this._sort(key) }, text);
        return element("th", {
            scope: "col", role: "columnheader", "data-column": key,
            "aria-sort": key === this.order.key ? "ascending" : null,
        }, sort || text);
    }

    _sort(key) {
        const isSame = key === this.order.key;
        // Names begin with a, figures with the largest.
        this.order = { key, descending: isSame ? !this.order.descending : key !== "name" && key !== "meter" };
        this.columns.forEach(([each], index) => set(this.headings[index], "aria-sort",
            each !== key ? null : this.order.descending ? "descending" : "ascending"));
        this.order_choice.value = key;
        this._arrange();
    }

    /** Put the rows in order, and hide those that the filter leaves out. */
    _arrange() {
        this.sortedAt = performance.now();
        const shown = sorted(filtered(this.rows, this.filter.value), this.order.key, this.order.descending);
        const nodes = shown.map(row => this.lines.get(row.uuid).node);
        const isShown = new Set(nodes);
        for (const { node } of this.lines.values())
            if (!isShown.has(node))
                node.remove();
        let place = this.body.firstChild;
        for (const node of nodes) {
            if (node === place)
                place = place.nextSibling;
            else
                this.body.insertBefore(node, place);
        }
        show(this.count, shown.length === this.rows.length
            ? String(this.rows.length)
            : cockpit.format(_("$0 of $1"), shown.length, this.rows.length));
        this.nothing.hidden = shown.length > 0;
        show(this.nothing, this.rows.length ? _("No domain matches the filter.") : _("libvirt has no domains."));
    }
}

/** One row; it changes only what has changed. */
class Line {
    constructor(formats, act, columns) {
        this.formats = formats;
        this.link = element("a", { class: "name", dir: "auto" });
        this.title = element("span", { class: "muted", dir: "auto" });
        this.cells = Object.fromEntries(["watts", "today", "month", "cost", "carbon"].map(
            key => [key, element("td", {
                role: "cell", class: "number", "data-column": key, "data-label": heading(columns, key),
            })]));
        this.spark = svg("path", {});
        this.meter = element("td", { role: "cell", "data-column": "meter" });
        this.button = element("button", {
            type: "button", class: "button small", onclick: () => act(this.row, this.row.actions[0]),
        });
        this.renewMeter = renewer(this.meter, meterNodes);
        this.node = element("tr", { role: "row" },
            element("th", { scope: "row", role: "rowheader", "data-column": "name" }, this.link, this.title),
            this.cells.watts,
            element("td", { role: "cell", "data-column": "spark" }, svg("svg", {
                class: "spark", viewBox: `0 0 ${SPARK_STEPS} ${SPARK_HEIGHT}`, preserveAspectRatio: "none",
                "aria-hidden": "true",
            }, this.spark)),
            this.cells.today, this.cells.month, this.cells.cost, this.cells.carbon, this.meter,
            element("td", { role: "cell", "data-column": "action" }, this.button));
    }

    take(row, curve, seconds, mayChange) {
        Object.assign(this, { row, curve, seconds, mayChange });
    }

    render() {
        const { formats, row, curve, seconds } = this;
        show(this.link, row.name);
        set(this.link, "href", `#/domain/${row.uuid}`);
        show(this.title, row.title);
        show(this.cells.watts, row.running ? formats.watts(row.watts) : stateText(row.state));
        show(this.cells.today, formats.energy(row.today?.kwh));
        show(this.cells.month, formats.energy(row.month?.kwh));
        show(this.cells.cost, formats.money(row.month?.cost, row.month?.currency));
        show(this.cells.carbon, formats.carbon(row.month?.grams_co2e));
        this.renewMeter({ labels: labels(row), reasons: row.reasons, hints: row.hints });
        show(this.button, actionText(row.actions[0]));
        set(this.button, "aria-label", `${actionText(row.actions[0])} ${row.name}`);
        this.button.disabled = !this.mayChange;
        if (curve && curve.newest !== this.drawn) {
            // Only whole steps: the newest one is still changing.
            this.drawn = curve.newest;
            const columns = curve.until(seconds, SPARK_STEPS + 1).slice(0, -1);
            set(this.spark, "d", geometry.curve(columns, geometry.highest(columns) || 1, SPARK_HEIGHT));
        }
    }
}

function heading(columns, key) {
    return columns.find(([each]) => each === key)[1];
}

/** Return the words of what can be done to a domain. */
export function actionText(action) {
    return { enable: _("Enable"), live: _("Enable now"), disable: _("Disable") }[action];
}

/** Return what shows the meter of a domain: its states, why it is not as it should be, and what to do. */
export function meterNodes({ labels: states, reasons, hints, isExplained = false }) {
    return [
        ...states.flatMap(({ text, meaning, color }) => [
            element("span", { class: `label ${color}`, title: meaning }, text),
            isExplained ? element("p", { class: "reason" }, meaning) : null,
        ]),
        ...reasons.map(reason => element("p", { class: "reason" }, ...prose(reason))),
        ...hints.map(hint => element("p", { class: "hint" }, `${_("What to do:")} `, ...prose(hint))),
    ];
}
