/** The dialog in which a meter is given to a domain or taken from it: it shows what will happen, then does it. */

import { printed, run } from "./commands.js";
import { element, prose, show } from "./dom.js";
import { actionText } from "./domain_table.js";

const _ = cockpit.gettext;

const VIAS = { "": _("As configured"), registers: _("By registers"), channel: _("By the channel"),
               both: _("By both") };

/** Ask about `action` ("enable", "live" or "disable") for a row of the model, and do it; `changed` is called then. */
export function openMeterDialog(row, action, changed) {
    document.body.append(new MeterDialog(row, action, changed).node);
    document.body.lastElementChild.showModal();
}

class MeterDialog {
    constructor(row, action, changed) {
        this.row = row;
        this.action = action;
        this.changed = changed;
        this.now = action === "live" || (action === "enable" && row.running);
        this.via = "";
        const title = {
            enable: _("Give $0 a meter"), live: _("Give $0 its meter now"), disable: _("Take the meter out of $0"),
        }[action].split("$0");
        this.plan = element("div", { class: "plan", "aria-live": "polite" });
        this.difference = element("pre", { tabindex: "0", "aria-label": _("Change to its definition") });
        this.details = element("details", { hidden: true },
            element("summary", {}, _("Change to its definition")), this.difference);
        this.confirm = element("button", {
            type: "button", class: `button ${action === "disable" ? "danger" : "primary"}`, disabled: true,
            onclick: () => this._act(),
        });
        this.cancel = element("button", { type: "button", class: "button link", onclick: () => this.node.close() },
            _("Cancel"));
        this.choices = element("fieldset", { class: "choices", hidden: action === "disable" },
            element("legend", { class: "unseen" }, _("When and how")),
            ...action === "enable" && row.running ? this._when() : [], ...this._how());
        this.node = element("dialog", {
            class: "dialog", "aria-labelledby": "dialog-title",
            oncancel: event => this.busy && event.preventDefault(),
            // Browsers close it all the same when Esc is pressed again.
            onclose: () => this.busy ? this.node.showModal() : this.node.remove(),
        },
        element("h2", { id: "dialog-title" }, title[0], element("bdi", {}, row.name), title[1]),
        this.choices, this.plan, this.details,
        element("div", { class: "buttons" }, this.confirm, this.cancel));
        this._preview();
    }

    _when() {
        const choice = (value, text) => element("label", {},
            element("input", {
                type: "radio", name: "when", checked: this.now === value,
                onchange: () => { this.now = value; this._preview() },
            }), ` ${text}`);
        return [choice(true, _("Now")), choice(false, _("From its next start on"))];
    }

    _how() {
        return [element("label", {}, `${_("How the guest gets its energy")} `,
            element("select", {
                class: "control", onchange: event => { this.via = event.target.value; this._preview() },
            }, ...Object.entries(VIAS).map(([value, text]) => element("option", { value }, text))))];
    }

    /** Return the command. The domain is named by its UUID, which no option looks like. */
    _command(...more) {
        if (this.action === "disable")
            return ["virt-rapl", "disable", ...more, this.row.uuid];
        const how = this.via ? ["--via", this.via] : [];
        return ["virt-rapl", "enable", ...how, ...this.now ? ["--live"] : [], ...more, this.row.uuid];
    }

    /** Show what the command would do, and let it be confirmed if it can be done. */
    async _preview() {
        const command = this._command("--dry-run");
        this.asked = command;
        this.confirm.disabled = true;
        show(this.confirm, actionText(this.action === "disable" ? "disable" : this.now ? "live" : "enable"));
        this.plan.replaceChildren(element("p", { class: "muted" }, _("Checking …")));
        const result = await run(command, { superuser: "require" });
        if (this.asked !== command)
            return; // something else was chosen meanwhile
        const { plan, difference } = split(result.output, printed(this.row.name));
        this.details.hidden = !difference;
        show(this.difference, difference);
        if (!result.done) {
            this._say(result, _("This cannot be done"));
            return;
        }
        const usual = this.action === "disable"
            ? _("The domain's definition becomes what it was before. Registers of a running guest stay until it ends.")
            : _("The guest has its meter from its next start on. A running guest goes on as it is.");
        this.plan.replaceChildren(
            ...[...result.notes, ...plan.length ? plan : [usual]].map(line => element("p", { dir: "auto" }, line)),
            ...result.warnings.map(({ message, hint }) => told("warning", _("Note"), message, hint)));
        this.confirm.disabled = false;
    }

    async _act() {
        this.busy = true;
        this.confirm.disabled = this.cancel.disabled = this.choices.disabled = true;
        const read = output => this.plan.replaceChildren(element("p", { class: "muted" }, _("Working …")),
            ...output.trim().split("\n").map(line => element("p", { dir: "auto" }, line)));
        read("");
        const result = await run(this._command(), { superuser: "require", read });
        this.busy = false;
        this.cancel.disabled = false;
        this.changed();
        if (result.done) {
            this.node.close();
            return;
        }
        this.choices.disabled = false;
        this._say(result, _("This was not done"));
    }

    _say({ message, hint, problem }, title) {
        const text = problem === "access-denied" ? _("It takes administrative access.") : message;
        this.plan.replaceChildren(told("danger", title, text, hint));
    }
}

function told(level, title, message, hint) {
    return element("div", { class: `notice ${level}`, role: level === "danger" ? "alert" : null },
        element("strong", {}, title), element("p", { dir: "auto" }, ...prose(message)),
        hint ? element("p", { class: "hint" }, `${_("What to do:")} `, ...prose(hint)) : null);
}

/** Return the lines about a domain in what a dry run printed, and the rest, the change to its definition. */
function split(output, name) {
    const lines = output.split("\n");
    const isPlan = line => line.startsWith(`${name}: `);
    return { plan: lines.filter(isPlan), difference: lines.filter(line => !isPlan(line)).join("\n").trim() };
}
