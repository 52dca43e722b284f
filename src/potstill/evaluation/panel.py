"""Several opinions of one answer become one: over the orders in which it was shown, and over judges.

What has no score is never averaged as a number. Comparisons of pairs become a score for each answer: its share of the
wins, or its strength after Bradley and Terry (1952).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from potstill.records import Rating
from potstill.teachers.ratings import is_not_applicable, unread

Aggregate = Literal["mean", "median", "majority"]

CLOSE_ENOUGH = 1e-13
MOST_STEPS = 10_000


def over_orders(ratings: Sequence[Rating]) -> Rating:
    """One judge's ratings of one text, shown in several orders: their mean. Those that could not be read leave none."""
    scored = [rating for rating in ratings if rating.score is not None]
    if len(ratings) == 1 or not scored:
        return next((rating for rating in ratings if is_not_applicable(rating)), ratings[0])
    words = {rating.verdict for rating in scored}
    update = {"score": _mean(scored), "verdict": scored[0].verdict if len(words) == 1 else ""}
    return scored[0].model_copy(update=update)


def over_both_orders(ratings: Sequence[Rating], contradiction: Literal["tie", "drop"]) -> Rating:
    """One judge's comparison asked in both orders: the mean, where both could be read.

    A text that wins in one order and loses in the other owes that to its place: a tie, or nothing at all.
    """
    scores = [rating.score for rating in ratings]
    if None in scores:
        return next(rating for rating in ratings if rating.score is None)
    if contradiction == "drop" and {0.0, 1.0} <= set(scores):
        return unread(ratings[0].aspect, "the other text was called better when the order was reversed")
    return over_orders(ratings)


def over_judges(ratings: Sequence[Rating], how: Aggregate) -> Rating:
    """Several judges' ratings of one text. Not applicable where more of them say so than give a number.

    `majority` is the score that more than half of those who gave one agree on, or none.
    """
    aspect = ratings[0].aspect
    scored = [rating for rating in ratings if rating.score is not None]
    without = [rating for rating in ratings if is_not_applicable(rating)]
    if len(without) > len(scored):
        return Rating(aspect=aspect, score=None, rationale=without[0].rationale)
    if not scored:
        return unread(aspect, "no judge could be read")
    if how == "majority":
        score, votes = Counter(rating.score for rating in scored).most_common(1)[0]
        return Rating(aspect=aspect, score=score) if 2 * votes > len(scored) else unread(aspect, "no majority")
    return Rating(aspect=aspect, score=_mean(scored) if how == "mean" else _median(scored))


def spread(ratings: Iterable[Rating]) -> float:
    """The largest score less the smallest; 0 where there are not two."""
    scores = [rating.score for rating in ratings if rating.score is not None]
    return max(scores) - min(scores) if scores else 0.0


def _mean(scored: Sequence[Rating]) -> float:
    return float(sum((Fraction(rating.score or 0) for rating in scored), Fraction(0)) / len(scored))


def _median(scored: Sequence[Rating]) -> float:
    ordered = sorted(Fraction(rating.score or 0) for rating in scored)
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


Wins = Mapping[tuple[int, int], float]
"""By the places of two answers: the share of the win that the first has of the second; a half is a tie."""


def win_shares(wins: Wins) -> dict[int, float]:
    """The mean share of the win of every answer over the comparisons that it took part in."""
    shares: dict[int, list[Fraction]] = {}
    for (first, second), share in wins.items():
        shares.setdefault(first, []).append(Fraction(share))
        shares.setdefault(second, []).append(1 - Fraction(share))
    return {place: float(sum(parts, Fraction(0)) / len(parts)) for place, parts in sorted(shares.items())}


def bradley_terry(wins: Wins) -> dict[int, float]:
    """The log of every answer's strength, their mean 0: P(i beats j) = p_i / (p_i + p_j).

    Fitted by Hunter (2004, eq. 3) to convergence. Every answer also has half a win and half a loss against an answer
    of strength 1, without which one that wins every time would have no finite strength.
    """
    places = sorted({place for pair in wins for place in pair})
    won = dict.fromkeys(places, 0.5)
    for (first, second), share in wins.items():
        won[first] += share
        won[second] += 1 - share
    strength = dict.fromkeys(places, 1.0)
    for _ in range(MOST_STEPS):
        met = {place: 1 / (strength[place] + 1) for place in places}
        for first, second in wins:
            met[first] += 1 / (strength[first] + strength[second])
            met[second] += 1 / (strength[first] + strength[second])
        fitted = {place: won[place] / met[place] for place in places}
        moved = max((abs(math.log(fitted[place] / strength[place])) for place in places), default=0.0)
        strength = fitted
        if moved < CLOSE_ENOUGH:
            break
    centre = math.fsum(math.log(p) for p in strength.values()) / max(len(places), 1)
    return {place: round(math.log(p) - centre, 9) for place, p in strength.items()}
