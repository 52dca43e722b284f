"""What a run will do: each stage's key, whether its artifact is sealed already, and why not where it isn't."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import own
from potstill.artifact import Artifact, digest, find
from potstill.document import Steps, dotted
from potstill.errors import DataError, RecipeError
from potstill.members import families
from potstill.miniature import MEANING
from potstill.reading.files import count_rows, shards
from potstill.recipe import Recipe
from potstill.recipe.references import Entry, Link, replaced
from potstill.records import ROWS
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import IDENTITY_FIELDS, Data, EndpointModel, Function, Inputs, LocalModel, Model
from potstill.stages.base import Expected, Source, stage_seed
from potstill.validation import nearest

KEY_LENGTH = 12


@dataclass(frozen=True)
class Step:
    """One stage of a run."""

    entry: Entry
    key: str
    seed: int
    head: Mapping[str, Any]
    """The manifest's own account of what it is made from; a function of the key."""
    artifact: Artifact | None
    """Sealed before this run."""
    why: str
    """Why it has to run, in a few words; empty where it is sealed."""
    expected: Expected

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def folder(self) -> str:
        """Its artifact's name under artifacts/."""
        return f"{self.entry.family}-{self.key[:KEY_LENGTH]}"


@dataclass(frozen=True)
class Plan:
    """The stages of a run in the order they run in."""

    recipe: Recipe
    steps: Mapping[str, Step]

    @property
    def to_run(self) -> list[Step]:
        """Those that are not sealed."""
        return [step for step in self.steps.values() if step.artifact is None]

    def until(self, stage: str | None) -> "Plan":
        """Only this stage, or family, and what it needs; None: everything. RecipeError where there is no such stage."""
        if stage is None:
            return self
        known = families(self.steps)
        if stage not in self.steps and stage not in known:
            raise RecipeError(
                "command line, --until",
                f"the recipe has no stage '{stage}'{nearest(stage, [*known, *self.steps])}",
                f"Name one of: {', '.join(known)}",
            )
        waiting = [stage] if stage in self.steps else list(known[stage])
        needed = set(waiting)
        while waiting:
            new = set(self.steps[waiting.pop()].entry.reads) - needed
            needed |= new
            waiting += new
        return Plan(self.recipe, {name: step for name, step in self.steps.items() if name in needed})


def make_plan(recipe: Recipe, workspace: Workspace, hashes: Hashes) -> Plan:
    """Plan a run of the whole recipe. Reads the disk, writes nothing."""
    planner = _Planner(recipe, workspace, hashes)
    for name in recipe.stages:
        planner.add(name)
    return Plan(recipe, planner.steps)


class _Planner:
    def __init__(self, recipe: Recipe, workspace: Workspace, hashes: Hashes) -> None:
        self._recipe, self._workspace, self._hashes = recipe, workspace, hashes
        self._trials = workspace.trials()
        self.steps: dict[str, Step] = {}

    def add(self, name: str) -> None:
        """Plan one stage whose inputs are planned."""
        entry = self._recipe.stages[name]
        identities = {link.steps: _identity(self._recipe, self.steps, self._hashes, link) for link in entry.links}
        dump = entry.config.model_dump(mode="json")
        seed = stage_seed(self._recipe.seed if entry.seed is None else entry.seed, entry.family)
        shown = replaced(dump, {link.steps: link.label for link in entry.links})
        meaning = {
            "kind": shown["kind"],
            "version": entry.stage.version,
            "config": {f: value for f, value in replaced(dump, identities).items() if f not in entry.config.HOW},
            "seed": seed,
        }
        key = digest(meaning)
        head = {
            "stage": entry.family,
            "kind": shown["kind"],
            "version": entry.stage.version,
            "produces": entry.produces,
            "key": key,
            "seed": seed,
            "config": shown,
            "inputs": _inputs(entry.links, identities),
        }
        artifact = find(self._workspace.artifacts / f"{entry.family}-{key[:KEY_LENGTH]}")
        if artifact is not None and artifact.key != key:
            artifact = None
        why = "" if artifact else self._why(entry, head)
        if artifact is None:
            _glance(entry)
            _check_models(entry)
            _check_sources(entry, self.steps)
        self.steps[name] = Step(entry, key, seed, head, artifact, why, self._expected(entry, artifact, key))

    def _why(self, entry: Entry, head: Mapping[str, Any]) -> str:
        """In the terms of the recipe, what is new since the stage last ran."""
        waiting = [name for name in entry.reads if self.steps[name].artifact is None]
        old = self._workspace.latest(entry.name)
        if old is None:
            return "new"
        before = old.manifest
        if before["kind"] != head["kind"] or before["version"] != head["version"]:
            return "another kind" if before["kind"] != head["kind"] else "a newer potstill"
        config = {**before["config"], **head["config"]}
        changed = [f for f in config if f not in entry.config.HOW and before["config"].get(f) != head["config"].get(f)]
        if changed:
            return f"{', '.join(changed)} changed"
        if waiting:
            return f"reads {', '.join(waiting)}"
        if before["seed"] != head["seed"]:
            return "the seed changed"
        fields = [field for field in head["inputs"] if before["inputs"].get(field) != head["inputs"][field]]
        edited = [link.function.path.name for link in entry.links if link.function and link.field in fields]
        if edited:
            return f"{', '.join(dict.fromkeys(edited))} changed"
        return f"what {', '.join(fields)} names changed"

    def _expected(self, entry: Entry, artifact: Artifact | None, key: str) -> Expected:
        if artifact is not None:
            return Expected(rows=int(artifact.facts.get("rows", 0)))
        rows: dict[str, int] = {}
        of_rows = {slot.field for slot in entry.slots if any(kind in ROWS for kind in slot.accepts)}
        for link in entry.links:
            if (link.file and link.field in of_rows) or (link.stage and self.steps[link.stage].entry.produces in ROWS):
                rows[link.field] = rows.get(link.field, 0) + round(self._rows(link) * link.weight)
                if link.stage and (tokens := self.steps[link.stage].expected.tokens_per_row):
                    rows[f"{link.field}.tokens"] = max(tokens, rows.get(f"{link.field}.tokens", 0))
            elif link.models or (link.stage and self.steps[link.stage].entry.produces == "model"):
                rows[link.field] = rows.get(link.field, 0) + max(1, len(link.models))
                if count := sum(isinstance(model.spec, EndpointModel) for model in link.models):
                    behind = f"{link.field}.endpoints"
                    rows[behind] = rows.get(behind, 0) + count
        trial = self._trials.get(entry.name)
        return entry.config.extrapolate(rows, trial) if trial and trial.key == key else entry.config.expect(rows)

    def _rows(self, link: Link) -> int:
        if link.stage:
            return self.steps[link.stage].expected.rows
        return count_rows(link.file) if link.file else 0


def refuse_changed(plan: Plan, step: Step, hashes: Hashes) -> None:
    """DataError where something outside the run that a step reads is no longer what the step was planned with.

    What the new bytes make would otherwise be sealed under the old ones' key.
    """
    for link in step.entry.links:
        planned = {(source["name"], source["key"]) for source in step.head["inputs"][link.field]}
        for name, key in () if link.stage else _identity(plan.recipe, plan.steps, hashes, link):
            if (name, key) not in planned:
                what = "it was changed after the run was planned, so what it makes would lie under a wrong key"
                raise DataError(str(name), what, "Run again, which plans anew; what is sealed stays")


def _identity(recipe: Recipe, steps: Mapping[str, Step], hashes: Hashes, link: Link) -> Any:
    """What a reference adds to the key: names count, because rows and scores carry them."""
    if link.stage:
        return [[link.name, steps[link.stage].key]]
    if link.file:
        whole = link.whole and link.file.is_dir()
        return [[link.label, hashes.folder(link.file) if whole else _file(link.file, hashes)]]
    if link.function:
        return [[link.label, own.fingerprint(link.function.path, hashes.file)]]
    if link.server:
        return [[link.server, _server_identity(recipe, link.server)]]
    return [[model.name, _model(recipe, model, hashes)] for model in link.models]


def _file(path: Path, hashes: Hashes) -> str:
    """What a file holds; or, with their names, the files of a folder or a pattern."""
    read = shards(path)
    if read == [path]:
        return hashes.file(path)
    return digest({file.relative_to(_above(path)).as_posix(): hashes.file(file) for file in read})


def _model(recipe: Recipe, model: Model, hashes: Hashes) -> str:
    identity = model.spec.model_dump(mode="json", include=IDENTITY_FIELDS)
    if isinstance(model.spec, EndpointModel):
        if model.spec.server:
            identity["endpoint"] = _server_identity(recipe, model.spec.server)
    elif Path(model.spec.path).is_absolute():  # a recipe's folders are; a name on the Hub is not
        identity["path"] = hashes.folder(Path(model.spec.path))
    return digest(identity)


def _glance(entry: Entry) -> None:
    """RecipeError, at the place where the recipe names it, where a file cannot be what its stage takes."""
    accepts = {slot.field: slot.accepts for slot in entry.slots}
    for link in entry.links:
        if link.file and any(kind in ROWS for kind in accepts[link.field]):
            try:
                entry.config.glance(link.field, accepts[link.field], link.file)
            except DataError as error:
                label = f"{entry.name}.{dotted(link.steps)}"
                what = f"'{label}' cannot be used: {error.where}: {error.what}"
                raise RecipeError(link.place, what, error.remedy) from error


def _check_models(entry: Entry) -> None:
    """RecipeError, at the place where the recipe names them, where models cannot do what their stage asks of them."""
    accepts = {slot.field: slot.accepts for slot in entry.slots}
    models: dict[str, list[Model]] = {}
    for link in entry.links:
        if "model" in accepts[link.field]:
            made = (Model(link.name, LocalModel(path=link.stage)),) if link.stage else link.models
            models.setdefault(link.field, []).extend(made)
    try:
        entry.config.check_models(models)
    except RecipeError as error:
        raise _in_recipe(entry, error) from error


def _in_recipe(entry: Entry, error: RecipeError) -> RecipeError:
    """What a config says of one of its fields, at the place where that stands."""
    return RecipeError(entry.place(error.where), f"'{entry.name}.{error.where}': {error.what}", error.remedy)


def _check_sources(entry: Entry, steps: Mapping[str, Step]) -> None:
    """RecipeError, at the place where the recipe names it, where what a stage reads cannot serve it."""
    sources: dict[str, list[Source]] = {}
    for link in entry.links:
        if link.stage:
            made = steps[link.stage].entry
            sources.setdefault(link.field, []).append(Source(link.label, made.config, _names(made)))
        else:
            names = [model.name for model in link.models] or [link.label]
            sources.setdefault(link.field, []).extend(Source(name, None, {}) for name in names)
    try:
        entry.config.check_sources(sources)
    except RecipeError as error:
        raise _in_recipe(entry, error) from error


def _names(entry: Entry) -> dict[str, tuple[str, ...]]:
    """Those that its fields hold, as rows and manifests have them."""
    names: dict[str, tuple[str, ...]] = {}
    for link in entry.links:
        own = [model.name for model in link.models] or [link.label]  # a pool's members stand there by themselves
        names[link.field] = (*names.get(link.field, ()), *own)
    return names


def _above(path: Path) -> Path:
    """The folder whose files are read: itself, or the one that a pattern is looked for in."""
    return path if path.is_dir() else path.parent


def _inputs(links: Iterable[Link], identities: Mapping[Steps, Any]) -> dict[str, Any]:
    inputs: dict[str, list[Any]] = {}
    for link in links:
        group = [{"name": name, "key": key} for name, key in identities[link.steps]]
        for source, model in zip(group, link.models, strict=False):
            source["model"] = _told(model)
        inputs.setdefault(link.field, []).extend(group)
    return inputs


def _told(model: Model) -> dict[str, Any]:
    """What of a model its artifacts' readers may want to know. Where it answers is none of it: that may change."""
    spec = model.spec
    if isinstance(spec, EndpointModel):
        return {"endpoint": True, "name": spec.name, "revision": spec.revision}
    name = Path(spec.path).name if Path(spec.path).is_absolute() else spec.path
    return {"endpoint": False, "name": name, "revision": spec.revision or ""}


def stage_inputs(plan: Plan, step: Step, sealed: Mapping[str, Artifact], urls: Mapping[str, str]) -> Inputs:
    """What a step reads, once everything before it is sealed. `urls`: where the recipe's servers answer."""
    data: dict[str, list[Data]] = {}
    models: dict[str, list[Model]] = {}
    functions: dict[str, list[Function]] = {}
    servers = {}
    for slot in step.entry.slots:
        if "function" in slot.accepts:
            functions[slot.field] = []
        elif "model" in slot.accepts:
            models[slot.field] = []
        if any(kind not in ("model", "server", "function", "word") for kind in slot.accepts):
            data[slot.field] = []
    for link in step.entry.links:
        if link.stage:
            artifact = sealed[link.stage]
            if artifact.produces == "model":
                models[link.field].append(Model(link.name, LocalModel(path=str(artifact.path))))
            else:
                data[link.field].append(Data(link.name, artifact.produces, artifact.path, link.weight))
        elif link.file:
            data[link.field].append(Data(link.label, "file", link.file, link.weight))
        elif link.function:
            functions[link.field].append(link.function)
        elif link.server:
            servers[link.field] = plan.recipe.servers[link.server]
        else:
            models[link.field].extend(_placed(plan.recipe, model, urls) for model in link.models)
    return Inputs(
        {field: tuple(group) for field, group in data.items()},
        {field: tuple(group) for field, group in models.items()},
        servers,
        {field: tuple(group) for field, group in functions.items()},
    )


def _placed(recipe: Recipe, model: Model, urls: Mapping[str, str]) -> Model:
    """The model with the address where it answers. Who stands on a server of the recipe is known by that server too:
    another world is another model, and the journal must not answer for it."""
    if not isinstance(model.spec, EndpointModel):
        return model
    spec, name = model.spec, model.spec.server
    if name:
        world = _server_identity(recipe, name)[:KEY_LENGTH]
        spec = spec.model_copy(update={"revision": f"{spec.revision}+{world}" if spec.revision else world})
    return Model(model.name, spec, urls.get(name, name))


def _server_identity(recipe: Recipe, name: str) -> str:
    return digest({**recipe.servers[name].model_dump(mode="json"), "meaning": MEANING})
