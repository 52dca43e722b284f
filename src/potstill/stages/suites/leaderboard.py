"""Suite `leaderboard`: the Open LLM Leaderboard's tasks (Beeching et al. 2023), or others of lm-eval's, run by it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.errors import ModelError, RecipeError
from potstill.evaluation import leaderboard
from potstill.evaluation.leaderboard import V1
from potstill.evaluation.scores import SuiteResult
from potstill.evaluation.sheets import Sheet
from potstill.evaluation.statistics import Observation
from potstill.evaluation.task_files import FORMATS
from potstill.records import Prompt
from potstill.stages.base import Facts, Reference
from potstill.stages.suites.base import Bench, Crowd, Load, SuiteConfig

TEMPLATED = "/template"
"""What stands behind a suite's name where its questions went through the models' chat templates."""
EFFECT = "/template_effect"

Found = dict[str, dict[str, list[Observation]]]
"""By task and model."""


class LeaderboardSuite(SuiteConfig):
    """The Open LLM Leaderboard's tasks, or others of lm-eval's. Needs potstill[leaderboard]."""

    WEIGHTS: ClassVar[bool] = True
    EXTRAS: ClassVar[tuple[str, ...]] = ("leaderboard",)

    protocol: Literal["leaderboard"]
    tasks: tuple[str, ...] = Field(default=tuple(V1), min_length=1)
    """What to ask, by lm-eval's names. ARC, HellaSwag, MMLU and TruthfulQA are asked as the leaderboard asked them,
    others as lm-eval does by itself. Each is a suite of its own in the scores, named SUITE/TASK, and SUITE is their
    mean, in which each counts alike."""
    shots: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """How many solved examples stand before each question, where it is to be another number: {arc_challenge: 0}."""
    files: dict[str, Annotated[str, Reference(("file", "folder"))]] = Field(default_factory=dict)
    """A task's own data on this machine, so that nothing is asked of the Hub: a file of the questions, or a folder with
    train, validation, test or dev files, .jsonl, .json or .parquet."""
    chat_template: bool | Literal["both"] = "both"
    """Whether questions go through the models' chat templates, solved examples as turns of the dialogue. Those scores
    are named SUITE/template; both also tells what the template changes, question by question."""
    batch_size: int | None = Field(default=None, ge=1)
    """Choices scored at once. Without it, as many as fit on a GPU."""

    @model_validator(mode="after")
    def _of_the_tasks(self) -> "LeaderboardSuite":
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("the same task stands in 'tasks' twice")
        for name in (*self.shots, *self.files):
            if name not in self.tasks:
                raise ValueError(f"'{name}' is none of its tasks: {', '.join(self.tasks)}")
        for name in self.files:
            if name not in FORMATS:
                raise ValueError(f"files of '{name}' cannot be read here; those of {', '.join(FORMATS)} can")
        if self.shots.get("truthfulqa_mc2"):
            raise ValueError("truthfulqa_mc2 has no solved examples but those that its prompt always holds")
        return self

    def rows(self, given: int, limit: int | None) -> int:
        sizes = (V1[task] for task in self.tasks if task in V1)
        return sum(one.questions if limit is None else min(one.questions, limit * one.parts) for one in sizes)

    def results(self, name: str) -> tuple[str, ...]:
        ways = {False: ("",), True: (TEMPLATED,), "both": ("", TEMPLATED)}[self.chat_template]
        found = [name + way + task for way in ways for task in ("", *(f"/{task}" for task in self.tasks))]
        return (*found, name + EFFECT) if len(ways) > 1 else tuple(found)

    def load(self, rows: int, crowd: Crowd) -> Load:
        return Load(scored=rows * crowd.models * (2 if self.chat_template == "both" else 1))

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        harness = _harness(name)
        files = {task: bench.inputs.one(f"suites.{name}.files.{task}").path for task in self.files}
        asked = [harness.Asked(task, self.shots.get(task), files.get(task)) for task in self.tasks]
        bench.ready[name] = harness.open_tasks(asked)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        harness, tasks = _harness(name), bench.ready[name]
        ours = _Board(bench, name, tasks, {False: Found(), True: Found()})
        for model in bench.models:
            with harness.Reader(model, self.batch_size) as reader:
                for template in self._ways(bench, name, reader):
                    for task in tasks:
                        kept = self._kept(bench, name, model.name, task.name, template)
                        scored = harness.score(reader, task, template, bench.config.limit, bench.ticker, kept)
                        ours.keep(task, model.name, template, scored)
        ours.finish(harness.VERSION)

    def _kept(self, bench: Bench, name: str, model: str, task: str, template: bool) -> Path:
        """Where one model's answers to a task are kept until the stage is sealed."""
        way = "template" if template else "plain"
        return bench.work.state / f"{name}-{task}-{model}-{way}-{bench.config.limit or 'all'}.json"

    def _ways(self, bench: Bench, name: str, reader: Any) -> Iterator[bool]:
        """Without the template, with it, or both, as this model can be asked."""
        if self.chat_template is not True:
            yield False
        if self.chat_template is False:
            return
        if reader.has_template:
            yield True
        elif self.chat_template is True:
            what = f"its tokenizer has no chat template, and suite '{name}' is to ask through one"
            raise ModelError(f"model {reader.name}", what, "Set chat_template: both, which asks it without")
        else:
            bench.work.warn(f"{name}: {reader.name} has no chat template, so it is scored without one alone")


@dataclass
class _Board:
    """What has been found so far."""

    bench: Bench
    name: str
    tasks: Sequence[Any]
    """As `harness` opened them."""
    found: dict[bool, Found]
    """With the template, and without."""
    metrics: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
    """Prompts that lost their beginning, by suite and model."""

    def keep(self, task: Any, model: str, template: bool, scored: Any) -> None:
        """One model's answers to a task."""
        self.found[template].setdefault(task.name, {})[model] = leaderboard.observations(scored.values)
        self.metrics[task.name] = scored.metric
        if scored.truncated:
            row = f"{self.name}{TEMPLATED * template}/{task.name}"
            self.truncated.setdefault(row, {})[model] = scored.truncated
            self.bench.work.warn(
                f"{row}: {scored.truncated} prompts are longer than what {model} reads, and lost their beginning, as "
                "lm-eval does it; fewer shots keep them whole"
            )

    def finish(self, version: str) -> None:
        """Hand the results to the bench, and say how they came about."""
        said: Facts = {
            "lm_eval": version,
            "shots": {task.name: task.shots for task in self.tasks},
            "metrics": self.metrics,
        }
        if self.truncated:
            said["truncated"] = self.truncated
        for task in self.tasks:
            whole = V1[task.name].parts if task.name in V1 else 1
            if whole > 1:
                said["subjects"] = len(task.parts)
            if len(task.parts) < whole:
                self.bench.work.warn(
                    f"{self.name}: the files of {task.name} hold {len(task.parts)} of {whole} subjects"
                )
        self.bench.notes[self.name] = said
        plain, templated = self.found[False], self.found[True]
        self.bench.results |= dict(_results(self.name, plain)) | dict(_results(self.name + TEMPLATED, templated))
        if plain and templated:
            effect = SuiteResult(leaderboard.EFFECT_MEASURE, _effect(plain, templated))
            self.bench.results[self.name + EFFECT] = effect


_REMEDY = "Run pip install 'potstill[leaderboard]'"


def _harness(name: str) -> ModuleType:
    """`evaluation.harness`, which imports torch and lm-eval. RecipeError where that is not installed."""
    try:
        from potstill.evaluation import harness
    except ImportError as error:
        raise RecipeError(f"suite {name}", f"it needs lm-eval, which cannot be imported ({error})", _REMEDY) from error
    return harness


def _results(name: str, found: Found) -> Iterator[tuple[str, SuiteResult]]:
    """Every task's result and, where there are several, their mean."""
    if len(found) > 1:
        models = next(iter(found.values()))
        mean = {model: leaderboard.average({task: rows[model] for task, rows in found.items()}) for model in models}
        yield name, SuiteResult(leaderboard.MEASURE, mean)
    for task, rows in found.items():
        yield f"{name}/{task}", SuiteResult(leaderboard.MEASURE, rows)


def _effect(plain: Found, templated: Found) -> Mapping[str, list[Observation]]:
    """What the template changes, for each model that has one, over all tasks."""
    return {
        model: leaderboard.average(
            {task: leaderboard.template_effect(rows[model], plain[task][model]) for task, rows in templated.items()}
        )
        for model in next(iter(templated.values()))
    }
