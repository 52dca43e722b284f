"""How the members of a family are named: `sft[seed=0,beta=0.1]` is the one of `sft` whose seed is 0 and beta 0.1."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SEED = "seed"
"""The variable that stands for a stage's own seed. Members that differ in it alone are draws of one thing."""
LONGEST_LABEL = 24

_MEMBER = re.compile(r"([A-Za-z_]\w*)\[(\w+=[\w.+-]+(?:,\w+=[\w.+-]+)*)\]", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9.+-]+")


class Member(NamedTuple):
    """A name taken apart. One without values is no member: a plain stage, a model, or a family as a whole."""

    family: str
    values: Mapping[str, str]
    """Each variable's value, as it is written in the name."""

    @property
    def name(self) -> str:
        """As people and folders write it."""
        if not self.values:
            return self.family
        return f"{self.family}[{','.join(f'{variable}={label}' for variable, label in self.values.items())}]"


def read_member(name: str) -> Member:
    """What a name says; one that is not written as a member's is its own family."""
    found = _MEMBER.fullmatch(name)
    if found is None:
        return Member(name, {})
    return Member(found[1], dict(pair.split("=", 1) for pair in found[2].split(",")))


def pooled_name(name: str) -> str:
    """The name without the seed: what the members that differ in nothing else have in common."""
    member = read_member(name)
    return Member(member.family, {key: label for key, label in member.values.items() if key != SEED}).name


def pools(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by what they have in common but for the seed, in their order; a plain name stands for itself."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(pooled_name(name), []).append(name)
    return found


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by their family, in their order; a plain name stands for itself."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(read_member(name).family, []).append(name)
    return found


def seeds(names: Iterable[str]) -> list[str]:
    """The seeds of those that have one."""
    return [values[SEED] for name in names if SEED in (values := read_member(name).values)]


def spoken(names: Iterable[str]) -> str:
    """What the members of one family differ in: "seed 0, 1, 2"."""
    variables: dict[str, dict[str, None]] = {}
    for name in names:
        for variable, label in read_member(name).values.items():
            variables.setdefault(variable, {})[label] = None
    return "; ".join(f"{variable} {', '.join(found)}" for variable, found in variables.items())


def labels(values: Iterable[Any]) -> list[str]:
    """Each value in a few letters that a folder and a command line can hold, no two alike."""
    taken: list[str] = []
    for place, value in enumerate(values, start=1):
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        label = _UNSAFE.sub("_", text).strip("_")[:LONGEST_LABEL]
        taken.append(label if label and label not in taken else f"{label}_{place}".lstrip("_"))
    return taken
