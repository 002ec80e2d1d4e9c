/** Dark or light, as it is chosen in Cockpit's menu, or else in the browser. */

const DARK = window.matchMedia("(prefers-color-scheme: dark)");

function apply(style) {
    const chosen = style ?? localStorage.getItem("shell:style") ?? "auto";
    const dark = chosen === "dark" || (chosen === "auto" && DARK.matches);
    document.documentElement.classList.toggle("pf-v6-theme-dark", dark);
}

export function follow() {
    window.addEventListener("storage", event => event.key === "shell:style" && apply());
    window.addEventListener("cockpit-style", event => apply(event.detail?.style));
    DARK.addEventListener("change", () => apply());
    apply();
}
