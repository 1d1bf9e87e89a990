"""A `labd.llm.model.Chat` without a server: its replies come from a function, everything else is as with one."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from labd.llm.errors import BadReply, CutShort, ModelError
from labd.llm.model import Cancel, Message, Options, Reply
from labd.llm.structured import chat_structured

Speaks = Callable[[Sequence[Message], Options], str | ModelError]
"""Gets what was sent, a schema's description and repairs included."""


class Spoken:
    """Has `speaks` reply. Any thread may call; `asked` holds the messages of each round, `options` its options.

    Tokens are counted as four bytes each, or not at all where it is not `counting`. A reply longer than `num_predict`
    is cut.
    """

    def __init__(self, speaks: Speaks | str, *, counting: bool = True) -> None:
        self._counting = counting
        self._speaks = speaks if callable(speaks) else lambda _messages, _options: speaks
        self._lock = threading.Lock()
        self.asked: list[Sequence[Message]] = []
        self.options: list[Options] = []

    @property
    def texts(self) -> list[str]:
        """Give all of what was sent in each round, as one text."""
        return ["\n\n".join(message.content for message in each) for each in self.asked]

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: type[BaseModel] | Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        on_start: Callable[[], None] | None = None,
        following: int = 0,
    ) -> Reply:
        """Give what the function says, checked against the schema as by a pool of endpoints."""
        del following

        def once(
            messages: Sequence[Message],
            options: Options,
            *,
            schema: Mapping[str, Any] | None = None,
            cancel: Cancel | None = None,
        ) -> Reply:
            del schema
            if cancel is not None:
                cancel.check()
            if on_start is not None:
                on_start()
            with self._lock:
                self.asked.append(messages)
                self.options.append(options)
            return self._reply(messages, options)

        try:
            if schema is None:
                reply = once(messages, options, cancel=cancel)
            else:
                reply = chat_structured(once, messages, options, schema, cancel=cancel)
        except BadReply as error:
            error.prompt_tokens *= self._counting
            error.output_tokens *= self._counting
            raise
        if self._counting:
            return reply
        return replace(reply, prompt_tokens=0, output_tokens=0)

    def _reply(self, messages: Sequence[Message], options: Options) -> Reply:
        said = self._speaks(messages, options)
        if isinstance(said, ModelError):
            raise said
        prompt_tokens = sum(tokens(message.content) for message in messages)
        reply = Reply(
            said,
            options.model,
            "spoken",
            "stop",
            prompt_tokens=prompt_tokens,
            output_tokens=tokens(said),
            wall_s=0.25,
            digest="d" * 64,
        )
        if reply.output_tokens <= options.num_predict:
            return reply
        cut = said.encode()[: 4 * options.num_predict].decode(errors="ignore")
        if options.allow_cut:
            return replace(reply, text=cut, output_tokens=options.num_predict)
        raise CutShort(
            f"the reply was cut after {options.num_predict} tokens",
            text=cut,
            prompt_tokens=prompt_tokens,
            output_tokens=options.num_predict,
        )


def tokens(text: str) -> int:
    """Count tokens as `Spoken` does."""
    return -(-len(text.encode(errors="replace")) // 4)
