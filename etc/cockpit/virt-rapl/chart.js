/** A chart of columns in which a pointer, or the arrow keys, show the values of one column. */

import { element, set, show, svg } from "./dom.js";
import * as geometry from "./geometry.js";

export class Chart {
    /**
     * `shape`: "areas" or "bars". `parts`: a class name for each stacked part. `describe(index)` returns in one line
     * what column `index` has, `mark(value, top)` how a value is written beside the scale, which goes up to `top`.
     */
    constructor({ label, shape, parts, describe, mark, from, to }) {
        this.shape = shape;
        this.describe = describe;
        this.mark = mark;
        this.columns = [];
        this.chosen = null;
        this.paths = parts.map(part => svg("path", { class: part }));
        this.lines = svg("path", { class: "chart-lines" });
        this.picture = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" },
            this.lines, ...this.paths);
        this.cursor = element("div", { class: "chart-cursor", hidden: true });
        this.plot = element("div", {
            class: "chart-plot", tabindex: "0", role: "slider", "aria-label": label, "aria-valuemin": "0",
            "aria-valuenow": "0", "aria-valuetext": "",
            onpointermove: event => this._point(event),
            onpointerdown: event => this._point(event),
            onpointerleave: event => event.pointerType === "mouse" && this._choose(null),
            onkeydown: event => this._key(event),
            onblur: () => this._choose(null),
        }, this.picture, this.cursor);
        this.scale = element("div", { class: "chart-scale", "aria-hidden": "true" });
        this.ends = [element("span", {}, from), element("span", {}, to)];
        this.readout = element("p", { class: "chart-readout" });
        this.node = element("div", { class: "chart" }, this.scale, this.plot,
            element("div", { class: "chart-ends", "aria-hidden": "true" }, ...this.ends), this.readout);
    }

    /** Show columns, each an array of the parts' values or null; and where the columns begin and end. */
    draw(columns, from, to) {
        this.columns = columns;
        const { top, parts } = geometry.scale(geometry.highest(columns));
        set(this.picture, "viewBox", `0 0 ${Math.max(columns.length, 1)} ${geometry.HEIGHT}`);
        const shapes = this.shape === "bars" ? [geometry.bars(columns, top)] : geometry.areas(columns, top);
        this.paths.forEach((path, index) => set(path, "d", shapes[index] ?? ""));
        const key = `${top} ${parts} ${columns.length}`;
        if (key !== this.drawn) {
            this.drawn = key;
            const heights = Array.from({ length: parts + 1 }, (_, index) => index / parts);
            set(this.lines, "d", heights.map(part => `M0,${geometry.HEIGHT * (1 - part)}H${columns.length}`).join(""));
            this.scale.replaceChildren(...heights.map(part => element("span", {}, this.mark(part * top, top))));
        }
        set(this.plot, "aria-valuemax", String(Math.max(columns.length - 1, 0)));
        if (from !== undefined)
            show(this.ends[0], from);
        if (to !== undefined)
            show(this.ends[1], to);
        if (this.chosen >= columns.length)
            this._choose(null); // there was such a column before
        this._read();
    }

    _point(event) {
        const { left, width } = this.plot.getBoundingClientRect();
        this._choose(Math.floor((event.clientX - left) / width * this.columns.length));
    }

    _key(event) {
        const last = this.columns.length - 1;
        const now = this.chosen ?? last + 1;
        const goal = {
            ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: last,
            PageUp: now - 10, PageDown: now + 10,
        }[event.key];
        if (goal === undefined)
            return;
        event.preventDefault();
        this._choose(goal);
    }

    _choose(index) {
        this.chosen = index === null || !this.columns.length
            ? null
            : Math.min(Math.max(index, 0), this.columns.length - 1);
        this.cursor.hidden = this.chosen === null;
        if (this.chosen !== null) {
            this.cursor.style.left = `${(this.chosen + 0.5) / this.columns.length * 100}%`;
            set(this.plot, "aria-valuenow", String(this.chosen));
            set(this.plot, "aria-valuetext", this.describe(this.chosen));
        }
        this._read();
    }

    _read() {
        show(this.readout, this.chosen === null ? "" : this.describe(this.chosen));
    }
}
