/** Making and changing elements. A string is always text, never HTML: names come from whoever may define a domain. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; its children are nodes or strings. A function as an attribute, `onclick`, is a listener. */
export function element(name, attributes = {}, ...children) {
    return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
    return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function")
            node.addEventListener(name.slice(2), value);
        else if (value === true)
            node.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined)
            node.setAttribute(name, value);
    }
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
}

/** Return nodes for a sentence of virt-rapl's, in which what can be typed stands between backticks. */
export function prose(text) {
    return text.split("`").map((part, index) => index % 2 ? element("code", {}, part) : part);
}

/** Make this the text of an element, and touch nothing if it is already. */
export function show(node, text) {
    if (node.firstChild?.nodeValue === text && node.childNodes.length === 1)
        return;
    node.textContent = text;
}

/** Set an attribute, or remove it for null, and touch nothing if it is so already. */
export function set(node, name, value) {
    if (node.getAttribute(name) === value)
        return;
    if (value === null)
        node.removeAttribute(name);
    else
        node.setAttribute(name, value);
}

/** Return a function that makes the children of an element anew, if what they are made of has changed. */
export function renewer(node, make) {
    let before = "";
    return values => {
        const now = JSON.stringify(values);
        if (now !== before)
            node.replaceChildren(...make(values).filter(child => child !== null));
        before = now;
    };
}

/** Make a table with a caption that only screen readers read. A cell is a string or a node; the last are figures. */
export function table(caption, headings, lines, sums = []) {
    const row = line => element("tr", {}, ...line.map((cell, index) => index
        ? element("td", { class: "number" }, cell)
        : element("th", { scope: "row", dir: "auto" }, cell)));
    const heads = headings.map((heading, index) => element(
        "th", { scope: "col", class: index ? "number" : null }, heading));
    return element("div", { class: "scrolling", tabindex: "0", role: "region", "aria-label": caption },
        element("table", { class: "plain" },
            element("caption", { class: "unseen" }, caption),
            element("thead", {}, element("tr", {}, ...heads)),
            element("tbody", {}, ...lines.map(row)),
            sums.length ? element("tfoot", {}, ...sums.map(row)) : null));
}
