"""Models that differ in their seed alone, as one row: their mean, and how sure it is of other questions and seeds.

A claim about a recipe is one about the seeds that were not run, so `low` and `high` are of other questions asked of
models of other seeds wherever two seeds are there. What holds of these very models stands beside it in `questions`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from potstill.evaluation.one_more import with_one_more
from potstill.evaluation.spread import spread_over_questions, spread_over_seeds, weighted_mean
from potstill.evaluation.statistics import (
    Difference,
    Observation,
    Pair,
    by_category,
    corrected,
    difference_of,
    doubt,
    over_other_questions,
    over_other_seeds,
    paired_evidence,
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
            pool: family_row(measure, members) | _members(measure, pools(observations)[pool], observations)
            for pool, members in groups.items()
        },
        "categories": {
            one: {
                pool: family_row(measure, {seed: rows.get(one, []) for seed, rows in members.items()})
                for pool, members in found.items()
            }
            for one in categories
        },
        "paired": _paired(groups, measure.reach),
    }


def _by_seed(names: Sequence[str], observations: Mapping[str, Sequence[Observation]]) -> Members:
    return {seeds([name])[0] if seeds([name]) else "": observations[name] for name in names}


def family_row(measure: "Measure", members: Members) -> dict[str, Any]:
    """The estimate of a family, of other seeds too; its coverage is of what all of its members were asked."""
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


def _paired(groups: Mapping[str, Members], reach: float) -> dict[str, Any]:
    differences, more = dict[str, Difference](), dict[str, dict[str, Any]]()
    for earlier, later in combinations(groups, 2):
        name = f"{later}-{earlier}"
        by_seed = pairs_by_seed(groups[later], groups[earlier])
        alone, both = pooled_difference(groups[later], groups[earlier], by_seed, reach)
        differences[name] = both or alone
        more[name] = {} if both is None else {"questions": _ends(alone.to_json())}
        if by_seed:
            more[name]["members"] = {seed: None if not pairs else pair_mean(pairs) for seed, pairs in by_seed.items()}
    return {name: one.to_json() | more[name] for name, one in corrected(differences).items()}


def pair_mean(pairs: Sequence[Pair]) -> float | None:
    """The mean difference, such as that in one seed."""
    return weighted_mean(seed_differences({"": pairs}))


def pairs_by_seed(later: Members, earlier: Members) -> dict[str, list[Pair]]:
    """The pairs of each seed that both have, or of each seed of one with the other, which has none."""
    return {seed: paired_rows(*rows) for seed, rows in rows_by_seed(later, earlier).items()}


def rows_by_seed(later: Members, earlier: Members) -> dict[str, tuple[Sequence[Observation], Sequence[Observation]]]:
    """What is paired of each seed."""
    found = {}
    for seed in dict.fromkeys(seed for one in (later, earlier) for seed in one if seed):
        ends = [one.get(seed, one.get("")) for one in (later, earlier)]
        if ends[0] is not None and ends[1] is not None:
            found[seed] = (ends[0], ends[1])
    return found


def pooled_difference(
    later: Members, earlier: Members, by_seed: Mapping[str, Sequence[Pair]], reach: float
) -> tuple[Difference, Difference | None]:
    """Over other questions, of these very models; and over other seeds too, where there are two."""
    rows = [[row for found in one.values() for row in found] for one in (later, earlier)]
    if len(by_seed) < 2:
        pairs = paired_rows(pooled(list(later.values())), pooled(list(earlier.values())))
        return difference_of(pair_mean(pairs), paired_evidence(pairs, reach), len(pairs), doubt(pairs, rows)), None
    values, pairs = seed_differences(by_seed), [pair for found in by_seed.values() for pair in found]
    mean, n, why = weighted_mean(values), len({(one.question, one.part) for one, _ in pairs}), doubt(pairs, rows)
    alone = with_one_more(over_other_questions(by_seed), values, reach, spread_over_questions)
    both = with_one_more(over_other_seeds(by_seed), values, reach, spread_over_seeds)
    return difference_of(mean, alone, n, why), None if both is None else difference_of(mean, both, n, why)
