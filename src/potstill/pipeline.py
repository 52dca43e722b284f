"""Running a plan: one stage after another, each sealed as soon as it is whole.

This process alone locks the run's folder and seals. Stages that train run in a child (`potstill.worker`); servers that
the recipe declares start when the first stage that has to run reads them, and end with the run.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from potstill import errors, stages
from potstill.artifact import Artifact, read_json, seal, storage_errors, write_json
from potstill.errors import PotstillError, RecipeError
from potstill.plan import Plan, Step, make_plan, stage_inputs
from potstill.recipe import Recipe
from potstill.sources import EndpointModel, Inputs
from potstill.stages.base import Facts, Progress, Work
from potstill.workspace import Asked, Description, Hashes, Workspace

GRACE_SECONDS = 300.0
"""How long a training process may take to write its checkpoint when it is asked to end."""


class Listener(Protocol):
    """Whoever wants to know how a run goes. Every method returns at once."""

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        """Before anything runs."""

    def found(self, step: Step, artifact: Artifact) -> None:
        """Sealed by an earlier run."""

    def started(self, step: Step) -> None:
        """Runs from now on."""

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """How far it is; may come many times a second."""

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        """Finished."""

    def failed(self, step: Step) -> None:
        """Did not finish; what ended it is raised."""

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        """All stages are sealed; the summary is there where the recipe reports."""


class Silent:
    """A listener for library use and tests."""

    def planned(self, plan: Plan, workspace: Workspace) -> None: ...

    def found(self, step: Step, artifact: Artifact) -> None: ...

    def started(self, step: Step) -> None: ...

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None: ...

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None: ...

    def failed(self, step: Step) -> None: ...

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None: ...


def run(
    recipe: Recipe, folder: Path, listener: Listener | None = None, until: str | None = None
) -> dict[str, Artifact]:
    """Run a recipe, or what one stage of it needs, in a folder; returns each stage's artifact.

    What is sealed is found again. RecipeError, BusyError, StorageError or what a stage raises: one line each.
    """
    workspace, hashes = Workspace(folder), Hashes(folder / "hashes.json")
    listener = listener or Silent()
    with workspace.hold(), storage_errors(folder), Servers(recipe, workspace) as servers:
        whole = make_plan(recipe, workspace, hashes)
        plan = whole.until(until)
        check_keys(plan)
        hashes.save()
        workspace.note_run(_description(whole))
        listener.planned(plan, workspace)
        sealed: dict[str, Artifact] = {}
        for step in plan.steps.values():
            if step.artifact is not None:
                sealed[step.name] = step.artifact
                listener.found(step, step.artifact)
            else:
                sealed[step.name] = _run_step(plan, step, sealed, workspace, servers, listener)
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


def _description(plan: Plan) -> Description:
    return Description(
        recipe=plan.recipe.name,
        source=plan.recipe.source,
        overrides=list(plan.recipe.overrides),
        stages={
            step.name: Asked(kind=step.head["kind"], produces=step.entry.produces, folder=step.folder)
            for step in plan.steps.values()
        },
    )


def _run_step(
    plan: Plan, step: Step, sealed: Mapping[str, Artifact], workspace: Workspace, servers: "Servers", listener: Listener
) -> Artifact:
    listener.started(step)
    began = time.monotonic()
    desk = workspace.work / step.name
    draft = desk / "draft"
    try:
        draft.mkdir(parents=True)
        inputs = stage_inputs(plan, step, sealed, servers.needed_by(step))
        work = Work(draft, workspace.path, step.seed, _relay(step, listener), step.folder)
        run_stage = _in_child if step.entry.stage.trains else _in_process
        facts = run_stage(step, inputs, work, workspace)
        artifact = seal(draft, workspace.artifacts / step.folder, {**step.head, "facts": facts})
    except BaseException:
        listener.failed(step)
        raise
    finally:
        shutil.rmtree(desk, ignore_errors=True)
    seconds = time.monotonic() - began
    workspace.note_time(step.key, step.name, seconds)
    shutil.rmtree(work.state, ignore_errors=True)
    listener.sealed(step, artifact, seconds)
    return artifact


def _relay(step: Step, listener: Listener) -> Progress:
    def progress(done: int, total: int, unit: str, **figures: float) -> None:
        listener.progress(step, done, total, unit, figures)

    return progress


def _in_process(step: Step, inputs: Inputs, work: Work, workspace: Workspace) -> Facts:
    with storage_errors(work.path):
        return step.entry.stage.run(step.entry.config, inputs, work)


def _in_child(step: Step, inputs: Inputs, work: Work, workspace: Workspace) -> Facts:
    """Run a stage in a process of its own, whose memory goes when it ends.

    The child's standard input is its lifeline: it ends when this process does, however that ends. It inherits the
    lock, so nobody else takes the folder before it is gone.
    """
    job = work.path.with_name("job.json")
    write_json(
        job,
        {
            "module": stages.MODULES[step.head["kind"]],
            "config": step.entry.config.model_dump(mode="json"),
            "inputs": inputs.to_json(),
            "path": str(work.path.resolve()),
            "workspace": str(work.workspace.resolve()),
            "seed": work.seed,
            "name": work.name,
        },
    )
    log = workspace.logs / f"{step.name}.log"
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "potstill.worker", str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=child_environment(),
            pass_fds=[workspace.lock_descriptor],
        )
    try:
        workspace.lend(child.pid)
        facts = _listen(child, work.progress)
        code = child.wait()
    finally:
        _end(child)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
    if facts is None or code:
        raise _crash(code, log)
    return facts


def _end(child: "subprocess.Popen[str]") -> None:
    """See a child to its end. Where it still works, it is asked first, so that it writes down where it stands; who
    presses Ctrl-C a second time does not wait for that."""
    try:
        if child.poll() is None:
            child.terminate()
            child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        child.kill()
        child.wait()


def child_environment() -> dict[str, str]:
    """This environment, with every core for the numerics unless the user says otherwise."""
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return {"OMP_NUM_THREADS": cores, **os.environ}


def _listen(child: "subprocess.Popen[str]", progress: Progress) -> Facts | None:
    """Pass on what a child says; the facts that it ends with, or None. Its PotstillError is raised as itself."""
    assert child.stdout is not None
    facts: Facts | None = None
    for line in child.stdout:
        said = json.loads(line)
        if "progress" in said:
            done, total, unit, figures = said["progress"]
            progress(done, total, unit, **figures)
        elif "error" in said:
            kind = getattr(errors, said["error"][0])
            raise kind(*said["error"][1:])
        else:
            facts = said["facts"]
    return facts


def _crash(code: int, log: Path) -> PotstillError:
    """What to say of a child that ended without a word."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    how = f"with exit code {code}"
    if code < 0:
        how = f"by {signal.Signals(-code).name}"
        how += ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
    last = f"; its last line: {lines[-1][:300]}" if lines else ""
    return PotstillError(str(log), f"the training process was ended {how}{last}", "Read this log; then run again")


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
                yield model.spec.endpoint


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
    render(sealed[reports[-1]].path, timings, workspace.path)
    summary: Mapping[str, Any] = read_json(workspace.path / "summary.json")
    return summary
