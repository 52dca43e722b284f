"""What the library hands out: plans, runs, models, scores, what a stage made. Each prints as the command line does."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from potstill.artifact import DROPPED_FILE, ROWS_FILE, Artifact, read_json, read_rows
from potstill.errors import DataError, ModelError, StorageError
from potstill.library.in_memory import Scratch
from potstill.library.notebook import drawn, plain
from potstill.records import ROWS, Dropped, Message, Record
from potstill.runs.events import Event, kept_events
from potstill.runs.plan import Plan, Step
from potstill.runs.workspace import Workspace
from potstill.validation import nearest

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R", bound=Record)


class View:
    """Something that prints as the command line prints it, in a notebook too."""

    def _draw(self, console: "Console") -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return plain(self._draw)

    def _repr_html_(self) -> str:
        return drawn(self._draw)


class Planned(View):
    """A plan: `stages` by name, `to_run` those that would run."""

    def __init__(self, plan: Plan, workspace: Workspace) -> None:
        self._plan, self._workspace = plan, workspace

    @property
    def stages(self) -> Mapping[str, Step]:
        """In the order in which they run; `expected` of each is its forecast."""
        return self._plan.steps

    @property
    def to_run(self) -> list[str]:
        """Those that are not sealed."""
        return [step.name for step in self._plan.to_run]

    def _draw(self, console: "Console") -> None:
        from potstill.terminal.views import plan_view

        plan_view(console, self._plan, self._workspace)


class Status(View):
    """How far a run is."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def _draw(self, console: "Console") -> None:
        from potstill.terminal.views import status_view

        status_view(console, self._workspace)


@dataclass(frozen=True)
class Cost:
    """What a run has taken so far."""

    replies: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    """At the prices of the time."""
    seconds: float
    """Of all sealed stages together."""


class Model(os.PathLike[str]):
    """A model that a run made: a folder in Hugging Face layout."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {str(self.path)!r})"

    def chat(
        self,
        said: str | Sequence[Message],
        *,
        system: str = "",
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = 50,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> str:
        """Its answer to a text, or to a conversation that ends with the user. The same seed gives the same answer."""
        from potstill.teachers.base import Request, request_seed

        turns = (Message(role="user", content=said),) if isinstance(said, str) else tuple(said)
        first = (Message(role="system", content=system),) if system else ()
        asked = Request(
            (*first, *turns), max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            seed=request_seed(seed, 1),
        )  # fmt: skip
        return "".join(self._teacher.stream(asked))

    @cached_property
    def _teacher(self) -> Any:
        from potstill.sources import LocalModel
        from potstill.sources import Model as Source
        from potstill.teachers.local import LocalTeacher  # imports torch

        return LocalTeacher(Source(self.name, LocalModel(path=str(self.path))))


class Scores(View):
    """A run's scores. It prints as a table, each number with its 95% interval."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self._summary = summary

    @property
    def models(self) -> list[str]:
        """Those that were scored."""
        return list(self._summary["models"])

    @property
    def suites(self) -> list[str]:
        """What they were scored on."""
        return list(self._summary["scores"])

    def __getitem__(self, suite_and_model: tuple[str, str]) -> Mapping[str, Any]:
        """The estimate of a suite and a model: mean, low, high, n and coverage."""
        suite, model = suite_and_model
        estimate: Mapping[str, Any] = self._summary["scores"][suite][model]
        return estimate

    def rows(self) -> list[dict[str, Any]]:
        """One row a suite and model: suite, model, mean, low, high, n."""
        shown = ("mean", "low", "high", "n")
        return [
            {"suite": suite, "model": model, **{name: scores[model].get(name) for name in shown}}
            for suite, scores in self._summary["scores"].items()
            for model in self.models
            if model in scores
        ]

    def to_pandas(self) -> Any:
        """`rows` as a pandas.DataFrame. ModelError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ModelError("to_pandas", "pandas is not installed", "pip install pandas, or use rows()") from error
        return pandas.DataFrame(self.rows())

    def _draw(self, console: "Console") -> None:
        from potstill.reporting.tables import score_table, side_by_side_table

        table = side_by_side_table if "side_by_side" in self._summary else score_table
        console.print(table(self._summary, console.width))
        for finding in self._summary.get("headline", ()):
            console.print(finding, soft_wrap=True, markup=False)


class Run:
    """A run's folder, and what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._workspace = Workspace(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def stages(self) -> dict[str, Artifact | None]:
        """What each stage sealed, in the order in which they run; None: not yet."""
        return self._workspace.sealed()

    @overload
    def rows(self, stage: str) -> Iterator[Record]: ...
    @overload
    def rows(self, stage: str, row_type: type[R]) -> Iterator[R]: ...
    def rows(self, stage: str, row_type: type[Record] | None = None) -> Iterator[Record]:
        """A stage's rows as records, read as they are asked for: `for pair in run.rows("pairs", Pair)`.

        DataError where it makes no rows, or rows of another kind than `row_type`.
        """
        artifact = self._sealed(stage)
        made = ROWS.get(artifact.produces)
        if made is None or row_type not in (None, made):
            wanted = row_type.__name__ if row_type else "any"
            what = f"'{stage}' makes {artifact.produces}, not {wanted} rows"
            raise DataError(str(self.path), what, "Name a stage that makes such rows")
        return read_rows(artifact.path / ROWS_FILE, made)

    def dropped(self, stage: str) -> Iterator[Dropped]:
        """The rows that a stage left out, with their reasons."""
        path = self._sealed(stage).path / DROPPED_FILE
        return read_rows(path, Dropped) if path.is_file() else iter(())

    def facts(self, stage: str) -> Mapping[str, Any]:
        """What a stage counted and decided."""
        return self._sealed(stage).facts

    def model(self, stage: str | None = None) -> Model:
        """A model that the run made; None: the last. ModelError where there is none."""
        from potstill.runs.made import find_model

        return Model(*find_model(str(self.path), stage))

    def scores(self, stage: str | None = None) -> Scores:
        """The scores of the run's report; or of one stage that evaluates, or the last such where nothing reports."""
        made = [(name, artifact) for name, artifact in self.stages.items() if artifact is not None]
        report = self.path / "summary.json"
        if stage is None and report.is_file() and any(one.produces == "report" for _, one in made):
            return Scores(read_json(report))
        from potstill.terminal.show import scores_summary

        sealed = [name for name, one in made if one.produces == "scores"]
        if stage is None and not sealed:
            raise StorageError(str(self.path), "nothing is scored here yet", f"See: potstill status {self.path}")
        artifact = self._sealed(sealed[-1] if stage is None else stage)
        if artifact.produces != "scores":
            what = f"'{stage}' makes {artifact.produces}, not scores"
            raise DataError(str(self.path), what, "Name a stage of the kind evaluate")
        return Scores(scores_summary(artifact))

    def status(self) -> Status:
        """What is sealed and what is left; printed, the table of `potstill status`."""
        return Status(self._workspace)

    def events(self) -> list[Event]:
        """What the last run here has said; see docs/command-line.md."""
        return list(kept_events(self._workspace))

    def cost(self) -> Cost:
        """What it has taken so far."""
        from potstill.terminal.views import journal_totals

        totals = journal_totals(self._workspace)
        return Cost(
            replies=sum(total.calls for total in totals),
            prompt_tokens=sum(total.prompt_tokens for total in totals),
            completion_tokens=sum(total.completion_tokens for total in totals),
            usd=sum(total.usd for total in totals),
            seconds=sum(took.seconds for took in self._workspace.times().values()),
        )

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def _sealed(self, stage: str) -> Artifact:
        stages = self.stages
        if stage not in stages:
            what = f"this run has no stage '{stage}'{nearest(stage, stages)}"
            raise StorageError(str(self.path), what, f"It has: {', '.join(stages)}")
        artifact = stages[stage]
        if artifact is None:
            raise StorageError(str(self.path), f"'{stage}' is not sealed yet", f"See: potstill status {self.path}")
        return artifact


class Made:
    """What one stage made of what it was given."""

    def __init__(self, artifact: Artifact, scratch: Scratch) -> None:
        self._artifact, self._scratch = artifact, scratch  # the folder goes with the last who knows it

    @property
    def path(self) -> Path:
        """The sealed folder; a model's, where the stage makes one."""
        return self._artifact.path

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage counted and decided."""
        return self._artifact.facts

    @property
    def produces(self) -> str:
        """The kind of what was made: chats, pairs, model, scores, ..."""
        return self._artifact.produces

    @cached_property
    def rows(self) -> tuple[Record, ...]:
        """The rows that were made; none, where it makes no rows."""
        made = ROWS.get(self.produces)
        return tuple(read_rows(self.path / ROWS_FILE, made)) if made else ()

    @cached_property
    def dropped(self) -> tuple[Dropped, ...]:
        """The rows that were left out, with their reasons."""
        path = self.path / DROPPED_FILE
        return tuple(read_rows(path, Dropped)) if path.is_file() else ()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        from potstill.terminal.console import facts_line

        return f"Made({facts_line(self._artifact)})"
