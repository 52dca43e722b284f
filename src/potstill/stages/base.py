"""What a stage is: a typed config, what it produces, and a function from config and inputs to a folder of files."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, TypeAdapter

from potstill.artifact import DROPPED_FILE, ROWS_FILE, RowWriter, write_json, write_rows
from potstill.money import Gauge, Ledger, Meter
from potstill.questions import shipped_names
from potstill.reading.formats import glance
from potstill.records import ROWS, Dropped, Record
from potstill.sources import Account, EndpointModel, Inputs, Model, Spec

SPEED_FILE = "speed.json"
"""What models at hand took in the stages of a run: by the stage's folder and the model's name, as `Gauge` measured."""
UNFINISHED = "unfinished"
"""The folder of a run for what stages keep until they are sealed."""


@dataclass(frozen=True)
class Reference:
    """Marks a config field as the name of something else in the recipe, and says what it may be.

    `accepts` holds kinds of rows ("chats", "pairs", ...), "scores", "model", "server", "file" (with "folder", where one
    will do as well) or "function" (with "word", where a word that the config knows will do as well). Rows may be a
    file's path too.
    """

    accepts: tuple[str, ...]
    evaluations: bool = False
    """The word "evaluations" stands for all rows that the recipe's stages of scores read."""
    pool: bool = False
    """Of models: the name may stand for several of them."""
    weights: bool = False
    """Of models: their weights are needed, so that none behind an endpoint will do."""
    collects: bool = False
    """The name of a family stands for all its members; in other fields, for the one of the reader's own values. For
    fields that hold a list of names."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """With the names of the questions that come with potstill, for editors, where the field takes such rows."""
        made = handler(schema)
        return {**made, "examples": shipped_names()} if "prompts" in self.accepts else made


ModelName = Annotated[str, Reference(("model",))]
"""A model of the recipe, or a stage that makes one."""
LocalModelName = Annotated[str, Reference(("model",), weights=True)]
"""A model whose weights are at hand."""
PoolName = Annotated[str, Reference(("model",), pool=True, collects=True)]
"""A model, a pool of them, or a family with all its members."""
ServerName = Annotated[str, Reference(("server",))]


class StageConfig(Spec):
    """The part of a recipe that belongs to one stage. Its `kind` says which."""

    kind: str

    HOW: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how fast a stage works and what it needs, never what it makes: they are no part of its key."""
    MODELS: ClassVar[frozenset[str]] = frozenset({"model", "models", "teacher", "user", "judge", "reference"})
    """What fields that name models are called."""
    WHOLE: ClassVar[frozenset[str]] = frozenset()
    """Fields whose rows a trial leaves whole, since the stage makes as much whatever number of them there is."""

    def expect(self, rows: Mapping[str, int]) -> "Expected":
        """What a run is likely to make. For `potstill plan`.

        `rows`: what is expected of each input field: rows, or of a field that names models, how many there are; and
        under "field.endpoints" how many of those are behind endpoints; and under "field.tokens" how long one of its
        rows is said to be, where somebody said it.
        """
        return Expected(
            rows=max((count for name, count in rows.items() if "." not in name and name not in self.MODELS), default=0)
        )

    def glance(self, field: str, accepts: Sequence[str], path: Path) -> None:
        """DataError where the first rows of a file that a field names cannot be what the field takes."""
        glance(path, [ROWS[kind] for kind in accepts if kind in ROWS])

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        """RecipeError, its place one of the fields, where the models there cannot do what the stage asks of them.

        For a plan, before anything is paid for. `models`: by field. One that a stage will make has that stage's name.
        """

    def check_sources(self, sources: "Mapping[str, Sequence[Source]]") -> None:
        """RecipeError, its place one of the fields, where what the fields name cannot serve this stage.

        For a plan, before anything is made. `sources`: by field, stages, files and the recipe's models.
        """

    def extras(self) -> tuple[str, ...]:
        """Optional parts of potstill that it cannot run without: keys of `runs.extras.PACKAGES`."""
        return ()

    def remarks(self) -> tuple[str, ...]:
        """What a plan says of the stage beside its cost, a sentence each that goes on from the stage's name."""
        return ()

    def for_trial(self, rows: int) -> Self:
        """The same on a small scale, where the config itself says how much is made."""
        return self

    def extrapolate(self, rows: Mapping[str, int], trial: "Trial") -> "Expected":
        """The forecast after a trial: what `expect` says, corrected by how a small one came out."""
        whole, small = self.expect(rows), trial.expected
        parts = trial.parts_of(whole)
        calls = round(whole.calls * trial.calls / small.calls) if small.calls else whole.calls
        calls = sum(part.calls for part in parts) if parts else calls
        made = round(whole.rows * trial.rows / small.rows) if small.rows else whole.rows
        return replace(trial.spread(made, calls, (calls, calls)), parts=parts)


class Speed(BaseModel):
    """What a model at hand took in one stage; the fields are those of `money.Gauge`."""

    seconds: float
    tokens: int
    memory_bytes: int
    memory_of: str
    device: str


_SPEEDS = TypeAdapter(dict[str, dict[str, Speed]])


def read_speeds(workspace: Path) -> dict[str, dict[str, Speed]]:
    """By the stage's folder and the model's name; nothing where that was never measured or cannot be read."""
    try:
        return _SPEEDS.validate_json((workspace / SPEED_FILE).read_bytes())
    except (OSError, ValueError):
        return {}


@dataclass(frozen=True)
class Source:
    """What a field names, as a plan knows it."""

    name: str
    """As the rows and scores of a run have it."""
    config: StageConfig | None
    """Of a stage; None: it is a file, or a model of the recipe."""
    reads: Mapping[str, tuple[str, ...]]
    """Of a stage: the names that its own fields hold, of a pool those of its members."""


Range = tuple[int, int]
"""The ends of an interval that holds nine times in ten."""
NINE_IN_TEN = 1.645
"""Standard errors on either side."""


@dataclass(frozen=True)
class Part:
    """What a stage asks for one purpose, so that each of its models is paid by its own price."""

    name: str
    """The purpose: "answers", or the suite whose answers are judged."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    field: str = ""
    """The field of the config that names who is asked; several models share the calls evenly."""
    model: str = ""
    """Who is asked, where that is known: after a trial."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Expected:
    """A forecast. Tokens are those of prompts and completions together, or those that a training stage reads."""

    rows: int = 0
    calls: int = 0
    tokens: int = 0
    calls_range: Range | None = None
    """Where a trial was made: an interval of 90%."""
    tokens_range: Range | None = None
    prompt_share: float = 0.5
    """The part of the tokens that prompts have."""
    tokens_per_row: int | None = None
    """How long a row is, where the stage that reads the source was told; None: nobody said."""
    parts: tuple[Part, ...] = ()
    """The calls by what they are for and who is asked; none: every model of the stage may be asked alike."""


class Trial(BaseModel):
    """How a stage came out on a few rows."""

    key: str
    """Of the stage as the recipe has it."""
    expected: Expected
    """What was expected of so few."""
    rows: int
    """What was made."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    squares: float
    """Of the tokens of each call, summed."""
    facts: dict[str, Any]
    parts: tuple[Part, ...] = ()
    """Its calls by purpose and model, where the stage tells them apart."""

    def parts_of(self, whole: Expected) -> tuple[Part, ...]:
        """Those of the whole stage: as many times more as are expected for that purpose, at as many tokens each."""
        found = []
        for part in self.parts:
            few, many = (sum(p.calls for p in e.parts if p.name == part.name) for e in (self.expected, whole))
            times = many / few if few else 0.0
            calls, read, said = (round(times * n) for n in (part.calls, part.prompt_tokens, part.completion_tokens))
            found.append(Part(part.name, calls, read, said, model=part.model))
        return tuple(found)

    def spread(self, rows: int, calls: int, calls_range: Range) -> Expected:
        """The forecast for so many calls, each with as many tokens as those of the trial."""
        if not self.calls:
            return Expected(rows, calls, 0, calls_range, (0, 0))
        tokens = self.prompt_tokens + self.completion_tokens
        mean = tokens / self.calls
        deviation = max(0.0, self.squares / self.calls - mean**2) ** 0.5
        # Calls on one row are alike, so that each counts for less than one of its own: as many as there were rows.
        error = NINE_IN_TEN * deviation / max(1, min(self.calls, self.expected.rows or self.calls)) ** 0.5
        low, high = calls_range[0] * max(0.0, mean - error), calls_range[1] * (mean + error)
        return Expected(
            rows,
            calls,
            round(calls * mean),
            calls_range,
            (round(low), round(high)),
            self.prompt_tokens / max(1, tokens),
        )


class Progress(Protocol):
    """Where a stage says how far it is. Cheap to call; whoever listens decides how often to draw."""

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None: ...


def no_progress(done: int, total: int, unit: str, **figures: float) -> None:
    """For tests and library use."""


def no_warning(text: str) -> None:
    """For tests and library use."""


def never_asked() -> AbstractContextManager[Callable[[], bool]]:
    """For tests and library use: nobody asks to stop."""
    return nullcontext(lambda: False)


@dataclass(frozen=True)
class Work:
    """Where and how one run of a stage works."""

    path: Path
    """An empty folder: what the stage leaves here is what gets sealed."""
    workspace: Path
    """The run's folder, for the journal and caches that outlive a stage."""
    seed: int
    """This stage's own seed, made from the recipe's seed and the stage's name."""
    progress: Progress = field(default=no_progress)
    warn: Callable[[str], None] = field(default=no_warning)
    """Told what somebody who watches should know now, in a line."""
    name: str = "stage"
    """Of what this makes: the stage's name and key."""
    ledger: Ledger = field(default_factory=Ledger)
    """What the run has spent on replies, and how much it may."""
    meter: Meter = field(default_factory=Meter)
    """What replies this stage was handed."""
    doing: Callable[[str], None] = field(default=no_warning)
    """Told what is done while there is nothing to count yet, in a few words: "loading the model"."""
    launched: bool = False
    """Whether a launcher started this process, perhaps as one of several: they share the stage's work."""
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]] = field(default=never_asked)
    """Within this, a request to end is answered by whoever asks for it often; elsewhere the process just ends."""

    @property
    def account(self) -> Account:
        """What a teacher is connected with."""
        return Account(self.workspace, self.name.rpartition("-")[0] or self.name, self.ledger, self.meter, self.state)

    @property
    def state(self) -> Path:
        """What this stage keeps between runs until it is sealed, such as checkpoints. Made by whoever writes to it."""
        return self.workspace / UNFINISHED / self.name

    @property
    def logs(self) -> Path:
        """Where what people follow while it runs is written."""
        return self.workspace / "logs"

    @property
    def live_curves(self) -> Path:
        """The curves as they grow, with their times."""
        return self.logs / f"{self.name}.curves.jsonl"

    def note_speed(self, model: str, gauge: Gauge) -> None:
        """Keep what a model took here, outside what is sealed. Of several measurements the one over most tokens stays,
        for a run that went on has only the rest to measure."""
        known = read_speeds(self.workspace)
        mine = known.setdefault(self.name, {})
        if gauge.device and (model not in mine or gauge.tokens > mine[model].tokens):
            mine[model] = Speed(**gauge.measured())
            write_json(self.workspace / SPEED_FILE, _SPEEDS.dump_python(known))

    def keep(self, rows: Iterable[Record]) -> int:
        """Write the artifact's rows; returns how many."""
        return write_rows(self.path / ROWS_FILE, rows)

    def drop(self, rows: Iterable[Dropped]) -> int:
        """Write the rows that were left out, with their reasons; returns how many."""
        return write_rows(self.path / DROPPED_FILE, rows)

    @contextmanager
    def harvest(self) -> Iterator["Harvest"]:
        """Both files of the artifact, open for a stage that decides row by row."""
        with RowWriter(self.path / ROWS_FILE) as kept, RowWriter(self.path / DROPPED_FILE) as dropped:
            yield Harvest(kept, dropped)


class Harvest:
    """The rows that stay and those that are left out, each written as soon as it is known which it is."""

    def __init__(self, kept: RowWriter, dropped: RowWriter) -> None:
        self._kept, self._dropped = kept, dropped
        self._reasons: Counter[str] = Counter()

    def keep(self, row: Record) -> None:
        """Write a row of the artifact."""
        self._kept.write(row)

    def keep_all(self, rows: Iterable[Record]) -> int:
        """Write rows of the artifact as they come; returns how many there are by now."""
        for row in rows:
            self._kept.write(row)
        return self.rows

    def drop(self, row: Dropped) -> None:
        """Write a row that is left out; its reason is counted."""
        self._reasons[row.reason] += 1
        self._dropped.write(row)

    @property
    def rows(self) -> int:
        """How many stay."""
        return self._kept.count

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out, by reason; for a stage's facts."""
        return dict(sorted(self._reasons.items()))

    def why_nothing(self) -> str:
        """Why no row stays: the counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.items()) or "there was nothing to read"


Facts = dict[str, Any]
"""What a stage counted and decided, as JSON: it stands in the manifest, so it must not hold times or paths."""


@dataclass(frozen=True)
class Stage:
    """One kind of stage."""

    config: type[StageConfig]
    produces: str | Callable[[Any], str]
    """What lies in its artifact; a function of the config where that decides."""
    run: Callable[[Any, Inputs, Work], Facts]
    version: int = 1
    """Raised when the same config and inputs come to mean another result."""
    trains: bool = False
    """It makes weights: it runs in a process of its own, so that its memory goes when it ends and a launcher can start
    many."""

    def in_child(self, inputs: Inputs) -> bool:
        """Whether it runs in a process of its own. Whoever asks an endpoint does not: the run's budget is here."""
        models = (model for group in inputs.models.values() for model in group)
        return self.trains and not any(isinstance(model.spec, EndpointModel) for model in models)

    def output(self, config: StageConfig) -> str:
        """What this stage produces under this config."""
        return self.produces if isinstance(self.produces, str) else self.produces(config)


def stage_seed(seed: int, name: str) -> int:
    """A seed of 32 bits for the stage of that name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
