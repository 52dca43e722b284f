"""`for: {seed: [0, 1, 2], beta: [0.05, 0.1]}` on a stage: one stage for each combination, and what that means for those
who read it.

A field that collects takes all members. Any other stage that reads a family becomes one itself: each of its members
reads the member of the same values, as if the whole recipe had been written for these. So a member has the key that a
plain stage of that config and seed would have.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from potstill.document import Document
from potstill.errors import RecipeError
from potstill.members import SEED, Member, labels, read_member
from potstill.recipe.references import Configs, slots
from potstill.stages.base import Stage, StageConfig
from potstill.validation import nearest

FOR = "for"
MOST_MEMBERS = 1000
LONGEST_MEMBER = 180
"""Of a member's name, which is a folder's."""


@dataclass(frozen=True)
class Axis:
    """What one variable runs through."""

    values: tuple[Any, ...]
    labels: tuple[str, ...]
    """The values as names write them."""


Axes = Mapping[str, Axis]
Labels = Mapping[str, str]


def read_axes(document: Document, name: str, value: Any, config: type[StageConfig], written: Iterable[str]) -> Axes:
    """What a stage's `for` says; nothing where it has none. `written`: the fields that the stage gives itself.

    RecipeError, at its line, where a field is not there or a list can make no family.
    """
    if value is None:
        return {}

    def refuse(what: str, remedy: str, *steps: str | int) -> RecipeError:
        return RecipeError(document.place(("stages", name, FOR, *steps)), what, remedy)

    if not isinstance(value, dict) or not value:
        raise refuse(f"'{name}.for' names no field", "Write for example for: {seed: [0, 1, 2]}")
    fields = [SEED, *(field for field in config.model_fields if field != "kind" and field not in config.HOW)]
    axes: dict[str, Axis] = {}
    for variable, given in value.items():
        if variable in config.HOW:
            what = f"'{name}.for' runs through '{variable}', which changes how fast a stage works, never what it makes"
            raise refuse(what, "Give it one value, outside of for", variable)
        if variable not in fields:
            what = f"'{name}.for' names '{variable}', which is no field of it{nearest(variable, fields)}"
            raise refuse(what, f"The fields are: {', '.join(fields)}", variable)
        if variable in written:
            what = f"'{name}' gives '{variable}' a value, and its for gives it several"
            raise refuse(what, f"Keep one; from the command line: {name}.for.{variable}=[VALUE]", variable)
        if not isinstance(given, list) or not given:
            what = (
                f"'{name}.for.{variable}' is {'an empty list' if given == [] else 'no list'}; expected a value or more"
            )
            raise refuse(what, f"Write for example {variable}: [{'0, 1, 2' if variable == SEED else 'ONE, ANOTHER'}]")
        for place, one in enumerate(given):
            if variable == SEED and (not isinstance(one, int) or isinstance(one, bool)):
                raise refuse(f"'{name}.for.seed' holds {one!r}; expected whole numbers", "Mend it", variable, place)
            if one in given[:place]:
                raise refuse(f"'{name}.for.{variable}' holds {one!r} twice", "Keep one of them", variable, place)
        axes[variable] = Axis(tuple(given), tuple(labels(given)))
    if (count := size(axes)) > MOST_MEMBERS:
        raise refuse(f"'{name}.for' makes {count:,} stages; at most {MOST_MEMBERS:,} can be", "Shorten a list")
    return axes


def size(axes: Axes) -> int:
    """How many members there are."""
    return prod(len(axis.values) for axis in axes.values())


def combinations(axes: Axes) -> Iterator[tuple[Labels, Mapping[str, Any]]]:
    """Every combination, as labels and as values; the last variable changes first. One, empty, where there is none."""
    for places in product(*(range(len(axis.values)) for axis in axes.values())):
        chosen = list(zip(axes.items(), places, strict=True))
        yield (
            {variable: axis.labels[at] for (variable, axis), at in chosen},
            {variable: axis.values[at] for (variable, axis), at in chosen},
        )


@dataclass(frozen=True)
class Declared:
    """A stage as the recipe writes it: one config for each combination of its own `for`."""

    stage: Stage
    axes: Axes
    configs: Mapping[str, StageConfig]
    """By the name that the combination alone gives."""


class Families:
    """All stages of a recipe once those that read families are families themselves.

    RecipeError where two families cannot be read together, a member is not there, or stages read each other.
    """

    def __init__(self, document: Document, declared: Mapping[str, Declared], configs: Configs) -> None:
        """`configs`: those of all `declared`, by their names."""
        self._document, self._declared, self._configs = document, declared, configs
        self._axes: dict[str, Axes] = {}
        for name in declared:
            self._find_axes(name, ())
        self.configs: dict[str, tuple[Stage, StageConfig]] = {}
        """By the name of the member, or of the plain stage."""
        self._members = {
            name: {Member(name, said).name: said for said, _ in combinations(self._axes[name])} for name in declared
        }
        for name in declared:
            for member, said in self._members[name].items():
                self._add(member, name, said)

    def seed(self, name: str) -> int | None:
        """The seed that the stage of that name is to have in place of the recipe's."""
        member = read_member(name)
        if SEED not in member.values:
            return None
        axis = self._axes[member.family][SEED]
        return int(axis.values[axis.labels.index(member.values[SEED])])

    def meant(self, owner: str, text: str) -> str:
        """The stage that a name in another stage's config means: of a family, the member of the same values."""
        family, fixed = read_member(text)
        if family not in self._axes or not self._axes[family]:
            return text
        said = {**read_member(owner).values, **fixed}
        return Member(family, {variable: said[variable] for variable in self._axes[family] if variable in said}).name

    def _find_axes(self, name: str, path: tuple[str, ...]) -> Axes:
        """What a stage runs through: what those that it reads run through, and its own `for`."""
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            what = f"stages that read each other: {circle}"
            raise RecipeError(self._document.place(("stages", name)), what, "Break the circle")
        if name not in self._axes:
            own = self._declared[name].axes
            found = {variable: (axis, "its own for") for variable, axis in own.items()}
            for text, place, read in self._read(name, (*path, name)):
                for variable, axis in read.items():
                    known, origin = found.setdefault(variable, (axis, f"'{text}'"))
                    if known.labels != axis.labels:
                        what = (
                            f"'{name}' runs through '{variable}' twice: {', '.join(known.labels)} by {origin}, and "
                            f"{', '.join(axis.labels)} by '{text}'"
                        )
                        raise RecipeError(place, what, "Give both the same values, or name one member")
            axes = {variable: axis for variable, (axis, _) in found.items() if variable not in own} | dict(own)
            if (count := size(axes)) > MOST_MEMBERS:
                what = f"'{name}' reads families whose members come to {count:,}; at most {MOST_MEMBERS:,} can be"
                raise RecipeError(self._document.place(("stages", name)), what, "Shorten a list")
            self._axes[name] = axes
        return self._axes[name]

    def _read(self, name: str, path: tuple[str, ...]) -> Iterator[tuple[str, str, Axes]]:
        """The stages that a stage names one member of, for each of its own: as it is written, the place, and what the
        name leaves open."""
        for member in self._declared[name].configs:
            for slot in slots(self._configs[member][1]):
                for named in slot.names if "function" not in slot.accepts else ():
                    place = self._document.place(("stages", member, *named.steps))
                    read = self._open(named.name, place, path)
                    if not slot.reference.collects:
                        yield named.name, place, read

    def _open(self, text: str, place: str, path: tuple[str, ...]) -> Axes:
        """What a stage that is named runs through, but for what the name says of it."""
        family, fixed = read_member(text)
        if family not in self._declared:
            return {}
        axes = self._find_axes(family, path)
        for variable, label in fixed.items():
            if variable not in axes or label not in axes[variable].labels:
                there = "; ".join(f"{name}: {', '.join(axis.labels)}" for name, axis in axes.items())
                what = f"'{text}' is no member of '{family}', which " + (f"has {there}" if there else "is no family")
                raise RecipeError(place, what, "Name a value that it has" if there else f"Write {family}")
        return {variable: axis for variable, axis in axes.items() if variable not in fixed}

    def _add(self, member: str, name: str, said: Labels) -> None:
        """The config of a member: that of its own `for`, with families where it collects as their members."""
        declared = self._declared[name]
        own = Member(name, {variable: said[variable] for variable in declared.axes}).name
        stage, config = self._configs[own]
        if len(member) > LONGEST_MEMBER:
            what = f"the name '{member}' is too long for a folder"
            raise RecipeError(self._document.place(("stages", name)), what, "Shorten names or values")
        if own != member:
            self._document.alias(("stages", own), ("stages", member))
        for slot in slots(config):
            if slot.reference.collects and slot.names:
                field = slot.field
                names = [(self._document.place(("stages", own, *named.steps)), named.name) for named in slot.names]
                given = [(place, one) for place, text in names for one in self._all(text)]
                for position, (place, one) in enumerate(given):
                    if one in [other for _, other in given[:position]]:
                        raise RecipeError(place, f"'{name}.{field}' names '{one}' twice", "Keep one of them")
                    self._document.places[("stages", member, field, position)] = place
                config = config.model_copy(update={field: tuple(one for _, one in given)})
        self.configs[member] = (stage, config)

    def _all(self, text: str) -> list[str]:
        """Every member that a name in a field that collects means; the name itself where it means no family."""
        family, fixed = read_member(text)
        if not self._axes.get(family):
            return [text]
        return [name for name, said in self._members[family].items() if fixed.items() <= said.items()]
