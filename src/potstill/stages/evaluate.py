"""Evaluate: models side by side on suites of held-out questions, with intervals, coverage and paired differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.artifact import storage_errors, write_json
from potstill.errors import RecipeError
from potstill.evaluation.scores import SCORES_FILE, SuiteResult, write_observations
from potstill.evaluation.sheets import Sheet, hold_dialogues
from potstill.records import Prompt
from potstill.sources import EndpointModel, Inputs, Model
from potstill.stages.base import (
    Expected,
    Facts,
    ModelName,
    Part,
    PoolName,
    Reference,
    Source,
    Stage,
    Work,
)
from potstill.stages.judging import Bar, check_trials, hold_to_bar
from potstill.stages.scored import Scores
from potstill.stages.suites import Suites
from potstill.stages.suites.base import ANSWERS, Bench, JudgedSuite, Loads, calls

# For `potstill plan`, which knows neither the questions nor the models: an answer is as long as most of MT-Bench's, and
# the judge reads it with its instructions and writes a paragraph. A trial tells better.
TOKENS_A_QUESTION = 100
TOKENS_AN_ANSWER = 300
TOKENS_ASIDE = 200
TOKENS_A_JUDGMENT = 100

ANSWERS_FILE = "answers.jsonl"


class Evaluate(Scores):
    """Scores of several models on several suites."""

    kind: Literal["evaluate"]
    models: tuple[PoolName, ...] = ()
    """The models, in the order of the tables: from the base to the last. Differences are later minus earlier. None are
    needed where every suite has `recorded` answers."""
    suites: Suites = Field(min_length=1)
    """What to measure, by name. A list of protocols, [mt_bench, leaderboard], is short for those with their defaults,
    each under its own name."""
    judge: ModelName | None = None
    """The judge of every suite that names none of its own."""
    trial: Annotated[str | tuple[str, ...], Reference(("trial",))] = ()
    """Where the judges were tried: a stage try_judge, or several."""
    bar: Bar | None = None
    """What the trial has to show of every judge. A judge whose 95% interval does not clear it stops the evaluation
    before anybody is asked anything."""
    trust: tuple[str, ...] = ()
    """Judges to use although they do not clear the bar, by name. That stands in the facts, the scores and the
    report."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer, per turn."""
    judge_max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    ask_again: int = Field(default=0, ge=0, le=100)
    """How often to ask a judge once more, with another seed, where its judgment is cut, empty or cannot be read. What
    it says then takes the place of the first. Raised after a run, it asks for those judgments alone."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many questions, chats or pairs of each suite; on a leaderboard, of each task and of each
    subject of MMLU."""

    @model_validator(mode="after")
    def _names(self) -> "Evaluate":
        if len(set(self.models)) < len(self.models):
            raise ValueError("the same model stands in 'models' twice")
        for name, suite in self.suites.items():
            if fault := suite.fault(self.models):
                raise ValueError(f"suite '{name}' {fault}")
            if isinstance(suite, JudgedSuite) and (suite.judge or self.judge) is None:
                raise ValueError(f"suite '{name}' needs a judge: name one for the suite or for the stage")
        return self

    @model_validator(mode="after")
    def _bar_and_trial(self) -> "Evaluate":
        if bool(self.trial) != (self.bar is not None):
            raise ValueError("trial and bar belong together: name the stage that tried the judges, and the bar")
        if self.trust and self.bar is None:
            raise ValueError("trust names judges to use below a bar, but there is no bar: omit it, or set one")
        for name in self.trust:
            if name not in self.judges:
                judges = ", ".join(self.judges) or "none"
                raise ValueError(f"trust names '{name}', which judges nothing here; expected some of: {judges}")
        if self.bar is not None and not self.judges:
            raise ValueError("bar has no use where no suite has a judge: omit it")
        return self

    @property
    def judges(self) -> tuple[str, ...]:
        """All who judge, as the recipe names them."""
        judged = [suite.judge or self.judge for suite in self.suites.values() if isinstance(suite, JudgedSuite)]
        return tuple(dict.fromkeys(name for name in judged if name is not None))

    def glance(self, field: str, accepts: Sequence[str], path: Path) -> None:
        super().glance(field, accepts, path)
        for name, suite in self.suites.items():
            if field == f"suites.{name}.{suite.SOURCE}":
                suite.glance(name, path)

    def check_sources(self, sources: Mapping[str, Sequence[Source]]) -> None:
        if self.bar is not None:
            judges = [name for name in self.judges if name not in self.trust]
            check_trials(self.bar, sources.get("trial", ()), judges)

    def results(self) -> tuple[str, ...]:
        return tuple(result for name, suite in self.suites.items() for result in suite.results(name))

    def recorded_rows(self) -> tuple[str, ...]:
        return tuple(row for suite in self.suites.values() for row in getattr(suite, "recorded", ()))

    def extras(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(extra for suite in self.suites.values() for extra in suite.EXTRAS))

    def remarks(self) -> tuple[str, ...]:
        stored = {name: getattr(suite, "judgments", None) for name, suite in self.suites.items()}
        said = [
            f"asks for at most that many judgments in '{name}': those in {file} of the same answers are taken over"
            for name, file in stored.items()
            if file is not None
        ]
        return (*said, *self._trial_remarks())

    def _trial_remarks(self) -> tuple[str, ...]:
        if self.bar is None:
            return ()
        trials = self.trial if isinstance(self.trial, tuple) else (self.trial,)
        words = f"asks nobody anything unless {', '.join(trials)} shows that its judges clear the bar ({self.bar.text})"
        return (words + (f"; trusted without: {', '.join(self.trust)}" if self.trust else ""),)

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        for name, suite in self.suites.items():
            behind = [model.name for model in models.get("models", ()) if isinstance(model.spec, EndpointModel)]
            if behind and suite.WEIGHTS:
                what = (
                    f"suite '{name}' is of protocol {suite.protocol}, which needs log-probabilities, and '{behind[0]}' "
                    "is behind an endpoint, which gives none of a text that it did not write"
                )
                remedy = "Evaluate endpoints in a stage of their own, by a protocol that reads answers"
                raise RecipeError("models", what, remedy)

    def for_trial(self, rows: int) -> "Evaluate":
        """What reads no rows of the recipe, a leaderboard, asks as few questions as the others. There is no bar: what
        a judge said of a few rows tells nobody whether it clears one."""
        fewest = rows if self.limit is None else min(rows, self.limit)
        return self.model_copy(update={"limit": fewest, "trial": (), "bar": None, "trust": ()})

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Answers are asked for once per set of questions, judgments once per turn, suite and aspect."""
        loads, models = {}, rows.get("models", len(self.models))
        for name, suite in self.suites.items():
            given = rows.get(f"suites.{name}.{suite.SOURCE}", 0)
            crowd = suite.crowd(models, self.models, rows.get(f"suites.{name}.baseline", 0))
            loads[name] = suite.load(suite.rows(given, self.limit), crowd)
        parts = self._parts(loads)
        scored = sum(load.scored for load in loads.values())
        return Expected(
            rows=sum(load.lines for load in loads.values()),
            calls=sum(part.calls for part in parts),
            tokens=sum(part.tokens for part in parts) + scored * self.max_tokens // 2,
            parts=parts,
        )

    def _parts(self, loads: Loads) -> tuple[Part, ...]:
        """The models' answers, and each suite's judgments by its judge."""
        answers, _ = calls(loads)
        said = min(self.max_tokens // 2, TOKENS_AN_ANSWER)
        parts = [Part(ANSWERS, answers, answers * (TOKENS_A_QUESTION + said // 2), answers * said, "models")]
        for name, load in loads.items():
            own = getattr(self.suites[name], "judge", None)
            read, wrote = TOKENS_ASIDE + TOKENS_A_QUESTION + said, min(self.judge_max_tokens, TOKENS_A_JUDGMENT)
            field = f"suites.{name}.judge" if own else "judge"
            parts.append(Part(name, load.judgments, load.judgments * read, load.judgments * wrote, field))
        return tuple(part for part in parts if part.calls)


def run(config: Evaluate, inputs: Inputs, work: Work) -> Facts:
    """Ask, judge, score; writes scores.json, observations.jsonl and answers.jsonl."""
    bench = Bench(config, inputs, work, inputs.models.get("models", ()))
    judged = [name for name, suite in config.suites.items() if isinstance(suite, JudgedSuite)]
    judges = dict.fromkeys(bench.judge(name).name for name in judged)
    held = {} if config.bar is None else hold_to_bar(config.bar, inputs.data["trial"], tuple(judges), config.trust)
    answers = _ask_models(bench)
    for name, suite in config.suites.items():  # all before any judge is asked
        answers[name] = suite.take_over(bench, name, answers[name])
    for name, suite in config.suites.items():
        suite.measure(bench, name, answers[name])
    return _write(bench, held)


def _ask_models(bench: Bench) -> dict[str, list[Sheet]]:
    """Everybody's dialogues, by suite: recorded ones first. A question that several suites ask in the same way is
    answered once. Nobody is asked before the rows of all suites are known to do."""
    asked: dict[str, list[tuple[Prompt, float]]] = {}
    sheets: dict[str, list[Sheet]] = {}
    for name, suite in bench.config.suites.items():
        prompts = suite.prompts(bench, name)
        suite.check_rows(bench, name, prompts)
        asked[name] = [(prompt, suite.answer_temperature(prompt.category)) for prompt in prompts]
        sheets[name] = [replace(sheet, suite=name) for sheet in suite.recorded_sheets(bench, name, prompts)]
    askings = [(model, _questions(asked, names)) for model, names in _askers(bench)]
    turns = sum(1 + len(prompt.follow_ups) for _, found in askings for prompt, _ in found.values())
    tick = bench.ticker(turns, "answers")
    for (model, names), (_, questions) in zip(_askers(bench), askings, strict=True):
        if not questions:
            continue
        with bench.connect(model) as teacher:
            held = hold_dialogues(teacher, list(questions.values()), bench.config.max_tokens, bench.work.seed, tick)
        answered = dict(zip(questions, held, strict=True))
        for name in names:
            sheets[name] += [
                replace(answered[_question(*one)], suite=name, model=model.name, prompt=one[0]) for one in asked[name]
            ]
    return sheets


def _askers(bench: Bench) -> list[tuple[Model, list[str]]]:
    """Who is asked, and for which suites: the models for all, a baseline for its own."""
    suites = bench.config.suites
    found = {model.name: (model, list(suites)) for model in bench.models}
    for name, suite in suites.items():
        for model in suite.others(bench, name):
            found.setdefault(model.name, (model, []))[1].append(name)
    return list(found.values())


def _questions(
    asked: Mapping[str, Sequence[tuple[Prompt, float]]], names: Sequence[str]
) -> dict[Any, tuple[Prompt, float]]:
    """What those suites ask, each question once."""
    return {_question(*one): one for name in names for one in asked[name]}


def _question(prompt: Prompt, temperature: float) -> tuple[Any, ...]:
    """What decides the answer to a prompt: not its references."""
    return prompt.id, prompt.messages, prompt.follow_ups, temperature


def _write(bench: Bench, held: Mapping[str, Any]) -> Facts:
    models = list(dict.fromkeys([*bench.config.recorded_rows(), *(model.name for model in bench.models)]))
    found = {name: result.to_json() for name, result in bench.results.items()}
    write_json(bench.work.path / SCORES_FILE, {"models": models, "suites": found, **held})
    write_observations(bench.work.path, bench.results)
    path = bench.work.path / ANSWERS_FILE
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sheet.to_json(), ensure_ascii=False) + "\n" for sheet in bench.sheets)
    return {
        "models": models,
        "answering": bench.answering(),
        "suites": {name: _counts(result, bench.sheets, name) for name, result in bench.results.items()},
        **held,
        **({"notes": bench.notes} if bench.notes else {}),
    }


def _counts(result: SuiteResult, sheets: Sequence[Sheet], name: str) -> dict[str, int]:
    rows = [row for found in result.observations.values() for row in found]
    scored = (sheet for sheet in sheets if sheet.suite == name and sheet.model in result.observations)
    turns = [turn for sheet in scored for turn in sheet.turns]
    counts = {
        "questions": len({row.question for row in rows}),
        "scored": sum(row.value is not None for row in rows),
        "unanswered": sum(turn.assistant is None for turn in turns),
        "unread": sum(turn.assistant is not None and turn.score is None and turn.applies for turn in turns),
        "not_applicable": sum(not turn.applies for turn in turns),
    }
    return {what: number for what, number in counts.items() if number or what in ("questions", "scored")}


STAGE = Stage(config=Evaluate, produces="scores", run=run, version=4)
