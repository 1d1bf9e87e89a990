"""What can go wrong with a language model, told apart by what a caller can do about it.

`retryable`: the same may work later. `elsewhere`: it may work on another endpoint now, because the fault
lies with this one. Neither: it is the request or the reply itself.
"""

from labd.errors import LabdError


class ModelError(LabdError):
    """Root of the errors of language models; never raised itself."""

    code = "model"
    elsewhere = False


class EndpointDown(ModelError):
    """Nothing answers there, or the connection broke before the reply was whole."""

    code = "endpoint_down"
    retryable = True
    elsewhere = True


class EndpointBusy(ModelError):
    """The server says that it has too much to do (503, 429)."""

    code = "endpoint_busy"
    retryable = True
    elsewhere = True


class EndpointFailed(ModelError):
    """The server failed at the work: an error of its own (5xx), a model that it could not load or lost."""

    code = "endpoint_failed"
    retryable = True
    elsewhere = True


class EndpointSilent(ModelError):
    """The server took longer than it was given: for the first token, or between two."""

    code = "endpoint_silent"
    retryable = True
    elsewhere = True


class EndpointMisconfigured(ModelError):
    """What listens there refuses us (401, 403), or is no server of this kind."""

    code = "endpoint_misconfigured"
    elsewhere = True


class ModelMissing(ModelError):
    """No endpoint that may be asked has the model."""

    code = "model_missing"
    elsewhere = True


class ModelRefused(ModelError):
    """The model runs on somebody else's machine (`:cloud`), and the settings do not allow that."""

    code = "model_refused"


class RequestRefused(ModelError):
    """The server says that the request itself is wrong (400): an option, or the model can't do this."""

    code = "request_refused"


class ContextOverflow(ModelError):
    """The prompt does not fit into `num_ctx`, or was cut by the server."""

    code = "context_overflow"


class _OfText(ModelError):
    """Carries the text that there was, and the tokens that all of it took, also through pickle.

    Attributes:
        text: what there was; of several replies the last.
        prompt_tokens, output_tokens: as the server counted them, of all replies together.

    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        text: str = "",
        prompt_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.text = text
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens

    def __reduce__(self) -> tuple[object, ...]:
        texts = (self.what, self.where, self.fix, self.text)
        return (_rebuild, (type(self), texts, self.prompt_tokens, self.output_tokens))


def _rebuild(
    cls: type[_OfText], texts: tuple[str, str, str, str], prompt_tokens: int, output_tokens: int
) -> _OfText:
    what, where, fix, text = texts
    counts = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    return cls(what, where=where, fix=fix, text=text, **counts)


class CutShort(_OfText):
    """The reply ended because `num_predict` or the context was used up. `text` is what there was of it."""

    code = "cut_short"


class BadReply(_OfText):
    """The reply is not what was asked for, also after the model was shown its error. `text` is the last one."""

    code = "bad_reply"


class MemoryHeld(ModelError):
    """Graphics memory that servers say they gave back is still in use."""

    code = "memory_held"
    retryable = True


class Stopped(ModelError):
    """The caller gave up on the reply while it came."""

    code = "stopped"
    retryable = True
