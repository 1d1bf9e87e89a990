"""The page in one language: Gradio's blocks around panels that are made elsewhere.

Each open page has a session: what it has chosen, and what it was last sent, so that only what changed is sent.
"""

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import gradio

from labd.errors import LabdError
from labd.lab import Lab, TaskView
from labd.page import asking, detail, overview
from labd.page.campaignpanel import campaigns_panel
from labd.page.charts import distributions
from labd.page.choice import LEVELS, Choice, from_query
from labd.page.form import Form
from labd.page.html import Html, join, tag
from labd.page.labpanel import daemon_log, lab_panel
from labd.page.reportpanel import reports_panel
from labd.page.snapshot import Snapshot, Snapshots
from labd.page.words import Words
from labd.published import read_text, version_of
from labd.task import State
from labd.timeline import Timeline
from labd.trials import NONE, Trials, trials_of, trials_of_steps

TICK_S = 3.0
_RESULT_BYTES = 16 * 2**20
_KEPT_RESULTS = 8
_KINDS = ("research", "command", "prompts")
_PANELS = (
    "pulse",
    "strip",
    "now",
    "table",
    "detail",
    "lab",
    "campaigns",
    "reports",
    "charts",
    "log",
)
_ASSETS = files("labd.page") / "assets"


@dataclass(slots=True)
class Session:
    """One open page."""

    choice: Choice = field(default_factory=Choice)
    sent: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    answer: Html = field(default_factory=lambda: Html(""))
    started: Html = field(default_factory=lambda: Html(""))
    """What came of starting a campaign."""

    def __deepcopy__(self, _memo: object) -> "Session":
        return self  # Gradio copies what it keeps; a session is one, whoever holds it


class Results:
    """The last results that were read, parsed: a chosen task's does not change with every look."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: OrderedDict[tuple[str, str], tuple[dict[str, Any], Trials]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, view: TaskView, *, trials: bool) -> tuple[dict[str, Any], Trials]:
        """Give a task's result, and its trials; of one that has none yet, those so far, if `trials` are wanted."""
        root, task = self._lab.home.results, view.id
        version = version_of(root, task, "result.json")
        if view.state is State.RUNNING or version is None:
            wanted = trials and view.kind == "research"
            return {}, trials_of_steps(self._lab.steps(task)) if wanted else NONE
        with self._lock:
            key = (task, version)
            if key not in self._known:
                self._known[key] = _parsed(read_text(root, task, "result.json", _RESULT_BYTES))
                while len(self._known) > _KEPT_RESULTS:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]


def _parsed(text: str | None) -> tuple[dict[str, Any], Trials]:
    try:
        result = json.loads(text or "")
    except ValueError:
        return {}, NONE
    if not isinstance(result, dict):
        return {}, NONE
    research = result.get("research")
    return result, trials_of(research) if isinstance(research, Mapping) else NONE


class Page:
    """The page of one language over one lab. `blocks` is what Gradio serves."""

    def __init__(
        self, lab: Lab, snapshots: Snapshots, words: Words, *, read_only: bool, signs_in: bool
    ) -> None:
        self._lab, self._snapshots, self._words = lab, snapshots, words
        self._read_only, self._signs_in = read_only, signs_in
        self._results = Results(lab)
        self.blocks = gradio.Blocks(title="labd", analytics_enabled=False)
        with self.blocks:
            self._build()
        self.blocks.queue(default_concurrency_limit=8, api_open=False)

    @staticmethod
    def css() -> str:
        """Give the page's style sheet."""
        return (_ASSETS / "page.css").read_text()

    def head(self) -> str:
        """Give what goes into the document's head: a script of ours."""
        script = (_ASSETS / "page.js").read_text()
        language = self._words.language
        return f"<script>document.documentElement.lang='{language}';\n{script}</script>"

    # --- what is there

    def _build(self) -> None:
        words = self._words
        self._session = gradio.State(None)
        gradio.HTML(self._header(), elem_classes="lb", apply_default_css=False, js_on_load=None)
        self._panels = {
            "pulse": _panel("pulse-panel", _ON_PULSE),
            "strip": _panel("strip", _ON_STRIP),
            "now": _panel("now", _ON_PICK),
        }
        with gradio.Row(elem_id="main"):
            with gradio.Column(scale=3):
                self._build_filters()
                self._panels["table"] = _panel("table", _ON_PICK)
            with gradio.Column(scale=2):
                self._panels["detail"] = _panel("detail", _ON_DETAIL)
        with gradio.Accordion(words("lab"), open=True):
            self._panels["lab"] = _panel("lab")
        with gradio.Accordion(words("campaigns"), open=False):
            self._panels["campaigns"] = _panel("campaigns", _ON_CAMPAIGNS)
        with gradio.Accordion(words("reports"), open=False):
            self._panels["reports"] = _panel("reports", _ON_TIMES)
        with gradio.Accordion(words("distributions"), open=False):
            self._panels["charts"] = _panel("charts")
        with gradio.Accordion(words("daemon_log"), open=False):
            self._level = gradio.Dropdown(
                [(level, level) for level in LEVELS], value="info", label=words("level")
            )
            self._panels["log"] = _panel("log")
        if not self._read_only:
            with gradio.Accordion(words("submit_title"), open=False):
                form = Form(self._lab, words, self._submitted)
                form.build(self._session, list(self._panels.values()))
        self._connect()

    def _header(self) -> Html:
        words = self._words
        other = "en" if words.language == "ko" else "ko"
        links = [
            tag("a", words("other_language"), href=f"/{other}/", lang=other, data_language=other)
        ]
        if self._signs_in:
            button = tag("button", words("sign_out"), type="submit")
            links.append(tag("form", button, method="post", action="/sign-out"))
        return tag("header", tag("h1", words("title")), tag("nav", *links), class_="head")

    def _build_filters(self) -> None:
        words = self._words
        states = [(words("all"), ""), *((words(s.value), s.value) for s in State)]
        kinds = [(words("all"), ""), *((words(kind), kind) for kind in _KINDS)]
        everything = [(words("all"), "")]
        with gradio.Row(elem_id="filters"):
            self._find = gradio.Textbox(
                label=words("find"),
                placeholder=words("find_hint"),
                max_length=200,
                scale=3,
                min_width=180,
            )
            self._state = gradio.Dropdown(states, value="", label=words("state"), min_width=110)
            self._kind = gradio.Dropdown(kinds, value="", label=words("kind"), min_width=110)
            self._label = gradio.Dropdown(
                everything, value="", label=words("label"), min_width=110
            )
            self._owner = gradio.Dropdown(
                everything, value="", label=words("owner"), min_width=110
            )

    # --- what happens

    def _connect(self) -> None:
        panels = list(self._panels.values())
        filters = [self._find, self._state, self._kind, self._label, self._owner]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.blocks.load(
            self._loaded, None, [self._session, *filters, self._level, *panels], **quiet
        )
        gradio.Timer(TICK_S).tick(
            self._ticked, [self._session], [self._label, self._owner, *panels], **quiet
        )
        for one in filters:
            one.change(
                self._filtered,
                [self._session, *filters],
                panels,
                trigger_mode="always_last",
                **quiet,
            )
        self._level.change(self._levelled, [self._session, self._level], panels, **quiet)
        for name, handler in (
            ("table", self._picked),
            ("now", self._picked),
            ("detail", self._chosen),
        ):
            event = "choose" if name == "detail" else "pick"
            getattr(self._panels[name], event)(handler, [self._session], panels, **quiet)
        if not self._read_only:
            for name in ("strip", "detail"):
                self._panels[name].ask(self._asked, [self._session], panels, **quiet)
            self._panels["campaigns"].ask(self._started, [self._session], panels, **quiet)

    def _loaded(self, request: gradio.Request) -> list[Any]:
        session = Session(from_query(dict(request.query_params)))
        choice = session.choice
        snapshot = self._snapshots.get()
        labels, owners = self._choices(snapshot)
        filters = [
            choice.find,
            gradio.update(value=choice.state if choice.state in list(State) else ""),
            gradio.update(value=choice.kind if choice.kind in _KINDS else ""),
            gradio.update(choices=labels, value=_among(labels, choice.label)),
            gradio.update(choices=owners, value=_among(owners, choice.owner)),
        ]
        session.sent["choices"] = _digest(repr((labels, owners)))
        return [session, *filters, choice.level, *self._shown(session)]

    def _ticked(self, session: Session | None) -> list[Any]:
        if session is None:
            return [gradio.skip()] * (2 + len(_PANELS))
        labels, owners = self._choices(self._snapshots.get())
        digest = _digest(repr((labels, owners)))
        if session.sent.get("choices") == digest:
            changes = [gradio.skip(), gradio.skip()]
        else:
            session.sent["choices"] = digest
            changes = [gradio.update(choices=labels), gradio.update(choices=owners)]
        return [*changes, *self._shown(session)]

    def _choices(self, snapshot: Snapshot) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        everything = (self._words("all"), "")
        labels, owners = overview.choices_of(snapshot.views)
        return [everything, *((x, x) for x in labels)], [everything, *((x, x) for x in owners)]

    def _filtered(self, session: Session | None, *said: str | None) -> list[Any]:
        keys = ("find", "state", "kind", "label", "owner")
        return self._changed(
            session, **{key: str(value or "") for key, value in zip(keys, said, strict=True)}
        )

    def _levelled(self, session: Session | None, level: str) -> list[Any]:
        return self._changed(session, level=str(level))

    def _picked(self, session: Session | None, event: gradio.EventData) -> list[Any]:
        return self._changed(session, task=str(_said(event, "id")))

    def _chosen(self, session: Session | None, event: gradio.EventData) -> list[Any]:
        what, value = _said(event, "what"), str(_said(event, "value"))
        return self._changed(session, **({what: value} if what in {"tab", "trial"} else {}))

    def _changed(self, session: Session | None, **changes: str) -> list[Any]:
        if session is None:
            return [gradio.skip()] * len(_PANELS)
        with session.lock:
            if changes.get("task", session.choice.task) != session.choice.task:
                session.answer = Html("")
            session.choice = session.choice.with_(**changes)
        return self._shown(session)

    def _asked(
        self, session: Session | None, event: gradio.EventData, request: gradio.Request
    ) -> list[Any]:
        if session is None:
            return [gradio.skip()] * len(_PANELS)
        verb, task = str(_said(event, "verb")), str(_said(event, "id"))
        view = self._snapshots.get().find(task)
        answer = asking.ask(
            self._lab, verb, view.id if view else task, _said(event, "priority"), self._words
        )
        _tell(request, verb, task)
        self._snapshots.look_now()
        session.answer = asking.shown(answer, self._words, fields=False)
        return self._shown(session)

    def _started(
        self, session: Session | None, event: gradio.EventData, request: gradio.Request
    ) -> list[Any]:
        if session is None:
            return [gradio.skip()] * len(_PANELS)
        name, step = str(_said(event, "campaign")), str(_said(event, "step"))
        answer = asking.start(self._lab, name, step, self._words)
        _tell(request, "start", f"{name} {step}".strip())
        self._snapshots.look_now()
        session.started = asking.shown(answer, self._words, fields=False)
        return self._shown(session)

    def _submitted(self, session: Session | None, task: str, request: gradio.Request) -> list[Any]:
        _tell(request, "submit", task)
        self._snapshots.look_now()
        return self._changed(session, task=task, tab="overview")

    # --- what is shown

    def _shown(self, session: Session) -> list[Any]:
        """Give an update for each panel that is not as this session last got it."""
        with session.lock:
            snapshot = self._snapshots.get()
            made = self._made(snapshot, session)
            updates = []
            for name in _PANELS:
                digest = _digest(made[name])
                same = session.sent.get(name) == digest
                session.sent[name] = digest
                updates.append(gradio.skip() if same else str(made[name]))
        return updates

    def _made(self, snapshot: Snapshot, session: Session) -> dict[str, Html]:
        words, choice = self._words, session.choice
        return {
            "pulse": self._pulse(snapshot, choice),
            "strip": self._strip(snapshot),
            "now": overview.titled(words("now"), overview.running(snapshot, words)),
            "table": overview.table(snapshot, choice, words),
            "detail": self._detail(snapshot, session),
            "lab": lab_panel(snapshot, words),
            "campaigns": join(
                (session.started, campaigns_panel(snapshot, words, read_only=self._read_only))
            ),
            "reports": reports_panel(snapshot.reports, words),
            "charts": self._cached_charts(snapshot),
            "log": daemon_log(snapshot.log, choice.level, words),
        }

    def _pulse(self, snapshot: Snapshot, choice: Choice) -> Html:
        plain = asdict(Choice())
        query = {key: value for key, value in asdict(choice).items() if value != plain[key]}
        return tag("div", overview.pulse(snapshot, self._words), data_query=urlencode(query))

    def _strip(self, snapshot: Snapshot) -> Html:
        words = self._words
        verb = "resume" if snapshot.paused else "pause"
        button = tag("button", words(verb), type="button", class_="ask", data_ask=verb)
        dashboard = str(snapshot.status.facts.get("dashboard_url") or "")
        link = None
        if dashboard and snapshot.status.up:
            link = tag(
                "a",
                words("dashboard"),
                href=f"http://{dashboard}",
                target="_blank",
                rel="noopener noreferrer",
            )
        return join(
            (
                overview.strip(snapshot, words, read_only=self._read_only),
                tag("div", None if self._read_only else button, " ", link, class_="actions"),
            )
        )

    def _cached_charts(self, snapshot: Snapshot) -> Html:
        known = getattr(self, "_charts", None)
        if known is None or known[0] is not snapshot:
            self._charts = known = (
                snapshot,
                distributions(snapshot.views, snapshot.counts, self._words),
            )
        return known[1]

    def _detail(self, snapshot: Snapshot, session: Session) -> Html:
        choice, words = session.choice, self._words
        view = snapshot.find(choice.task) if choice.task else None
        heading, answer = words("selected"), tag("div", session.answer, id="answer")
        if view is None:
            return overview.titled(heading, answer, detail.nothing(choice, words))
        try:
            result, trials = self._results.of(view, trials=choice.tab == "trials")
            stages = snapshot.stages.get(view.id) or Timeline(self._lab, view.id).read()
            seen = detail.Seen(self._lab, snapshot, view, choice, words, result, trials, stages)
            panel = detail.panel(seen, read_only=self._read_only)
        except LabdError as error:
            panel = tag("p", str(error), class_="bad")
        return overview.titled(heading, answer, panel)


def _panel(name: str, script: str | None = None) -> Any:
    return gradio.HTML(
        "", elem_id=name, elem_classes="lb", apply_default_css=False, js_on_load=script
    )


def _among(choices: list[tuple[str, str]], value: str) -> str:
    return value if any(value == known for _, known in choices) else ""


def _said(event: gradio.EventData, key: str) -> Any:
    data = event._data  # noqa: SLF001 - its attributes raise for what is not there
    return data.get(key, "") if isinstance(data, Mapping) else ""


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _tell(request: gradio.Request, verb: str, task: str) -> None:
    user = str(request.headers.get("x-labd-user") or "somebody")
    print(f"labd: the page: {user!r} asked: {verb} {task!r}", file=sys.stderr)  # noqa: T201 - its log


Handler = Callable[..., list[Any]]

_ON_PULSE = """
const told = () => {
  labd.pulse(element);
  const holder = element.querySelector("[data-query]");
  if (holder) labd.address(holder.dataset.query);
};
watch("value", told);
told();
"""
_ON_STRIP = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-ask]");
  if (button) trigger("ask", { verb: button.dataset.ask });
});
"""
_ON_TIMES = """
watch("value", labd.times);
labd.times();
"""
_ON_CAMPAIGNS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-start]");
  if (button && window.confirm(button.dataset.sure)) trigger("ask", { campaign: button.dataset.start, step: button.dataset.step });
});
watch("value", labd.times);
labd.times();
"""
_ON_PICK = """
element.addEventListener("click", (event) => {
  const row = event.target.closest("[data-id]");
  if (!row) return;
  for (const one of element.querySelectorAll("tr[data-id]")) one.setAttribute("aria-selected", String(one.dataset.id === row.dataset.id));
  trigger("pick", { id: row.dataset.id });
});
element.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) labd.move(event, "button.pick", step);
});
watch("value", labd.times);
labd.times();
"""
_ON_DETAIL = """
element.addEventListener("click", (event) => {
  const tab = event.target.closest("[data-tab]");
  const trial = event.target.closest("[data-trial]");
  const button = event.target.closest("[data-ask]");
  if (tab) trigger("choose", { what: "tab", value: tab.dataset.tab });
  else if (trial) trigger("choose", { what: "trial", value: trial.dataset.trial });
  else if (button && (!button.dataset.sure || window.confirm(button.dataset.sure))) {
    const priority = element.querySelector("#new-priority");
    trigger("ask", { verb: button.dataset.ask, id: button.dataset.id, priority: priority ? Number(priority.value) : null });
  }
});
element.addEventListener("keydown", (event) => {
  const trial = event.target.closest("[data-trial]");
  if (trial && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    trigger("choose", { what: "trial", value: trial.dataset.trial });
  }
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && event.target.closest("[data-tab]")) {
    const next = labd.move(event, "[data-tab]", step);
    if (next) trigger("choose", { what: "tab", value: next.dataset.tab });
  }
});
watch("value", () => { labd.times(); labd.sticky(element); });
"""
