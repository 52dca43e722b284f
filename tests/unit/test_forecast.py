"""How many requests a loop needs that rejects what it has: in worlds where the answer is known."""

import random
from math import ceil

import pytest

from potstill.stages.forecast import Loop


def loop(
    world: int, unsound: float, count: int, known: int, seed: int, per: int = 8, size: int = 16
) -> tuple[int, Loop]:
    """Draw from a world of so many tasks, all as likely, until there are enough; a share is of no use."""
    chance = random.Random(seed)
    held = set(chance.sample(range(world), known))
    kept, requests, dropped = 0, 0, {"duplicate": 0, "too_short": 0, "beyond_count": 0}
    while kept < count:
        requests += size
        for _ in range(size * per):
            task = chance.randrange(world)
            if kept >= count:
                dropped["beyond_count"] += 1
            elif chance.random() < unsound:
                dropped["too_short"] += 1
            elif task in held:
                dropped["duplicate"] += 1
            else:
                held.add(task)
                kept += 1
    return requests, Loop(requests, kept, dropped, known)


@pytest.mark.parametrize(("world", "unsound"), [(10**9, 0.0), (10**9, 0.2), (5_000, 0.05), (2_000, 0.1)])
def test_the_interval_holds_nine_times_in_ten(world: int, unsound: float) -> None:
    inside = 0
    for seed in range(100):
        _, small = loop(world, unsound, 120, 60, seed)
        needed, _ = loop(world, unsound, 1_000, 60, 1000 + seed)
        likely, (low, high) = small.requests_for(1_000, 16, 10**6)
        assert low <= likely <= high
        inside += low <= needed <= high
    assert inside >= 85


def test_without_repeats_it_is_a_division() -> None:
    found = Loop(16, 128, {}, 0).requests_for(1_280, 16, 10**6)
    assert found == (160, (160, found[1][1]))


def test_whole_rounds_and_no_more_than_may_be() -> None:
    small = Loop(16, 100, {"duplicate": 28}, 50)
    likely, (low, high) = small.requests_for(5_000, 16, 4_000)
    assert likely % 16 == low % 16 == 0
    assert high == 4_000
    assert ceil(5_000 / 8) < likely
