/** The power of the last quarter of an hour, in steps: for each, the mean of what came in it. */

export const STEP_SECONDS = 5;
export const STEPS = 180;

/** One curve, or several that are stacked. */
export class Curve {
    constructor(parts = 1) {
        this.parts = parts;
        this.newest = null; // number of the newest step, counted from the epoch
        this.sums = new Float64Array(STEPS * parts);
        this.counts = new Uint16Array(STEPS);
    }

    /** Take what was measured at a time, in seconds since the epoch: one number for each part. */
    add(seconds, values) {
        const step = Math.floor(seconds / STEP_SECONDS);
        if (this.newest === null || step > this.newest || step <= this.newest - STEPS) {
            // It begins anew where the clock was set back so far: what is kept would be of times to come.
            const isNew = this.newest === null || step < this.newest;
            const skipped = isNew ? STEPS : Math.min(step - this.newest, STEPS);
            for (let each = step - skipped + 1; each <= step; each++)
                this._forget(each);
            this.newest = step;
        }
        const place = this._place(step);
        values.forEach((value, part) => { this.sums[place * this.parts + part] += value });
        this.counts[place]++;
    }

    /** Return the last `count` steps until a time, oldest first: for each an array of means, or null for nothing. */
    until(seconds, count = STEPS) {
        const last = Math.floor(seconds / STEP_SECONDS);
        const steps = [];
        for (let step = last - count + 1; step <= last; step++)
            steps.push(this._at(step));
        return steps;
    }

    _at(step) {
        if (this.newest === null || step > this.newest || step <= this.newest - STEPS)
            return null;
        const place = this._place(step);
        const count = this.counts[place];
        if (!count)
            return null;
        return Array.from(this.sums.subarray(place * this.parts, (place + 1) * this.parts), sum => sum / count);
    }

    _forget(step) {
        const place = this._place(step);
        this.sums.fill(0, place * this.parts, (place + 1) * this.parts);
        this.counts[place] = 0;
    }

    _place(step) {
        return step % STEPS;
    }
}

/** The curves of the host, whose parts are domains, other and idle, and of each domain. */
export class Curves {
    constructor() {
        this.host = new Curve(3);
        this.domains = new Map();
    }

    /** Return what is known at a time, for restore(). */
    saved(seconds) {
        const round = value => Math.round(value * 1000) / 1000;
        const known = curve => curve.until(seconds).map(values => values?.map(round));
        return {
            seconds, host: known(this.host),
            domains: [...this.domains].map(([uuid, curve]) => [uuid, known(curve)]),
        };
    }

    restore({ seconds, host, domains }) {
        const add = (curve, steps) => steps.forEach((values, index) => {
            if (values)
                curve.add(seconds - (steps.length - 1 - index) * STEP_SECONDS, values);
        });
        add(this.host, host);
        for (const [uuid, steps] of domains) {
            this.domains.set(uuid, new Curve());
            add(this.domains.get(uuid), steps);
        }
    }

    /** Take a document of virt-rapld that came at a time, in seconds since the epoch. */
    add(seconds, { host, domains }) {
        this.host.add(seconds, [host.domains_watts, host.other_watts, host.idle_watts]);
        const before = this.domains;
        this.domains = new Map();
        for (const domain of domains) {
            const curve = before.get(domain.uuid) ?? new Curve();
            if (!domain.unread)
                curve.add(seconds, [domain.power_watts]);
            this.domains.set(domain.uuid, curve);
        }
    }
}
