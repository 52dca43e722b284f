"""What is to be shipped: a sealed model of a run or any model's folder, its lineage, and what was measured on it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.artifact import Artifact, find
from potstill.errors import ModelError, PotstillError, reading
from potstill.lineage import ancestry
from potstill.recipe import Recipe, load_recipe, locate
from potstill.runs.made import find_model
from potstill.runs.workspace import Workspace

HIDDEN = re.compile(r"(?<![\w.~/:\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",\]}{|]+[/\\])+([^\s/\\'\",\]}{|]*)")
"""A path from a disk's root or somebody's home; what follows a URL's scheme is none."""
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Source:
    """A model, and everything its card can say."""

    name: str
    folder: Path
    artifact: Artifact | None = None
    """None for a folder that no run sealed."""
    lineage: tuple[Artifact, ...] = ()
    """The model's stage is the last."""
    measured: tuple[Artifact, ...] = ()
    """Scores and audits that read this very model."""
    recipe: str = ""
    """The recipe file, without paths of the machine; "" where it is gone or says something else by now."""
    overrides: tuple[str, ...] = ()
    lost_recipe: str = ""
    """Why `recipe` is empty."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """Licences or terms by the models' names in the recipe, as it says them."""

    @property
    def all(self) -> tuple[Artifact, ...]:
        """Lineage, then measurements."""
        return (*self.lineage, *self.measured)

    @property
    def rounded(self) -> Mapping[str, Any] | None:
        """What a quantize stage among the last says of itself, where one made this model."""
        if self.artifact is None or self.artifact.manifest["kind"] != "quantize":
            return None
        return self.artifact.facts


def read_source(target: str) -> Source:
    """`target`: a run, RUN:MODEL, or a model's folder. ModelError where there is no such model."""
    run, colon, model = target.rpartition(":")
    if Path(target).exists() or not colon:
        run, model = target, ""
    name, folder = find_model(run, model or None)
    folder = folder.resolve()
    artifact = find(folder)
    if artifact is None:
        return Source(name, folder, lost_recipe="no run made this folder")
    name = str(artifact.manifest["stage"])
    workspace = Workspace(folder.parents[1])
    lineage = tuple(ancestry([folder]))
    if not workspace.has_run():
        return Source(name, folder, artifact, lineage, lost_recipe="the run's folder says nothing of its recipe")
    measured = tuple(_measured(workspace, artifact))
    asked = workspace.describe()
    overrides = tuple(map(without_paths, asked.overrides))
    text, terms, lost = _recipe(asked.source, asked.overrides, lineage)
    return Source(name, folder, artifact, lineage, measured, text, overrides, lost, terms)


def _measured(workspace: Workspace, model: Artifact) -> Iterator[Artifact]:
    for asked in workspace.describe().stages.values():
        if asked.produces in ("scores", "audit"):
            found = find(workspace.artifacts / asked.folder)
            if found is not None and model.key in _keys(found):
                yield found


def _keys(artifact: Artifact) -> set[str]:
    return {source["key"] for group in artifact.manifest["inputs"].values() for source in group}


def _recipe(source: str, overrides: Iterable[str], lineage: Iterable[Artifact]) -> tuple[str, dict[str, str], str]:
    """The recipe's text where it still says what was run, the terms in it, and why there is no text."""
    try:
        recipe = load_recipe(source, tuple(overrides))
        text = locate(source).read_text(encoding="utf-8")
    except (PotstillError, OSError):
        return "", {}, "the recipe file is gone, or is no recipe by now"
    terms = {model.name: model.spec.licence for pool in recipe.models.values() for model in pool if model.spec.licence}
    if changed := next((a for a in lineage if not _same(recipe, a)), None):
        return "", terms, f"the recipe file says something else of stage {changed.manifest['stage']} by now"
    return without_paths(text), terms, ""


def _same(recipe: Recipe, artifact: Artifact) -> bool:
    """Whether the recipe's stage of that name is what was sealed."""
    entry = recipe.stages.get(str(artifact.manifest["stage"]))
    if entry is None:
        return False
    sealed, config = artifact.manifest["config"], entry.config
    said = config.model_dump(mode="json")
    kind: Any = type(config)
    untouched = kind.model_construct().model_dump(mode="json", warnings=False)
    # Fields that came since then are at their defaults; what only says how fast a stage works may have changed.
    names = {*said, *sealed} - config.HOW
    return all(said.get(name) == sealed.get(name, untouched.get(name)) for name in names)


def without_paths(text: str) -> str:
    """The text with the last part alone of every path from a disk's root."""
    return HIDDEN.sub(lambda found: found[1] or "...", text)


@reading()
def check_sound(folder: Path) -> None:
    """ModelError where answers would not end, or would end at padding, or the template is not in the folder."""
    settings = _json(folder / "generation_config.json")
    tokenizer = _json(folder / "tokenizer_config.json")
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    where, remedy = str(folder), "Train it with potstill, or mend generation_config.json"
    if ends in ([None], []):
        raise ModelError(where, "its generation_config.json names no end token, so no answer would end", remedy)
    own = _json(folder / "config.json").get("eos_token_id")
    if settings.get("pad_token_id") in ends and settings["pad_token_id"] != own:
        raise ModelError(where, "its generation_config.json has the padding token among the end tokens", remedy)
    if not tokenizer.get("chat_template") and not (folder / TEMPLATE).is_file():
        raise ModelError(
            where, "its tokenizer has no chat template", "Train it with potstill, which seals the one it used"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(str(path), f"this is not JSON: {error}", "Get the folder again") from error
    return found if isinstance(found, dict) else {}
