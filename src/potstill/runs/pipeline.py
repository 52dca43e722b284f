"""Running a plan: one stage after another, each sealed as soon as it is whole.

This process alone locks the run's folder and seals. Stages that train run in a child (`potstill.runs.worker`); servers
that the recipe declares start when the first stage that has to run reads them, and end with the run.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from potstill import stages
from potstill.artifact import Artifact, read_json, seal, storage_errors
from potstill.errors import RecipeError
from potstill.money import Ledger
from potstill.recipe import Recipe
from potstill.runs.events import SECONDS_BETWEEN_KEPT, Events, LogFile
from potstill.runs.extras import check_extras
from potstill.runs.launch import check_launcher, run_job
from potstill.runs.overlap import refuse_overlap, refuse_shared
from potstill.runs.plan import Plan, Step, make_plan, refuse_changed, stage_inputs
from potstill.runs.progress import ProgressFile
from potstill.runs.survey import survey
from potstill.runs.workspace import Asked, Description, Hashes, Workspace
from potstill.sources import EndpointModel, Inputs
from potstill.stages.base import Facts, Progress, Work, read_speeds
from potstill.teachers.journal import JOURNAL, Journal, Selection


class Listener(Protocol):
    """Whoever wants to know how a run goes. Every method returns at once."""

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        """Before anything runs."""

    def found(self, step: Step, artifact: Artifact) -> None:
        """Sealed by an earlier run."""

    def started(self, step: Step) -> None:
        """Runs from now on."""

    def doing(self, step: Step, what: str) -> None:
        """What it does before there is something to count: "loading the model"."""

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """How far it is; may come many times a second."""

    def warned(self, step: Step, text: str) -> None:
        """Something that whoever watches should know now."""

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        """Finished."""

    def failed(self, step: Step, error: BaseException) -> None:
        """Did not finish; what ended it is raised too."""

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        """All stages are sealed; the summary is there where the recipe reports."""


class Silent:
    """A listener for library use and tests."""

    def planned(self, plan: Plan, workspace: Workspace) -> None: ...

    def found(self, step: Step, artifact: Artifact) -> None: ...

    def started(self, step: Step) -> None: ...

    def doing(self, step: Step, what: str) -> None: ...

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None: ...

    def warned(self, step: Step, text: str) -> None: ...

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None: ...

    def failed(self, step: Step, error: BaseException) -> None: ...

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None: ...


class Everyone:
    """Several listeners as one, told in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        for listener in self._listeners:
            listener.planned(plan, workspace)

    def found(self, step: Step, artifact: Artifact) -> None:
        for listener in self._listeners:
            listener.found(step, artifact)

    def started(self, step: Step) -> None:
        for listener in self._listeners:
            listener.started(step)

    def doing(self, step: Step, what: str) -> None:
        for listener in self._listeners:
            listener.doing(step, what)

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        for listener in self._listeners:
            listener.progress(step, done, total, unit, figures)

    def warned(self, step: Step, text: str) -> None:
        for listener in self._listeners:
            listener.warned(step, text)

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        for listener in self._listeners:
            listener.sealed(step, artifact, seconds)

    def failed(self, step: Step, error: BaseException) -> None:
        for listener in self._listeners:
            listener.failed(step, error)

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        for listener in self._listeners:
            listener.finished(plan, workspace, summary)


def run(
    recipe: Recipe,
    folder: Path,
    listener: Listener | None = None,
    until: str | None = None,
    launcher: Sequence[str] = (),
) -> dict[str, Artifact]:
    """Run a recipe, or what one stage of it needs, in a folder; returns each stage's artifact.

    `launcher` is a command that starts the workers of stages whose `sharding` is not none; see `launch`.
    What happens is kept in logs/run.jsonl too. What is sealed is found again. RecipeError, BusyError, StorageError or
    what a stage raises: one line each.
    """
    workspace, hashes = Workspace(folder), Hashes(folder / "hashes.json")
    log = Events(LogFile(workspace.logs), SECONDS_BETWEEN_KEPT)
    # Whoever listens comes last: a terminal may be gone.
    listener = Everyone(log, ProgressFile(), *([listener] if listener else []))
    with workspace.hold(), storage_errors(folder), Servers(recipe, workspace) as servers:
        whole = make_plan(recipe, workspace, hashes)
        plan = whole.until(until)
        refuse_shared(plan)
        check_extras((step.name, step.entry.config) for step in plan.to_run)
        check_keys(plan)
        check_prices(plan)
        _check_launch(plan, launcher)
        hashes.save()
        workspace.note_run(describe(whole, until, launcher))
        listener.planned(plan, workspace)
        sealed: dict[str, Artifact] = {}
        wanted = frozenset(step.folder for step in whole.to_run)
        means = _Means(workspace, servers, listener, launcher, open_ledger(recipe, workspace), hashes, wanted)
        for step in plan.steps.values():
            if step.artifact is not None:
                sealed[step.name] = step.artifact
                workspace.forget_unfinished(step.entry.family, but=wanted)
                listener.found(step, step.artifact)
            else:
                sealed[step.name] = _run_step(plan, step, sealed, means)
            workspace.link(step.name, sealed[step.name].path)
        listener.finished(plan, workspace, _report(plan, sealed, workspace))
    return sealed


def check_keys(plan: Plan) -> None:
    """RecipeError where a stage that has to run needs an API key that the environment does not hold."""
    for step in plan.to_run:
        for link in step.entry.links:
            for model in link.models:
                if isinstance(model.spec, EndpointModel) and (fault := model.spec.key_fault()):
                    variable = model.spec.key_env
                    raise RecipeError(
                        link.place,
                        f"'{step.name}' needs the model '{model.name}', whose key is in ${variable}, which {fault}",
                        f"Set it first: export {variable}=YOUR-KEY",
                    )


def check_prices(plan: Plan) -> None:
    """RecipeError where there is a budget and nobody says what a model costs that has to be asked."""
    if plan.recipe.budget_usd is None:
        return
    for step in plan.to_run:
        for link in step.entry.links:
            for model in link.models:
                if isinstance(model.spec, EndpointModel) and model.spec.is_url and model.spec.price is None:
                    raise RecipeError(
                        link.place,
                        f"there is a budget, but the model '{model.name}' that '{step.name}' asks has no price",
                        "Give it one, in USD per million tokens: price: {input: 2.5, output: 10}; 0 where it is free",
                    )


def open_ledger(recipe: Recipe, workspace: Workspace) -> Ledger:
    """What earlier runs in this folder have spent counts too."""
    if not (workspace.path / JOURNAL).exists():
        return Ledger(recipe.budget_usd)
    with contextlib.closing(Journal(workspace.path / JOURNAL)) as journal:
        return Ledger(recipe.budget_usd, journal.spent_usd())


def describe(plan: Plan, until: str | None, launcher: Sequence[str] = ()) -> Description:
    """What a run is asked for, for `status`, `show` and `journal`."""
    return Description(
        recipe=plan.recipe.name,
        source=plan.recipe.source,
        overrides=list(plan.recipe.overrides),
        stages={
            step.name: Asked(
                kind=step.head["kind"],
                produces=step.entry.produces,
                folder=step.folder,
                reads=list(step.entry.reads),
            )
            for step in plan.steps.values()
        },
        until=until,
        launch=list(launcher),
        budget_usd=plan.recipe.budget_usd,
    )


def _check_launch(plan: Plan, launcher: Sequence[str]) -> None:
    """Refuse a launcher that is not there, or that no stage would be started by."""
    if not launcher:
        return
    check_launcher(launcher)
    trained = [step for step in plan.steps.values() if "sharding" in type(step.entry.config).model_fields]
    if not any(_shared(step) for step in trained):
        name = trained[-1].name if trained else "STAGE"
        what = "no stage shares its model between workers; expected sharding: fsdp2 or zero3 in one that trains"
        raise RecipeError("--launch", what, f"Add {name}.sharding=fsdp2, or leave --launch out")


@dataclass(frozen=True)
class _Means:
    """What every stage of a run works with."""

    workspace: Workspace
    servers: "Servers"
    listener: Listener
    launcher: Sequence[str]
    ledger: Ledger
    hashes: Hashes
    wanted: frozenset[str]
    """The folders of all that the recipe has not sealed yet: other members of a family are not to be forgotten."""


def _run_step(plan: Plan, step: Step, sealed: Mapping[str, Artifact], means: _Means) -> Artifact:
    workspace, listener = means.workspace, means.listener
    listener.started(step)
    began = time.monotonic()
    desk = workspace.work / step.name
    draft = desk / "draft"
    workspace.forget_unfinished(step.entry.family, but=means.wanted)
    try:
        draft.mkdir(parents=True)
        refuse_changed(plan, step, means.hashes)
        refuse_overlap(plan, step, sealed)
        inputs = stage_inputs(plan, step, sealed, means.servers.needed_by(step))
        progress, warn = _relay(step, listener), partial(listener.warned, step)
        doing = partial(listener.doing, step)
        work = Work(draft, workspace.path, step.seed, progress, warn, step.folder, means.ledger, doing=doing)
        alone, fresh = step.entry.stage.in_child(inputs), not work.state.exists()
        facts = _in_child(step, inputs, work, means) if alone else _in_process(step, inputs, work)
        refuse_changed(plan, step, means.hashes)  # while it ran
        artifact = seal(draft, workspace.artifacts / step.folder, {**step.head, "facts": facts})
    except BaseException as error:
        listener.failed(step, error)
        raise
    finally:
        shutil.rmtree(desk, ignore_errors=True)
    seconds = time.monotonic() - began
    workspace.note_time(step.key, step.name, seconds, whole=fresh)
    workspace.forget_unfinished(step.entry.family, but=means.wanted - {step.folder})
    listener.sealed(step, artifact, seconds)
    return artifact


def _relay(step: Step, listener: Listener) -> Progress:
    def progress(done: int, total: int, unit: str, **figures: float) -> None:
        listener.progress(step, done, total, unit, figures)

    return progress


def _in_process(step: Step, inputs: Inputs, work: Work) -> Facts:
    with storage_errors(work.path):
        return step.entry.stage.run(step.entry.config, inputs, work)


def _in_child(step: Step, inputs: Inputs, work: Work, means: _Means) -> Facts:
    """Run a stage in a process of its own, or in those that the launcher starts where its model is to be shared."""
    job = {
        "module": stages.MODULES[step.head["kind"]],
        "config": step.entry.config.model_dump(mode="json", exclude_unset=True),  # as it was written, to be read again
        "inputs": inputs.to_json(),
        "path": str(work.path.resolve()),
        "workspace": str(work.workspace.resolve()),
        "seed": work.seed,
        "name": work.name,
    }
    log = means.workspace.logs / f"{step.name}.log"
    launcher = means.launcher if _shared(step) else ()
    return run_job(job, work.path.with_name("job.json"), log, means.workspace, work, launcher)


def _shared(step: Step) -> bool:
    """Whether several workers can train this."""
    return getattr(step.entry.config, "sharding", "none") != "none"


class Servers:
    """The servers of a recipe, each started when it is first needed."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self._recipe, self._workspace = recipe, workspace
        self._stack = contextlib.ExitStack()
        self._urls: dict[str, str] = {}

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def needed_by(self, step: Step) -> dict[str, str]:
        """Where the servers answer that this step's models stand on."""
        for name in _servers_of(step):
            if name in self._recipe.servers and name not in self._urls:
                from potstill.miniature.server import MiniatureProcess

                log = self._workspace.logs / f"{name}.log"
                process = MiniatureProcess(self._recipe.servers[name], log)
                self._urls[name] = self._stack.enter_context(process).base_url
        return self._urls


def _servers_of(step: Step) -> Iterator[str]:
    for link in step.entry.links:
        for model in link.models:
            if isinstance(model.spec, EndpointModel):
                yield model.spec.server


def _report(plan: Plan, sealed: Mapping[str, Artifact], workspace: Workspace) -> Mapping[str, Any] | None:
    """Write summary.json and report.html where the recipe reports; returns the summary."""
    reports = [name for name, step in plan.steps.items() if step.entry.produces == "report"]
    if not reports:
        return None
    from potstill.reporting import render

    times = workspace.times()
    timings = {
        step.name: {
            "seconds": times[step.key].seconds if step.key in times else 0.0,
            "sealed_before": step.artifact is not None,
        }
        for step in plan.steps.values()
    }
    measured = _measured(plan, plan.steps[reports[-1]], workspace)
    render(sealed[reports[-1]].path, timings, workspace.path, measured, survey(workspace))
    summary: Mapping[str, Any] = read_json(workspace.path / "summary.json")
    return summary


def _measured(plan: Plan, report: Step, workspace: Workspace) -> dict[str, Any]:
    """What the models of a report's scores took in this folder, and what endpoints charge: no part of any key."""
    known = read_speeds(workspace.path)
    speeds: dict[str, Any] = {}
    endpoints: dict[str, Any] = {}
    for step in (plan.steps[name] for name in report.entry.reads):
        if step.entry.produces == "scores":
            speeds |= {name: speed.model_dump() for name, speed in known.get(step.folder, {}).items()}
            models = (model for link in step.entry.links if link.field == "models" for model in link.models)
            for model in models:
                if isinstance(model.spec, EndpointModel):
                    price = model.spec.price.model_dump() if model.spec.price is not None else None
                    speed = _reply_speed(step.entry.family, model.spec.name, workspace)
                    endpoints[model.name] = {"price": price, "tokens_per_second": speed}
    return {"speeds": speeds, "endpoints": endpoints}


def _reply_speed(stage: str, model: str, workspace: Workspace) -> float | None:
    """Tokens a second of one reply to a stage, as seen from here; None where the journal holds none."""
    if not (workspace.path / JOURNAL).exists():
        return None
    with contextlib.closing(Journal(workspace.path / JOURNAL, read_only=True)) as journal:
        totals = journal.totals(Selection(model=model, stage=stage))
    seconds = sum(total.seconds * (total.calls - total.pruned) for total in totals)
    tokens = sum(total.completion_tokens * (1 - total.pruned / total.calls) for total in totals)
    return tokens / seconds if seconds else None
