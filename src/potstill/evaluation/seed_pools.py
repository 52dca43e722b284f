"""Models that differ in their seed alone, as one row: their mean, and how sure it is of other questions and seeds.

A claim about a recipe is one about the seeds that were not run, so `low` and `high` are of other questions asked of
models of other seeds wherever two seeds are there. What holds of these very models stands beside it in `questions`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from potstill.evaluation.spread import weighted_mean
from potstill.evaluation.statistics import (
    Difference,
    Observation,
    Pair,
    by_category,
    corrected,
    difference_of,
    over_other_questions,
    over_other_seeds,
    paired_difference,
    paired_rows,
    pooled,
    seed_differences,
    seed_values,
)
from potstill.members import pools, seeds

if TYPE_CHECKING:
    from potstill.evaluation.scores import Measure

Members = Mapping[str, Sequence[Observation]]
"""What was observed of each model of a family, by its seed; of a model without one, by ""."""


def pooled_suite(measure: "Measure", observations: Mapping[str, Sequence[Observation]]) -> dict[str, Any]:
    """`models`, `categories` and `paired` with each family's members as one row, as they stand in scores.json."""
    groups = {pool: _by_seed(names, observations) for pool, names in pools(observations).items()}
    found = {pool: {seed: by_category(rows) for seed, rows in members.items()} for pool, members in groups.items()}
    categories = dict.fromkeys(one for named in found.values() for rows in named.values() for one in rows)
    return {
        "models": {
            pool: _row(measure, members) | _members(measure, pools(observations)[pool], observations)
            for pool, members in groups.items()
        },
        "categories": {
            one: {
                pool: _row(measure, {seed: rows.get(one, []) for seed, rows in members.items()})
                for pool, members in found.items()
            }
            for one in categories
        },
        "paired": _paired(groups),
    }


def _by_seed(names: Sequence[str], observations: Mapping[str, Sequence[Observation]]) -> Members:
    return {seeds([name])[0] if seeds([name]) else "": observations[name] for name in names}


def _row(measure: "Measure", members: Members) -> dict[str, Any]:
    rows = [row for found in members.values() for row in found]
    alone = measure.estimate(pooled(list(members.values()))).to_json()
    alone["coverage"] = sum(row.value is not None for row in rows) / len(rows) if rows else 0.0
    both = measure.estimate_over_seeds(seed_values(members), len(rows))
    return dict(alone) if both is None else alone | {"low": both.low, "high": both.high, "questions": _ends(alone)}


def _members(
    measure: "Measure", names: Sequence[str], observations: Mapping[str, Sequence[Observation]]
) -> dict[str, Any]:
    """What each model of a family comes to; nothing of a row that is none."""
    return {"members": {name: measure.estimate(observations[name]).mean for name in names}} if seeds(names) else {}


def _ends(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"low": told["low"], "high": told["high"]}


def _paired(groups: Mapping[str, Members]) -> dict[str, Any]:
    differences, more = dict[str, Difference](), dict[str, dict[str, Any]]()
    for earlier, later in combinations(groups, 2):
        name = f"{later}-{earlier}"
        by_seed = pairs_by_seed(groups[later], groups[earlier])
        alone, both = pooled_difference(groups[later], groups[earlier], by_seed)
        differences[name] = both or alone
        more[name] = {} if both is None else {"questions": _ends(alone.to_json())}
        if by_seed:
            more[name]["members"] = {seed: None if not pairs else seed_mean(pairs) for seed, pairs in by_seed.items()}
    return {name: one.to_json() | more[name] for name, one in corrected(differences).items()}


def seed_mean(pairs: Sequence[Pair]) -> float | None:
    """The difference in one seed."""
    return weighted_mean(seed_differences({"": pairs}))


def pairs_by_seed(later: Members, earlier: Members) -> dict[str, list[Pair]]:
    """The pairs of each seed that both have, or of each seed of one with the other, which has none."""
    found: dict[str, list[Pair]] = {}
    for seed in dict.fromkeys(seed for one in (later, earlier) for seed in one if seed):
        ends = [one.get(seed, one.get("")) for one in (later, earlier)]
        if ends[0] is not None and ends[1] is not None:
            found[seed] = paired_rows(ends[0], ends[1])
    return found


def pooled_difference(
    later: Members, earlier: Members, by_seed: Mapping[str, Sequence[Pair]]
) -> tuple[Difference, Difference | None]:
    """Over other questions, of these very models; and over other seeds too, where there are two."""
    if len(by_seed) < 2:
        return paired_difference(pooled(list(later.values())), pooled(list(earlier.values()))), None
    mean = weighted_mean(seed_differences(by_seed))
    n = len({(one.question, one.part) for pairs in by_seed.values() for one, _ in pairs})
    both = over_other_seeds(by_seed)
    alone = difference_of(mean, over_other_questions(by_seed), n)
    return alone, None if both is None else difference_of(mean, both, n)
