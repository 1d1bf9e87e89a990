"""A client of servers that speak OpenAI's chat API: LM Studio, llama.cpp, vLLM, or a hosted one."""

from collections.abc import Mapping
from typing import Any

from labd.llm.base import Asked, Counts, count, mapping, seconds
from labd.llm.compatible import CompatibleServer
from labd.llm.draft import Draft, max_reply_bytes
from labd.llm.errors import (
    EndpointDown,
    EndpointMisconfigured,
    EndpointSilent,
    RequestRefused,
)
from labd.llm.model import Cancel, Endpoint, Options, Timeouts, name_of
from labd.llm.wire import Exchange, Patience

_USAGE_S = 5.0
"""For the counts that follow the end of the text; a reply is whole without them."""
_NO_DATA = (b":", b"event:", b"id:", b"retry:", b"\r")
_END: dict[str, Any] = {}
"""The end of a stream of events, told apart from an empty event by identity."""


class OpenAIClient(CompatibleServer):
    """Talks with one OpenAI-compatible server. Safe for threads; opens connections as needed and keeps them."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        super().__init__(endpoint, timeouts)
        self._limit_name = "max_tokens"

    # -- chat

    def _prepare(self, cancel: Cancel | None) -> None:
        if self._server is None:
            self._models(cancel)

    def _asked_ctx(self, options: Options) -> int:  # noqa: ARG002
        return 0

    def _window(self, options: Options) -> int:
        return self._windows.get(name_of(options.model), 0)

    def _converse(self, asked: Asked, patience: Patience, draft: Draft) -> Counts:
        while True:
            limit_name = self._limit_name
            try:
                with self._wire.exchange(
                    "POST",
                    "/v1/chat/completions",
                    self._body(asked, limit_name),
                    patience=patience,
                    judge=self._judge_for(asked.options),
                    cancel=asked.cancel,
                    max_bytes=max_reply_bytes(asked.options),
                ) as exchange:
                    return self._read_events(exchange, draft, asked.options)
            except RequestRefused as error:
                # Newer models of hosted servers want the other name, local servers may not know it.
                if limit_name == "max_completion_tokens" or limit_name not in error.what:
                    raise
                if "max_completion_tokens" not in error.what:
                    raise
                self._limit_name = "max_completion_tokens"

    def _body(self, asked: Asked, limit_name: str) -> dict[str, Any]:
        options, schema = asked.options, asked.schema
        given = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "seed": options.seed,
            "stop": list(options.stop) or None,
            limit_name: options.num_predict if options.num_predict > 0 else None,
        }
        form = {"name": "reply", "strict": True, "schema": schema}
        return {
            **self._thinking(options),
            **options.more,
            "model": options.model,
            "messages": [{"role": each.role, "content": each.content} for each in asked.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in given.items() if value is not None},
            **(
                {}
                if schema is None
                else {"response_format": {"type": "json_schema", "json_schema": form}}
            ),
        }

    def _thinking(self, options: Options) -> dict[str, Any]:
        if self._server in {"llamacpp", "vllm"}:
            return {"chat_template_kwargs": {"enable_thinking": options.think is not False}}
        if options.think is False:
            return {}
        return {"reasoning_effort": "medium" if options.think is True else options.think}

    def _read_events(self, exchange: Exchange, draft: Draft, options: Options) -> Counts:
        reason = ""
        last: dict[str, Any] = {}
        try:
            for line in exchange.lines():
                event = self._event(exchange, line, options)
                if event is None:
                    continue
                if event is _END:
                    break
                if event.get("usage"):
                    last = event
                ended = self._take(exchange, draft, event)
                if ended:
                    reason = ended
                    exchange.link.expect("the counts after the reply", _USAGE_S)
        except (EndpointSilent, EndpointDown):
            if not reason:
                raise
        if not reason:
            raise self._broken_off("the reply ended without a finish_reason, so it is not whole")
        return self._counts(reason, last)

    def _event(self, exchange: Exchange, line: bytes, options: Options) -> "dict[str, Any] | None":
        """Give the object of one line of the stream; ``None`` for lines that hold none, `_END` at the end."""
        streamed = line.startswith(b"data:")
        if streamed:
            line = line[5:].strip()
            if line == b"[DONE]":
                return _END
        elif line.startswith(_NO_DATA):
            return None
        event = self._object(exchange, line)
        if event.get("error"):
            raise self._mid_stream(event["error"], line.decode(), options)
        if not streamed:
            raise self._not_streamed(line)
        return event

    def _not_streamed(self, line: bytes) -> EndpointMisconfigured:
        return EndpointMisconfigured(
            f"the server does not stream: {self._faults.quote(line.decode(errors='replace'), 120)}",
            where=self.where,
            fix="labd needs `stream: true` to be honoured; check the proxy before the server",
        )

    def _take(self, exchange: Exchange, draft: Draft, event: Mapping[str, Any]) -> str:
        """Add an event's text to the draft, and give the reason if the reply ends with it."""
        choices = event.get("choices")
        choice = mapping(choices[0]) if isinstance(choices, list) and choices else {}
        delta = mapping(choice.get("delta"))
        content = self._piece(delta.get("content"))
        thinking = self._piece(delta.get("reasoning_content") or delta.get("reasoning"))
        if content or thinking:
            draft.add(exchange, content, thinking)
        reason = choice.get("finish_reason")
        return reason if isinstance(reason, str) else ""

    def _counts(self, reason: str, last: Mapping[str, Any]) -> Counts:
        if reason == "content_filter":
            raise RequestRefused(
                "the server's content filter ended the reply",
                where=self.where,
                fix="Change the prompt, or use another model",
            )
        if reason == "error":
            raise self._faults.failed("ended the reply with an error")
        usage, timings = mapping(last.get("usage")), mapping(last.get("timings"))
        return Counts(
            done_reason=reason,
            prompt_tokens=count(usage, "prompt_tokens"),
            output_tokens=count(usage, "completion_tokens"),
            prompt_s=seconds(timings, "prompt_ms", 1e3),
            output_s=seconds(timings, "predicted_ms", 1e3),
        )
