/** What the page shows, made of virt-rapld's document, of reports and of what doctor found. */

/** Return the rows of the table of domains. `today` and `month` are reports by domain, or null. */
export function rows(document, today, month, checks) {
    const ofToday = byUuid(today);
    const ofMonth = byUuid(month);
    const findings = byDomain(document.domains.map(domain => domain.name), checks);
    return document.domains.map(domain => row(domain, findings.get(domain.name) ?? [], {
        today: used(today, ofToday, domain.uuid),
        month: used(month, ofMonth, domain.uuid),
    }));
}

function row(domain, findings, energy) {
    const reasons = [domain.reason, domain.channel_reason, domain.helper?.note].filter(Boolean);
    const more = findings.map(each => each.message).filter(text => !reasons.some(reason => text.includes(reason)));
    const channel = domain.channel ?? "off";
    return {
        ...energy,
        uuid: domain.uuid,
        name: domain.name,
        title: domain.title ?? "",
        labels: Object.values(domain.labels ?? {}),
        state: domain.state,
        running: domain.pid !== null,
        watts: domain.unread ? null : domain.power_watts,
        joules: domain.energy_joules,
        registers: domain.vrapl,
        channel,
        channelPending: Boolean(domain.channel_pending),
        reasons: [...reasons, ...more],
        hints: [...new Set(findings.map(each => each.hint).filter(Boolean))],
        actions: actions(domain),
    };
}

function isEnabled(domain) {
    return domain.vrapl !== "off" || (domain.channel ?? "off") !== "off" || Boolean(domain.channel_pending);
}

/** Return what can be done to a domain, the likeliest first. `live`: it is enabled, and could have its meter now. */
export function actions(domain) {
    if (!isEnabled(domain))
        return ["enable"];
    const hasIt = domain.vrapl === "active" || (domain.vrapl === "off" && (domain.channel ?? "off") !== "off");
    return domain.pid !== null && !hasIt ? ["live", "disable"] : ["disable"];
}

function byUuid(report) {
    return new Map((report?.rows ?? []).map(row => [row.uuid, row]));
}

/** Return what a domain used by a report: nothing where it has no row, null where there is no report. */
function used(report, found, uuid) {
    if (!report)
        return null;
    const nothing = { kwh: 0, cost: report.host.cost === null ? null : 0,
                      grams_co2e: report.host.grams_co2e === null ? null : 0, currency: report.host.currency };
    return found.get(uuid) ?? nothing;
}

/** Return what doctor says of each domain, by its name, with which such a message begins. */
function byDomain(names, checks) {
    const longestFirst = [...names].sort((one, other) => other.length - one.length);
    const found = new Map();
    for (const check of checks.filter(isProblem)) {
        const name = check.name === "domains" && longestFirst.find(each => check.message.startsWith(`${each}: `));
        if (name)
            found.set(name, [...found.get(name) ?? [], { ...check, message: check.message.slice(name.length + 2) }]);
    }
    return found;
}

function isProblem(check) {
    return check.state === "failed" || check.state === "warning";
}

/** Return what doctor says of the host: failures first. */
export function problems(checks) {
    const ofHost = checks.filter(check => isProblem(check) && check.name !== "domains");
    return [...ofHost.filter(check => check.state === "failed"), ...ofHost.filter(check => check.state === "warning")];
}

/**
 * Return what is to be said above the figures, the gravest first: its kind, and details in virt-rapl's words.
 * `sampledAt`: when the counters were read last, in `seconds` as now is.
 */
export function notices(document, { sampledAt, seconds, mayChange, report }) {
    const { host, domains } = document;
    const found = [];
    if (seconds - sampledAt > Math.max(5, 3 * host.interval_seconds))
        found.push({ kind: "old", level: "danger", since: sampledAt });
    if (host.source === "simulated")
        found.push({ kind: "simulated", level: "warning" });
    if (host.libvirt_trouble)
        found.push({ kind: "libvirt", level: "warning", detail: host.libvirt_trouble });
    const trouble = (host.trouble ?? "").split("; ").filter(each => each && each !== host.libvirt_trouble).join("; ");
    if (trouble && trouble !== host.libvirt_trouble)
        found.push({ kind: "unread", level: "warning", detail: trouble });
    if (report?.error)
        found.push({ kind: "no-report", level: "info", detail: report.error });
    if (domains.length && !domains.some(isEnabled))
        found.push({ kind: "none-enabled", level: "info" });
    if (mayChange === false)
        found.push({ kind: "read-only", level: "info" });
    return found;
}

/** Return why there is no document. `member`: whether this user may ask virt-rapld. */
export function failure({ problem, message }, member) {
    if (problem === "not-found")
        return "not-installed";
    if (problem === "access-denied" || (message && !member))
        return "no-permission";
    return "away";
}

/** Return an instant of a report, to the minute, as the host's clock shows it; days and months stay what they are. */
export function localTime(instant = "") {
    return instant.slice(0, 16).replace("T", " ");
}

/** Return the rows of a report by hour, day or month, with those in which nothing was used. */
export function timeline(report) {
    const found = new Map(report.rows.map(row => [row.key, row]));
    const nothing = key => ({ key, kwh: 0, cost: null, grams_co2e: null });
    return keys(report).map(key => found.get(key) ?? nothing(key));
}

/** Return the hours, days or months from a report's beginning to its end, as its rows call them. */
function keys({ by, since, until, rows: given }) {
    if (by === "hour") {
        const ofRows = new Map(given.map(row => [Date.parse(row.key), row.key]));
        return counted(Date.parse(`${since.slice(0, 13)}:00${offset(since)}`), Date.parse(until), 3_600_000)
            .map(each => ofRows.get(each) ?? local(each, since));
    }
    const first = Date.parse(since.slice(0, 10));
    const days = counted(first, Math.max(Date.parse(local(Date.parse(until) - 1, until).slice(0, 10)) + 1, first + 1),
        86_400_000).map(each => new Date(each).toISOString().slice(0, 10));
    return by === "day" ? days : [...new Set(days.map(day => day.slice(0, 7)))];
}

function counted(from, to, step) {
    const found = [];
    for (let each = from; each < to; each += step)
        found.push(each);
    return found;
}

/** Return the offset from UTC that an instant is written with. */
function offset(instant) {
    return instant.endsWith("Z") ? "Z" : instant.slice(-6);
}

/** Return an instant by the offset of another, to the minute. */
function local(milliseconds, like) {
    const [hours, minutes] = offset(like) === "Z" ? [0, 0] : offset(like).slice(1).split(":").map(Number);
    const sign = offset(like).startsWith("-") ? -1 : 1;
    const shifted = milliseconds + sign * (hours * 60 + minutes) * 60_000;
    return new Date(shifted).toISOString().slice(0, 16) + offset(like);
}
