"""Whether one model is no worse than another by more than is allowed: holds, regression, or cannot be told.

A requirement says what the difference, after minus before on the same questions, has to exceed: "mt_bench > -0.1". In
suites where lower is better the difference is turned round, so that above 0 is always better.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from itertools import chain
from statistics import NormalDist
from typing import Any, Literal

from potstill.evaluation.distributions import holm
from potstill.evaluation.one_more import FEWEST, OneMore, with_one_more
from potstill.evaluation.paired_shares import Discordant
from potstill.evaluation.scores import Measure
from potstill.evaluation.seed_pools import Members, pairs_by_seed, rows_by_seed
from potstill.evaluation.spread import spread_over_seeds
from potstill.evaluation.statistics import (
    Evidence,
    Observation,
    Pair,
    doubt,
    over_other_seeds,
    paired_evidence,
    paired_rows,
    pooled,
    seed_differences,
)

Verdict = Literal["holds", "regression", "cannot tell"]

LEAST_COVERED = 0.95
"""Of the values asked for. Below it nothing holds: what is missing may be what got worse."""
LEAST_ASKED = 0.95
"""Of BEFORE's questions, that AFTER was asked too. Below it nothing is told: the others may be what got worse."""
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
        return list(dict.fromkeys(row.category for row in self.rows if row.category))

    @property
    def rows(self) -> Sequence[Observation]:
        """Those of every seed."""
        return [row for found in self.members.values() for row in found]

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
    why: str
    """Why nothing can be claimed of it, whatever is found; "" where something can."""
    left_out: str
    """What to say where AFTER was asked too few of BEFORE's questions for a requirement; else ""."""
    only_before: int
    """Questions of BEFORE that AFTER was not asked."""
    only_after: int
    """Questions of AFTER that BEFORE was not asked."""


def compared(before: Side, after: Side) -> Compared:
    """Paired by question and part; over seeds too, where both have two in common, or one has two and the other none."""
    later, earlier = (after, before) if after.measure.higher_is_better else (before, after)
    by_seed = pairs_by_seed(later.members, earlier.members)
    found: Evidence | None = None
    pairs: Sequence[Pair]
    if len(by_seed) > 1:
        pairs = [pair for rows in by_seed.values() for pair in rows]
        values = seed_differences(by_seed)
        found = with_one_more(over_other_seeds(by_seed), values, after.measure.reach, spread_over_seeds)
    over_seeds = found is not None
    if not over_seeds:
        pairs = paired_rows(later.observations, earlier.observations)
        found = paired_evidence(pairs, after.measure.reach)
    asked = [{row.question for row in side.rows} for side in (before, after)]
    return Compared(
        found,
        len({(one.question, one.part) for one, _ in pairs}),
        len({one.question for one, _ in pairs}),
        _coverage(before, after),
        over_seeds,
        doubt(pairs, [before.rows, after.rows]),
        _left_out(*asked),
        len(asked[0] - asked[1]),
        len(asked[1] - asked[0]),
    )


def _left_out(before: Set[str], after: Set[str]) -> str:
    """What to say of it, or ""."""
    if len(before & after) >= LEAST_ASKED * len(before):
        return ""
    return f"AFTER was asked only {len(before & after):,} of BEFORE's {len(before):,} questions"


def _coverage(before: Side, after: Side) -> float:
    """Of what both were asked, the share that both have a value of: in each seed, or else of as many of their seeds."""
    both = list(rows_by_seed(after.members, before.members).values())
    groups = (
        [([one], [other]) for one, other in both]
        if len(both) > 1
        else [(list(after.members.values()), list(before.members.values()))]
    )
    shares = [share for group in groups for share in _shared(*map(_scored, group))]
    return math.fsum(shares) / len(shares) if shares else 0.0


def _scored(members: Sequence[Sequence[Observation]]) -> dict[tuple[str, str], float]:
    """Of each question and part, the share of the members that have a value."""
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in chain(*members):
        found[row.question, row.part].append(row.value is not None)
    return {asked: sum(values) / len(values) for asked, values in found.items()}


def _shared(one: Mapping[tuple[str, str], float], other: Mapping[tuple[str, str], float]) -> list[float]:
    """The smaller of the two shares of what both were asked."""
    return [min(share, other[asked]) for asked, share in one.items() if asked in other]


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
    only_before: int
    """Questions of BEFORE that AFTER was not asked."""
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
    blank = Check(
        requirement, "cannot tell", None, None, None, what.n, what.questions, what.coverage, what.only_before, None
    )
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
    if why := what.left_out or what.why:
        few = max(FEWEST, _needed(found, margin, one.questions, level) or 0) if one.questions < FEWEST else None
        return replace(one, why=why, questions_needed=few)
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
    if isinstance(found, OneMore):  # one question at an end of the scale moves the bound by 1 + z of them
        end = found.lowest if found.mean > margin else found.highest
        exact = max(exact, (1 + z) * abs(end.mean - found.mean) * (questions + 1) / distance)
    return max(questions + 1, math.ceil(exact)) if exact <= MOST_QUESTIONS else None


EXIT_CODES: Mapping[Verdict, int] = {"holds": 0, "regression": 1, "cannot tell": 3}


def outcome(checks: Sequence[Check]) -> Verdict:
    """Of all requirements together: any regression is one, and all have to hold."""
    verdicts = {one.verdict for one in checks}
    return "regression" if "regression" in verdicts else "cannot tell" if "cannot tell" in verdicts else "holds"
