/** The page: follows virt-rapld, and shows the view that the address names. */

import { doctor, Follower, report, run } from "./commands.js";
import { element, prose, renewer, set } from "./dom.js";
import { DomainView } from "./domain_view.js";
import { formats } from "./format.js";
import { Curves, STEP_SECONDS } from "./curves.js";
import { openMeterDialog } from "./meter_dialog.js";
import * as model from "./model.js";
import { Overview } from "./overview.js";
import { ReportView } from "./report_view.js";
import { failureText, notice } from "./texts.js";
import * as theme from "./theme.js";

const _ = cockpit.gettext;

const GROUP = "virt-rapl";
const REPORTS_MILLISECONDS = 60_000;
const CHECKS_MILLISECONDS = 15_000; // at the earliest after the last ones

class Page {
    constructor(user) {
        this.user = user;
        this.formats = formats(cockpit.language);
        this.permission = cockpit.permission({ admin: true });
        this.curves = restored();
        this.document = null;
        this.failed = { kind: "connecting" };
        this.today = this.month = null;
        this.reportedAt = -Infinity;
        this.checks = [];
        this.news = 0; // how often reports and checks have come
        this.notices = element("div", { class: "stack", role: "status" });
        this.renewNotices = renewer(this.notices, found => found.map(noticeNode));
        this.empty = element("div", { class: "empty" });
        this.renewEmpty = renewer(this.empty, failure => this._emptyNodes(failure));
        this.view = element("div");
        document.body.append(element("main", { class: "page" }, this._header(), this.notices, this.empty, this.view));
        document.title = _("VM energy");
        document.documentElement.lang = cockpit.language.replace("_", "-");

        this.permission.addEventListener("changed", () => this.isMember ? this._show() : this._follow());
        cockpit.addEventListener("locationchanged", () => this._route());
        for (const each of [cockpit, document])
            each.addEventListener("visibilitychange", () => { this._show(); this._age() });
        window.addEventListener("pagehide", () => save(this.curves));
        setInterval(() => this._age(), 1000);
        this._follow();
        this._route();
    }

    /** Whether this user may ask virt-rapld, without other rights. */
    get isMember() {
        return this.user.id === 0 || (this.user.groups ?? []).includes(GROUP);
    }

    /** The rights to read with: the user's own if they suffice, else administrative ones if there are any. */
    get superuser() {
        return this.isMember ? null : "try";
    }

    /** Connect to virt-rapld, with the rights that there are now. */
    _follow() {
        this.follower?.stop();
        this.follower = new Follower(this.superuser, document => this._take(document), error => {
            const may = this.isMember || this.permission.allowed;
            this.failed = { kind: model.failure(error, may), message: error.message, hint: error.hint };
            this.document = null;
            this._show();
        });
        this._show();
    }

    _take(made) {
        const seconds = this.takenAt = Date.now() / 1000;
        if (made.host.sampled_at !== this.document?.host.sampled_at)
            this.sampledAt = seconds;
        const isFirst = this.document === null;
        this.document = made;
        this.failed = null;
        this.curves.add(seconds, made);
        this._show();
        if (isFirst)
            this.reportedAt = -Infinity;
        this._age();
        const states = JSON.stringify(made.domains.map(each => [each.uuid, each.vrapl, each.channel]));
        if (isFirst || (states !== this.checked && performance.now() > this.checkedAt + CHECKS_MILLISECONDS)) {
            this.checked = states;
            this._check();
        }
    }

    /** Whether anybody sees the page. Cockpit keeps it while it shows another one of its pages. */
    get isSeen() {
        return !document.hidden && !cockpit.hidden;
    }

    /** Say how old the figures are when no new ones come, and ask for reports when those that there are have aged. */
    _age() {
        if (this.document && Date.now() / 1000 > this.sampledAt + 2)
            this._show();
        if (this.document && this.isSeen && performance.now() > this.reportedAt + REPORTS_MILLISECONDS)
            this._report();
    }

    async _report() {
        this.reportedAt = performance.now();
        this.today = await report(["--since", "today"], this.superuser);
        this.month = await report(["--since", "this month"], this.superuser);
        this.news++;
        this._show();
    }

    async _check() {
        this.checkedAt = performance.now();
        this.checks = await doctor();
        this.news++;
        this._show();
    }

    _route() {
        const [name, uuid] = cockpit.location.path;
        const isFirst = !this.current;
        if (this.current === this.overview)
            this.scrolled = window.scrollY;
        const act = (row, action) => openMeterDialog(row, action, () => this._check());
        if (name === "domain" && uuid)
            this.current = new DomainView(uuid, this.formats, act, this.superuser);
        else if (name === "report")
            this.current = new ReportView(this.formats, this.superuser);
        else
            this.current = this.overview ??= new Overview(this.formats, act, () => this._check());
        this.view.replaceChildren(this.current.node);
        const isOverview = this.current === this.overview;
        set(this.toOverview, "aria-current", isOverview ? "page" : null);
        set(this.toReport, "aria-current", name === "report" ? "page" : null);
        this._show();
        if (isFirst)
            return;
        // As if a page had been loaded: what had the focus is gone.
        this.current.node.querySelector("h1").focus({ preventScroll: true });
        window.scrollTo(0, isOverview ? this.scrolled ?? 0 : 0);
    }

    /** Bring what is seen up to date; nothing is done for a page that nobody sees. */
    _show() {
        if (!this.isSeen)
            return;
        this.empty.hidden = !this.failed;
        this.view.hidden = Boolean(this.failed);
        if (this.failed) {
            this.renewNotices([]);
            this.renewEmpty({ ...this.failed, mayStart: Boolean(this.permission.allowed) });
            return;
        }
        const seconds = Date.now() / 1000;
        const mayChange = this.permission.allowed;
        const about = { sampledAt: this.sampledAt, seconds, mayChange, report: this.month };
        this.renewNotices(model.notices(this.document, about).map(found => (
            { ...notice(found, this.formats), level: found.level })));
        this.current?.update({
            document: this.document, curves: this.curves, news: this.news, mayChange,
            // A step of the curves that has just begun is not empty: its first document is on its way.
            seconds: seconds < this.takenAt + STEP_SECONDS ? this.takenAt : seconds,
            rows: model.rows(this.document, this.today?.rows ? this.today : null,
                this.month?.rows ? this.month : null, this.checks),
            problems: model.problems(this.checks),
        });
    }

    _header() {
        this.toOverview = element("a", { href: "#/", class: "page-title" }, _("VM energy"));
        this.toReport = element("a", { href: "#/report", class: "button link" }, _("Report"));
        return element("nav", { class: "page-head", "aria-label": _("VM energy") }, this.toOverview, this.toReport);
    }

    _emptyNodes({ kind, message, hint, mayStart }) {
        const [title, text, command] = failureText(kind, this.user.name);
        const words = [message, hint].filter(Boolean).join("; ");
        const isAway = kind === "away";
        const start = element("button", {
            type: "button", class: "button primary", disabled: !mayStart, onclick: async () => {
                start.disabled = true;
                const { done, message: trouble } = await run(command.split(" "), { superuser: "require" });
                start.disabled = false;
                if (done)
                    this._follow();
                else
                    said.textContent = trouble;
            },
        }, _("Start virt-rapld"));
        const said = element("p", { class: "reason", role: "alert" });
        return [
            element("h1", {}, title), element("p", {}, text),
            kind !== "not-installed" && words ? element("p", { class: "reason" }, ...prose(words)) : "",
            command ? element("p", {}, element("code", {}, command)) : "", isAway ? start : "", said,
        ];
    }
}

function noticeNode({ level, title, text }) {
    return element("div", { class: `notice ${level}` },
        element("strong", {}, title), text ? element("p", {}, ...prose(text)) : null);
}

/** Return where curves are kept: Cockpit may show several hosts in one tab. */
function place() {
    return `virt-rapl:${cockpit.transport.host}`;
}

/** Cockpit loads its pages anew when administrative access is turned on or off: the curves shall go on. */
function save(curves) {
    try {
        sessionStorage.setItem(place(), JSON.stringify(curves.saved(Date.now() / 1000)));
    } catch (error) {
        console.log(`virt-rapl: the curves begin anew: ${error}`); // there may be little room
    }
}

function restored() {
    const curves = new Curves();
    try {
        const kept = sessionStorage.getItem(place());
        if (kept)
            curves.restore(JSON.parse(kept));
        return curves;
    } catch (error) {
        console.log(`virt-rapl: the curves begin anew: ${error}`); // it is of another version, say
        return new Curves();
    }
}

theme.follow();
cockpit.user().then(user => new Page(user));
