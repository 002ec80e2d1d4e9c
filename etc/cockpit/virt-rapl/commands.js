/** Running virt-rapl, through Cockpit, as the user who is logged in or with administrative rights. */

import { pause, splitter } from "./lines.js";

// virt-rapl is in /usr/local/bin where it was not installed as a package, and sudo's path need not have that. Names of
// domains are printed as they are, whatever the language.
const ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"];

/**
 * Run a command. Returns what it printed, whether it succeeded, what it wrote on standard error (notes() and warnings),
 * and what went wrong: `message` and `hint` in the command's words, `problem` in Cockpit's. `superuser`: null, "try" or
 * "require". `read` takes output as it grows.
 */
export function run(command, { superuser = null, read = () => {} } = {}) {
    let output = "";
    const process = cockpit.spawn(command, { superuser, err: "message", environ: ENVIRONMENT });
    process.stream(text => {
        output += text;
        read(output);
    });
    return new Promise(resolve => process.then(
        (_data, errors) => resolve({
            done: true, output, notes: notes(errors), warnings: said("warning", errors),
            message: "", hint: "", problem: null,
        }),
        error => resolve({
            done: false, output, notes: [], warnings: [], problem: error.problem ?? null, ...words(error),
        })));
}

/** Return what a command of ours wrote on standard error, or Cockpit's reason why it did not run. */
function words({ message, problem }) {
    const [error] = said("error", message);
    return error ?? { message: (message ?? "").split("\n").filter(Boolean).join("; ") || problem || "", hint: "" };
}

/** Return what a command of ours wrote on standard error, of one kind: "error" or "warning". */
export function said(kind, text) {
    const lines = (text ?? "").split("\n");
    const beginning = `virt-rapl: ${kind}: `;
    return lines.flatMap((line, index) => line.startsWith(beginning) ? [{
        message: line.slice(beginning.length),
        hint: lines[index + 1]?.startsWith("hint: ") ? lines[index + 1].slice("hint: ".length) : "",
    }] : []);
}

/** Return what else a command of ours wrote there. */
export function notes(text) {
    return (text ?? "").split("\n").filter(line => /^virt-rapl: (?!error: |warning: )/.test(line))
        .map(line => line.slice("virt-rapl: ".length));
}

const SHORT = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

/** Return a name as a command of ours prints it for people: what could control a terminal is written out. */
export function printed(name) {
    return name.replace(/(?! )[\p{C}\p{Z}]/gu, sign => {
        const code = sign.codePointAt(0);
        const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
        return SHORT[sign] ?? `\\${letter}${code.toString(16).padStart(digits, "0")}`;
    });
}

/** Run a report and return it, or null with the reason. */
export async function report(options, superuser) {
    const { done, output, message, hint } = await run(["virt-rapl", "report", "--json", ...options], { superuser });
    return done ? JSON.parse(output) : { rows: null, error: hint ? `${message}; ${hint}` : message };
}

/** Run doctor and return its checks; it fails where one of them does. */
export async function doctor() {
    const { output } = await run(["virt-rapl", "doctor", "--json"], { superuser: "try" });
    try {
        return JSON.parse(output).checks;
    } catch {
        return []; // it is missing, or was interrupted: what the page shows says so, too
    }
}

/**
 * Follow virt-rapld's documents until stop(), starting anew, after a pause, when the command has ended.
 * `take` is called with each document, `fail` with {problem, message, hint} when none comes.
 */
export class Follower {
    constructor(superuser, take, fail) {
        this.superuser = superuser;
        this.take = take;
        this.fail = fail;
        this.attempt = 0;
        this.process = null;
        this.timer = null;
        this.start();
    }

    start() {
        const command = ["virt-rapl", "status", "--json", "--watch"];
        const process = cockpit.spawn(command, { superuser: this.superuser, err: "message", environ: ENVIRONMENT });
        this.process = process;
        process.stream(splitter(line => this.process === process && this._read(line)));
        process.then(() => this._ended(process, { problem: null, message: "" }),
                     error => this._ended(process, error));
    }

    stop() {
        const process = this.process;
        this.process = null;
        clearTimeout(this.timer);
        process?.close("terminated");
    }

    _read(line) {
        const document = JSON.parse(line);
        if (document.host.overruns === null) {
            // virt-rapld does not run, and the command measures by itself, from now on: those are no totals.
            this.process.close("terminated");
            return;
        }
        this.attempt = 0;
        this.take(document);
    }

    _ended(process, error) {
        if (this.process !== process)
            return;
        this.process = null;
        const measured = error.problem === "terminated";
        this.fail(measured ? { problem: null, message: "", hint: "" } : { problem: error.problem, ...words(error) });
        this.timer = setTimeout(() => this.start(), pause(this.attempt++) * 1000);
    }
}
