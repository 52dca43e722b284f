"""What the stage `audit` works with: the evidence at hand, what is asked for beside it, and each danger of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from potstill.artifact import Artifact, find
from potstill.curation.decontaminate import user_turns
from potstill.errors import DataError
from potstill.evaluation import mt_bench
from potstill.evaluation.audits import (
    ancestors,
    calibration,
    contamination,
    diversity,
    drift,
    forgetting,
    inherited_bias,
    inherited_errors,
    overfitting,
)
from potstill.evaluation.audits.asking import Sampling, Variant, outcomes, take_samples, variants
from potstill.evaluation.audits.base import Danger, unmeasured
from potstill.evaluation.audits.said import Said, once, read_said
from potstill.evaluation.scores import SuiteResult, read_results
from potstill.evaluation.sheets import Sheet, Turn, UnreadableError, grade, hold_dialogues
from potstill.own import OwnOrWord
from potstill.records import Prompt
from potstill.skills.checkers import Checker, built_in, can_read, check_name, find_checker
from potstill.sources import Data, Inputs, LocalModel, Model, Spec
from potstill.stages.base import ModelName, Reference, Work
from potstill.teachers.base import connect

ANSWERS_FILE = "answers.jsonl"
CURVES_FILE = "curves.jsonl"


class Samples(Spec):
    """Several answers to each prompt, for diversity; and for calibration, where a checker can tell which are right."""

    prompts: Annotated[str, Reference(("prompts",))]
    """What to answer."""
    each: int = Field(default=4, ge=2, le=64)
    """Answers to a prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Of their sampling; 1 is the model's own distribution."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest answer."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many prompts."""
    checker: OwnOrWord | None = None
    """Which answers are right, by the prompts' references: as in the suite exact. Calibration needs one."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str | None) -> str | None:
        return None if checker is None else check_name(checker)


class PairedPrompts(Spec):
    """Prompts asked several times, with one attribute changed, for bias."""

    prompts: Annotated[str, Reference(("prompts",))]
    """Prompts with a slot, such as {name}, where the attribute stands; or each beside its counterpart, as those of
    shipped:paired are."""
    attributes: dict[str, tuple[str, ...]] = Field(default={})
    """What stands in the slots, by their names: two values or more."""
    judge: ModelName | None = None
    """Who grades the answers from 1 to 10, as in the suite mt_bench."""
    judge_max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    checker: OwnOrWord | None = None
    """Which answers are right, by the prompts' references; instead of a judge. Without either, length and refusals are
    compared alone."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest answer."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many prompts."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str | None) -> str | None:
        return None if checker is None else check_name(checker)

    @model_validator(mode="after")
    def _can_be_compared(self) -> "PairedPrompts":
        for attribute, values in self.attributes.items():
            if len(set(values)) < max(2, len(values)):
                raise ValueError(f"attribute '{attribute}' needs two different values or more")
        if self.judge is not None and self.checker is not None:
            raise ValueError("there is a judge and a checker: name one of them")
        return self

    def variants(self, data: Data) -> list[Variant]:
        """What to ask. DataError where the prompts have nothing to compare in them."""
        asked = list(variants(list(islice(data.rows(Prompt), self.limit)), self.attributes))
        if not asked and not self.attributes:
            what = "no prompt stands beside its counterpart, and there are no attributes to put into slots"
            raise DataError(data.name, what, "Name shipped:paired, or write slots and their attributes")
        for attribute in self.attributes:
            if not any(variant.attribute == attribute for variant in asked):
                what = f"no prompt holds the slot {{{attribute}}}"
                raise DataError(data.name, what, f"Write {{{attribute}}} where its values are to stand")
        return asked


class Auditor:
    """One audit: what it was given, and what it has asked for so far."""

    def __init__(self, inputs: Inputs, work: Work, samples: Samples | None, paired: PairedPrompts | None) -> None:
        self._inputs, self._work, self._how, self._paired = inputs, work, samples, paired
        self._students = inputs.models["models"]
        self.models = [model.name for model in self._students]
        self.teacher = _name(inputs, "teacher")
        self.base = _name(inputs, "base")
        self._unread: list[str] = []
        """Of whose paired answers no judgment could be read, and why."""
        self._evaluations = inputs.data["scores"]
        self._results, self._answers = _results(self._evaluations), _answers(self._evaluations)

    def dangers(self) -> list[Danger]:
        """All of them, in the order of the page."""
        self._check_prompts()
        return [
            self._overfitting(),
            self._diversity(),
            self._inherited_errors(),
            self._inherited_bias(),
            self._drift(),
            self._forgetting(),
            self._calibration(),
            self._contamination(),
        ]

    def _check_prompts(self) -> None:
        """DataError where prompts lack what they are to be held against. Before anybody is asked anything."""
        if self._how is not None and self._how.checker is not None:
            self._checker("samples", self._how.checker, self._prompts)
        if self._paired is not None:
            asked = [variant.prompt for variant in self._paired.variants(self._inputs.one("paired.prompts"))]
            if self._paired.checker is not None:
                self._checker("paired", self._paired.checker, asked)

    def _before(self, model: str) -> list[str]:
        """Whom a student may be set against: its teacher, and the stage before. The base only where there is neither:
        it was never taught to answer."""
        place = self.models.index(model)
        earlier = self.models[place - 1] if place else self.base if self.teacher is None else None
        return [name for name in dict.fromkeys((self.teacher, earlier)) if name is not None and name != model]

    def _overfitting(self) -> Danger:
        curves = {}
        for model in self._students:
            made = _made(model)
            if made is not None and (made.path / CURVES_FILE).is_file():
                kept = str(made.facts.get("kept", "last"))
                step = int(kept.removeprefix("step ")) if kept.startswith("step ") else None
                curves[model.name] = overfitting.Learning(_lines(made.path / CURVES_FILE), step)
        return overfitting.overfitting(curves, self._results, self.models)

    def _diversity(self) -> Danger:
        said = {"as evaluated": {model: _one_each(answers) for model, answers in self._answers.items()}}
        if self._how is not None:
            said["sampled"] = self._samples
        found = [
            diversity.Compared(model, other, where, answers[model], answers[other])
            for where, answers in said.items()
            for model in self.models
            for other in [name for name in self._before(model) if answers.get(name)][:1]
            if answers.get(model)
        ]
        why = "it needs answers of its own and of a teacher, or of a stage before it, in scores"
        missing = {model: why for model in self.models if all(one.model != model for one in found)}
        return diversity.diversity(found, missing)

    def _inherited_errors(self) -> Danger:
        if self.teacher is None:
            return unmeasured(inherited_errors.DANGER, self.models, "it needs a teacher")
        found: dict[str, list[inherited_errors.Shared]] = {}
        for suite, result in self._known().items():
            low, high = result.measure.scale
            least = low + ((high or low) - low) / 2
            teacher = self._in_suite(self.teacher, suite)
            for model in self.models:
                found.setdefault(model, [])
                found[model] += inherited_errors.shared(self._in_suite(model, suite), teacher, self._same(suite), least)
        why = (
            f"it needs questions with known answers, a suite exact or judged, that it and {self.teacher} are scored on"
        )
        missing = {model: why for model in self.models if not found.get(model)}
        return inherited_errors.inherited_errors({m: rows for m, rows in found.items() if rows}, missing)

    def _known(self) -> dict[str, SuiteResult]:
        """Suites that tell right from wrong; those of a checker where there are any, as it does not guess."""
        exact = {name: one for name, one in self._results.items() if one.measure.protocol == "exact"}
        return exact or {name: one for name, one in self._results.items() if one.measure.protocol == "mt_bench"}

    def _in_suite(self, model: str, suite: str) -> list[Said]:
        return [said for said in self._answers.get(model, ()) if said.suite == suite]

    def _same(self, suite: str) -> Callable[[str, str], bool]:
        """Whether two answers are the same: by the suite's checker where that can tell, by their words elsewhere."""
        configs = [made.manifest["config"]["suites"].get(suite) for made in map(_sealed, self._evaluations) if made]
        name = next((config["checker"] for config in configs if config and "checker" in config), "")
        if name not in ("number", "choice", "json", "exact"):
            return inherited_errors.same_words
        checker = built_in(name)
        return lambda one, other: checker.check(one, other) == "right" or inherited_errors.same_words(one, other)

    def _inherited_bias(self) -> Danger:
        if self._paired is None:
            why = "it needs paired prompts, and the attributes that they differ in"
            return unmeasured(inherited_bias.DANGER, self.models, why)
        asked, judged = self._paired.variants(self._inputs.one("paired.prompts")), self._paired.judge is not None
        found = {model.name: self._outcomes(self._paired, model, asked) for model in self._asked()}
        unscored = {model: sum(one.score is None for one in rows) for model, rows in found.items()}
        notes = [
            f"{self._paired.judge} judged {len(found[model]) - count} of {len(found[model])} answers of {model}"
            for model, count in unscored.items()
            if judged and count
        ]
        teacher = found.pop(self.teacher, []) if self.teacher is not None else []
        missing = {model: "it answered none of the paired prompts" for model, rows in found.items() if not rows}
        known = {model: rows for model, rows in found.items() if rows}
        danger = inherited_bias.inherited_bias(known, teacher, missing, scored=judged)
        return replace(danger, notes=(*danger.notes, *self._unread, *notes))

    def _outcomes(self, paired: PairedPrompts, model: Model, asked: Sequence[Variant]) -> list[inherited_bias.Outcome]:
        """What one model makes of the paired prompts."""
        prompts = [(variant.prompt, 0.0) for variant in asked]
        tick = self._ticker(len(prompts), f"answers of {model.name}")
        with connect(model, self._work.account) as teacher:
            sheets = hold_dialogues(teacher, prompts, paired.max_tokens, self._work.seed, tick)
        if paired.judge is not None:
            ask = mt_bench.ask_judge(paired.judge_max_tokens, self._work.seed)
            tick = self._ticker(len(prompts), f"judgments of {model.name}")
            with connect(self._inputs.model("paired.judge"), self._work.account) as judge:
                try:
                    sheets = grade(lambda: judge, sheets, ask, mt_bench.read_grade, tick)
                except UnreadableError as error:  # length and refusals can be told without it
                    self._unread.append(f"{model.name}: {error.where}: {error.what}")
            return outcomes(asked, sheets, mt_bench.HIGHEST - mt_bench.LOWEST)
        if paired.checker is not None:
            checker = self._checker("paired", paired.checker, [prompt for prompt, _ in prompts])
            sheets = [_checked(sheet, checker) for sheet in sheets]
        return outcomes(asked, sheets, 1.0)

    def _checker(self, field: str, name: str, prompts: Sequence[Prompt]) -> Checker:
        checker = find_checker(name, self._inputs.functions.get(f"{field}.checker", ()))
        for prompt in prompts:
            if not can_read(checker, prompt.references[0] if prompt.references else ""):
                what = f"the checker '{name}' of {field} can read no reference of '{prompt.id}'"
                remedy = "Give every prompt a reference, or leave the checker out"
                raise DataError(self._inputs.one(f"{field}.prompts").name, what, remedy)
        return checker

    def _drift(self) -> Danger:
        answers = {model: once(said) for model, said in self._answers.items()}
        against, missing = {}, {}
        for model in self.models:
            others = [name for name in self._before(model) if name in answers]
            if model in answers and others:
                against[model] = others
            else:
                missing[model] = "it needs answers of its own and of a teacher, or of a stage before it, in scores"
        return drift.drift(answers, against, missing)

    def _forgetting(self) -> Danger:
        if self.base is None:
            return unmeasured(forgetting.DANGER, self.models, "it needs a base, the model that the students began as")
        return forgetting.forgetting(self._results, self.base, [m for m in self.models if m != self.base], {})

    def _calibration(self) -> Danger:
        if self._how is None or self._how.checker is None:
            why = "it needs samples of prompts with references, and a checker of them"
            return unmeasured(calibration.DANGER, self.models, why)
        checker = self._checker("samples", self._how.checker, self._prompts)
        references = {prompt.id: prompt.references[0] for prompt in self._prompts if prompt.references}
        found: dict[str, list[calibration.Sure]] = {}
        for model, samples in self._samples.items():
            for prompt, texts in samples.items():
                right = [checker.check(text, references.get(prompt, "")) == "right" for text in texts]
                finals = [checker.final(text) for text in texts]
                found.setdefault(model, []).extend(calibration.self_consistency(prompt, finals, right))
        against = {m: next((name for name in self._before(m) if name in found), "") for m in self.models if m in found}
        missing = {model: "none of its samples came" for model in self.models if model not in found}
        return calibration.calibration(found, against, missing)

    @cached_property
    def _prompts(self) -> list[Prompt]:
        """What several answers are asked for."""
        assert self._how is not None, "without it nothing is sampled"
        return list(islice(self._inputs.one("samples.prompts").rows(Prompt), self._how.limit))

    @cached_property
    def _samples(self) -> dict[str, dict[str, list[str]]]:
        """Several answers to each prompt, by model, the teacher's among them."""
        assert self._how is not None, "without it nothing is sampled"
        how = Sampling(self._how.each, self._how.temperature, self._how.max_tokens, self._work.seed)
        found = {}
        for model in self._asked():
            tick = self._ticker(len(self._prompts) * how.each, f"samples of {model.name}")
            with connect(model, self._work.account) as teacher:
                found[model.name] = take_samples(teacher, self._prompts, how, tick)
        return found

    def _asked(self) -> list[Model]:
        """Whom the audit itself asks: the students, and the teacher."""
        return [*self._students, *(m for m in self._inputs.models.get("teacher", ()) if m.name not in self.models)]

    def _ticker(self, total: int, unit: str) -> Callable[[], None]:
        done = count(1)
        return lambda: self._work.progress(min(next(done), total), total, unit)

    def _contamination(self) -> Danger:
        questions, sizes, results = contamination.Questions(), {}, {}
        read = self._suites_of_rows()
        for data in self._inputs.data["questions"]:
            label = ", ".join(read.get(data.name, ())) or data.name
            found = list(user_turns(data))
            for name, turns in found:
                if turns:
                    questions.add(contamination.Asked(label, name), turns[0])
            if found:
                sizes[label] = len({name for name, _ in found})
            scored = next((suite for suite in read.get(data.name, ()) if suite in self._results), None)
            if scored is not None:
                results[label] = self._results[scored]
        files = self._inputs.data.get("files", ())
        made = {model.name: _made(model) for model in self._students}
        lineages = {name: None if one is None else ancestors.lineage(one, files) for name, one in made.items()}
        hits = contamination.search(questions, lineages.values())
        return contamination.contamination(sizes, lineages, hits, results)

    def _suites_of_rows(self) -> dict[str, tuple[str, ...]]:
        """By the name of rows: the suites that read them."""
        found: dict[str, dict[str, None]] = {}
        for made in filter(None, map(_sealed, self._evaluations)):
            for field, group in made.manifest["inputs"].items():
                parts = field.split(".")
                if parts[0] == "suites" and parts[-1] in ("questions", "chats", "pairs"):
                    for source in group:
                        found.setdefault(source["name"], {})[parts[1]] = None
        return {name: tuple(suites) for name, suites in found.items()}


def _name(inputs: Inputs, field: str) -> str | None:
    return next((model.name for model in inputs.models.get(field, ())), None)


def _made(model: Model) -> Artifact | None:
    """The sealed folder of a model that this run made; None for one from elsewhere."""
    return find(Path(model.spec.path)) if isinstance(model.spec, LocalModel) else None


def _sealed(data: Data) -> Artifact | None:
    return find(data.path)


def _results(evaluations: Sequence[Data]) -> dict[str, SuiteResult]:
    """The suites of all evaluations. One that several evaluations have in common holds the rows of all."""
    found: dict[str, SuiteResult] = {}
    for data in evaluations:
        for name, result in read_results(data.path).items():
            earlier = found.get(name)
            rows = {**result.observations, **(earlier.observations if earlier is not None else {})}
            found[name] = SuiteResult(result.measure, rows)
    return found


def _answers(evaluations: Sequence[Data]) -> dict[str, list[Said]]:
    """By model: all that it said, in all evaluations."""
    found: dict[str, list[Said]] = {}
    for data in evaluations:
        for said in read_said(data.path / ANSWERS_FILE):
            found.setdefault(said.model, []).append(said)
    return found


def _one_each(answers: Sequence[Said]) -> dict[str, list[str]]:
    """One answer to each turn."""
    found: dict[str, list[str]] = {}
    for said in answers:
        if said.text is not None:
            found.setdefault(f"{said.question}/{said.turn}", [said.text])
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _checked(sheet: Sheet, checker: Checker) -> Sheet:
    """The sheet with 1 for a right answer and 0 for any other."""
    turn = sheet.turns[0]
    if turn.assistant is None:
        return sheet
    reference = sheet.prompt.references[0] if sheet.prompt.references else ""
    score = float(checker.check(turn.assistant, reference) == "right")
    return Sheet(sheet.suite, sheet.model, sheet.prompt, (Turn(turn.user, turn.assistant, score),))
