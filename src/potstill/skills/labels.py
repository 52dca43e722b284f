"""Labels: read strictly from a reply, and voted on."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill.teachers.ratings import parse_json, plain_lines, quoted_lines, read_object

_LINE = re.compile(r"^(?:[^\S\n]|[*_#-])*+label(?:[^\S\n]|[*_])*+:(.*)$", re.IGNORECASE | re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?[^\S\n]*+\n(.*?)```\Z", re.DOTALL | re.IGNORECASE)


def read_label(text: str, labels: Sequence[str], quoted: Iterable[str] = ()) -> str | None:
    """The one label that a reply gives: on its line "Label: x", as {"label": "x"}, or as all that it says.

    None where it gives none of the set, or more than one. The line opens or closes the reply; one that stands in what
    was `quoted` to the teacher is its own word only where the reply says nothing else.
    """
    said = _plain(plain_lines(text))
    known = {_folded(label): label for label in labels}
    if said.startswith("{"):
        value = read_object(said)
        given = value.get("label") if isinstance(value, dict) else None
        return known.get(_folded(given)) if isinstance(given, str) else None
    found = list(_LINE.finditer(said))
    if not found:
        return known.get(_folded(said))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = found[0][0].strip()
    if len(found) > 1 or line not in (lines[0], lines[-1]):
        return None
    if len(lines) > 1 and quoted_lines([line]) <= quoted_lines(quoted):
        return None
    return known.get(_folded(found[0][1]))


def read_value(text: str) -> str | None:
    """The JSON value that a reply is, in one spelling; None where it is none, or tells a key twice."""
    try:
        return json.dumps(parse_json(_plain(text)), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    text = text.strip()
    fenced = _FENCE.match(text)
    return fenced[1].strip() if fenced else text


def _folded(label: str) -> str:
    return label.strip(" \t\n.\"'`*_").casefold()


@dataclass(frozen=True)
class Election:
    """What the votes on one row came to."""

    winner: str | None
    """None: no vote could be read, or two labels have as many."""
    agreement: float
    """The winner's share of all votes that were asked for, those that could not be read among them."""


def count_votes(votes: Sequence[str | None]) -> Election:
    """The label with the most votes. A tie elects nobody."""
    ranked = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not ranked:
        return Election(None, 0.0)
    share = ranked[0][1] / len(votes)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return Election(None if tied else ranked[0][0], share)
