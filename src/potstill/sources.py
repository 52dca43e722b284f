"""What a stage reads: models as a recipe declares them, data as other stages sealed it or as a file on disk."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isinf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer

from potstill.artifact import DROPPED_FILE, ROWS_FILE, read_rows
from potstill.errors import BudgetError, RecipeError
from potstill.money import Gauge, Ledger, Meter
from potstill.records import ROWS, Record

R = TypeVar("R", bound=Record)

URL_BEGINS = ("http://", "https://")
NO_OPTIONS = ("model", "messages", "prompt", "tools", "response_format", "stream", "n")
"""Fields of a request that are no option: what is asked, and how many replies come in which way."""


class Spec(BaseModel):
    """A part of a recipe: typed, immutable, its fields documented by the string below each."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
"""What servers call the field that bounds an answer."""


class Price(Spec):
    """What an endpoint charges."""

    input: float = Field(ge=0)
    """USD per million prompt tokens."""
    output: float = Field(ge=0)
    """USD per million completion tokens."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """The share of these that a batch job pays."""

    def usd(self, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> float:
        """What a reply costs."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6 * (self.batch if batch else 1)


class LocalModel(Spec):
    """A causal language model in Hugging Face layout."""

    path: str
    """A folder, or a name on the Hugging Face Hub."""
    revision: str | None = None
    """A commit of the Hub, so that the model cannot change under a recipe."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Leave it off unless you have read that code."""
    licence: str = Field(default="", max_length=300)
    """Its licence as you know it, such as apache-2.0. The cards of models that are made with it say what you say."""


class EndpointModel(Spec):
    """A model behind an OpenAI-compatible server."""

    endpoint: str | tuple[str, ...]
    """The base URL, such as http://localhost:8000/v1, or the name of one of the recipe's servers. Several URLs are
    replicas of one model: requests are spread over them, and go to another where one fails."""
    name: str
    """The model's name as the server knows it."""
    revision: str = ""
    """Anything that tells this version of the model from another under the same name."""
    key_env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds the API key. The key itself never stands in a recipe."""
    licence: str = Field(default="", max_length=300)
    """Its licence, or what its provider's terms say of what it writes, such as "no training of rivals". The cards of
    models that are made with it say what you say."""
    price: Price | None = None
    """What it charges. A budget needs it, and `potstill plan`, `status` and `journal` tell money by it."""
    structured: bool = False
    """The server takes a JSON Schema that an answer has to keep to (response_format)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields written over the body of each request, such as {reasoning_effort: low}; null leaves one out that the
    server does not take, such as {seed: null}."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the field that bounds an answer."""
    concurrency: int = Field(default=32, ge=1, le=10_000)
    """Requests in flight at once, at each URL. Fewer while the server says that it is overloaded."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The most requests that go to each URL in a minute."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The most tokens, of prompts and answers together, that each URL is asked for in a minute."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """How long one request may take."""
    max_unserved: float = Field(default=0.0, ge=0, le=1)
    """A request that fails at every try becomes a row with its reason. Where more than this share of a stage's
    requests do, the stage is not sealed: run again, and only those are asked again."""
    batch: bool = False
    """Send requests as batch jobs, which cost less and take up to a day, where the server offers them."""

    @field_validator("options")
    @classmethod
    def _optional(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in NO_OPTIONS:
                raise ValueError(f"'{name}' is set by the stage that asks; it cannot be an option")
            if (
                name in TOKEN_LIMITS
                and options[name] is not None
                and not (type(options[name]) is int and options[name] > 0)
            ):
                raise ValueError(f"'{name}' has to be a whole number over 0, or null; a budget counts on it")
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the options cannot be sent as JSON: {error}") from error
        return options

    @field_validator("endpoint")
    @classmethod
    def _can_be_asked(cls, endpoint: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (endpoint,) if isinstance(endpoint, str) else endpoint
        if not names:
            raise RecipeError("endpoint", "there is no URL in it", "Write a URL such as http://localhost:8000/v1")
        for name in names:
            fault = _url_fault(name) if name.startswith(URL_BEGINS) else ""
            if len(names) > 1 and not name.startswith(URL_BEGINS):
                fault = f"replicas are URLs, and '{name}' is none"
            if fault:
                raise RecipeError("endpoint", fault, "Write a URL such as http://localhost:8000/v1")
        plain = tuple(name.rstrip("/") for name in names)  # with a slash or without, it is the same place
        if len(set(plain)) < len(plain):
            raise RecipeError("endpoint", "the same URL stands there twice", "Name each replica once")
        return plain[0] if isinstance(endpoint, str) else plain

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where it answers: URLs, or the name of one server of the recipe."""
        return (self.endpoint,) if isinstance(self.endpoint, str) else self.endpoint

    @property
    def is_url(self) -> bool:
        """Whether the endpoint says where it answers; otherwise it names a server of the recipe."""
        return self.endpoints[0].startswith(URL_BEGINS)

    @property
    def server(self) -> str:
        """The server of the recipe that it names, or nothing."""
        return "" if self.is_url else self.endpoints[0]

    def key_fault(self) -> str:
        """What is wrong with the variable that is to hold the API key: "is not set". Never says what it holds."""
        if self.key_env is None:
            return ""
        key = os.environ.get(self.key_env)
        if not key:
            return "is not set"
        return "" if key.isascii() and key.isprintable() else "holds a line break or another sign that no key has"


def _url_fault(url: str) -> str:
    """Why nobody can be asked there, or nothing. Does not repeat the URL, which may hold a password."""
    if not url.isprintable() or " " in url:
        return "the URL holds a space, a line break or the like"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"this is no URL ({error})"
    if parts.query or parts.fragment:
        return "the URL goes on behind '?' or '#'; a key is read from the variable that key_env names"
    if "@" in parts.netloc:
        return "the URL holds a name or password; a key is read from the variable that key_env names"
    return "" if parts.hostname else "the URL names no host"


class MiniatureServer(Spec):
    """The embedded closed world behind an OpenAI-compatible server on loopback; it lives as long as the run."""

    kind: Literal["miniature"]
    seed: int = 0
    """The seed that the world is made from."""
    entities: int = Field(default=150, ge=40, le=1000)
    """How many made-up entities its encyclopedia describes."""


ModelSpec = LocalModel | EndpointModel
ServerSpec = Annotated[MiniatureServer, Field(description="A server that the run starts and stops.")]

# What of a spec decides the words that come back. Prices, limits, keys and addresses do not, so changing them reruns
# nothing; that another address under an old name is another model is noticed by the journal.
IDENTITY_FIELDS = {"path", "revision", "trust_remote_code", "name", "structured", "options"}


class Share(Spec):
    """One source of a mixture, written {from: name, weight: 0.3}."""

    model_config = ConfigDict(populate_by_name=True)

    source: str = Field(alias="from")
    """The stage or file whose rows these are."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often an epoch passes over the rows: 2 is twice, 0.3 a random three tenths of them, others each epoch."""

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"from": self.source, "weight": self.weight}


Mixture = str | Share | tuple[str | Share, ...]
"""The type of a field that takes one source of rows or several, each by its name or as a share with a weight."""


@dataclass(frozen=True)
class Data:
    """Rows that a stage reads: those of a sealed artifact, or of a file that a recipe names directly."""

    name: str
    """The stage's name, or the file's."""
    kind: str
    """One of `records.ROWS`, or what else stages produce: scores, trial, report. "file" is read by `formats`."""
    path: Path
    """The artifact's folder, or the file."""
    weight: float = 1.0
    """How often an epoch of training passes over its rows."""
    part: tuple[int, int] | None = None
    """For a trial: at most so many rows, and only each so-manieth."""

    def rows(self, row_type: type[R]) -> Iterator[R]:
        """Its rows, validated."""
        found = self._all(row_type)
        return found if self.part is None else islice(found, 0, self.part[0] * self.part[1], self.part[1])

    def _all(self, row_type: type[R]) -> Iterator[R]:
        if self.kind == "file":
            from potstill.reading.formats import read_file  # formats knows this module

            return read_file(self.path, row_type)
        assert ROWS[self.kind] is row_type, f"{self.name} holds {self.kind}, not {row_type.__name__}"
        return read_rows(self.path / ROWS_FILE, row_type)

    @property
    def dropped_path(self) -> Path:
        """Where the rows that were left out stand, with their reasons."""
        return self.path / DROPPED_FILE


@dataclass(frozen=True)
class Model:
    """A model under the name that the recipe gives it."""

    name: str
    spec: ModelSpec
    """A model that a stage made is a LocalModel whose path is the sealed folder."""
    base_url: str = ""
    """Where an endpoint answers in this run."""

    @property
    def local(self) -> LocalModel:
        """The spec of a model whose weights are at hand."""
        assert isinstance(self.spec, LocalModel), f"{self.name} is an endpoint"
        return self.spec


@dataclass(frozen=True)
class Function:
    """A function of the user's own, which a recipe names as `mine.py:name`; `own` loads it."""

    path: Path
    name: str

    @property
    def label(self) -> str:
        """As messages and manifests name it, wherever the file lies."""
        return f"{self.path.name}:{self.name}"


@dataclass(frozen=True)
class Account:
    """Where replies are kept, who asks for them, and what they may cost."""

    workspace: Path
    """The folder that holds the journal."""
    stage: str = ""
    """What the replies are for: spending is counted by it."""
    ledger: Ledger = field(default_factory=Ledger)
    """What was spent, and how much may be."""
    meter: Meter = field(default_factory=Meter)
    """What was handed out."""
    state: Path | None = None
    """Where the stage keeps what local models work out, until it is sealed; None: nowhere."""
    gauge: Gauge = field(default_factory=Gauge)
    """What a model at hand is and takes."""

    def too_little(self, name: str, most_usd: float) -> BudgetError:
        """What to say where the ledger has too little for the next request to a model, which may cost so much."""
        budget, spent = self.ledger.budget_usd, self.ledger.spent_usd
        where = f"{name}, for {self.stage}" if self.stage else name
        if isinf(most_usd):
            what = (
                f"budget_usd is {budget:,.2f}, and the model's options leave out what bounds an answer, and so its cost"
            )
            return BudgetError(where, what, "Give a max_tokens, or take budget_usd away")
        what = (
            f"budget_usd is {budget:,.2f}: {spent:,.4f} are spent, and the next request may cost up to {most_usd:,.4f}"
        )
        return BudgetError(where, what, "Raise budget_usd and run again; replies that came are kept")


@dataclass(frozen=True)
class Inputs:
    """Everything a stage reads, by the name of the config's field that refers to it."""

    data: Mapping[str, tuple[Data, ...]]
    models: Mapping[str, tuple[Model, ...]]
    servers: Mapping[str, MiniatureServer]
    functions: Mapping[str, tuple[Function, ...]] = field(default_factory=dict)
    """Those of the user's own; see `own`."""

    def one(self, field: str) -> Data:
        """The data of a field that takes one reference."""
        (data,) = self.data[field]
        return data

    def model(self, field: str) -> Model:
        """The model of a field that takes one."""
        (model,) = self.models[field]
        return model

    def to_json(self) -> dict[str, Any]:
        """For the process that trains."""
        return {
            "data": {f: [[d.name, d.kind, str(d.path), d.weight] for d in group] for f, group in self.data.items()},
            "models": {
                f: [[m.name, type(m.spec).__name__, m.spec.model_dump(), m.base_url] for m in group]
                for f, group in self.models.items()
            },
            "servers": {f: s.model_dump() for f, s in self.servers.items()},
            "functions": {f: [[str(o.path), o.name] for o in group] for f, group in self.functions.items()},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Inputs":
        """What `to_json` wrote."""
        specs = {"LocalModel": LocalModel, "EndpointModel": EndpointModel}
        return Inputs(
            {f: tuple(Data(n, k, Path(p), w) for n, k, p, w in group) for f, group in value["data"].items()},
            {f: tuple(Model(n, specs[t](**s), u) for n, t, s, u in group) for f, group in value["models"].items()},
            {f: MiniatureServer(**s) for f, s in value["servers"].items()},
            {f: tuple(Function(Path(p), n) for p, n in group) for f, group in value["functions"].items()},
        )
