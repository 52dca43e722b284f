"""A trial: the stages that ask run on a few rows, so that `plan` can say what all of them will take.

The replies go into the run's own journal, so that what the trial paid for, the run does not pay for again. What the
stages made of them is thrown away.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from potstill.artifact import Artifact, seal, storage_errors
from potstill.errors import DataError, RecipeError
from potstill.money import Meter
from potstill.recipe import Recipe
from potstill.records import ROWS
from potstill.runs.pipeline import Servers, check_keys, check_prices, describe, open_ledger
from potstill.runs.plan import Step, make_plan, stage_inputs
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data, Inputs
from potstill.stages.base import Part, StageConfig, Trial, Work

SCRATCH = "trial"


def run_trial(recipe: Recipe, folder: Path, rows: int, until: str | None = None) -> dict[str, str]:
    """Run what makes rows on `rows` rows, and note how each stage came out, which later plans of the folder use.

    Stages that train, and what reads them before they are sealed, are left out. Returns why others were, by name: for
    want of rows, as a rule, but a whole run may fail there too. Raises what a run would of servers and budgets.
    """
    workspace, hashes = Workspace(folder), Hashes(folder / "hashes.json")
    with workspace.hold(), storage_errors(folder), Servers(recipe, workspace) as servers:
        whole = make_plan(recipe, workspace, hashes)
        plan = whole.until(until)
        check_keys(plan)
        check_prices(plan)
        workspace.note_run(describe(whole, until))
        trials, untried = dict[str, Trial](), dict[str, str]()
        scratch, ledger = workspace.work / SCRATCH, open_ledger(recipe, workspace)
        there: dict[str, Artifact] = {}
        try:
            for step in plan.steps.values():
                if step.artifact is not None:
                    there[step.name] = step.artifact
                elif not step.entry.stage.trains and all(name in there for name in step.entry.reads):
                    inputs = _few(step, stage_inputs(plan, step, there, servers.needed_by(step)), there, rows)
                    config, meter = step.entry.config.for_trial(rows), Meter()
                    draft = scratch / "drafts" / step.name
                    draft.mkdir(parents=True)
                    work = Work(draft, workspace.path, step.seed, name=step.folder, ledger=ledger, meter=meter)
                    try:
                        facts = step.entry.stage.run(config, inputs, work)
                    except (DataError, RecipeError) as error:  # what reads it is left out too
                        untried[step.name] = str(error)
                        continue
                    there[step.name] = seal(draft, scratch / step.folder, {**step.head, "facts": facts})
                    if meter.calls or _passes_rows_on(step, there):
                        trials[step.name] = _trial(step, config, there, rows, meter)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        workspace.note_trials(trials)
    return untried


def _passes_rows_on(step: Step, there: Mapping[str, Artifact]) -> bool:
    """Whether it makes rows of those of another stage, so that what it drops tells how many the next ones get."""
    read = (there[name].produces in ROWS for name in step.entry.reads)
    return step.entry.produces in ROWS and any(read)


def _trial(step: Step, config: StageConfig, there: Mapping[str, Artifact], rows: int, meter: Meter) -> Trial:
    counts: dict[str, int] = {}
    for link in step.entry.links:
        if link.file:
            counts[link.field] = counts.get(link.field, 0) + rows
        elif link.stage and there[link.stage].produces in ROWS:
            counts[link.field] = counts.get(link.field, 0) + min(rows, int(there[link.stage].facts.get("rows", 0)))
        elif link.models or (link.stage and there[link.stage].produces == "model"):
            counts[link.field] = counts.get(link.field, 0) + max(1, len(link.models))
    facts = dict(there[step.name].facts)
    return Trial(
        key=step.key,
        expected=config.expect(counts),
        rows=int(facts.get("rows", 0)),
        calls=meter.calls,
        prompt_tokens=meter.prompt_tokens,
        completion_tokens=meter.completion_tokens,
        squares=meter.squares,
        facts=facts,
        parts=tuple(
            Part(name, one.calls, one.prompt_tokens, one.completion_tokens, model=model)
            for (name, model), one in meter.parts.items()
            if one.calls
        ),
    )


def _few(step: Step, inputs: Inputs, there: Mapping[str, Artifact], rows: int) -> Inputs:
    """The same inputs, a few rows of each, taken evenly where it is known how many there are."""

    def part(data: Data) -> Data:
        known = int(there[stages[data.name]].facts.get("rows", 0)) if data.name in stages else 0
        return replace(data, part=(rows, max(1, known // rows)))

    stages = {link.name: link.stage for link in step.entry.links if link.stage}
    whole = step.entry.config.WHOLE
    data = {name: group if name in whole else tuple(map(part, group)) for name, group in inputs.data.items()}
    return replace(inputs, data=data)
