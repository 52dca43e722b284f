"""From rows to training items: mixtures, what is left out, tools and labels."""

import math
from collections import Counter

import numpy as np
import pytest

from potstill.training.schedule import Part, epoch_order, global_batches


def counts(parts: list[Part], epoch: int, seed: int = 5) -> list[Counter[int]]:
    """How often an epoch takes each row, part by part."""
    order, first, found = epoch_order(parts, seed, epoch), 0, []
    for part in parts:
        taken = Counter(row - first for row in order if first <= row < first + part.rows)
        found.append(Counter({row: taken[row] for row in range(part.rows)}))
        first += part.rows
    return found


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.0, 2.5, 0.001])
def test_a_weight_is_whole_passes_and_a_draw_without_replacement_of_the_rest(weight: float) -> None:
    parts = [Part("a", 40, 1.0), Part("b", 20, weight)]
    draws = []
    for epoch in range(6):
        first, second = counts(parts, epoch)
        assert set(first.values()) == {1}, "one source's weight changes nothing of another"
        assert set(second.values()) <= {math.floor(weight), math.ceil(weight)}
        assert second.total() == parts[1].drawn == max(1, round(20 * weight))
        draws.append(tuple(sorted(second.items())))
    assert len(set(draws)) == (1 if weight == int(weight) else 6), "another draw each epoch"


def test_sources_of_one_weight_are_drawn_each_by_itself() -> None:
    for epoch in range(4):
        assert [part.total() for part in counts([Part("a", 30, 0.5), Part("b", 10, 0.5)], epoch)] == [15, 5]


def test_every_row_has_the_same_chance() -> None:
    """Over 2,000 epochs each of 10 rows is drawn 600 times, give or take five standard deviations (20.5 each)."""
    drawn = Counter(row for epoch in range(2000) for row in epoch_order([Part("a", 10, 0.3)], 1, epoch))
    assert all(abs(drawn[row] - 600) < 103 for row in range(10))


def test_weights_of_one_change_not_a_single_position() -> None:
    sizes = [int(size) for size in np.random.default_rng(0).integers(1, 9, 57)]
    plain = global_batches(sizes, 20, 2.5, seed=7)
    assert global_batches(sizes, 20, 2.5, 7, [Part("a", 19, 1.0), Part("b", 0, 0.3), Part("c", 38, 1.0)]) == plain
    # As it was before there were mixtures: the permutation itself.
    assert [row for batch in plain for row in batch][:57] == np.random.default_rng([7, 0]).permutation(57).tolist()


def test_an_epoch_of_a_mixture_depends_on_seed_and_epoch_alone() -> None:
    """Trap: "Order differs after resume from the second epoch on". A resumed run asks for the steps behind its own."""
    parts = [Part("a", 30, 1.0), Part("b", 50, 0.35)]
    whole = global_batches([1] * 80, 8, 3, 5, parts)
    assert global_batches([1] * 80, 8, 2, 5, parts) == whole[: 2 * len(whole) // 3]
    later = epoch_order(parts, 5, 2)
    assert [row for batch in whole[2 * len(whole) // 3 :] for row in batch] == later
    assert epoch_order(parts, 6, 2) != later
