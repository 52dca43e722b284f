"""What a gate is asked, read from text: "mt_bench > -0.1, hellaswag > -1%, mt_bench/math >= -0.5"."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from potstill.errors import DataError
from potstill.evaluation.gate import Requirement, Side, plain

EXAMPLE = "'mt_bench > -0.1, hellaswag > -1%'"

_CLAUSE = re.compile(
    r"(?P<name>[^<>=≥≤,]*?)\s*(?P<sign>>=|≥|>)\s*(?P<number>[+\-−]?\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)"
)


class Clause(NamedTuple):
    """One part of the text, not yet held against the suites that there are."""

    text: str
    place: int
    """Of its first character in the whole, from 1."""
    name: str
    strict: bool
    number: float
    percent: bool


def read_clauses(text: str, where: str) -> list[Clause]:
    """The parts between commas. DataError names the first that cannot be read."""
    found, start = [], 0
    for part in text.split(","):
        said, place = part.strip(), start + len(part) - len(part.lstrip()) + 1
        start += len(part) + 1
        match = _CLAUSE.fullmatch(said)
        if match is None or not match["name"]:
            raise DataError(f"{where}, character {place}", _why(said), f"Write it as in {EXAMPLE}")
        number = float(re.sub(r"\s", "", match["number"]).replace("−", "-"))
        if not math.isfinite(number):
            raise DataError(
                f"{where}, character {place}", f"'{said}' has no finite margin", f"Write it as in {EXAMPLE}"
            )
        found.append(Clause(said, place, match["name"].strip(), match["sign"] == ">", number, bool(match["percent"])))
    return found


def _why(said: str) -> str:
    if not said:
        return "a requirement is empty; expected SUITE > MARGIN"
    if any(sign in said for sign in "<≤"):
        return (
            f"'{said}' bounds from above; expected SUITE > MARGIN, where above 0 is better, "
            "also in suites where lower values are"
        )
    return f"'{said}' cannot be read; expected SUITE > MARGIN, or SUITE/CATEGORY > MARGIN"


def resolve(clause: Clause, sides: tuple[Mapping[str, Side], Mapping[str, Side]], where: str) -> Requirement:
    """The requirement on a suite that both sides have.

    DataError where only one has it, or none, or where the margin's unit can be read in two ways.
    """
    place = f"{where}, character {clause.place}"
    suite, category = _named(clause, sides, place)
    side = sides[1][suite]
    if category:
        known = [one for one in side.categories if plain(one) == plain(category)]
        if not known:
            has = ", ".join(side.categories) or "none"
            raise DataError(place, f"suite '{suite}' has no category '{category}'", f"It has: {has}")
        category = known[0]
    return Requirement(clause.text, suite, _margin(clause, suite, side, place), category, clause.strict)


def _named(clause: Clause, sides: tuple[Mapping[str, Side], Mapping[str, Side]], place: str) -> tuple[str, str]:
    """The suite, and a category of it or "". A suite's own name may hold a slash, as those of aspects do."""
    known = {**sides[0], **sides[1]}
    head, _, tail = clause.name.rpartition("/")
    suite, category = (head, tail) if clause.name not in known and head in known else (clause.name, "")
    if suite not in known:
        names = ", ".join(sorted(known)) or "none"
        raise DataError(place, f"no suite is called '{suite}'", f"Name one that both have: {names}")
    missing = [word for word, side in zip(("BEFORE", "AFTER"), sides, strict=True) if suite not in side]
    if missing:
        other = "AFTER" if missing == ["BEFORE"] else "BEFORE"
        remedy = f"Evaluate {missing[0]} on it too, or leave the requirement out"
        raise DataError(place, f"suite '{suite}' stands in {other} alone, so that nothing can be compared", remedy)
    return suite, category


def _margin(clause: Clause, suite: str, side: Side, place: str) -> float:
    """In the suite's own units. A share is bounded in percentage points, everything else in its own: -1% of a grade of
    7 could be 0.07 of it or 0.09 of the scale, and -0.01 of a share a hundredth or a hundredth of a point."""
    if side.measure.is_share and not clause.percent and clause.number != 0:
        number, points = f"{clause.number:g}", f"{100 * clause.number:g}"
        what = f"'{suite}' is a share, of which {number} can mean {number} or {points} percentage points"
        remedy = f"Write '{clause.name} > {number}%' or '{clause.name} > {points}%'"
        raise DataError(place, what, remedy)
    if not side.measure.is_share and clause.percent:
        what = f"'{suite}' is in {side.measure.unit or 'units of its own'}, and a percentage of those is not one thing"
        raise DataError(place, what, f"Say it in those units, such as '{clause.name} > -0.1'")
    return clause.number / 100 if clause.percent else clause.number
