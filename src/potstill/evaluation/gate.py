"""Whether one model is no worse than another by more than is allowed: holds, regression, or cannot be told.

A requirement says what the difference, after minus before on the same questions, has to exceed: "mt_bench > -0.1". In
suites where lower is better the difference is turned round, so that above 0 is always better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

from potstill.evaluation.distributions import holm
from potstill.evaluation.paired_shares import Discordant
from potstill.evaluation.scores import Measure
from potstill.evaluation.seed_pools import Members, pairs_by_seed
from potstill.evaluation.statistics import (
    Evidence,
    Observation,
    Pair,
    evidence,
    over_other_seeds,
    paired_rows,
    pooled,
)

Verdict = Literal["holds", "regression", "cannot tell"]

FEWEST = 10
"""Questions from which a t interval on whole grades is trusted."""
LEAST_COVERED = 0.95
"""Of the values asked for. Below it nothing holds: what is missing may be what got worse."""
POWER = 0.8
"""With which as many questions as are named would decide, were the true difference the observed one."""
MOST_QUESTIONS = 1_000_000
TOO_NEAR = "the difference lies too near to what is required"


@dataclass(frozen=True)
class Requirement:
    """One thing that has to hold, as it was written."""

    text: str
    suite: str
    margin: float
    """What the difference has to exceed, in the suite's own units: a share's run from 0 to 1."""
    category: str = ""
    strict: bool = True
    """">"; else ">=", which a difference of exactly the margin meets."""


@dataclass(frozen=True)
class Side:
    """One model's observations of one suite, by its seed; by "" where it has none."""

    measure: Measure
    members: Members

    def within(self, category: str) -> "Side":
        """Those of one category; all of them for ""."""
        if not category:
            return self
        kept = {
            seed: [row for row in rows if plain(row.category) == plain(category)] for seed, rows in self.members.items()
        }
        return replace(self, members=kept)

    @property
    def categories(self) -> list[str]:
        """Those that it has, in their order."""
        return list(dict.fromkeys(row.category for rows in self.members.values() for row in rows if row.category))

    @property
    def observations(self) -> Sequence[Observation]:
        """The seeds as one."""
        return pooled(list(self.members.values()))


def plain(category: str) -> str:
    """A category's name without what people write differently."""
    return category.casefold().replace("_", " ").replace("-", " ").strip()


@dataclass(frozen=True)
class Compared:
    """What the values that both sides have say of after minus before, turned so that above 0 is better."""

    found: Evidence | None
    n: int
    questions: int
    coverage: float
    """Of the values that either side was asked for on the questions of both: those that both have."""
    over_seeds: bool


def compared(before: Side, after: Side) -> Compared:
    """Paired by question and part; over seeds too, where both have two in common, or one has two and the other none."""
    later, earlier = (after, before) if after.measure.higher_is_better else (before, after)
    by_seed = pairs_by_seed(later.members, earlier.members)
    found: Evidence | None = None
    pairs: Sequence[Pair]
    if len(by_seed) > 1:
        pairs = [pair for rows in by_seed.values() for pair in rows]
        found = over_other_seeds(by_seed)
    over_seeds = found is not None
    if not over_seeds:
        pairs = paired_rows(later.observations, earlier.observations)
        found = evidence(pairs)
    n = len({(one.question, one.part) for one, _ in pairs})
    return Compared(found, n, len({one.question for one, _ in pairs}), _coverage(before, after), over_seeds)


def _coverage(before: Side, after: Side) -> float:
    """Of what both were asked, the share that both have a value of."""
    asked = [{(r.question, r.part): r.value is not None for r in side.observations} for side in (before, after)]
    common = asked[0].keys() & asked[1].keys()
    return sum(asked[0][one] and asked[1][one] for one in common) / len(common) if common else 0.0


@dataclass(frozen=True)
class Check:
    """What became of one requirement."""

    requirement: Requirement
    verdict: Verdict
    mean: float | None
    low: float | None
    """The one-sided lower bound, of 95% unless another level was asked for."""
    high: float | None
    """The one-sided upper bound."""
    n: int
    questions: int
    coverage: float
    p: float | None
    """One-sided, of a difference as low as this where the margin is met."""
    p_adjusted: float | None = None
    """Corrected for the number of requirements (Holm)."""
    questions_needed: int | None = None
    """How many questions would decide, where it cannot be told: None where no number that could be asked would."""
    why: str = ""
    """Why it cannot be told."""

    def to_json(self) -> dict[str, Any]:
        """As `potstill compare --json` writes it."""
        known = asdict(self)
        asked = known.pop("requirement")
        named = {key: asked[key] for key in ("suite", "category", "margin", "strict")}
        return {"requirement": asked["text"], **named, **known}


def check(asked: Sequence[tuple[Requirement, Compared]], level: float = 0.05) -> list[Check]:
    """Every requirement's verdict.

    A regression is claimed where a one-sided test refuses that the margin is met; of several requirements each p is
    corrected (Holm 1979), since one false alarm fails the whole. That all hold is claimed where each holds by itself,
    uncorrected: the union of the ways to fail is refused only if every one is (intersection-union, Berger 1982), so the
    chance to pass where any one is not met stays below `level` however many there are.
    """
    found = [_bounded(requirement, what, level) for requirement, what in asked]
    known = [place for place, one in enumerate(found) if one.p is not None]
    for place, p in zip(known, holm([found[place].p or 0.0 for place in known]), strict=True):
        found[place] = replace(found[place], p_adjusted=p)
    return [_judged(one, what, level, level / max(1, len(known))) for one, (_, what) in zip(found, asked, strict=True)]


def _bounded(requirement: Requirement, what: Compared, level: float) -> Check:
    found = what.found
    blank = Check(requirement, "cannot tell", None, None, None, what.n, what.questions, what.coverage, None)
    if found is None:
        return blank
    low, high = found.ends(1 - 2 * level)
    p = found.p_at_most(requirement.margin)
    return replace(blank, mean=found.mean, low=low, high=high, p=p)


def _judged(one: Check, what: Compared, level: float, corrected: float) -> Check:
    """The verdict; `corrected` is the level at which a regression would have to be seen."""
    found, margin = what.found, one.requirement.margin
    if found is None or one.low is None:
        return replace(one, why="fewer than two questions have a value on both sides")
    if not isinstance(found, Discordant) and one.questions < FEWEST:
        needed = max(FEWEST, _needed(found, margin, one.questions, level) or 0)
        return replace(one, why=f"{one.questions} questions are too few for an interval", questions_needed=needed)
    if one.p_adjusted is not None and one.p_adjusted < level:
        return replace(one, verdict="regression")
    if one.low > margin or (one.low == margin and not one.requirement.strict):
        if one.coverage < LEAST_COVERED:
            return replace(one, why=f"only {one.coverage:.0%} of what both were asked has a value on both sides")
        return replace(one, verdict="holds")
    if what.over_seeds:
        return replace(one, why="other seeds or questions may turn it")
    side = corrected if found.mean < margin else level
    needed_or_none = _needed(found, margin, one.questions, side)
    why = TOO_NEAR if needed_or_none is None else "so few questions leave both open"
    return replace(one, why=why, questions_needed=needed_or_none)


def _needed(found: Evidence, margin: float, questions: int, level: float) -> int | None:
    """How many questions like these would tell the observed difference from the margin with a power of 80%.

    By the normal approximation: the standard error falls with the root of their number.
    """
    distance, z = abs(found.mean - margin), NormalDist().inv_cdf(1 - level)
    if distance < 1e-9:
        return None
    if found.error > 0:
        exact = questions * ((z + NormalDist().inv_cdf(POWER)) * found.error / distance) ** 2
    elif isinstance(found, Discordant):  # nothing differs: Tango's bound is then z^2 / (n + z^2)
        exact = z * z * (1 - distance) / distance
    else:
        exact = FEWEST
    return max(questions + 1, math.ceil(exact)) if exact <= MOST_QUESTIONS else None


EXIT_CODES: Mapping[Verdict, int] = {"holds": 0, "regression": 1, "cannot tell": 3}


def outcome(checks: Sequence[Check]) -> Verdict:
    """Of all requirements together: any regression is one, and all have to hold."""
    verdicts = {one.verdict for one in checks}
    return "regression" if "regression" in verdicts else "cannot tell" if "cannot tell" in verdicts else "holds"
