"""Submitting a task: a form of the usual keys, or a pasted task file; what the checker says stands at the field."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio

from labd.lab import Lab
from labd.page import asking
from labd.page.words import Words
from labd.text import printable

_SAMPLE = "kind: research\ntemplate: digits\nresearcher: sweep\nnum_cpus: 2\n"
_KINDS = ("research", "command", "prompts")

Submitted = Callable[..., list[Any]]


class Form:
    """`submitted` is called with the session, the new task's id and the request; it gives the panels' updates."""

    def __init__(self, lab: Lab, words: Words, submitted: Submitted) -> None:
        self._lab, self._words, self._submitted = lab, words, submitted

    def build(self, session: Any, panels: Sequence[Any]) -> None:
        """Make the form inside the current block."""
        words = self._words
        self._panels = len(panels)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        with gradio.Tabs():
            with gradio.Tab(words("form")):
                gradio.HTML(f"<p>{words('form_note')}</p>", elem_classes="lb", js_on_load=None)
                fields = self._fields()
                form_answer = _answer_panel("form-answer")
                with gradio.Row():
                    check = gradio.Button(words("check"), elem_id="form-check")
                    send = gradio.Button(words("submit"), variant="primary", elem_id="form-submit")
                marked = [*fields[2:], form_answer]
                check.click(self._check_form, fields, marked, **quiet)
                send.click(self._send_form, [session, *fields], [*marked, *panels], **quiet)
            with gradio.Tab(words("yaml")):
                name = gradio.Textbox(label=words("name"), placeholder="my-idea", max_length=200)
                text = gradio.Textbox(
                    _SAMPLE, label=words("task_yaml"), lines=10, max_lines=30, elem_id="task-yaml"
                )
                text_answer = _answer_panel("yaml-answer")
                with gradio.Row():
                    check = gradio.Button(words("check"), elem_id="yaml-check")
                    send = gradio.Button(words("submit"), variant="primary", elem_id="yaml-submit")
                check.click(self._check_text, [text, name], [text_answer], **quiet)
                send.click(self._send_text, [session, text, name], [text_answer, *panels], **quiet)

    def _fields(self) -> list[Any]:
        words = self._words
        with gradio.Row():
            kind = gradio.Dropdown(
                [(words(kind), kind) for kind in _KINDS], value="research", label=words("kind")
            )
            name = gradio.Textbox(label=words("name"), placeholder="my-idea", max_length=200)
            title = gradio.Textbox(label=words("task_title"), max_length=200)
            template = gradio.Textbox(label=words("template"), placeholder="digits")
        run = gradio.Textbox(label=words("run"), placeholder="python train.py --epochs 10")
        with gradio.Row():
            numbers = [
                gradio.Textbox(label=words(key), max_length=20, min_width=110)
                for key in ("max_runs", "seed", "num_cpus", "num_gpus", "priority")
            ]
            timeout = gradio.Textbox(label=words("timeout"), min_width=110)
            labels = gradio.Textbox(label=words("labels"), min_width=110)
        return [kind, name, title, template, run, *numbers, timeout, labels]

    def _check_form(self, kind: str, name: str, *values: Any) -> list[Any]:
        answer = self._answer(kind, name, values, check_only=True)
        return [*self._marked(answer), self._shown(answer, fields=True)]

    def _send_form(
        self, session: Any, kind: str, name: str, request: gradio.Request, *values: Any
    ) -> list[Any]:
        answer = self._answer(kind, name, values, check_only=False)
        return [
            *self._marked(answer),
            self._shown(answer, fields=True),
            *(self._submitted(session, answer.task, request) if answer.ok else self._still()),
        ]

    def _answer(
        self, kind: str, name: str, values: Sequence[Any], *, check_only: bool
    ) -> asking.Answer:
        fields = dict(zip(asking.FORM_KEYS, values, strict=True))
        text = asking.form_text(str(kind), fields)
        return asking.submit(self._lab, text, str(name or ""), self._words, check_only=check_only)

    def _check_text(self, text: str, name: str) -> str:
        answer = asking.submit(self._lab, text, name, self._words, check_only=True)
        return self._shown(answer, fields=False)

    def _send_text(self, session: Any, text: str, name: str, request: gradio.Request) -> list[Any]:
        answer = asking.submit(self._lab, text, name, self._words)
        shown = self._shown(answer, fields=False)
        after = self._submitted(session, answer.task, request) if answer.ok else self._still()
        return [shown, *after]

    def _marked(self, answer: asking.Answer) -> list[Any]:
        """Give an update for each field: what is wrong with it, or nothing."""
        wrong = {one.key.partition(".")[0]: one.text for one in answer.problems}
        return [
            gradio.update(
                info=printable(wrong[key], 300) if key in wrong else "",
                elem_classes=["field-bad"] if key in wrong else [],
            )
            for key in asking.FORM_KEYS
        ]

    def _shown(self, answer: asking.Answer, *, fields: bool) -> str:
        return str(asking.shown(answer, self._words, fields=fields))

    def _still(self) -> list[Any]:
        return [gradio.skip()] * self._panels


def _answer_panel(name: str) -> Any:
    return gradio.HTML("", elem_id=name, elem_classes="lb", js_on_load=None)
