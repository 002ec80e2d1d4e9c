/** How figures are written in a language. What is not known, null, is a dash. */

export const UNKNOWN = "–";
const JOULES_PER_KWH = 3_600_000;
const NO_BREAK = "\u00a0";

export function formats(language) {
    const locale = language.replace("_", "-");
    const decimals = [0, 1, 2, 3, 4].map(digits => new Intl.NumberFormat(
        locale, { minimumFractionDigits: digits, maximumFractionDigits: digits }));
    const rough = new Intl.NumberFormat(locale, { maximumSignificantDigits: 3 });
    const timeOfDay = new Intl.DateTimeFormat(locale, { timeStyle: "medium" });
    const instant = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "short" });

    const known = write => value => value === null || value === undefined ? UNKNOWN : write(value);
    const amount = (value, digits, unit) => decimals[digits].format(value) + NO_BREAK + unit;

    const energy = known(kwh => {
        if (kwh >= 1)
            return amount(kwh, kwh >= 100 ? 1 : 2, "kWh");
        if (kwh >= 0.0001 || !kwh)
            return amount(kwh * 1000, kwh >= 0.01 ? 1 : 2, "Wh");
        return amount(kwh * JOULES_PER_KWH, 1, "J");
    });

    return {
        watts: known(value => amount(value, 2, "W")),
        /** Kilowatt hours; few of them as watt hours, and fewer as joules. */
        energy,
        joules: known(value => energy(value / JOULES_PER_KWH)),
        money: (value, currency) => known(cost => {
            const digits = cost < 0.1 ? 4 : 2;
            return amount(cost, digits, currency);
        })(value),
        carbon: known(grams => grams >= 1000 ? amount(grams / 1000, 2, "kg") : amount(grams, 1, "g")),
        /** Values beside the scale of a chart that goes up to `top`. */
        powerMark: value => rough.format(value) + NO_BREAK + "W",
        energyMark: (kwh, top) => top >= 1
            ? rough.format(kwh) + NO_BREAK + "kWh"
            : rough.format(kwh * 1000) + NO_BREAK + "Wh",
        percent: known(share => amount(share * 100, 1, "%")),
        timeOfDay: milliseconds => timeOfDay.format(milliseconds),
        instant: milliseconds => instant.format(milliseconds),
    };
}
