"""A recipe: one YAML file made into typed, frozen parts, with every name in it resolved.

Whatever is wrong with it is one RecipeError that names the line, before anything runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from potstill import stages
from potstill.document import Document, Steps, dotted, interpolate, parse, read_document
from potstill.errors import RecipeError, reason
from potstill.members import SEED, Member
from potstill.own import is_own
from potstill.recipe.families import FOR, Declared, Families, combinations, read_axes
from potstill.recipe.references import Entry, Resolver, find_function, find_path, ordered, with_evaluations
from potstill.sources import EndpointModel, LocalModel, MiniatureServer, Model, Spec
from potstill.stages.base import Stage, StageConfig
from potstill.stages.domain import Domain
from potstill.validation import LONGEST_NAME, PLAIN, check_utf8, complain, nearest, true_as_number

TOP_LEVEL = ("name", "seed", "budget_usd", "domain", "variables", "servers", "models", "stages")
RESERVED = {*TOP_LEVEL, "artifacts", "cache", "unfinished", "work", "logs", "lock"}
"""Top-level keys, and what else lies in a run's folder: no part of a recipe may be called so."""

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names all resolve. Its stages stand in an order in which they can run."""

    name: str
    seed: int
    variables: Mapping[str, Any]
    servers: Mapping[str, MiniatureServer]
    models: Mapping[str, tuple[Model, ...]]
    """Each name with its model, or with the members of its pool."""
    stages: Mapping[str, Entry]
    source: str
    """As it was named: a file, or the name of a shipped recipe."""
    overrides: tuple[str, ...]
    budget_usd: float | None = None
    """What the replies of a run may cost, all together; None: anything."""


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, or beside the sources."""
    packaged = Path(__file__).parents[1] / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes that come with potstill, by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def locate(source: str, meant: str = "file") -> Path:
    """The file that a recipe's name means. RecipeError where there is none; `meant` is what else it may have named."""
    path = Path(source)
    check_utf8(source, "command line")
    try:
        is_file, is_folder, is_there = path.is_file(), path.is_dir(), path.exists()
    except OSError as error:
        raise RecipeError(
            source, f"the recipe cannot be reached: {reason(error)}", "Mend the path or its permissions"
        ) from error
    if is_file:
        return path
    if source in shipped():
        return shipped()[source]
    if is_there:
        what = "a folder" if is_folder else "a pipe or a device"
        raise RecipeError(source, f"this is {what}, not a recipe", "Name the YAML file itself")
    raise RecipeError(
        source,
        f"no such {meant}, and no shipped recipe of that name{nearest(source, shipped())}",
        f"Name a {'YAML file' if meant == 'file' else f'{meant}, a YAML file'} or one of: {', '.join(shipped())}",
    )


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or shipped under a name, with `a.b=value` written over it. RecipeError with a place."""
    path = locate(source)
    document = read_document(path)
    _check_top(document)
    for override in overrides:
        _override(document, override)
        _check_top(document)
    return _Builder(document, path.parent, source, tuple(overrides)).recipe()


def recipe_of(value: Mapping[str, Any], name: str, folder: Path) -> Recipe:
    """The recipe that a mapping is, as a file would hold it. RecipeError, whose place is `name`.

    `folder`: what paths in it start from.
    """
    return read_recipe(parse(json.dumps(value, default=str), name, lines=False), folder)


def read_recipe(document: Document, folder: Path) -> Recipe:
    """The recipe in a document that is no file yet; the paths in it begin in `folder`. RecipeError with a place."""
    _check_top(document)
    return _Builder(document, folder, document.name, ()).recipe()


def _check_top(document: Document) -> None:
    if not isinstance(document.value, dict):
        what = "the recipe is empty" if document.value is None else "a recipe is a mapping with a name and stages"
        raise RecipeError(document.name, what, "Start it with 'name: my-recipe' and 'stages:'")
    for key in document.value:
        if key not in TOP_LEVEL:
            raise RecipeError(
                document.place((key,)), f"unknown key '{key}'{nearest(key, TOP_LEVEL)}", "Rename or remove it"
            )
    for key in ("variables", "servers", "models", "stages"):
        section = document.value.get(key)
        if section is not None and not isinstance(section, dict):
            raise RecipeError(document.place((key,)), f"'{key}' is a mapping of names", "Write one name a line")
        document.value[key] = section or {}


def _override(document: Document, text: str) -> None:
    """Write one `a.b.c=value` from the command line into the document."""
    place = f"command line, {text}"
    path, equals, value = text.partition("=")
    steps = tuple(path.strip().split("."))
    if not equals or "" in steps:
        raise RecipeError(place, "not of the form key.path=value", "Write for example dpo.beta=0.05")
    head = steps[0]
    family, bracket, _ = head.partition("[")
    if bracket and family in document.value["stages"]:
        remedy = f"Write {family}.FIELD=VALUE for all of them, or change {family}.for"
        raise RecipeError(place, f"one member of the family '{family}' cannot be changed alone", remedy)
    sections = [key for key in ("variables", "stages", "models", "servers") if head in document.value[key]]
    if head in TOP_LEVEL:
        sections = []
    elif not sections:
        names = [
            *TOP_LEVEL,
            *(name for key in ("variables", "stages", "models", "servers") for name in document.value[key]),
        ]
        raise RecipeError(place, f"the recipe has nothing named '{head}'{nearest(head, names)}", "Name a part of it")
    document.set((*sections[:1], *steps), parse(value, place, lines=False))


class _Builder:
    """Reads a document part by part; each part may use those before it."""

    def __init__(self, document: Document, folder: Path, source: str, overrides: tuple[str, ...]) -> None:
        self._document, self._folder = document, folder
        self._source, self._overrides = source, overrides
        self._variables: dict[str, Any] = {}
        self._domain: Domain | None = None

    def recipe(self) -> Recipe:
        self._check_names()
        name = self._top("name", None)
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise RecipeError(
                self._document.place(("name",)),
                "a recipe needs a name" if name is None else f"the name '{name}' is not a plain one",
                f"Use at most {LONGEST_NAME} letters, digits, '.', '_' and '-', such as 'name: my-assistant'",
            )
        seed = self._top("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise RecipeError(self._document.place(("seed",)), f"the seed is {seed!r}", "Write a whole number")
        self._read_variables(seed)
        servers = {name: self._server(name) for name in self._names("servers")}
        models = {name: self._model(name, servers) for name in self._names("models")}
        self._domain = self._read_domain()
        declared = {name: self._stage(name) for name in self._names("stages")}
        if not declared:
            raise RecipeError(self._document.name, "the recipe has no stages", "Name at least one under 'stages:'")
        configs = {name: (one.stage, config) for one in declared.values() for name, config in one.configs.items()}
        if self._domain and not any("domain" in type(config).model_fields for _, config in configs.values()):
            what = "no stage of this recipe reads a domain"
            raise RecipeError(self._document.place(("domain",)), what, "Remove it, or add a stage that does")
        families = Families(self._document, declared, with_evaluations(self._document, configs))
        resolver = Resolver(self._document, self._folder, servers, models, families.configs, families)
        entries = {name: resolver.entry(name) for name in families.configs}
        in_order = {entry: entries[entry] for entry in ordered(entries)}
        budget = self._budget()
        return Recipe(name, seed, self._variables, servers, models, in_order, self._source, self._overrides, budget)

    def _budget(self) -> float | None:
        value = self._values(("budget_usd",)) if "budget_usd" in self._document.value else None
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
            what = f"budget_usd is {value!r}; expected a number of US dollars above 0"
            raise RecipeError(self._document.place(("budget_usd",)), what, "Write for example budget_usd: 20")
        return float(value)

    def _top(self, key: str, default: Any) -> Any:
        return self._document.value.get(key, default)

    def _names(self, section: str) -> Iterable[str]:
        names: dict[str, Any] = self._document.value[section]
        return names

    def _check_names(self) -> None:
        """Every name is a plain word and stands for one thing, so that references and overrides are never in doubt."""
        owners: dict[str, str] = {}
        for section in ("variables", "servers", "models", "stages"):
            for name in self._names(section):
                place = self._document.place((section, name))
                if not (name.isidentifier() and name.isascii() and len(name) <= LONGEST_NAME):
                    remedy = f"Use at most {LONGEST_NAME} letters, digits and '_', a letter first"
                    raise RecipeError(place, f"the name '{name}' is not a plain word", remedy)
                if name in RESERVED:
                    raise RecipeError(place, f"the name '{name}' is potstill's own", "Choose another name")
                if name in owners:
                    raise RecipeError(
                        place, f"'{name}' stands under '{section}' and under '{owners[name]}'", "Rename one of them"
                    )
                owners[name] = section

    def _read_variables(self, seed: int) -> None:
        """In their order: each may use the seed and those above it."""
        known: dict[str, Any] = {"seed": seed}
        for name in self._names("variables"):
            value = interpolate(self._document, ("variables", name), known)
            if value is None:
                raise RecipeError(
                    self._document.place(("variables", name)),
                    f"the variable '{name}' has no value of its own",
                    f"Give it on the command line: potstill run {self._source} {name}=VALUE",
                )
            known[name] = self._variables[name] = value

    def _read_domain(self) -> Domain | None:
        """What every stage that reads a domain takes where it has none of its own, so that it is part of its key."""
        if self._top("domain", None) is None:
            return None
        return self._spec(Domain, self._mapping(("domain",), "{name: law, topics: [contracts, torts]}"), ("domain",))

    def _values(self, steps: Steps) -> Any:
        return interpolate(self._document, steps, {"seed": self._top("seed", 0), **self._variables})

    def _mapping(self, steps: Steps, example: str) -> dict[str, Any]:
        value = self._values(steps)
        if not isinstance(value, dict):
            raise RecipeError(self._document.place(steps), f"'{dotted(steps)}' is no mapping", f"Write it as {example}")
        return value

    def _spec(self, spec: type[S], value: Any, steps: Steps) -> S:
        try:
            read = TypeAdapter(spec).validate_python(value)
        except ValidationError as error:
            raise complain(error, spec, value, self._document, steps) from error
        for way in true_as_number(value, read.model_dump()):
            at = (*steps, *way)
            what = f"'{dotted(at[1:])}' is true or false: input should be a number"
            raise RecipeError(self._document.place(at), what, "Mend the value")
        return read

    def _server(self, name: str) -> MiniatureServer:
        steps = ("servers", name)
        value = self._mapping(steps, "{kind: miniature}")
        return self._spec(MiniatureServer, value, steps)

    def _model(self, name: str, servers: Mapping[str, MiniatureServer]) -> tuple[Model, ...]:
        steps: Steps = ("models", name)
        value = self._values(steps)
        if not isinstance(value, list):
            return (Model(name, self._model_spec(value, steps, servers)),)
        if not value:
            raise RecipeError(self._document.place(steps), f"the pool '{name}' is empty", "Name at least one model")
        pool: dict[str, Model] = {}
        for position, item in enumerate(value):
            spec = self._model_spec(item, (*steps, position), servers)
            member = spec.name if isinstance(spec, EndpointModel) else Path(spec.path).name
            if member in pool:
                raise RecipeError(
                    self._document.place((*steps, position)),
                    f"the pool '{name}' has two members named '{member}'",
                    "Remove one, or serve it under another name",
                )
            pool[member] = Model(member, spec)
        return tuple(pool.values())

    def _model_spec(
        self, value: Any, steps: Steps, servers: Mapping[str, MiniatureServer]
    ) -> LocalModel | EndpointModel:
        place = self._document.place(steps)
        if not isinstance(value, dict) or ("path" in value) == ("endpoint" in value):
            raise RecipeError(
                place,
                f"'{dotted(steps)}' has to hold either 'path', for weights at hand, or 'endpoint' and 'name'",
                "Write for example {endpoint: http://localhost:8000/v1, name: big-model}",
            )
        if "path" in value:
            return self._local(self._spec(LocalModel, value, steps), steps)
        spec = self._spec(EndpointModel, value, steps)
        if not spec.is_url and spec.server not in servers:
            raise RecipeError(
                self._document.place((*steps, "endpoint")),
                f"'{spec.server}' is neither a URL nor a server of this recipe{nearest(spec.server, servers)}",
                "Write a URL such as http://localhost:8000/v1, or declare it under 'servers'",
            )
        return spec

    def _local(self, spec: LocalModel, steps: Steps) -> LocalModel:
        """With the folder's real path where there is one; otherwise it is a name on the Hub."""
        place = self._document.place((*steps, "path"))
        found = find_path(spec.path, self._folder, place)
        if found is None and (spec.path.startswith((".", "/", "~")) or spec.path.count("/") > 1):
            raise RecipeError(place, f"there is no folder '{spec.path}'", "Mend the path")
        if found is not None and not (found / "config.json").is_file():
            raise RecipeError(
                place,
                f"'{spec.path}' holds no model: there is no config.json in it",
                "Name a folder in Hugging Face layout",
            )
        return spec if found is None else spec.model_copy(update={"path": str(found)})

    def _stage(self, name: str) -> Declared:
        """The stage with the config of each combination that its `for` lists."""
        steps = ("stages", name)
        value = self._mapping(steps, "{kind: sft, ...}")
        lists = value.pop(FOR, None)
        stage = self._kind(name, value.get("kind"))
        axes = read_axes(self._document, name, lists, stage.config, value)
        if self._domain is not None and "domain" in stage.config.model_fields:
            value = {"domain": self._domain, **value}
        configs: dict[str, StageConfig] = {}
        for labels, values in combinations(axes):
            member = Member(name, labels).name
            if axes:
                self._document.alias(steps, ("stages", member))
            for variable, label in labels.items():
                at = (*steps, FOR, variable, axes[variable].labels.index(label))
                self._document.alias(at, ("stages", member, variable))
            fields = {variable: one for variable, one in values.items() if variable != SEED}
            configs[member] = self._spec(stage.config, {**value, **fields}, ("stages", member))
        return Declared(stage, axes, configs)

    def _kind(self, name: str, kind: Any) -> Stage:
        """What kind of stage it is."""
        place = self._document.place(("stages", name, "kind"))
        if isinstance(kind, str) and is_own(kind):
            from potstill.stages.own import own_stage

            return own_stage(find_function(kind, self._folder, place), kind)
        if not isinstance(kind, str) or kind not in stages.MODULES:
            what = (
                "has no 'kind'" if kind is None else f"is of the unknown kind '{kind}'{nearest(kind, stages.MODULES)}"
            )
            remedy = f"Choose one of: {', '.join(stages.MODULES)}; or your own function, mine.py:name"
            raise RecipeError(place, f"the stage '{name}' {what}", remedy)
        return stages.stage(kind)
