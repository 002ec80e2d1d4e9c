/** A stream of lines, and how long to wait before it is opened again. */

/** Return a function that takes pieces of text, and calls `take` with each line once all of it has come. */
export function splitter(take) {
    let pieces = [];
    return text => {
        const lines = text.split("\n");
        if (lines.length === 1) {
            pieces.push(text);
            return;
        }
        lines[0] = pieces.join("") + lines[0];
        pieces = [lines.pop()];
        lines.filter(Boolean).forEach(take);
    };
}

/** Return how many seconds to wait before the n-th attempt, counted from 0. */
export function pause(attempt) {
    return Math.min(2 ** attempt, 15);
}
