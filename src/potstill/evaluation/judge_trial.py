"""What is known of a judge after it compared answers that people compared too: agreement, and its biases towards a
place, length and lists, each with an interval.

Every comparison is asked in both orders. A judge's verdict is the mean of the two; where they contradict each other
that is a tie. Lengths are in characters. Where a comparison was asked several times, all this is of the first asking.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from potstill.evaluation.agreement import Choice, Coincidences, Valued, clustered_share, cohen_kappa, logistic
from potstill.evaluation.correlation import Matched
from potstill.evaluation.repeats import Repeated, same_again
from potstill.evaluation.statistics import Observation, mean_estimate

TRIAL_FILE = "trial.json"

_LIST_LINE = re.compile(r"^[ \t]*(?:[-*+•][ \t]|\d{1,3}[.)][ \t]|#{1,6}[ \t])", re.MULTILINE)


@dataclass(frozen=True)
class Comparison:
    """Two answers, and how much of the win each verdict gives the first: 1, 0, or a half for a tie."""

    cluster: str
    """The prompt: comparisons of one prompt depend on each other."""
    people: float | None
    """What most people said; None where no verdict has most votes."""
    forward: float | None
    """The judge, shown the first answer first; None where it could not be read."""
    backward: float | None
    """The judge, shown the second answer first, still as the first answer's share."""
    doublings: float
    """The base-2 logarithm of the first answer's length over the second's."""
    list_lines: int = 0
    """How many more lines of the first answer than of the second are items of a list or headings."""
    again: tuple[tuple[float | None, float | None], ...] = ()
    """`forward` and `backward` each time that the same was asked once more."""

    @property
    def verdict(self) -> float | None:
        """Both orders together."""
        return verdict_of(self.forward, self.backward)


def verdict_of(forward: float | None, backward: float | None) -> float | None:
    """What two verdicts come to, one in each order: a tie where they contradict each other."""
    return None if forward is None or backward is None else side((forward + backward) / 2)


def side(share: float) -> float:
    """1, 0 or a half: who has the larger share."""
    return 1.0 if share > 0.5 else 0.0 if share < 0.5 else 0.5


def majority(votes: Sequence[float]) -> float | None:
    """The verdict with more votes than any other; None where two share the most."""
    counted = Counter(side(vote) for vote in votes).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return None
    return counted[0][0]


def people_report(votes: Iterable[tuple[str, Sequence[float]]]) -> dict[str, Any]:
    """How far people agree with each other, which is what can be asked of a judge. Takes (prompt, votes)."""
    pairs, rest, found, rows, unsettled = list[Valued](), list[Valued](), Coincidences(), 0, 0
    for cluster, given in votes:
        sides = [side(vote) for vote in given]
        rows += 1
        unsettled += majority(sides) is None
        found.add(sides)
        pairs += [Valued(cluster, float(a == b)) for a, b in combinations(sides, 2)]
        for place, one in enumerate(sides):
            others = majority([*sides[:place], *sides[place + 1 :]])
            if others is not None:
                rest.append(Valued(cluster, float(one == others)))
    return {
        "comparisons": rows,
        "without_majority": unsettled,
        "agreement_of_two": clustered_share(pairs).to_json(),
        "agreement_with_the_rest": clustered_share(rest).to_json(),
        "alpha": _rounded(found.alpha("nominal")),
    }


def judge_report(rows: Sequence[Comparison]) -> dict[str, Any]:
    """Everything on one judge, as JSON."""
    settled = [row for row in rows if row.people is not None]
    single = [
        Valued(row.cluster, float(share == row.people))
        for row in settled
        for share in (row.forward, row.backward)
        if share is not None
    ]
    read = [Valued(row.cluster, float(share is not None)) for row in rows for share in (row.forward, row.backward)]
    return {
        "comparisons": len(rows),
        "coverage": clustered_share(read).to_json(),
        **agreement_report(rows),
        "agreement_one_order": clustered_share(single, 2 * len(settled)).to_json(),
        "position": _position(rows),
        "model": _model(rows),
        "again": _again(rows),
    }


def agreement_report(rows: Sequence[Comparison]) -> dict[str, Any]:
    """What holds of verdicts wherever they come from: how far they are those of people, and which texts they favour."""
    both = [(row, row.verdict) for row in rows if row.verdict is not None]
    settled = [row for row in rows if row.people is not None]
    matched = [Matched(row.cluster, verdict, row.people) for row, verdict in both if row.people is not None]
    decided = [pair for pair in matched if 0.5 not in (pair.one, pair.other)]
    length, lists = _favour(rows, lambda row: row.doublings), _favour(rows, lambda row: row.list_lines)
    return {
        "agreement": clustered_share(_same(matched), len(settled)).to_json(),
        "agreement_where_decided": clustered_share(_same(decided), len(settled)).to_json(),
        "kappa": _kappa(matched, len(settled)),
        "ties": {
            "judge": clustered_share([Valued(r.cluster, float(v == 0.5)) for r, v in both], len(rows)).to_json(),
            "people": clustered_share([Valued(r.cluster, float(r.people == 0.5)) for r in settled]).to_json(),
        },
        "length": {"longer_share": length[0], "people_longer_share": length[1], "bias": length[2]},
        "lists": {"more_share": lists[0], "people_more_share": lists[1], "bias": lists[2]},
    }


def _kappa(matched: Sequence[Matched], asked: int) -> dict[str, Any]:
    """Kappa that does not hang on which answer stands first in a row, which says nothing: each comparison counts as it
    stands and mirrored. Where people's favourite is always the first, as in pairs, chance is a half all the same."""
    mirrored = [Matched(pair.cluster, 1 - pair.one, 1 - pair.other) for pair in matched]
    found = replace(cohen_kappa([*matched, *mirrored]), n=len(matched), coverage=len(matched) / asked if asked else 0.0)
    return found.to_json()


def _same(pairs: Iterable[Matched]) -> list[Valued]:
    return [Valued(pair.cluster, float(pair.one == pair.other)) for pair in pairs]


def _position(rows: Sequence[Comparison]) -> dict[str, Any]:
    """`first_share`: of the verdicts that decide, those for whatever was shown first; a half where place plays no part.
    `consistency`: comparisons whose verdict stays the same when the order is reversed."""
    firsts, kept, both = list[Valued](), list[Valued](), Counter[tuple[float, float]]()
    for row in rows:
        for share, shown_first in ((row.forward, 1.0), (row.backward, 0.0)):
            if share is not None and share != 0.5:
                firsts.append(Valued(row.cluster, float(share == shown_first)))
        if row.forward is not None and row.backward is not None:
            kept.append(Valued(row.cluster, float(row.forward == row.backward)))
            both[row.forward, row.backward] += 1
    return {
        "first_share": clustered_share(firsts, 2 * len(rows)).to_json(),
        "consistency": clustered_share(kept, len(rows)).to_json(),
        "always_first": both[1.0, 0.0],
        "always_second": both[0.0, 1.0],
    }


def _favour(rows: Sequence[Comparison], feature: Callable[[Comparison], float]) -> tuple[dict[str, Any], ...]:
    """For texts that have more of something: the judge's share of the verdicts that decide; people's; and the bias.

    The bias is how much more of the win the judge gives such texts than people do, a tie being a half, over the
    comparisons in which both were understood. What people like about such texts is no bias.
    """
    judge, people, more = list[Valued](), list[Valued](), list[Observation]()
    for place, row in enumerate(rows):
        sign = feature(row)
        if not sign:
            continue
        for share, found in ((row.verdict, judge), (row.people, people)):
            if share is not None and share != 0.5:
                found.append(Valued(row.cluster, float((share == 1.0) == (sign > 0))))
        if row.verdict is not None and row.people is not None:
            more.append(Observation(row.cluster, str(place), math.copysign(1, sign) * (row.verdict - row.people)))
    shares = [clustered_share(found, len(rows)).to_json() for found in (judge, people)]
    return (*shares, _bias(more, len(rows)))


def _bias(values: Sequence[Observation], asked: int) -> dict[str, Any]:
    """Their mean. Where all are nothing, a mean knows no spread: then at most so many of them can be something else as
    the interval of that share says."""
    found = mean_estimate(values, (-1.0, 1.0))
    if found.low is not None and all(row.value == 0 for row in values):
        least = clustered_share([Valued(row.question, 1.0) for row in values]).low or 0.0
        found = replace(found, low=least - 1, high=1 - least)
    return replace(found, coverage=len(values) / asked if asked else 0.0).to_json()


def _again(rows: Sequence[Comparison]) -> dict[str, Any] | None:
    """How often a judge that is asked again says the same: in one order, and over both. None where none was."""
    if not any(row.again for row in rows):
        return None
    asked = [(row, ((row.forward, row.backward), *row.again)) for row in rows]
    single = [Repeated(row.cluster, tuple(turn[side] for turn in turns)) for row, turns in asked for side in (0, 1)]
    whole = [Repeated(row.cluster, tuple(verdict_of(*turn) for turn in turns)) for row, turns in asked]
    return {
        "times": max(len(turns) for _, turns in asked),
        "same": same_again(whole),
        "same_one_order": same_again(single),
    }


def _model(rows: Sequence[Comparison]) -> dict[str, Any] | None:
    """What moves a single verdict, in log-odds for the text shown first: its place alone; people's preferring it over
    the other; each doubling of its length over the other's. By a logistic regression on all three at once."""
    choices = []
    for row in rows:
        if row.people is None:
            continue
        for share, sign in ((row.forward, 1.0), (row.backward, -1.0)):
            if share is not None and share != 0.5:
                features = (1.0, sign * (2 * row.people - 1), sign * row.doublings)
                choices.append(Choice(row.cluster, (share == 1.0) == (sign > 0), features))
    fitted = logistic(choices)
    if fitted is None:
        return None
    names = ("place", "people", "length_doubled")
    return {name: estimate.to_json() for name, estimate in zip(names, fitted, strict=True)}


def list_lines(text: str) -> int:
    """How many of its lines are items of a list, or headings, in Markdown."""
    return sum(1 for _ in _LIST_LINE.finditer(text))


def doublings(one: str, other: str) -> float:
    """How often the other text's length has to be doubled to give the one's; below 0 where the one is shorter."""
    return math.log2(max(len(one), 1) / max(len(other), 1))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
