"""A language model of half a megabyte, made here: a GGUF file of the llama architecture with random weights.

It talks nonsense, and ends it: a bias towards closing tokens lets sentences, strings and lists come to
an end, so that with a JSON schema its nonsense is valid JSON. The same `TinyModel` gives the same bytes on
every machine; another seed gives another digest. Standard library only.

The container is GGUF version 3: magic, version, counts, typed key-value pairs, a directory of tensors, and
the tensors, each aligned to 32 bytes. Strings carry a 64-bit length. Numbers are little-endian.
"""

import argparse
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ALIGNMENT = 32
_WIDTH, _BLOCKS, _HEADS, _KV_HEADS, _HIDDEN = 64, 2, 4, 2, 128

# The numbers of GGUF's value types, and of its token types.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TEXT, _CONTROL, _USER_DEFINED = 1, 3, 4

_START, _STOP, _FILL = "<|start|>", "<|stop|>", "<|fill|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_THINK = ("<think>", "</think>")
_SENTENCES = """\
we test whether a small model can learn from less data if its noise is known and so on
this trial was better than one before by mean error rate over seeds but not always result"""
_WORDS = tuple(_SENTENCES.split())

_PLAIN_TEMPLATE = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|stop|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}"""
_THINKING_TEMPLATE = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' }}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{ '<think>' + message.reasoning_content + '</think>' }}
{%- endif %}{{ message.content + '<|stop|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|><think>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '</think>' }}{% endif %}
{%- endif -%}"""

# Log-odds before any context is seen. What closes something holds its odds whatever the context. A space by
# itself is rare: a grammar of JSON may allow any number of them, and they would never end. So is an exponent:
# 6E777777 is a number in JSON and infinite elsewhere.
_CLOSING = {_STOP: 2.4, "</think>": 3.2, '"': 3.4, "]": 2.8, "}": 2.8, ",": 1.4, ":": 1.4}
_NEVER = -30.0


@dataclass(frozen=True)
class TinyModel:
    """What tells one tiny model from another; `context_length` is in tokens, as the file claims it."""

    seed: int = 1
    thinking: bool = False
    context_length: int = 8192


def write(model: TinyModel, directory: Path) -> Path:
    """Give the path of the model's file in `directory`, made unless it is there already.

    Its name comes from the recipe, which is `model` and this module's text. Safe when many start at once.
    """
    recipe = repr(model).encode() + Path(__file__).read_bytes()
    path = directory / f"tiny-{hashlib.sha256(recipe).hexdigest()[:16]}.gguf"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        fd, part = tempfile.mkstemp(dir=directory, suffix=".part")
        with os.fdopen(fd, "wb") as file:
            file.write(gguf(model))
        Path(part).replace(path)
    return path


def context_length(path: Path) -> int:
    """Read the context length, in tokens, that a llama model's file claims."""
    key = _string("llama.context_length") + struct.pack("<I", _UINT32)
    data = path.read_bytes()
    return int(struct.unpack_from("<I", data, data.index(key) + len(key))[0])


def gguf(model: TinyModel) -> bytes:
    """Give the bytes of the model's file."""
    vocabulary = _Vocabulary(thinking=model.thinking)
    pairs = list(_metadata(model, vocabulary))
    tensors = list(_tensors(model.seed, vocabulary))
    directory, data = [], []
    offset = 0
    for name, shape, values in tensors:
        directory.append(
            _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        )
        data.append(_padded(values))
        offset += len(data[-1])
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    return _padded(head + b"".join(pairs) + b"".join(directory)) + b"".join(data)


class _Vocabulary:
    """Tokens of byte-level pair encoding: marks, every byte, and whole words with and without a space."""

    def __init__(self, *, thinking: bool) -> None:
        self.tokens: list[str] = []
        self.types: list[int] = []
        self.merges: list[str] = []
        self.words: set[str] = set()
        self._add((_START, _STOP, _FILL, *_ROLES), _CONTROL)
        # A reader of the reply looks for these two as text.
        self._add(_THINK if thinking else (), _USER_DEFINED)
        self.letters = [_letter(byte) for byte in range(256)]
        self._add(self.letters, _TEXT)
        self._space = self.letters[ord(" ")]
        # A merge earlier in the list wins: of two words with one beginning, the longer is to be made.
        for word in sorted(set(_WORDS), key=lambda word: (-len(word), word)):
            for end in range(1, len(word)):
                self._merge(word[:end], word[end])
            self._merge(self._space, word)
            self.words |= {word, self._space + word}

    def _add(self, tokens: Iterable[str], kind: int) -> None:
        for token in tokens:
            if token not in self.tokens:
                self.tokens.append(token)
                self.types.append(kind)

    def _merge(self, left: str, right: str) -> None:
        if f"{left} {right}" not in self.merges:
            self.merges.append(f"{left} {right}")
        self._add([left + right], _TEXT)

    def odds(self, token: str) -> float:
        """Give the log-odds of a token without context."""
        if token in _CLOSING:
            return _CLOSING[token]
        if token in self.words:
            return 2.0 if token.startswith(self._space) else 0.2
        if len(token) > 1:
            return _NEVER if token.startswith("<") else -2.5
        if token == self._space or token in "eE":
            return -4.0
        if token.isascii():
            return 0.0 if token.isalnum() or token == "." else -3.0
        return _NEVER


def _letter(byte: int) -> str:
    """Give the printable letter that stands for a byte, as byte-level vocabularies of GPT-2's kind write it."""
    shown = [b for b in range(256) if 0x21 <= b <= 0x7E or (b >= 0xA1 and b != 0xAD)]
    return chr(byte) if byte in shown else chr(256 + byte - sum(b < byte for b in shown))


def _metadata(model: TinyModel, vocabulary: _Vocabulary) -> Iterator[bytes]:
    at = vocabulary.tokens.index
    for key, value in {
        "general.architecture": "llama",
        "general.name": f"tiny-{model.seed}",
        "general.alignment": _ALIGNMENT,
        "general.file_type": 0,
        "llama.vocab_size": len(vocabulary.tokens),
        "llama.context_length": model.context_length,
        "llama.embedding_length": _WIDTH,
        "llama.block_count": _BLOCKS,
        "llama.feed_forward_length": _HIDDEN,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _KV_HEADS,
        "llama.rope.dimension_count": _WIDTH // _HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": at(_START),
        "tokenizer.ggml.eos_token_id": at(_STOP),
        "tokenizer.ggml.padding_token_id": at(_FILL),
        "tokenizer.chat_template": _THINKING_TEMPLATE if model.thinking else _PLAIN_TEMPLATE,
    }.items():
        if isinstance(value, str):
            yield _string(key) + struct.pack("<I", _STRING) + _string(value)
        else:
            yield _string(key) + struct.pack("<II", _UINT32, value)
    yield _string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _FLOAT32, 1e-5)
    yield _string("tokenizer.ggml.add_bos_token") + struct.pack("<I?", _BOOL, True)
    for key, texts in (("tokens", vocabulary.tokens), ("merges", vocabulary.merges)):
        head = struct.pack("<IIQ", _ARRAY, _STRING, len(texts))
        yield _string(f"tokenizer.ggml.{key}") + head + b"".join(map(_string, texts))
    types = vocabulary.types
    head = struct.pack(f"<IIQ{len(types)}i", _ARRAY, _INT32, len(types), *types)
    yield _string("tokenizer.ggml.token_type") + head


def _tensors(seed: int, vocabulary: _Vocabulary) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Give (name, shape with the fastest dimension first, float32 values) of each tensor."""
    count, kv_width = len(vocabulary.tokens), _WIDTH // _HEADS * _KV_HEADS

    def matrix(
        name: str, inputs: int, outputs: int, spread: float
    ) -> tuple[str, tuple[int, ...], bytes]:
        return name, (inputs, outputs), _floats(_noise(f"{seed}/{name}", inputs * outputs, spread))

    def ones(name: str) -> tuple[str, tuple[int, ...], bytes]:
        return name, (_WIDTH,), _floats([1.0] * _WIDTH)

    yield "token_embd.weight", (_WIDTH, count), _floats(_embeddings(seed, count))
    yield "output.weight", (_WIDTH, count), _floats(_outputs(seed, vocabulary))
    yield ones("output_norm.weight")
    for block in range(_BLOCKS):
        at = f"blk.{block}."
        yield ones(f"{at}attn_norm.weight")
        yield matrix(f"{at}attn_q.weight", _WIDTH, _WIDTH, 0.15)
        yield matrix(f"{at}attn_k.weight", _WIDTH, kv_width, 0.15)
        yield matrix(f"{at}attn_v.weight", _WIDTH, kv_width, 0.08)
        yield matrix(f"{at}attn_output.weight", _WIDTH, _WIDTH, 0.08)
        yield ones(f"{at}ffn_norm.weight")
        yield matrix(f"{at}ffn_gate.weight", _WIDTH, _HIDDEN, 0.08)
        yield matrix(f"{at}ffn_up.weight", _WIDTH, _HIDDEN, 0.08)
        yield matrix(f"{at}ffn_down.weight", _HIDDEN, _WIDTH, 0.08)


# A llama model has no bias. One channel that is large and the same for every token stays nearly constant
# through the layers, so that its column of the output matrix works as one.
_CHANNEL, _LEVEL = 0, 8.0


def _embeddings(seed: int, count: int) -> list[float]:
    values = _noise(f"{seed}/token_embd", count * _WIDTH, 1.0)
    values[_CHANNEL::_WIDTH] = [_LEVEL] * count
    return values


def _outputs(seed: int, vocabulary: _Vocabulary) -> list[float]:
    values = _noise(f"{seed}/output", len(vocabulary.tokens) * _WIDTH, 0.16)
    normalised = _LEVEL / ((_LEVEL**2 + _WIDTH - 1) / _WIDTH) ** 0.5
    for index, token in enumerate(vocabulary.tokens):
        row = slice(index * _WIDTH, (index + 1) * _WIDTH)
        if token in _CLOSING:
            values[row] = [value / 4 for value in values[row]]
        values[row.start + _CHANNEL] = vocabulary.odds(token) / normalised
    return values


def _noise(label: str, count: int, spread: float) -> list[float]:
    """Give `count` uniform numbers of standard deviation `spread`, the same everywhere for one label."""
    raw = hashlib.shake_256(label.encode()).digest(2 * count)
    scale = spread * 3**0.5 / 32768
    return [value * scale for value in struct.unpack(f"<{count}h", raw)]


def _floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % _ALIGNMENT)


def default_directory() -> Path:
    """Give this user's directory for model files under the system's temporary directory."""
    return Path(tempfile.gettempdir()) / f"labd-tiny-models-{os.getuid()}"


def main() -> None:
    """Write one model and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers.tiny_model", description=__doc__
    )
    parser.add_argument("--directory", type=Path, default=default_directory())
    parser.add_argument("--seed", type=int, default=1, help="another seed, another digest")
    parser.add_argument("--thinking", action="store_true", help="reasons before it answers")
    parser.add_argument("--context-length", type=int, default=8192, metavar="TOKENS")
    asked = parser.parse_args()
    print(write(TinyModel(asked.seed, asked.thinking, asked.context_length), asked.directory))


if __name__ == "__main__":
    main()
