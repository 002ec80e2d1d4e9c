/** The shapes of charts: paths of SVG, one unit wide for each column, and `height` units high. */

export const HEIGHT = 100;

/** Return a round number above a value, and how many parts it is divided into. */
export function scale(value) {
    if (!(value > 0))
        return { top: 1, parts: 4 };
    const power = 10 ** Math.floor(Math.log10(value));
    const [factor, parts] = [[1, 4], [1.5, 3], [2, 4], [3, 3], [4, 4], [5, 5], [6, 3], [8, 4], [10, 4]]
        .find(([each]) => value <= each * power * 1.0000001);
    return { top: factor * power, parts };
}

/** Return the sum of the highest column. Columns are arrays of values, or null where nothing is known. */
export function highest(columns) {
    return Math.max(0, ...columns.filter(Boolean).map(sum));
}

function sum(values) {
    return values.reduce((total, value) => total + value, 0);
}

/** Return the path of each part, stacked from the bottom; what is not known is left open. */
export function areas(columns, top) {
    const parts = Math.max(0, ...columns.map(column => column?.length ?? 0));
    return Array.from({ length: parts }, (_, part) => runs(columns).map(([begin, end]) => {
        const upper = edge(columns, begin, end, part + 1, top);
        const lower = edge(columns, begin, end, part, top).reverse();
        return `M${[...upper, ...lower].join("L")}Z`;
    }).join(""));
}

/** Return the path of a curve without an area. */
export function curve(columns, top, height = HEIGHT) {
    return runs(columns).map(([begin, end]) => `M${edge(columns, begin, end, 1, top, height).join("L")}`).join("");
}

/** Return the path of bars, one for each column. */
export function bars(columns, top) {
    const gap = 0.12;
    return columns.map((column, index) => {
        if (!column || !sum(column))
            return "";
        const y = round(HEIGHT * (1 - sum(column) / top));
        return `M${round(index + gap)},${HEIGHT}V${y}H${round(index + 1 - gap)}V${HEIGHT}Z`;
    }).join("");
}

/** Return the upper edge of the first `parts` parts of a run of columns, from its left side to its right side. */
function edge(columns, begin, end, parts, top, height = HEIGHT) {
    const at = index => round(height * (1 - sum(columns[index].slice(0, parts)) / top));
    const points = [`${begin},${at(begin)}`];
    for (let index = begin; index < end; index++)
        points.push(`${index + 0.5},${at(index)}`);
    points.push(`${end},${at(end - 1)}`);
    return points;
}

/** Return where columns with values begin and end that stand side by side. */
function runs(columns) {
    const found = [];
    columns.forEach((column, index) => {
        if (!column)
            return;
        if (found.length && found.at(-1)[1] === index)
            found.at(-1)[1]++;
        else
            found.push([index, index + 1]);
    });
    return found;
}

function round(value) {
    return Math.round(value * 100) / 100;
}
