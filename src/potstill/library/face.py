"""The library's public face: recipes, plans and runs as objects, and any stage on rows in memory.

Everything here goes the way that the command line goes: the same recipes, the same checks, the same run's folder. What
goes wrong raises a `PotstillError`, whose text is the line that the command line prints.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import recipe as recipes
from potstill.environment import prepare
from potstill.errors import DataError
from potstill.library.handles import Made, Planned, Run
from potstill.library.in_memory import Scratch, one_stage
from potstill.library.notebook import Table, in_notebook
from potstill.recipe import Recipe
from potstill.runs import pipeline
from potstill.runs.events import SECONDS_BETWEEN_KEPT, Event, Events
from potstill.runs.pipeline import Listener, Silent
from potstill.runs.plan import make_plan as plan_of
from potstill.runs.workspace import Hashes, Workspace
from potstill.runs.workspace import open_run as find_run
from potstill.terminal.console import listener, screen

Overrides = Mapping[str, Any] | Sequence[str]
"""What is written over a recipe: {"dpo.beta": 0.05}, or ["dpo.beta=0.05"] as on the command line."""
SECONDS_SHOWN = 0.5
"""Between two states of a notebook's table."""
Watching = bool | Listener | Callable[[Event], None]
"""Who follows a run: True: whoever looks; False: nobody; a listener; or a function that is given each event."""


def load_recipe(source: str | Path, overrides: Overrides = ()) -> Recipe:
    """A recipe in a file, or shipped under a name, whole and checked. RecipeError with the place where it is not.

    >>> load_recipe("miniature", {"dpo.beta": 0.05}).name
    'miniature'
    """
    return recipes.load_recipe(str(source), _written(overrides))


def make_plan(
    recipe: str | Path | Recipe,
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    until: str | None = None,
) -> Planned:
    """What a run would do, and what it would take. Reads the disk, writes nothing.

    >>> list(make_plan("miniature", until="articles").stages)
    ['articles']
    """
    found = _recipe(recipe, overrides)
    workspace = Workspace(_folder(found, out))
    return Planned(plan_of(found, workspace, Hashes(workspace.path / "hashes.json")).until(until), workspace)


def run(
    recipe: str | Path | Recipe,
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    until: str | None = None,
    launch: Sequence[str] = (),
    progress: Watching = True,
) -> Run:
    """Run a recipe from where it was; what is sealed is found again.

    `out`: the run's folder; None: runs/NAME. `until`: only what this stage needs, and itself. `launch`: the command
    that starts workers. Interrupted (KeyboardInterrupt), it keeps what is sealed, and the same call goes on.
    """
    prepare()
    found = _recipe(recipe, overrides)
    folder = _folder(found, out)
    pipeline.run(found, folder, _listener(progress), until, launch)
    return Run(folder)


def open_run(name: str | Path) -> Run:
    """A run by its folder, its name or its recipe. StorageError where nothing has run there."""
    return Run(find_run(str(name)).path)


def stage(kind: str, *, out: str | Path | None = None, progress: Watching = False, **fields: Any) -> Made:
    """Run one kind of stage, as a recipe of it alone would.

    `fields` are those of its config. Where one takes rows, it takes records, dicts in any shape that files may have,
    the result of another stage, or a path. Where one takes a model, it takes a path, a `Model` of a run, or what a
    recipe says of one: {"endpoint": "http://localhost:8000/v1", "name": "big-model"}. `out`: a folder that keeps what
    was made and every reply; None: one that goes with the result.

    >>> row = {"prompt": "Name a river.", "completion": "The Rhine."}
    >>> stage("curate", data=[row, row], deduplicate=0.7).facts["rows"]
    1
    """
    prepare()
    scratch = Scratch(Path(out) if out is not None else None)
    name, found = one_stage(kind, fields, scratch.inputs)
    sealed = pipeline.run(found, scratch.run, _listener(progress))
    return Made(sealed[name], scratch)


def _recipe(recipe: str | Path | Recipe, overrides: Overrides) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            what = "a recipe that is loaded already cannot be written over"
            raise DataError("overrides", what, "Give them to load_recipe, or name the recipe here")
        return recipe
    return load_recipe(recipe, overrides)


def _written(overrides: Overrides) -> list[str]:
    """As the command line has them."""
    if isinstance(overrides, Mapping):
        return [f"{name}={json.dumps(value, default=str)}" for name, value in overrides.items()]
    return list(overrides)


def _folder(recipe: Recipe, out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path("runs") / recipe.name


def _listener(progress: Watching) -> Listener:
    if progress is True:
        if in_notebook():
            return Events(Table(), SECONDS_SHOWN)
        return listener(screen())
    if progress is False:
        return Silent()
    if callable(progress):
        return Events(progress, SECONDS_BETWEEN_KEPT)
    return progress
