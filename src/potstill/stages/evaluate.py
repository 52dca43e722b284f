"""Evaluate: models side by side on suites of held-out questions, with intervals, coverage and paired differences."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from potstill.artifact import storage_errors, write_json
from potstill.errors import DataError, RecipeError
from potstill.evaluation import aspects as aspect_protocol
from potstill.evaluation import exact, likelihood, mt_bench, preference
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Ask, Read, Sheet, grade, hold_dialogues
from potstill.evaluation.statistics import Observation
from potstill.own import OwnOrWord
from potstill.records import Chat, Pair, Prompt
from potstill.skills.boxes import check_tools, open_toolbox
from potstill.skills.checkers import can_read, check_name, find_checker
from potstill.skills.dialogue import hold
from potstill.sources import EndpointModel, Inputs, Model, Spec
from potstill.stages.base import (
    Expected,
    Facts,
    LocalModelName,
    ModelName,
    PoolName,
    Reference,
    ServerName,
    Stage,
    StageConfig,
    Work,
)
from potstill.teachers.aspects import ASPECTS, HIGHEST, LOWEST, Aspect
from potstill.teachers.base import Exchange, connect

R = TypeVar("R", Prompt, Chat, Pair)

# For `potstill plan`, which knows neither the questions nor the models: what a turn and a judgment come to on average.
TURNS_A_QUESTION = 2
TOKENS_A_JUDGMENT = 900

SCORES_FILE = "scores.json"
ANSWERS_FILE = "answers.jsonl"

MT_BENCH = Measure("mt_bench", (mt_bench.LOWEST, mt_bench.HIGHEST), unit="points")
ASPECTS_MEASURE = Measure("aspects", (LOWEST, HIGHEST), unit="points")
ANSWER_LOSS = Measure("answer_loss", (0.0, None), higher_is_better=False, unit="nats per token")
EXACT = Measure("exact", (0.0, 1.0), share=True, unit="share of questions")
PREFERENCE = Measure("preference", (0.0, 1.0), share=True, unit="share of pairs")


class MtBenchSuite(Spec):
    """Dialogues, each turn graded 1 to 10 by a judge, as MT-Bench does."""

    protocol: Literal["mt_bench"]
    questions: Annotated[str, Reference(("prompts",))]
    """Questions with their follow-ups, held out from training."""
    judge: ModelName | None = None
    """Who grades; without it the judge of the stage."""


class AspectsSuite(Spec):
    """Each turn rated 1 to 5 by a judge on one aspect at a time, as UltraFeedback does."""

    protocol: Literal["aspects"]
    questions: Annotated[str, Reference(("prompts",))]
    """Questions with their follow-ups. The answers are those of another suite that asks the same questions."""
    aspects: tuple[Aspect, ...] = Field(default=ASPECTS, min_length=1)
    """What to rate. Each aspect is a suite of its own in the scores, named SUITE/ASPECT."""
    judge: ModelName | None = None
    """Who rates; without it the judge of the stage."""


class AnswerLossSuite(Spec):
    """How surprised the models are by given answers, in nats per token."""

    protocol: Literal["answer_loss"]
    chats: Annotated[str, Reference(("chats",))]
    """Conversations held out from training."""


class PreferenceSuite(Spec):
    """How often the models' implicit reward agrees with given preferences."""

    protocol: Literal["preference"]
    pairs: Annotated[str, Reference(("pairs",))]
    """Pairs held out from training."""
    reference: LocalModelName
    """The model that preference training started from. It has no accuracy of its own: its likelihood is a baseline."""


class ExactSuite(Spec):
    """How many answers are right, by a checker. One answer a question, without sampling."""

    protocol: Literal["exact"]
    questions: Annotated[str, Reference(("prompts", "chats"))]
    """Held-out prompts with references; or chats, whose last answer is the reference."""
    checker: OwnOrWord = "exact"
    """number, exact, choice, json, rating, python_tests (runs code that models write), or mine.py:check, as in the
    stage `reason`."""
    tools: tuple[OwnOrWord, ...] = ()
    """What the models may call, as in the stage `use_tools`. The calls are executed."""
    server: ServerName | None = None
    """The miniature server whose archive the tool `lookup` reads."""
    max_calls: int = Field(default=4, ge=1, le=100)
    """The most calls for one question."""
    tool_seconds: float = Field(default=10.0, gt=0)
    """How long one call of your own tools may take."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str) -> str:
        return check_name(checker)

    @model_validator(mode="after")
    def _tools(self) -> "ExactSuite":
        check_tools(self.tools, self.server is not None)
        return self


Suite = Annotated[
    MtBenchSuite | AspectsSuite | AnswerLossSuite | PreferenceSuite | ExactSuite,
    Field(discriminator="protocol"),
]


JUDGED = (MtBenchSuite, AspectsSuite)


class Evaluate(StageConfig):
    """Scores of several models on several suites."""

    kind: Literal["evaluate"]
    models: tuple[PoolName, ...] = Field(min_length=1)
    """The models, in the order of the tables: from the base to the last. Differences are later minus earlier."""
    suites: dict[str, Suite] = Field(min_length=1)
    """What to measure, by name."""
    judge: ModelName | None = None
    """The judge of every suite that names none of its own."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer, per turn."""
    judge_max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many questions, chats or pairs of each suite."""

    @model_validator(mode="after")
    def _names(self) -> "Evaluate":
        if len(set(self.models)) < len(self.models):
            raise ValueError("the same model stands in 'models' twice")
        for name, suite in self.suites.items():
            if "/" in name:
                raise ValueError(f"suite '{name}' has a slash in its name, which stands between suite and aspect")
            if isinstance(suite, JUDGED) and (suite.judge or self.judge) is None:
                raise ValueError(f"suite '{name}' needs a judge: name one for the suite or for the stage")
        return self

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        for name, suite in self.suites.items():
            behind = [model.name for model in models["models"] if isinstance(model.spec, EndpointModel)]
            if behind and not isinstance(suite, (*JUDGED, ExactSuite)):
                what = (
                    f"suite '{name}' is of protocol {suite.protocol}, which needs log-probabilities, and '{behind[0]}' "
                    "is behind an endpoint, which gives none of a text that it did not write"
                )
                remedy = "Evaluate endpoints in a stage of their own, by mt_bench, aspects or exact"
                raise RecipeError("models", what, remedy)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Answers are asked for once per set of questions, judgments once per turn, suite and aspect."""
        asked, lines, judgments, scored = dict[str, int](), 0, 0, 0
        checked = 0
        for name, suite in self.suites.items():
            given = rows.get(f"suites.{name}.{_source(suite)}", 0)
            number = (given if self.limit is None else min(given, self.limit)) * len(self.models)
            if isinstance(suite, JUDGED):
                sheets = number * (len(suite.aspects) if isinstance(suite, AspectsSuite) else 1)
                asked[suite.questions] = max(asked.get(suite.questions, 0), number * TURNS_A_QUESTION)
                judgments += sheets * TURNS_A_QUESTION
                lines += sheets
            elif isinstance(suite, ExactSuite):
                checked += number * (2 if suite.tools else 1)
                lines += number
            else:
                scored += number
                lines += number
        answers = sum(asked.values()) + checked
        tokens = answers * self.max_tokens // 2 + judgments * TOKENS_A_JUDGMENT + scored * self.max_tokens // 2
        return Expected(rows=lines, calls=answers + judgments, tokens=tokens)


def _source(suite: Suite) -> str:
    """The field that names a suite's rows."""
    if isinstance(suite, AnswerLossSuite):
        return "chats"
    return "pairs" if isinstance(suite, PreferenceSuite) else "questions"


@dataclass
class _Bench:
    """One run of the stage: what it was given, and what it has found so far."""

    config: Evaluate
    inputs: Inputs
    work: Work
    models: tuple[Model, ...]
    results: dict[str, SuiteResult] = field(default_factory=dict)
    sheets: list[Sheet] = field(default_factory=list)

    def read(self, suite: str, row_type: type[R]) -> list[R]:
        """The suite's rows: some, each under its own id, as many as the limit allows."""
        data = self.inputs.one(f"suites.{suite}.{_source(self.config.suites[suite])}")
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

    def ticker(self, total: int, unit: str) -> Callable[[], None]:
        """To be called once for each of `total`."""
        done = count(1)
        return lambda: self.work.progress(min(next(done), total), total, unit)


def run(config: Evaluate, inputs: Inputs, work: Work) -> Facts:
    """Ask, judge, score; writes scores.json and answers.jsonl."""
    bench = _Bench(config, inputs, work, inputs.models["models"])
    judged = {name: suite for name, suite in config.suites.items() if isinstance(suite, JUDGED)}
    answers = _ask_models(bench, {name: bench.read(name, Prompt) for name in judged})
    for name, suite in config.suites.items():
        if isinstance(suite, MtBenchSuite):
            ask = mt_bench.ask_judge(config.judge_max_tokens, work.seed)
            _judge(bench, name, name, ask, mt_bench.read_grade, answers[name], MT_BENCH)
        elif isinstance(suite, AspectsSuite):
            for aspect in suite.aspects:
                ask = aspect_protocol.ask_judge(aspect, config.judge_max_tokens, work.seed)
                read = aspect_protocol.read_rating(aspect)
                _judge(bench, name, f"{name}/{aspect}", ask, read, answers[name], ASPECTS_MEASURE)
        elif isinstance(suite, AnswerLossSuite):
            _answer_loss(bench, name)
        elif isinstance(suite, ExactSuite):
            _exact(bench, name, suite)
        else:
            _preference(bench, name)
    return _write(bench)


def _ask_models(bench: _Bench, asked: Mapping[str, Sequence[Prompt]]) -> dict[str, list[Sheet]]:
    """Every model's dialogues, by suite. A question that several suites ask in the same words is answered once."""
    questions = {_question(prompt): prompt for prompts in asked.values() for prompt in prompts}
    turns = sum(1 + len(prompt.follow_ups) for prompt in questions.values())
    tick = bench.ticker(turns * len(bench.models), "answers")
    sheets: dict[str, list[Sheet]] = {name: [] for name in asked}
    for model in bench.models if questions else ():
        with connect(model, bench.work.account) as teacher:
            held = hold_dialogues(
                teacher,
                list(questions.values()),
                mt_bench.temperature,
                bench.config.max_tokens,
                bench.work.seed,
                tick,
            )
        answered = dict(zip(questions, held, strict=True))
        for name, prompts in asked.items():
            sheets[name] += [replace(answered[_question(p)], suite=name, model=model.name, prompt=p) for p in prompts]
    return sheets


def _question(prompt: Prompt) -> tuple[Any, ...]:
    """What of a prompt decides the answer to it: not its references."""
    return prompt.id, prompt.messages, prompt.follow_ups, prompt.category


def _judge(
    bench: _Bench, suite: str, name: str, ask: Ask, read: Read, answers: Sequence[Sheet], measure: Measure
) -> None:
    """Grade one suite's answers and keep them under `name`."""
    tick = bench.ticker(sum(turn.assistant is not None for sheet in answers for turn in sheet.turns), "judgments")
    with connect(bench.judge(suite), bench.work.account) as judge:
        graded = grade(judge, [replace(sheet, suite=name) for sheet in answers], ask, read, tick)
    bench.sheets += graded
    observations: dict[str, list[Observation]] = {model.name: [] for model in bench.models}
    for sheet in graded:
        observations[sheet.model] += sheet.observations()
    bench.results[name] = SuiteResult(measure, observations)


def _answer_loss(bench: _Bench, name: str) -> None:
    chats = bench.read(name, Chat)
    if not likelihood.exchanges(chats):
        data = bench.inputs.one(f"suites.{name}.chats")
        raise DataError(data.name, "no assistant turn that is to be learnt", "Name chats that hold one")
    tick = bench.ticker(len(bench.models), "models scored")
    observations = {}
    for model in bench.models:
        observations[model.name] = likelihood.answer_loss(model, chats, _local_scorer)
        tick()
    bench.results[name] = SuiteResult(ANSWER_LOSS, observations)


def _exact(bench: _Bench, name: str, suite: ExactSuite) -> None:
    chats = bench.inputs.one(f"suites.{name}.questions").kind == "chats"
    questions = [exact.as_question(chat) for chat in bench.read(name, Chat)] if chats else bench.read(name, Prompt)
    checker = find_checker(suite.checker, bench.inputs.functions.get(f"suites.{name}.checker", ()))
    for question in questions:
        if not can_read(checker, question.references[0] if question.references else ""):
            what = f"the checker '{suite.checker}' of suite '{name}' can read no reference of '{question.id}'"
            place = bench.inputs.one(f"suites.{name}.questions").name
            raise DataError(place, what, "Give every question a reference, or choose another checker")
    tick = bench.ticker(len(questions) * len(bench.models), "answers")
    own, server = (
        bench.inputs.functions.get(f"suites.{name}.tools", ()),
        bench.inputs.servers.get(f"suites.{name}.server"),
    )
    observations: dict[str, list[Observation]] = {}
    with open_toolbox(suite.tools, own, server, suite.tool_seconds) as toolbox:
        ask = exact.asking(questions, bench.config.max_tokens, bench.work.seed)
        for model in bench.models:
            with connect(model, bench.work.account) as teacher:
                held = hold(teacher, [q.messages for q in questions], toolbox, ask, suite.max_calls, tick)
            sheets = [exact.checked(name, model.name, q, d, checker) for q, d in zip(questions, held, strict=True)]
            bench.sheets += sheets
            observations[model.name] = [seen for sheet in sheets for seen in sheet.observations()]
    bench.results[name] = SuiteResult(EXACT, observations)


def _preference(bench: _Bench, name: str) -> None:
    pairs = bench.read(name, Pair)
    reference = bench.inputs.model(f"suites.{name}.reference")
    tick = bench.ticker(1 + len(bench.models), "models scored")
    known = preference.pair_likelihoods(reference, pairs, _local_scorer)
    tick()
    observations = preference.baselines(pairs, reference.name, known)
    for model in bench.models:
        if model.name != reference.name:  # against itself every margin is zero
            found = preference.pair_likelihoods(model, pairs, _local_scorer)
            observations[model.name] = preference.reward_accuracy(pairs, found, known)
        tick()
    bench.results[name] = SuiteResult(PREFERENCE, observations)


def _local_scorer(model: Model, exchanges: list[Exchange]) -> list[tuple[float, int]]:
    from potstill.teachers.local import answer_logprobs  # imports torch

    return answer_logprobs(model, exchanges)


def _write(bench: _Bench) -> Facts:
    models = [model.name for model in bench.models]
    suites = {name: result.to_json() for name, result in bench.results.items()}
    write_json(bench.work.path / SCORES_FILE, {"models": models, "suites": suites})
    judged = {sheet.suite for sheet in bench.sheets}
    lines = [sheet.to_json() for sheet in bench.sheets]
    for name, result in bench.results.items():
        if name not in judged:
            lines += [line for model in models for line in _scored_lines(name, model, result)]
    path = bench.work.path / ANSWERS_FILE
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return {
        "models": models,
        "suites": {name: _counts(result, bench.sheets, name) for name, result in bench.results.items()},
    }


def _scored_lines(suite: str, model: str, result: SuiteResult) -> Iterator[dict[str, Any]]:
    """A suite in which nothing was said: the score of each question, without words."""
    turns: dict[str, list[dict[str, Any]]] = {}
    categories: dict[str, str] = {}
    for row in result.observations.get(model, ()):
        turns.setdefault(row.question, []).append({"user": "", "assistant": "", "score": row.value, "judgment": ""})
        categories[row.question] = row.category
    for question, scored in turns.items():
        yield {"suite": suite, "model": model, "id": question, "category": categories[question], "turns": scored}


def _counts(result: SuiteResult, sheets: Sequence[Sheet], name: str) -> dict[str, int]:
    rows = [row for found in result.observations.values() for row in found]
    turns = [turn for sheet in sheets if sheet.suite == name for turn in sheet.turns]
    counts = {
        "questions": len({row.question for row in rows}),
        "scored": sum(row.value is not None for row in rows),
        "unanswered": sum(turn.assistant is None for turn in turns),
        "unread": sum(turn.assistant is not None and turn.score is None and turn.applies for turn in turns),
        "not_applicable": sum(not turn.applies for turn in turns),
    }
    return {what: number for what, number in counts.items() if number or what in ("questions", "scored")}


STAGE = Stage(config=Evaluate, produces="scores", run=run, version=2)
