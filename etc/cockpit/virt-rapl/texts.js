/** The words of states, in the user's language. */

const _ = cockpit.gettext;

/** Of a meter by registers; `off` has no label. */
export const REGISTERS = {
    active: _("Active"),
    pending: _("At next start"),
    degraded: _("Degraded"),
};

export const CHANNEL = {
    connected: _("Channel: connected"),
    waiting: _("Channel: waiting"),
    stalled: _("Channel: stalled"),
    pending: _("Channel: at next start"),
};

export const OFF = _("Off");

const MEANINGS = {
    active: _("The guest reads its own energy"),
    pending: _("The guest gets its meter when it starts the next time"),
    degraded: _("The guest should read its own energy, and runs without it"),
    connected: _("The guest gets its energy by the channel, each second"),
    waiting: _("The channel is there, and the guest does not get its energy by it yet"),
    stalled: _("The guest has opened the channel and does not read it"),
    "pending channel": _("The guest has its channel from its next start on"),
    off: _("The guest has no meter of its own; its energy is measured from the host like that of any other"),
};

const COLORS = { active: "green", connected: "green", pending: "blue", "pending channel": "blue", waiting: "orange",
                 stalled: "orange", degraded: "red", off: "grey" };

/** Return the labels of a domain's meter: their text, what they mean, and their colour. */
export function labels(row) {
    const found = [];
    if (row.registers !== "off")
        found.push([row.registers, REGISTERS[row.registers]]);
    if (row.channel !== "off")
        found.push([row.channel, CHANNEL[row.channel]]);
    else if (row.channelPending)
        found.push(["pending channel", CHANNEL.pending]);
    if (!found.length)
        found.push(["off", OFF]);
    return found.map(([state, text]) => ({
        text: text ?? state, meaning: MEANINGS[state] ?? "", color: COLORS[state] ?? "grey",
    }));
}

const STATES = { running: _("running"), paused: _("paused"), "shut off": _("shut off"), crashed: _("crashed"),
                 pmsuspended: _("suspended"), "in shutdown": _("shutting down") };

/** Return virsh's word for a domain's state. */
export function stateText(state) {
    return STATES[state] ?? state;
}

/** Return title and text of a notice. */
export function notice({ kind, since, detail }, formats) {
    const time = since === undefined ? "" : formats.timeOfDay(since * 1000);
    const texts = {
        old: [cockpit.format(_("No new figures since $0"), time), _("What is shown below is old.")],
        simulated: [_("Energy is simulated"), _("It is not what this machine uses.")],
        libvirt: [_("libvirt cannot be asked"), _("Running domains are still measured; others may be missing.")],
        unread: [_("Not everything could be read"), ""],
        "no-report": [_("Energy of today and this month is not known"), ""],
        "none-enabled": [
            _("No guest reads its own energy yet"),
            _("All domains are measured here on the host. Press Enable for a guest that is to read its own energy."),
        ],
        "read-only": [
            _("Limited access"),
            _("To enable and disable meters, turn on administrative access at the top of Cockpit."),
        ],
    };
    const [title, text] = texts[kind];
    return { title, text: [text, detail].filter(Boolean).join(" ") };
}

/** Return title, text and the command to type for the page that has no figures. */
export function failureText(kind, user) {
    return {
        connecting: [_("Waiting for figures"), "", null],
        "not-installed": [
            _("virt-rapl is not installed"),
            _("This page shows what virt-rapl measures. It is a program of its own; install it on this machine."),
            null,
        ],
        "no-permission": [
            _("You may not see energy on this machine"),
            _("Turn on administrative access at the top of Cockpit, or join the group virt-rapl and log in again."),
            `usermod --append --groups virt-rapl ${user}`,
        ],
        away: [
            _("virt-rapld does not answer"),
            _("It measures all domains as long as the machine runs. Nothing is shown until it does."),
            "systemctl enable --now virt-rapld",
        ],
    }[kind];
}
