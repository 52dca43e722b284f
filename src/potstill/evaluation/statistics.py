"""Means with 95% intervals, clustered by question; paired differences and ratios; coverage.

Intervals are Student's t on the linearised mean (Liang and Zeger 1986: a question is a cluster, G / (G - 1)), not a
bootstrap: exact for equal clusters of normal questions, close for the 1-to-10 scores met here, and the same bytes on
every machine without a seed. What a t interval cannot do is bound a share of 0% or 100%, so shares have Wilson's, and
answers that are all alike, in the whole or in one stratum, leave the doubt of the next one.
Nothing here returns NaN: what cannot be said is None.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

from potstill.evaluation.distributions import LEVEL, holm, student_quantile
from potstill.evaluation.one_more import FEWEST, with_one_more
from potstill.evaluation.paired_shares import Discordant, discordant
from potstill.evaluation.parts import Parts
from potstill.evaluation.spread import (
    Spread,
    Value,
    grain,
    ratio_ends,
    ratio_of,
    spread_over_questions,
    spread_over_seeds,
    weighted_mean,
    widened,
)

LEAST_SCORED = 0.5
"""Where a smaller share of what was asked for could be scored, the mean of that share is not told as the score: what
could not be read is seldom like what could."""


@dataclass(frozen=True)
class Observation:
    """One value that was asked for. Those of one question depend on each other, so the question is the cluster."""

    question: str
    part: str
    """Tells the observations of a question apart: the turn, mostly. Pairing matches on question and part."""
    value: float | None
    """None: it could not be had. It lowers the coverage and enters no mean."""
    weight: float = 1.0
    category: str = ""
    stratum: str = ""
    """Questions of one stratum were drawn together; strata were not drawn, so that how they differ from each other is
    no uncertainty of a mean over all of them."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is. `n` counts the values in the mean, `coverage` is their share of those asked for."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    coverage: float

    def to_json(self) -> dict[str, float | int | None]:
        """As it stands in scores.json."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """The mean of later minus earlier over what both have. `n` counts those."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    """Two-sided, of no difference at all."""
    p_adjusted: float | None = None
    """The same, corrected for `comparisons` of them."""
    comparisons: int = 1
    """How many were made together; only those with a p count."""
    why: str = ""
    """Why it has no p, so that nothing can be claimed of it."""

    def to_json(self) -> dict[str, float | int | str | None]:
        """As it stands in scores.json."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """The mean of one over the mean of another, on what both have. `n` counts those."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """mean, low, high and n."""
        return asdict(self)


Evidence = Spread | Discordant | Parts
"""What is known of a paired difference: its mean, its interval, and how well it agrees with any true difference."""


def mean_estimate(observations: Iterable[Observation], bounds: tuple[float, float] | None = None) -> Estimate:
    """The weighted mean of the values with its interval; `bounds` are those of the scale, which no mean can leave."""
    rows = list(observations)
    scored = _values(rows)
    return _estimate(weighted_mean(scored), spread_over_questions(scored), bounds, scored, len(rows))


def share_estimate(observations: Iterable[Observation]) -> Estimate:
    """A share, of values from 0 to 1, with Wilson's interval (1927) on the effective number of questions.

    That is the number of 0-or-1 answers with the same variance (Korn and Graubard 1998): the questions themselves where
    each is right or wrong, and more where a judge's preference is weighed, for which plain Wilson covers 97%. Student's
    t is no choice: at 100 questions and a share of 6% its interval holds the truth in 92%.
    """
    rows = list(observations)
    scored = _values(rows)
    spread = spread_over_questions(scored)
    if spread is None:
        return Estimate(weighted_mean(scored), None, None, len(scored), _coverage(scored, len(rows)))
    return _share(spread, scored, len(rows), alone=spread.freedom + 1 == len(scored))


def share_over_seeds(rows: Sequence[Value], asked: int) -> Estimate | None:
    """As `share_estimate`, of other seeds too; None without two of each."""
    spread = spread_over_seeds(rows)
    return None if spread is None else _share(spread, rows, asked, alone=False)


def mean_over_seeds(rows: Sequence[Value], asked: int, bounds: tuple[float, float] | None) -> Estimate | None:
    """As `mean_estimate`, of other seeds too; None without two of each."""
    spread = spread_over_seeds(rows)
    return None if spread is None else _estimate(spread.mean, spread, bounds, rows, asked)


def _share(spread: Spread, scored: Sequence[Value], asked: int, *, alone: bool) -> Estimate:
    """Wilson's interval. `alone`: every value is a question of its own, so that their number is no estimate.

    Strata whose answers are all alike add no variance, and yet leave doubt: that of their grain.
    """
    share, questions, coarse = spread.mean, spread.freedom + 1, grain(scored)
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2) if alone else student_quantile(spread.freedom)
    variance = widened(spread, coarse).error ** 2 * ((questions - 1) / questions if alone else 1.0)
    effective = share * (1 - share) / variance if variance > 1e-15 else 0.0
    if effective < 1e-12:  # all values are alike
        effective = 1 / coarse if coarse > 0 else float(questions)
    low, high = wilson(share, effective, z)
    return Estimate(share, low, high, len(scored), _coverage(scored, asked))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval (1927) for a share of n values, at a quantile."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def _values(rows: Sequence[Observation], seed: str = "") -> list[Value]:
    return [Value(row.question, row.value, row.weight, seed, row.stratum) for row in rows if row.value is not None]


def _coverage(scored: Sequence[Value], asked: int) -> float:
    return len(scored) / asked if asked else 0.0


def _estimate(
    mean: float | None,
    spread: Spread | None,
    bounds: tuple[float, float] | None,
    scored: Sequence[Value],
    asked: int,
) -> Estimate:
    low = high = None
    if mean is not None and spread is not None:
        if bounds is not None and bounds[1] <= 1:  # shares, or differences of them
            spread = widened(spread, grain(scored))
        low, high = spread.ends()
        if bounds is not None:
            low, high = max(low, min(bounds[0], mean)), min(high, max(bounds[1], mean))
    return Estimate(mean, low, high, len(scored), _coverage(scored, asked))


Pair = tuple[Observation, Observation]


def paired_rows(later: Iterable[Observation], earlier: Iterable[Observation]) -> list[Pair]:
    """The observations of the same questions and parts, later and earlier, that both have a value of.

    Values that were weighted differently (tokens of two tokenizers, say) are not on one scale and are not paired.
    """
    before = {(row.question, row.part): row for row in earlier}
    found = [(row, before.get((row.question, row.part))) for row in later]
    return [
        (row, other)
        for row, other in found
        if other is not None and row.value is not None and other.value is not None and row.weight == other.weight
    ]


def evidence(pairs: Sequence[Pair]) -> Evidence | None:
    """What pairs say of later minus earlier; None where they are of fewer than two questions.

    In strata where all that can be said of a question is right or wrong, pairs are counted; in the others their
    differences are averaged.
    """
    answered = _answered(pairs)
    single = len({later.question for later, _ in pairs}) == len(pairs) > 1
    counted = [one for one in _differences(pairs) if one.stratum in answered] if single else []
    others = [one for one in _differences(pairs) if one.stratum not in answered] if single else _differences(pairs)
    spread = spread_over_questions(others)
    if not counted or (others and spread is None):
        whole = spread_over_questions(_differences(pairs))
        return None if whole is None else widened(whole, _coarse(pairs, _differences(pairs)))
    shares = discordant([(one.weight, int(one.value)) for one in counted])
    if spread is None:
        return shares
    weights = [math.fsum(one.weight for one in rows) for rows in (counted, others)]
    return Parts(((weights[0] / sum(weights), shares), (weights[1] / sum(weights), spread)))


def _answered(pairs: Iterable[Pair]) -> set[str]:
    """The strata in which every question was answered right or wrong, and weighs the same."""
    kinds: dict[str, set[tuple[bool, float]]] = defaultdict(set)
    for pair in pairs:
        kinds[pair[0].stratum].add((all(row.value in (0.0, 1.0) for row in pair), pair[0].weight))
    return {stratum for stratum, found in kinds.items() if len(found) == 1 and next(iter(found))[0]}


def _coarse(pairs: Iterable[Pair], differences: Sequence[Value]) -> float:
    """The grain of answers that were right or wrong."""
    answered = _answered(pairs)
    return grain(differences, lambda one: one.stratum in answered)


def _differences(pairs: Iterable[Pair], seed: str = "") -> list[Value]:
    return [
        Value(later.question, (later.value or 0.0) - (earlier.value or 0.0), later.weight, seed, later.stratum)
        for later, earlier in pairs
    ]


def paired_evidence(pairs: Sequence[Pair], reach: float = math.inf) -> Evidence | None:
    """As `evidence`, and never surer than one question more would leave it; `reach` is that of the scale."""
    return with_one_more(evidence(pairs), _differences(pairs), reach, spread_over_questions)


def paired_difference(
    later: Sequence[Observation], earlier: Sequence[Observation], reach: float = math.inf
) -> Difference:
    """Later minus earlier on the same questions and parts, where both have a value.

    `reach`: the most that two values of the scale can differ by.
    """
    pairs = paired_rows(later, earlier)
    mean, found = weighted_mean(_differences(pairs)), paired_evidence(pairs, reach)
    return difference_of(mean, found, len(pairs), doubt(pairs, [later, earlier]))


def difference_of(mean: float | None, found: Evidence | None, n: int, why: str) -> Difference:
    """As it is told; `why` is the `doubt`."""
    if mean is None or found is None:
        return Difference(mean, None, None, n, why=why)
    return Difference(mean, *found.ends(), n, None if why else found.p_of(0.0), why=why)


def doubt(pairs: Sequence[Pair], sides: Iterable[Sequence[Observation]]) -> str:
    """Why nothing can be claimed of a difference, whatever its interval; "" where something can."""
    coverage = min(sum(row.value is not None for row in rows) / max(1, len(rows)) for rows in sides)
    if coverage < LEAST_SCORED:
        return f"only {coverage:.0%} of one side could be scored"
    questions = len({one.question for one, _ in pairs})
    return f"{questions} questions are too few to tell" if questions < FEWEST else ""


def paired_ratio(student: Iterable[Observation], teacher: Iterable[Observation]) -> Ratio:
    """The student's mean over the teacher's, on the questions and parts that both have: the share that it keeps.

    Fieller's interval (1954) on residuals clustered by question, of which the two share every one. All but `n` is None
    where the teacher's mean is not above 0 beyond its own interval: no ratio can be told then. Where answers are right
    or wrong, and one of the two, or what they differ in, does not vary, residuals say nothing of other questions: the
    interval is then made of those of the two shares.
    """
    pairs = paired_rows(student, teacher)
    rows = [
        (Value(one.question, one.value or 0.0, one.weight), Value(other.question, other.value or 0.0, other.weight))
        for one, other in pairs
    ]
    ratio, low, high = ratio_ends(rows)
    values = [{value.value for value in side} for side in zip(*rows, strict=True)]
    steady = ratio is not None and (low == high or any(len(one) == 1 for one in values))
    if steady and set.union(*values) <= {0.0, 1.0}:
        shares = [share_estimate(side) for side in zip(*pairs, strict=True)]
        (ratio, low, high) = ratio_of(*((one.mean or 0.0, one.low or 0.0, one.high or 0.0) for one in shares))
    return Ratio(ratio, low, high, len(pairs))


def pooled(members: Sequence[Sequence[Observation]]) -> list[Observation]:
    """What several draws of one thing, models of other seeds, come to: each question's and part's mean over those that
    have a value. One that they weigh differently is not on one scale, and has none.

    An interval of these is of other questions, asked of these very members; `seed_values` gives one of other seeds too.
    """
    if len(members) == 1:
        return list(members[0])
    return [
        replace(
            group[0][1],
            value=math.fsum(row.value or 0.0 for _, row in valued) / len(valued) if valued else None,
        )
        for group in _by_part({str(place): rows for place, rows in enumerate(members)}).values()
        for valued in [_alike(group)]
    ]


def seed_values(members: Mapping[str, Sequence[Observation]]) -> list[Value]:
    """Every value of every member, by its seed, weighed so that their mean is that of what `pooled` makes of them."""
    return [
        Value(row.question, row.value or 0.0, row.weight / len(valued), seed, row.stratum)
        for group in _by_part(members).values()
        for valued in [_alike(group)]
        for seed, row in valued
    ]


def seed_differences(members: Mapping[str, Sequence[Pair]]) -> list[Value]:
    """Later minus earlier in each seed, weighed as in `seed_values`."""
    rows = {
        seed: [replace(later, value=(later.value or 0.0) - (earlier.value or 0.0)) for later, earlier in pairs]
        for seed, pairs in members.items()
    }
    return seed_values(rows)


def over_other_questions(members: Mapping[str, Sequence[Pair]]) -> Spread | None:
    """Later minus earlier, of other questions asked of models of these very seeds."""
    return _told(members, spread_over_questions(seed_differences(members)))


def over_other_seeds(members: Mapping[str, Sequence[Pair]]) -> Spread | None:
    """The same, of models of other seeds too; None without two of each."""
    return _told(members, spread_over_seeds(seed_differences(members)))


def _told(members: Mapping[str, Sequence[Pair]], spread: Spread | None) -> Spread | None:
    """What all seeds answered alike is no certainty."""
    pairs = [pair for rows in members.values() for pair in rows]
    return None if spread is None else widened(spread, _coarse(pairs, seed_differences(members)))


def _by_part(members: Mapping[str, Sequence[Observation]]) -> dict[tuple[str, str], list[tuple[str, Observation]]]:
    found: dict[tuple[str, str], list[tuple[str, Observation]]] = defaultdict(list)
    for seed, rows in members.items():
        for row in rows:
            found[row.question, row.part].append((seed, row))
    return found


def _alike(group: Sequence[tuple[str, Observation]]) -> list[tuple[str, Observation]]:
    """Those with a value; none where they are weighed differently."""
    valued = [(seed, row) for seed, row in group if row.value is not None]
    return valued if len({row.weight for _, row in valued}) == 1 else []


def by_category(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """The observations of each category, in the order in which categories are first met; those without one left out."""
    groups: dict[str, list[Observation]] = defaultdict(list)
    for row in observations:
        if row.category:
            groups[row.category].append(row)
    return dict(groups)


def paired_differences(
    names: Sequence[str], observations: Mapping[str, Sequence[Observation]], reach: float = math.inf
) -> dict[str, Difference]:
    """Every later-minus-earlier difference under the name "later-earlier"; `names` gives the order."""
    return corrected(
        {
            f"{later}-{earlier}": paired_difference(observations[later], observations[earlier], reach)
            for i, earlier in enumerate(names)
            for later in names[i + 1 :]
        }
    )


def corrected(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences with each p corrected for all of them (Holm 1979)."""
    known = [name for name, one in differences.items() if one.p is not None]
    adjusted = dict(zip(known, holm([differences[name].p or 0.0 for name in known]), strict=True))
    return {
        name: replace(one, p_adjusted=adjusted.get(name), comparisons=len(known)) for name, one in differences.items()
    }
