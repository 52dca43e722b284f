"""What a suite of `evaluate` is: its rows, what it asks models, what it will cost, and how its scores come about."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from potstill.errors import DataError
from potstill.evaluation import comparing, mt_bench
from potstill.evaluation.comparing import Contest, Form, Orders
from potstill.evaluation.continued import Stored, Taken, strange
from potstill.evaluation.recorded import read_recorded, recorded_sheets
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Ask, Read, Sheet, grade, ungraded
from potstill.evaluation.statistics import Observation
from potstill.money import Gauge
from potstill.records import Chat, Pair, Prompt
from potstill.sources import Data, EndpointModel, Inputs, Model, Spec
from potstill.stages.base import Facts, ModelName, Reference, Work
from potstill.teachers.base import Exchange, Teacher, connect
from potstill.validation import PlainName

if TYPE_CHECKING:
    from potstill.stages.evaluate import Evaluate

R = TypeVar("R", Prompt, Chat, Pair)

# For `potstill plan`, which knows neither the questions nor the models: how many turns a question has on average.
TURNS_A_QUESTION = 2


ANSWERS = "answers"
"""What models are asked for; whatever else is asked, a judge is."""


@dataclass(frozen=True)
class Load:
    """What a suite comes to, for a forecast."""

    lines: int = 0
    """Of the answers that it leaves."""
    answers: int = 0
    """Calls for answers."""
    asks: str = ""
    """The rows whose answers those are: suites that ask the same share them. "" where they are this suite's own."""
    judgments: int = 0
    """Calls for judgments."""
    scored: int = 0
    """Rows that are scored without a call."""


@dataclass(frozen=True)
class Crowd:
    """How many rows of scores there will be, for a forecast."""

    models: int
    """Of the stage."""
    others: int = 0
    """Models beside those that answer too, and have no row: baselines."""
    rows: int = 0
    """Of a suite that is judged: models and recorded answers, without a baseline."""


class SuiteConfig(Spec):
    """One entry of `suites`. Its `protocol` says which."""

    protocol: str

    SOURCE: ClassVar[str] = "questions"
    """The field that names its rows."""
    WEIGHTS: ClassVar[bool] = False
    """It scores texts by their likelihood, which no endpoint tells of a text that it did not write."""
    EXTRAS: ClassVar[tuple[str, ...]] = ()
    """Optional parts of potstill that it needs; see `StageConfig.extras`."""

    def prompts(self, bench: "Bench", name: str) -> list[Prompt]:
        """The dialogues that every model is to hold for `measure`."""
        return []

    def answer_temperature(self, category: str) -> float:
        """Of the models' answers in those dialogues."""
        return mt_bench.temperature(category)

    def glance(self, name: str, path: Path) -> None:
        """DataError where the first rows of the file that its rows are from cannot be measured. For a plan."""

    def rows(self, given: int, limit: int | None) -> int:
        """How many will be measured of so many; `limit` is the stage's."""
        return given if limit is None else min(given, limit)

    def check_rows(self, bench: "Bench", name: str, prompts: Sequence[Prompt]) -> None:
        """DataError where its rows, or what is given beside them, will not do. Before anybody is asked anything.

        `prompts`: those of `prompts`.
        """

    def take_over(self, bench: "Bench", name: str, sheets: list[Sheet]) -> list[Sheet]:
        """The dialogues with the judgments that are there already. Before any judge is asked."""
        return sheets

    def results(self, name: str) -> tuple[str, ...]:
        """What its results may be called in the scores; `name` is the suite's."""
        return (name,)

    def others(self, bench: "Bench", name: str) -> tuple[Model, ...]:
        """Who is to hold those dialogues beside the models of the stage."""
        return ()

    def recorded_sheets(self, bench: "Bench", name: str, prompts: Sequence[Prompt]) -> list[Sheet]:
        """The dialogues of models that are known by their answers alone."""
        return []

    def fault(self, models: Sequence[str]) -> str:
        """Why it cannot be measured with the models of the stage; empty where it can."""
        return "" if models else "has nobody to measure: name models of the stage"

    def crowd(self, models: int, named: Sequence[str], baselines: int) -> Crowd:
        """Who takes part: so many models of the stage, by these names, and so many that a baseline may stand for."""
        return Crowd(models, 0, models)

    def load(self, rows: int, crowd: Crowd) -> Load:
        """What so many rows come to."""
        raise NotImplementedError

    def measure(self, bench: "Bench", name: str, sheets: Sequence[Sheet]) -> None:
        """Score the models and keep what comes out in `bench`. `sheets`: every model's dialogues."""
        raise NotImplementedError


FilePath = Annotated[str, Reference(("file",))]


class JudgedSuite(SuiteConfig):
    """A suite whose answers a judge reads."""

    questions: Annotated[str, Reference(("prompts",))] = "shipped:dialogues"
    """Questions with their follow-ups, held out from training. Default: those that come with potstill, which are its
    own: scores on them do not compare with published ones."""
    judge: ModelName | None = None
    """Who judges; without it the judge of the stage."""
    recorded: dict[PlainName, FilePath] = Field(default_factory=dict)
    """Models that are known by their answers alone, {name: file}: FastChat's model_answer, AlpacaEval's
    model_outputs.json, or the answers.jsonl of an evaluation. They are rows beside the models, judged and never asked.
    Of a file that holds several models, the one of that name."""

    def prompts(self, bench: "Bench", name: str) -> list[Prompt]:
        return bench.read(name, Prompt)

    def fault(self, models: Sequence[str]) -> str:
        both = [row for row in self.recorded if row in models]
        if both:
            return f"has recorded answers of '{both[0]}', which is a model of the stage: rename one"
        if not (models or self.recorded):
            return "has nobody to measure: name models of the stage, or recorded answers"
        return ""

    def crowd(self, models: int, named: Sequence[str], baselines: int) -> Crowd:
        return Crowd(models, 0, models + len(self.recorded))

    def recorded_sheets(self, bench: "Bench", name: str, prompts: Sequence[Prompt]) -> list[Sheet]:
        sheets = []
        for row in self.recorded:
            file = bench.inputs.one(f"suites.{name}.recorded.{row}")
            found = recorded_sheets(row, read_recorded(file.path, file.name, row), prompts, file.name)
            bench.tell_missing(name, file.name, found)
            sheets += found
        return sheets


@dataclass
class Bench:
    """One run of the stage: what it was given, and what it has found so far."""

    config: "Evaluate"
    inputs: Inputs
    work: Work
    models: tuple[Model, ...]
    results: dict[str, SuiteResult] = field(default_factory=dict)
    sheets: list[Sheet] = field(default_factory=list)
    notes: dict[str, Facts] = field(default_factory=dict)
    """What a suite has to say of itself, for the stage's facts."""
    ready: dict[str, Any] = field(default_factory=dict)
    """What a suite opened when it checked its rows."""
    gauges: dict[str, Gauge] = field(default_factory=dict)
    """Of the models that answered."""

    def read(self, suite: str, row_type: type[R]) -> list[R]:
        """The suite's rows: some, each under its own id, as many as the limit allows."""
        data = self.inputs.one(f"suites.{suite}.{self.config.suites[suite].SOURCE}")
        rows: dict[str, R] = {}
        for row in data.rows(row_type):
            if row.id in rows:
                what = f"the id '{row.id}' stands there twice, and scores are kept by id"
                raise DataError(data.name, what, "Give every row an id of its own")
            rows[row.id] = row
            if len(rows) == self.config.limit:
                break
        if not rows:
            raise DataError(data.name, f"holds no row for suite '{suite}' to score", "Name data with at least one row")
        return list(rows.values())

    def judge(self, suite: str) -> Model:
        """The suite's own judge, or that of the stage."""
        own = self.inputs.models.get(f"suites.{suite}.judge", ())
        return own[0] if own else self.inputs.model("judge")

    def file(self, suite: str, field: str) -> Data | None:
        """The file that a field of a suite names, where it may be left out."""
        return next(iter(self.inputs.data.get(f"suites.{suite}.{field}", ())), None)

    def rows(self, suite: str) -> set[str]:
        """Whose answers a judge reads: recorded ones and the models'; of a baseline too where it is one of them."""
        return {*getattr(self.config.suites[suite], "recorded", ()), *(model.name for model in self.models)}

    def check_judgments(self, suite: str, stored: Sequence[Stored], questions: Iterable[str]) -> None:
        """DataError where none of the judgments that are there can be of this suite, whatever the models answer."""
        file = self.file(suite, "judgments")
        if file is not None and (why := strange(stored, names_of(self.judge(suite)), self.rows(suite), set(questions))):
            raise _useless(file, suite, why)

    def tell_missing(self, suite: str, file: str, recorded: Sequence[Sheet]) -> None:
        """Say where a file lacks answers: they lower the coverage, and nobody is asked for them."""
        turns = [turn for sheet in recorded for turn in sheet.turns]
        missing = sum(turn.assistant is None for turn in turns)
        if missing:
            self.work.warn(f"{suite}: {file} lacks {missing:,} of {len(turns):,} answers; none of them is scored")

    def take(self, suite: str, taken: Taken, left: int) -> list[Sheet]:
        """The sheets with the judgments that are there. `left`: what the judge is asked for, which is said where it is
        anything. DataError where all are of other answers."""
        file = self.file(suite, "judgments")
        assert file is not None, "only a file holds judgments"
        if taken.met and not taken.count:
            what = f"all {taken.met:,} by this judge of these models and questions are of other answers"
            raise _useless(file, suite, f"{what}, or were asked otherwise (baseline, orders)")
        others = f"; {taken.met - taken.count:,} that it holds are of other answers" if taken.met > taken.count else ""
        said = f"{taken.count:,} judgments are taken over from {file.name}, {left:,} are asked of"
        if left:
            self.work.warn(f"{suite}: {said} {self.judge(suite).name}{others}")
        self.notes[suite] = {"judgments_taken": taken.count}
        return taken.sheets

    @contextmanager
    def connect(self, model: Model, purpose: str = ANSWERS) -> Iterator[Teacher]:
        """A model of the recipe as somebody to ask. What is asked counts under that purpose: for a judge, the suite's
        name."""
        gauge = self.gauges.setdefault(model.name, Gauge()) if purpose == ANSWERS else Gauge()
        meter = self.work.meter.part(purpose, model.name)
        with connect(model, replace(self.work.account, meter=meter, gauge=gauge)) as teacher:
            yield teacher
        if purpose == ANSWERS:
            self.work.note_speed(model.name, gauge)

    def answering(self) -> dict[str, dict[str, int | None]]:
        """What the models that answered are, as far as it is known, and how much they read and wrote."""
        found: dict[str, dict[str, int | None]] = {}
        for model in self.models:
            meter, gauge = self.work.meter.parts.get((ANSWERS, model.name)), self.gauges.get(model.name)
            if meter is not None and gauge is not None and meter.calls:
                found[model.name] = {
                    "parameters": gauge.parameters,
                    "weights_bytes": gauge.weights_bytes,
                    "answers": meter.calls,
                    "prompt_tokens": meter.prompt_tokens,
                    "completion_tokens": meter.completion_tokens,
                }
        return found

    def score(self, model: Model, exchanges: list[Exchange]) -> list[tuple[float, int]]:
        """See `local_scorer`; a run that is killed goes on where it was."""
        return local_scorer(model, exchanges, self.work.state)

    def ticker(self, total: int, unit: str) -> Callable[[], None]:
        """To be called once for each of `total`."""
        done = count(1)
        return lambda: self.work.progress(min(next(done), total), total, unit)

    def grade(self, judge: Model, ask: Ask, read: Read, sheets: Sequence[Sheet]) -> list[Sheet]:
        """The sheets with what that judge says of every answer that has no score yet."""
        tick = self.ticker(len(ungraded(sheets)), "judgments")
        with ExitStack() as stack:
            again = self.config.ask_again
            return grade(
                lambda: stack.enter_context(self.connect(judge, sheets[0].suite)), sheets, ask, read, tick, again
            )

    def compare(self, judge: Model, contests: Sequence[Contest], orders: Orders, form: Form) -> list[Sheet]:
        """The models' sheets with what that judge says of them beside the baseline's."""
        missing = len(comparing.undecided(contests)) * (2 if orders == "both" else 1)
        tick = self.ticker(missing, "judgments")
        with ExitStack() as stack:
            suite, form = contests[0].model.suite, replace(form, again=self.config.ask_again)
            return comparing.compare(
                lambda: stack.enter_context(self.connect(judge, suite)), contests, orders, form, self.work.seed, tick
            )

    def keep(self, name: str, measure: Measure, sheets: Sequence[Sheet]) -> None:
        """Graded sheets as the result of that name: a row a model."""
        self.sheets += [replace(sheet, suite=name) for sheet in sheets]
        observations: dict[str, list[Observation]] = {}
        for sheet in sheets:
            observations.setdefault(sheet.model, []).extend(sheet.observations())
        self.results[name] = SuiteResult(measure, observations)


def _useless(file: Data, suite: str, why: str) -> DataError:
    what = f"none of its judgments can be taken over for suite '{suite}': {why}"
    return DataError(file.name, what, "Name the judgments of these answers, or leave judgments out to have all asked")


def names_of(judge: Model) -> set[str]:
    """What a judge is called in files: as the recipe names it, or as its server does."""
    return {judge.name, judge.spec.name} if isinstance(judge.spec, EndpointModel) else {judge.name}


def local_scorer(model: Model, exchanges: list[Exchange], state: Path | None = None) -> list[tuple[float, int]]:
    """The log-probability of each answer under a model whose weights are at hand, and over how many tokens.

    `state` is where what was scored is kept until the stage is sealed.
    """
    from potstill.teachers.local import answer_logprobs  # imports torch

    return answer_logprobs(model, exchanges, state)


Loads = Mapping[str, Load]


def calls(loads: Loads) -> tuple[int, int]:
    """Calls for answers and for judgments. Suites that ask the same rows share the answers to them."""
    shared: dict[str, int] = {}
    for name, load in loads.items():
        rows = load.asks or f"suite {name}"
        shared[rows] = max(shared.get(rows, 0), load.answers)
    return sum(shared.values()), sum(load.judgments for load in loads.values())
