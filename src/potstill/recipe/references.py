"""Which fields of a config name other parts of the recipe, and what those names mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Protocol, Union, get_args, get_origin

from pydantic import BaseModel

from potstill import own
from potstill.document import Document, Steps, dotted
from potstill.errors import DataError, RecipeError, reason
from potstill.members import read_member
from potstill.questions import BEGINS, shipped_names, shipped_questions
from potstill.reading.files import shards
from potstill.records import ROWS
from potstill.sources import EndpointModel, Function, MiniatureServer, Model, Share
from potstill.stages.base import Reference, Stage, StageConfig
from potstill.validation import check_utf8, nearest

EVALUATIONS = "evaluations"
"""In a field that takes it: every set of rows that the recipe's stages of scores read."""


class Named(NamedTuple):
    """A name in a config."""

    steps: Steps
    """Where in the config it stands."""
    name: str
    weight: float = 1.0
    """Its share of a mixture."""


@dataclass(frozen=True)
class Slot:
    """A field that may hold references, and those that it holds."""

    field: str
    """As `Inputs` names it; a field of a nested part is written with dots, such as "suites.chat.questions"."""
    reference: Reference
    names: tuple[Named, ...]

    @property
    def accepts(self) -> tuple[str, ...]:
        """What may be named here; see `Reference`."""
        return self.reference.accepts


@dataclass(frozen=True)
class Link:
    """One name in a config, and what it turned out to be: exactly one of stage, file, function, models and server
    is set. The name is the one that is written; of a family, the stage is the member that is meant."""

    field: str
    steps: Steps
    name: str
    place: str
    stage: str = ""
    file: Path | None = None
    function: Function | None = None
    models: tuple[Model, ...] = ()
    server: str = ""
    weight: float = 1.0
    whole: bool = False
    """A folder there counts with everything that lies in it, not for its rows alone."""

    @property
    def label(self) -> str:
        """As keys, manifests and messages name it: the same wherever the run stands and potstill is installed."""
        if self.file is not None:
            return self.name if self.name.startswith(BEGINS) else self.file.name
        return self.function.label if self.function else self.name


@dataclass(frozen=True)
class Entry:
    """A stage of the recipe."""

    name: str
    stage: Stage
    config: StageConfig
    slots: tuple[Slot, ...]
    links: tuple[Link, ...]
    places: Mapping[str, str]
    """Where each of its fields stands in the recipe, by its dotted name; "" is the stage."""
    seed: int | None = None
    """What its seed is made from; None: the recipe's."""

    def place(self, field: str = "") -> str:
        """Where a field stands, or what it is a part of."""
        while field and field not in self.places:
            field = field.rpartition(".")[0]
        return self.places[field]

    @property
    def family(self) -> str:
        """Its name, or that of the family which it is a member of: what the recipe calls it."""
        return read_member(self.name).family

    @property
    def produces(self) -> str:
        """What its artifact holds."""
        return self.stage.output(self.config)

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages it reads, each once."""
        return tuple(dict.fromkeys(link.stage for link in self.links if link.stage))


def slots(config: BaseModel) -> tuple[Slot, ...]:
    """Every field of a config that may hold references, in the order of its fields."""
    merged: dict[str, Slot] = {}
    for slot in _in_model(config, ()):
        old = merged.get(slot.field)
        merged[slot.field] = slot if old is None else replace(old, names=old.names + slot.names)
    return tuple(merged.values())


def _in_model(config: BaseModel, steps: Steps) -> Iterator[Slot]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield from _in_value(field.annotation, tuple(field.metadata), value, (*steps, name), (*steps, name))


def _in_value(annotation: Any, metadata: tuple[Any, ...], value: Any, steps: Steps, field: Steps) -> Iterator[Slot]:
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = (*metadata, *more)
    found = [item for item in metadata if isinstance(item, Reference)]
    if found:
        yield Slot(dotted(field), found[0], tuple(_names(value, steps)))
    elif isinstance(value, BaseModel):
        yield from _in_model(value, steps)
    elif get_origin(annotation) in (Union, UnionType):
        yield from _in_union(get_args(annotation), value, steps, field)
    elif isinstance(value, Mapping):
        inner = get_args(annotation)[1] if len(get_args(annotation)) == 2 else Any
        for key, item in value.items():
            yield from _in_value(inner, (), item, (*steps, key), (*field, key))
    elif get_origin(annotation) in (list, tuple):
        arguments = get_args(annotation)
        if not value and arguments:  # an empty list still has its slot
            yield from (replace(slot, names=()) for slot in _in_value(arguments[0], (), None, steps, field))
        for position, item in enumerate(value or ()):
            at = (*steps, position)
            yield from _in_value(arguments[0], (), item, at, at if isinstance(item, BaseModel) else field)


def _in_union(arms: tuple[Any, ...], value: Any, steps: Steps, field: Steps) -> Iterator[Slot]:
    """The arm that the value fits. Where it is None, the slots of all arms, empty."""
    for arm in arms:
        plain = get_args(arm)[0] if get_origin(arm) is Annotated else arm
        origin = get_origin(plain) or plain
        if value is None or (isinstance(origin, type) and isinstance(value, origin)):
            inner = list(_in_value(arm, (), value, steps, field))
            yield from inner
            if inner and value is not None:
                return


def _names(value: Any, steps: Steps) -> Iterator[Named]:
    """Every text inside a value, and the source of every share."""
    if isinstance(value, str):
        yield Named(steps, value)
    elif isinstance(value, Share):
        yield Named((*steps, "from"), value.source, value.weight)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _names(item, (*steps, key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _names(item, (*steps, position))


Configs = Mapping[str, tuple[Stage, StageConfig]]


def with_evaluations(document: Document, configs: Configs) -> dict[str, tuple[Stage, StageConfig]]:
    """The stages with the word `EVALUATIONS` resolved into the names that it stands for. A stage of that name wins.

    RecipeError where the recipe evaluates nothing.
    """
    if EVALUATIONS in configs:
        return dict(configs)
    scored = [config for stage, config in configs.values() if stage.output(config) == "scores"]
    rows = [slot for config in scored for slot in slots(config) if ROWS.keys() & slot.accepts]
    names = tuple(dict.fromkeys(named.name for slot in rows for named in slot.names))
    resolved = {}
    for name, (stage, config) in configs.items():
        for slot in slots(config):
            meant = [named for named in slot.names if slot.reference.evaluations and named.name == EVALUATIONS]
            if meant and not names:
                place = document.place(("stages", name, *meant[0].steps))
                what = f"'{name}.{slot.field}' names all evaluations, but no stage of this recipe evaluates on rows"
                raise RecipeError(place, what, "Add a stage of kind evaluate, or name the rows themselves")
            if meant:
                others = (named.name for named in slot.names if named not in meant)
                config = config.model_copy(update={slot.field: tuple(dict.fromkeys((*others, *names)))})
        resolved[name] = (stage, config)
    return resolved


def replaced(dump: Any, replacements: Mapping[Steps, Any], steps: Steps = ()) -> Any:
    """A config's dump with the values at the given steps replaced."""
    if steps in replacements:
        return replacements[steps]
    if isinstance(dump, dict):
        return {key: replaced(item, replacements, (*steps, key)) for key, item in dump.items()}
    if isinstance(dump, list):
        return [replaced(item, replacements, (*steps, position)) for position, item in enumerate(dump)]
    return dump


_A = {
    "model": "a model",
    "server": "a server",
    "report": "a report",
    "trial": "a trial of judges",
    "dataset": "a dataset",
    "audit": "an audit",
}


def find_path(written: str, folder: Path, place: str) -> Path | None:
    """The real path of what a recipe names: beside the recipe first, then where the command was given.

    RecipeError where it is shut, or cannot be kept in a manifest.
    """
    try:
        path = Path(written).expanduser()
    except RuntimeError as error:
        raise RecipeError(place, f"'{written}' begins with a home that nobody here has", "Mend the path") from error
    try:
        found = next((base / path for base in (folder, Path.cwd()) if (base / path).exists()), None)
        real = found and found.resolve()
    except OSError as error:
        raise RecipeError(
            place, f"'{written}' cannot be reached: {reason(error)}", "Mend the path or its permissions"
        ) from error
    if real is not None:
        check_utf8(str(real), place)
    return real


def find_pattern(written: str, folder: Path, place: str) -> Path | None:
    """The pattern, such as data/train-*.parquet, with its folder's real path, where a file fits it."""
    head, _, tail = written.rpartition("/")
    if any(sign in head for sign in "*?[") and find_path(head, folder, place) is None:
        what = f"'{written}' is a pattern of folders; only the file's name, behind the last /, can be a pattern"
        raise RecipeError(place, what, "Name the folder itself: every file of rows below it is read")
    if not any(sign in tail for sign in "*?["):
        return None
    real = find_path(head or ".", folder, place)
    return real / tail if real is not None and real.is_dir() and any(real.glob(tail)) else None


def find_shipped(written: str, place: str) -> Path:
    """The file of the package that `shipped:NAME` means. RecipeError where there is none of that name."""
    known, name = shipped_questions(), written.removeprefix(BEGINS)
    if name not in known:
        what = f"'{written}' is not among the questions that come with potstill{nearest(name, known)}"
        raise RecipeError(place, what, f"Name one of: {', '.join(shipped_names())}")
    return known[name]


def find_function(text: str, folder: Path, place: str) -> Function:
    """The user's function that `mine.py:name` means. RecipeError where there is none; its file is read, not run."""
    path, name = own.written(text, place)
    found = find_path(path, folder, place)
    if found is None or not found.is_file():
        what = f"'{path}' is no file" if found else f"there is no file '{path}'"
        raise RecipeError(place, what, "Mend the path, looked for in the recipe's folder and in this one")
    function = Function(found, name)
    own.check(function)
    return function


class Members(Protocol):
    """Which stage of a family a name means."""

    def meant(self, owner: str, text: str) -> str:
        """The stage that a name in the config of another means."""

    def seed(self, name: str) -> int | None:
        """The seed that the stage of that name is to have in place of the recipe's."""


class Resolver:
    """Finds what each name in the stages' configs means. RecipeError where it means nothing, or the wrong thing."""

    def __init__(
        self,
        document: Document,
        folder: Path,
        servers: Mapping[str, MiniatureServer],
        models: Mapping[str, tuple[Model, ...]],
        configs: Configs,
        members: "Members",
    ) -> None:
        self._document, self._folder, self._members = document, folder, members
        self._servers, self._models, self._configs = servers, models, configs
        self._makes = {name: stage.output(config) for name, (stage, config) in configs.items()}

    def entry(self, name: str) -> Entry:
        """The stage of that name with everything that it refers to."""
        stage, config = self._configs[name]
        found = slots(config)
        links = [
            self._link(name, slot, named)
            for slot in found
            for named in slot.names
            if "word" not in slot.accepts or own.is_own(named.name)
        ]
        places = {"": self._document.place(("stages", name)), **self._document.places_in(("stages", name))}
        return Entry(name, stage, config, found, tuple(links), places, self._members.seed(name))

    def _link(self, owner: str, slot: Slot, named: Named) -> Link:
        steps, text, weight = named
        place = self._document.place(("stages", owner, *steps))
        label = f"{owner}.{dotted(steps)}"
        if "function" in slot.accepts:
            return Link(slot.field, steps, text, place, function=find_function(text, self._folder, place))
        wanted = " or ".join(_A.get(kind, kind) for kind in slot.accepts)
        if text.startswith(BEGINS) and any(kind in ROWS for kind in slot.accepts):
            return Link(slot.field, steps, text, place, file=find_shipped(text, place), weight=weight)
        stage = self._members.meant(owner, text)
        made = self._makes.get(stage)
        if made in slot.accepts:
            return Link(slot.field, steps, text, place, stage=stage, weight=weight)
        if "model" in slot.accepts and text in self._models:
            return Link(slot.field, steps, text, place, models=self._suitable(text, slot.reference, label, place))
        if "server" in slot.accepts and text in self._servers:
            return Link(slot.field, steps, text, place, server=text)
        is_a = made or ("model" if text in self._models else "server" if text in self._servers else "")
        if is_a:
            fitting = self._fitting(slot.accepts)
            remedy = f"Name one of: {', '.join(fitting)}" if fitting else f"Add a stage that makes {wanted}"
            raise RecipeError(place, f"'{label}' needs {wanted}, but '{text}' is {_A.get(is_a, is_a)}", remedy)
        takes_file = any(kind in ROWS or kind == "file" for kind in slot.accepts)
        file = find_path(text, self._folder, place) if takes_file else None
        if file is None and any(kind in ROWS for kind in slot.accepts):
            file = find_pattern(text, self._folder, place)
        if file is None:
            things = f"{'neither a' if takes_file else 'no'} {self._things(slot.accepts)}"
            raise RecipeError(
                place,
                f"'{label}' names '{text}', which is {things}{' nor a file' if takes_file else ''}"
                f"{nearest(text, self._fitting(slot.accepts))}",
                "Mend the name"
                + (" or the path, looked for in the recipe's folder and in this one" if takes_file else ""),
            )
        if any(kind in ROWS for kind in slot.accepts) and (file.is_dir() or not file.exists()):  # a pattern
            try:
                shards(file)
            except DataError as error:
                what = error.what.replace("the folder", "a folder that", 1)
                raise RecipeError(place, f"'{label}' names '{text}', which is {what}", error.remedy) from error
        elif not (file.is_file() or (file.is_dir() and "folder" in slot.accepts)):
            what = "a folder" if file.is_dir() else "a pipe or a device"
            raise RecipeError(place, f"'{label}' names '{text}', which is {what}, not a file", "Name the file itself")
        return Link(slot.field, steps, text, place, file=file, weight=weight, whole="folder" in slot.accepts)

    def _suitable(self, name: str, reference: Reference, label: str, place: str) -> tuple[Model, ...]:
        """The models of that name, where the field can do with them."""
        models = self._models[name]
        if len(models) > 1 and not reference.pool:
            what = f"'{label}' takes one model, but '{name}' is a pool of {len(models)}"
            raise RecipeError(place, what, "Give the one you mean a name of its own under 'models', and write that")
        if reference.weights and any(isinstance(model.spec, EndpointModel) for model in models):
            what = f"'{label}' needs a model's weights, but '{name}' is behind an endpoint"
            raise RecipeError(place, what, "Name a model that has a path, or a stage that makes one")
        return models

    def _fitting(self, accepts: Sequence[str]) -> list[str]:
        """Every name that a slot would take."""
        names = list(dict.fromkeys(read_member(name).family for name, made in self._makes.items() if made in accepts))
        names += self._models if "model" in accepts else []
        return names + (list(self._servers) if "server" in accepts else [])

    @staticmethod
    def _things(accepts: Sequence[str]) -> str:
        if accepts == ("server",):
            return "server of this recipe"
        return "model or stage of this recipe" if "model" in accepts else "stage of this recipe"


def ordered(entries: Mapping[str, Entry]) -> list[str]:
    """Names in an order in which the stages can run, as near to the recipe's as can be. None reads itself in the end:
    `Families` sees to that."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for read in entries[name].reads:
                visit(read)
            order.append(name)

    for name in entries:
        visit(name)
    return order
