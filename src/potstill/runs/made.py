"""Which models a run has made, and which of them are meant: what `chat`, `serve` and the arena are given."""

from collections.abc import Sequence
from pathlib import Path

from potstill.artifact import find
from potstill.errors import ModelError
from potstill.members import families, read_member, spoken
from potstill.runs.workspace import Workspace, open_run
from potstill.validation import nearest


def find_model(run: str, name: str | None) -> tuple[str, Path]:
    """A model's name and folder, from a model's folder or from a run. ModelError where there is none."""
    if is_model(run):
        return Path(run).resolve().name if Path(run).name in ("", ".") else Path(run).name, Path(run)
    workspace = open_run(run)
    models = run_models(workspace)
    sealed = sealed_models(workspace)
    if name is None and not sealed:
        raise ModelError(
            str(workspace.path), "no model of this run is sealed yet", f"Go on with: potstill status {run}"
        )
    chosen = name if name is not None else list(sealed)[-1]
    members = [model for model in models if read_member(model).family == chosen]
    if chosen not in models and members:
        what = f"'{chosen}' is a family of {len(members)} models ({spoken(members)})"
        raise ModelError(str(workspace.path), what, f"Name one, in quotes: '{members[0]}'")
    if chosen not in models:
        raise ModelError(
            str(workspace.path),
            f"this run has no model '{chosen}'{nearest(chosen, models)}",
            f"Name one of: {', '.join(families(models))}",
        )
    if chosen not in sealed:
        raise ModelError(str(workspace.path), f"the model '{chosen}' is not sealed yet", f"See: potstill status {run}")
    return chosen, models[chosen]


def is_model(folder: str) -> bool:
    """Whether a folder holds a model."""
    return (Path(folder) / "config.json").is_file()


def run_models(workspace: Workspace) -> dict[str, Path]:
    """The models that a run is to make, by their stages, sealed or not. ModelError where there are none."""
    stages = workspace.describe().stages
    models = {stage: workspace.artifacts / asked.folder for stage, asked in stages.items() if asked.produces == "model"}
    if not models:
        raise ModelError(
            str(workspace.path), "this run makes no models", "Name a run that does, or a folder with a model in it"
        )
    return models


def sealed_models(workspace: Workspace) -> dict[str, Path]:
    """Those of them that are there."""
    return {stage: folder for stage, folder in run_models(workspace).items() if find(folder) is not None}


def find_models(words: Sequence[str]) -> dict[str, Path]:
    """Models by their names: RUN:MODEL, RUN for its last one, a model's folder, or more models of the run before.

    Where two have one name, each is called RUN:MODEL. ModelError where a word names none, or one twice.
    """
    found: list[tuple[str, str, Path]] = []
    run = ""
    for word in words:
        place, _, name = word.rpartition(":")
        if is_model(word):
            found.append((Path(word).resolve().parent.name, *find_model(word, None)))
            continue
        if run and not place and word in run_models(open_run(run)):
            place, name = run, word
        if not place:
            place, name = word, ""
        run = place
        found.append((open_run(run).path.resolve().name, *find_model(run, name or None)))
    names = [name for _, name, _ in found]
    named = [(name if names.count(name) == 1 else f"{owner}:{name}", path) for owner, name, path in found]
    return _each_once(named)


def _each_once(named: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for name, path in named:
        if name in models:
            raise ModelError(str(path), f"a second model is called '{name}'", "Name each model once")
        models[name] = path
    return models
