/** Which rows of the table of domains are shown, and in which order. */

const VALUES = {
    name: row => row.name,
    watts: row => row.watts,
    today: row => row.today?.kwh,
    month: row => row.month?.kwh,
    cost: row => row.month?.cost,
    carbon: row => row.month?.grams_co2e,
    meter: row => RANKS.indexOf(row.registers) - (row.channel === "off" ? 0 : 0.5),
};
const RANKS = ["degraded", "active", "pending", "off"];

/** Return the rows that have all words of a text in their name, title, labels, state or UUID. */
export function filtered(rows, text) {
    const words = text.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length)
        return rows;
    return rows.filter(row => {
        const found = [row.name, row.title, row.state, row.uuid, row.registers, ...row.labels].join("\n");
        return words.every(word => found.toLocaleLowerCase().includes(word));
    });
}

/** Return the rows in an order; rows that are alike in it go by name, those without a value come last. */
export function sorted(rows, key, descending) {
    const value = VALUES[key];
    const names = new Intl.Collator(undefined, { numeric: true });
    const byName = (one, other) => names.compare(one.name, other.name) || (one.uuid < other.uuid ? -1 : 1);
    const sign = descending ? -1 : 1;
    if (key === "name")
        return [...rows].sort((one, other) => sign * byName(one, other));
    return [...rows].sort((one, other) => {
        const [first, second] = [value(one) ?? null, value(other) ?? null];
        if (first === null || second === null)
            return (first === null) - (second === null) || byName(one, other);
        return sign * (first - second) || byName(one, other);
    });
}
