"""The settings: `config/labd.yaml` under the home, read once, and every path derived from the home."""

import hashlib
import os
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from labd.errors import ConfigError, NotFound
from labd.fields import Label, Name, Patience, Seconds, Size, WholeNumber
from labd.limits import Ceilings
from labd.promises import PROMISES
from labd.yamlfile import MAX_BYTES, InvalidFile, check, load_yaml

HOME_VARIABLE = "LABD_HOME"
INSTALLED = Path("/var/lib/labd")
"""The home of the lab that `make install` sets up; its config/ is /etc/labd."""

RECOVER_REQUESTS = "recover-*.json"
"""In the daemon's own directory: what people ask to be recovered."""


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        msg = "a URL that begins with http:// or https://"
        raise ValueError(msg)
    return value.rstrip("/")


_Url = Annotated[str, AfterValidator(_http_url)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Path = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RaySettings(_Part):
    """How the engine gets its Ray."""

    address: str | None = None
    """``host:port`` of a running cluster; absent: labd starts Ray itself, on the loopback."""
    num_cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPUs that the embedded Ray offers; absent: as many as the machine has."""
    num_gpus: Annotated[int, Field(ge=0, le=1024)] | None = None
    """GPUs that the embedded Ray offers; absent: as many as it finds."""
    dashboard: bool = True


class SandboxSettings(_Part):
    """Limits of one experiment run, and which promises of the sandbox this host is excused from."""

    uid: Annotated[int, Field(ge=1, lt=2**31)] = 64123
    """The user id that experiments get where labd runs as root."""
    memory_bytes: Annotated[Size, Field(ge=64 * 2**20)] = 4 * 2**30
    processes: Annotated[WholeNumber, Field(ge=8, le=100_000)] = 256
    disk_bytes: Annotated[Size, Field(ge=2**20)] = 2 * 2**30
    files: Annotated[WholeNumber, Field(ge=1)] = 100_000
    file_bytes: Annotated[Size, Field(ge=1)] | None = None
    """Of one file; absent: as much as all together."""
    output_bytes: Annotated[Size, Field(ge=4096)] = 8 * 2**20
    shm_bytes: Annotated[Size, Field(ge=2**20)] = 2**30
    tmp_bytes: Annotated[Size, Field(ge=2**20)] = 2**30
    cpus: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] | None = None
    """CPUs at once; absent: all that there are."""
    cpu_time: Annotated[Seconds, Field(gt=0)] | None = None
    """CPU time of one run; absent: as much as it gets in its time."""
    at_most: Ceilings = Ceilings()
    """How far the `limits` of a task file may go; where it says nothing: as far as the settings above."""
    allow_missing: frozenset[str] = frozenset()
    allow_network: bool = False
    """Whether a command may ask for the network with `network: true`."""

    @field_validator("allow_missing")
    @classmethod
    def _are_promises(cls, value: frozenset[str]) -> frozenset[str]:
        for name in sorted(value - set(PROMISES)):
            near = get_close_matches(name, PROMISES, 1) or ["cgroup"]
            msg = f"names of gaps as `labd doctor` gives them, such as {near[0]}; {name[:60]!r} is none"
            raise ValueError(msg)
        return value


class EndpointSettings(_Part):
    """A server of language models."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    url: _Url
    api: Literal["ollama", "openai"] = "ollama"
    key_env: _Variable | None = None
    """The environment variable that holds its API key, on every machine that asks it."""
    key_file: str | None = None
    """A file that holds it, from the home or absolute, of mode 0600."""
    key_credential: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """A file in /etc/labd/keys, which systemd hands to the services that ask; for a lab that is installed."""
    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests that it works on at once for each model; absent: what the server says, or 1."""
    max_loaded: Annotated[int, Field(ge=1, le=100)] = 1
    """Models that fit into its memory at once."""
    node: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """The machine, as `labd nodes` names it, whose GPUs it fills; absent: told by the url."""
    gpus: tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None = None
    """The GPUs of that machine that it may fill; absent: all; ``[]``: none."""
    pull: bool = False
    """Whether labd may have it download a model that no endpoint has."""
    keep_alive: Seconds = 600.0
    """How long it keeps a model that nobody asks."""

    def facts(self, root: Path) -> dict[str, Any]:
        """Give what `labd.llm.model.Endpoint` has, and ``node``, as plain data; the key's file below `root`."""
        return {
            **self.model_dump(
                mode="json", exclude={"keep_alive", "key_env", "key_file", "key_credential"}
            ),
            "keep_alive_s": self.keep_alive,
            "key_env": self.key_env or "",
            "key_credential": self.key_credential or "",
            "key_file": str(root / self.key_file) if self.key_file else "",
        }


class LlmSettings(_Part):
    """How language models are used."""

    model: Name | None = None
    """For tasks that name none."""
    num_ctx: Annotated[int, Field(ge=128, le=10_000_000)] = 8192
    """The context in tokens that is asked for where a task does not say."""
    discover: bool = True
    """Whether each machine's own Ollama is used without being named in `endpoints`."""
    allow_remote: bool = False
    """Whether models may be asked that run on somebody else's machines, such as Ollama's ``:cloud``."""
    turn: Seconds = 60.0
    """How long a model, or experiments, may keep what others wait for: an endpoint's memory, a GPU."""
    patience: Seconds = 300.0
    """How long a request waits for an endpoint to come back before its task is tried again later."""


class SourceUrls(_Part):
    """Where indexes of papers are asked instead of at their own addresses: a mirror, or one that has moved."""

    openalex: _Url | None = None
    semantic_scholar: _Url | None = None
    arxiv: _Url | None = None


class LiteratureSettings(_Part):
    """Where papers of other people are looked for."""

    library: Annotated[tuple[_Path, ...], Field(max_length=100)] = ()
    """BibTeX and JSON-lines files, or directories of them, from the home or absolute."""
    online: bool = False
    """Whether indexes on the network are asked, which then learn what a task is about."""
    sources: Annotated[
        tuple[Literal["openalex", "semantic_scholar", "arxiv"], ...], Field(max_length=3)
    ] = ("openalex", "semantic_scholar", "arxiv")
    """Which; records of earlier ones are preferred."""
    mailto: Annotated[str, Field(max_length=200, pattern=r"^[!-~]+@[!-~]+$")] | None = None
    """Whom they may write to; absent: nobody."""
    s2_key_env: _Variable | None = None
    """The environment variable that holds the API key for Semantic Scholar."""
    s2_key_file: str | None = None
    """A file that holds it, from the home or absolute, of mode 0600."""
    openalex_key_env: _Variable | None = None
    """The same for OpenAlex, which without a key answers a few queries a day."""
    openalex_key_file: str | None = None
    cache_days: Annotated[float, Field(ge=0, le=3650)] = 30.0
    """How long an answer is used again."""
    cache_bytes: Annotated[Size, Field(ge=0)] = 100 * 2**20
    """Room for answers; the oldest go first."""
    urls: SourceUrls = SourceUrls()

    @field_validator("sources")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            msg = "each source once"
            raise ValueError(msg)
        return value

    def facts(self, root: Path) -> dict[str, Any]:
        """Give what `labd.literature.model.Options` has, as plain data; files below `root`."""
        facts = self.model_dump(mode="json", exclude={"urls"})
        facts = {name: "" if value is None else value for name, value in facts.items()}
        for name in ("s2_key_file", "openalex_key_file"):
            facts[name] = str(root / facts[name]) if facts[name] else ""
        facts["library"] = [str(root / name) for name in self.library]
        facts["urls"] = self.urls.model_dump(exclude_none=True)
        return facts


class PageSettings(_Part):
    """The status page."""

    enabled: bool = True
    """Whether the daemon starts it; `labd page` serves it in any case."""
    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    """The address that it listens on. Any but this machine's own needs `users`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=50)
    ] = ()
    """Further names by which browsers may ask for it, such as that of a proxy in front of it."""
    users: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=100)], str], Field(max_length=1000)
    ] = Field(default_factory=dict)
    """Who may sign in: a name, and what `labd page --hash-password` printed. Empty: nobody has to."""
    url: _Url | None = None
    """Where others reach it, for links in notifications; absent: at `host` and `port`."""
    read_only: bool = False
    """Whether it only shows, and nobody can submit, cancel or change anything with it."""
    language: Literal["auto", "en", "ko"] = "auto"
    """``auto``: what the browser asks for."""

    @property
    def address(self) -> str:
        """Where people find it: `url`, or else `host` and `port`; without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.url or f"http://{host}:{self.port}").rstrip("/")

    @field_validator("users")
    @classmethod
    def _are_hashed(cls, value: dict[str, str]) -> dict[str, str]:
        for hashed in value.values():
            if not hashed.startswith("scrypt$") or hashed.count("$") != 5:
                msg = "for each name what `labd page --hash-password` prints; never the password itself"
                raise ValueError(msg)
        return value


def _is_server(parts: SplitResult) -> bool:
    """Say whether a URL names a server of the web and nobody's name or password; raises `ValueError` for no port or host."""
    (parts.hostname or "").encode("idna")  # a part of it may be empty, or too long
    odd = set(parts.netloc) & set("@{}")
    return (
        parts.scheme in {"http", "https"} and bool(parts.hostname) and not odd and parts.port != 0
    )


_HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]
_HeaderValue = Annotated[str, Field(max_length=2000, pattern=r"^[\x20-\x7e]*$")]


class NotifySettings(_Part):
    """Somebody to tell of what happens: a command of this machine, or a server (docs/operations.md)."""

    on: Annotated[
        tuple[Literal["done", "failed", "stuck", "report"], ...], Field(min_length=1, max_length=4)
    ]
    """What it is told of."""
    command: Annotated[tuple[_Path, ...], Field(min_length=1, max_length=100)] | None = None
    """A program with its arguments, never a shell's line; the program by an absolute path, or to be found in
    /usr/local/bin, /usr/bin or /bin."""
    webhook: str | None = None
    """Where JSON is sent to by POST. ``{key}`` in it, or in a header, stands for the key."""
    headers: Annotated[dict[_HeaderName, _HeaderValue], Field(max_length=50)] = Field(
        default_factory=dict
    )
    """Further headers of the request."""
    key_env: _Variable | None = None
    """The environment variable of the daemon that holds the key; where ``{key}`` stands nowhere, it is sent as
    ``Authorization: Bearer``."""
    key_file: str | None = None
    """A file that holds it, from the home or absolute, of mode 0600."""
    key_credential: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """A file in /etc/labd/keys, for a lab that is installed."""
    labels: Annotated[tuple[Label, ...], Field(max_length=100)] = ()
    """Only of tasks that have one of these; none: of all."""
    campaigns: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Only of what belongs to one of these; none: of all."""
    timeout: Annotated[Seconds, Field(le=600)] = 30.0
    """How long the command may run, or one request take."""
    every: Annotated[Seconds, Field(le=86_400)] = 30.0
    """At most one message in this time: what happens meanwhile is told together."""

    @field_validator("webhook")
    @classmethod
    def _is_plain(cls, value: str | None) -> str | None:
        if value is None:
            return None
        wanted = "a URL that begins with http:// or https://, without a user's name or spaces; {key} may stand in it"
        plain = value.isascii() and value.isprintable() and " " not in value
        try:
            good = plain and len(value) <= 2000 and _is_server(urlsplit(value))
        except ValueError as error:
            raise ValueError(wanted) from error
        if not good:
            raise ValueError(wanted)
        return value

    @model_validator(mode="after")
    def _is_one(self) -> "NotifySettings":
        keys = [k for k in (self.key_env, self.key_file, self.key_credential) if k]
        if (self.command is None) is (self.webhook is None):
            msg = "either a command or a webhook"
        elif self.command is not None and (keys or self.headers):
            msg = "keys and headers with a webhook only"
        elif len(keys) > 1:
            msg = "one of key_env, key_file and key_credential"
        elif not keys and "{key}" in "".join((self.webhook or "", *self.headers.values())):
            msg = "key_env, key_file or key_credential, because {key} stands for what they hold"
        elif len(set(self.on)) < len(self.on):
            msg = "each of `on` once"
        else:
            return self
        raise ValueError(msg)


_Percent = Annotated[int, Field(ge=1, le=100)]
_Celsius = Annotated[int, Field(ge=1, le=150)]


class LoadSettings(_Part):
    """From where on the load of a machine is high, and where critical, for adaptive campaigns (docs/campaigns.md)."""

    cpu_high: _Percent = 80
    """Of the CPUs that the lab has not given to its tasks."""
    cpu_critical: _Percent = 95
    memory_high: _Percent = 85
    memory_critical: _Percent = 95
    disk_high: _Percent = 85
    disk_critical: _Percent = 95
    gpu_high: _Percent = 80
    gpu_memory_high: _Percent = 85
    temperature_high: _Celsius = 80
    temperature_critical: _Celsius = 90
    queue_high: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Requests that wait for language models, for each that can be answered at once."""
    calm: Seconds = 300.0
    """How long it must have been clearly lower before a level falls."""

    @model_validator(mode="after")
    def _in_order(self) -> "LoadSettings":
        for name in ("cpu", "memory", "disk", "temperature"):
            if getattr(self, f"{name}_high") >= getattr(self, f"{name}_critical"):
                msg = f"{name}_high below {name}_critical"
                raise ValueError(msg)
        return self

    def levels(self) -> tuple[dict[str, float], dict[str, float]]:
        """Give what is high and what is critical by the names of `labd.campaigns.load.Load`, shares from 0 to 1."""
        high = {
            "cpu": self.cpu_high / 100,
            "memory": self.memory_high / 100,
            "disk": self.disk_high / 100,
            "gpu": self.gpu_high / 100,
            "gpu_memory": self.gpu_memory_high / 100,
            "temperature_c": float(self.temperature_high),
            "queue": self.queue_high,
        }
        critical = {
            "cpu": self.cpu_critical / 100,
            "memory": self.memory_critical / 100,
            "disk": self.disk_critical / 100,
            "temperature_c": float(self.temperature_critical),
        }
        return high, critical


_Age = Annotated[Seconds, Field(ge=3600)]


class RetentionRule(_Part):
    """What becomes of the results of tasks in one state; ages are since their end. Absent: never."""

    compress_after: _Age | None = None
    """From when on the working directories `runs/` and `files/` are kept as archives."""
    prune_after: _Age | None = None
    """From when on they are removed."""
    max_bytes: Annotated[Size, Field(ge=0)] | None = None
    """Of all results of such tasks together; beyond it the oldest are pruned."""
    keep: Literal["results", "record"] = "results"
    """What pruning leaves: all but the working directories, or only how the task ended."""

    @model_validator(mode="after")
    def _in_order(self) -> "RetentionRule":
        if self.compress_after and self.prune_after and self.prune_after <= self.compress_after:
            msg = "prune_after longer than compress_after"
            raise ValueError(msg)
        return self


class RetentionSettings(_Part):
    """What is kept of tasks that have ended (docs/operations.md). Nothing goes where nothing is said."""

    done: RetentionRule | None = None
    failed: RetentionRule | None = None
    cancelled: RetentionRule | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is a rule."""
        return any((self.done, self.failed, self.cancelled))


class Settings(_Part):
    """All settings; unknown keys are errors, a change means a restart."""

    spool: str = "spool"
    results: str = "results"
    templates: str = "config/templates"
    inputs: Annotated[tuple[_Path, ...], Field(max_length=100)] = ("data",)
    """Directories, from the home or absolute, below which commands may name their `workdir` and `inputs`."""
    rescan: Seconds = 5.0
    """How often the directories are looked at without being told of a change."""
    settle: Seconds = 2.0
    """How long a file must be still where the kernel can't say whether it is being written."""
    default_timeout: Seconds = 4 * 3600.0
    stuck_after: Patience = 1800.0
    """For how long nothing of a task may move before it is taken for stuck, where it does not say; 0: for ever."""
    reserve_after: Seconds = 600.0
    """A request that waited longer than this for room gets room kept free for it."""
    placement: Literal["pack", "spread"] = "pack"
    """Whether tasks fill one machine before the next, so that big ones find room, or go to the emptiest."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    """Nothing is claimed while results/ has less free space than this."""
    ray: RaySettings = RaySettings()
    sandbox: SandboxSettings = SandboxSettings()
    llm: LlmSettings = LlmSettings()
    endpoints: tuple[EndpointSettings, ...] = ()
    literature: LiteratureSettings = LiteratureSettings()
    page: PageSettings = PageSettings()
    notify: Annotated[tuple[NotifySettings, ...], Field(max_length=20)] = ()
    load: LoadSettings = LoadSettings()
    retention: RetentionSettings = RetentionSettings()

    @field_validator("endpoints")
    @classmethod
    def _distinct(cls, value: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
        for what in ("name", "url"):
            seen = [getattr(one, what) for one in value]
            if len(set(seen)) < len(seen):
                msg = f"endpoints that each have a {what} of their own"
                raise ValueError(msg)
        return value


class Home:
    """A lab's home directory: its settings and where everything is. Makes no directories."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self.spool = root / settings.spool
        self.results = root / settings.results
        self.templates = root / settings.templates
        self.reports = root / "reports"

    @cached_property
    def inputs(self) -> tuple[Path, ...]:
        """Where commands may name files: the directories of the setting, links resolved; some may not exist."""
        return tuple((self.root / name).resolve() for name in self.settings.inputs)

    @cached_property
    def forbidden(self) -> tuple[Path, ...]:
        """What no command may name, nor a directory around it: spool, results, reports and settings, links resolved.

        One place inside is let through by `labd.command`: below a single task's results.
        """
        return tuple(
            path.resolve()
            for path in (self.spool, self.results, self.reports, self.root / "config")
        )

    @property
    def run_dir(self) -> Path:
        """The daemon's own files: lock, status, Ray's token."""
        return self.spool / ".labd"

    @property
    def daemon_log(self) -> Path:
        """The daemon's last log lines, for readers: one JSON object a line."""
        return self.run_dir / "daemon.jsonl"

    @property
    def drained(self) -> Path:
        """Which nodes get no new tasks, as `labd drain` wrote it."""
        return self.run_dir / "drained.json"

    def recover_request(self, task_id: str) -> Path:
        """Give the file that asks for a running task to be recovered now; an id may be too long for a file's name."""
        name = hashlib.sha256(task_id.encode()).hexdigest()[:32]
        return self.run_dir / RECOVER_REQUESTS.replace("*", name)

    @property
    def campaigns(self) -> Path:
        """Where the campaign files are."""
        return self.root / "config" / "campaigns"

    @property
    def domains(self) -> Path:
        """What is expected of templates before the lab knows."""
        return self.root / "config" / "domains.yaml"

    @property
    def models_status(self) -> Path:
        """Where the broker of language models says what there is and what goes on."""
        return self.run_dir / "models.json"


def find_home(given: Path | None) -> Path:
    """Give the home as an absolute path: as given, else ``$LABD_HOME``, else here if it is one, else the installed one.

    Raises:
        NotFound: none of these is a directory that looks like a home.

    """
    named = given or (Path(os.environ[HOME_VARIABLE]) if os.environ.get(HOME_VARIABLE) else None)
    if named is not None:
        return named.expanduser().absolute()
    here = Path.cwd()
    if (here / "config" / "labd.yaml").is_file() or (here / "spool").is_dir():
        return here
    if INSTALLED.is_dir():
        return INSTALLED
    raise NotFound(
        "no lab here: neither config/labd.yaml nor spool/",
        where=str(here),
        fix=f"Name the lab's home with --home DIR or {HOME_VARIABLE}; `labd up --home DIR` makes a new one",
    )


def load_home(given: Path | None = None) -> Home:
    """Find the home and read its settings; without a settings file the defaults hold.

    Raises:
        NotFound: there is no home.
        ConfigError: the settings file is not valid; every problem with its line.

    """
    root = find_home(given)
    path = root / "config" / "labd.yaml"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Home(root, Settings())
    except OSError as error:
        raise ConfigError(
            f"the settings can't be read: {error.strerror}",
            where=str(path),
            fix="Whose the lab is can let you in; of an installed one: adduser NAME labd",
        ) from error
    if not raw.strip():
        return Home(root, Settings())
    try:
        document = load_yaml(raw)
        settings = Settings() if document.data is None else check(Settings, document)
    except InvalidFile as error:
        lines = [problem.located(str(path)) for problem in error.problems]
        raise ConfigError("\n".join(lines), fix="Mend the settings and start again") from error
    return Home(root, settings)
