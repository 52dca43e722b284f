"""Judges whose every error is planted, and the population that they are drawn from, for tests of trials and bars."""

import random
from collections.abc import Iterator
from itertools import product

from potstill.evaluation.judge_trial import Comparison

# A judge is asked of two answers, of which people prefer one. On every other prompt it is always right; on the rest it
# is right in 15 of 25, and otherwise goes by the place (3), the length (3), or is wrong (4). Each asking is a new draw.
MODES = ("right",) * 15 + ("first",) * 3 + ("longer",) * 3 + ("wrong",) * 4
ALWAYS = ("right",)


def verdict(mode: str, people: float, longer: float, *, shown_first: bool) -> float:
    """The first answer's share of the win."""
    return {"right": people, "wrong": 1 - people, "first": float(shown_first), "longer": float(longer > 0)}[mode]


def said(modes: tuple[str, str], people: float, longer: float) -> tuple[float, float]:
    """Forward and backward."""
    forward, backward = modes
    return verdict(forward, people, longer, shown_first=True), verdict(backward, people, longer, shown_first=False)


def population() -> list[Comparison]:
    """All that can happen, each as often as it does in the long run: its figures are the truth."""
    rows = []
    for people, longer in product((1.0, 0.0), (1.0, -1.0)):
        for modes in product(MODES, MODES):
            rows.append(Comparison(str(len(rows)), people, *said(modes, people, longer), longer))
        rows += [Comparison(f"{people}{longer}{i}", people, people, people, longer) for i in range(len(MODES) ** 2)]
    return rows


def drawn(seed: int, prompts: int = 60, each: int = 3, repeats: int = 1) -> list[Comparison]:
    """A trial: some prompts, with some comparisons each."""
    draw = random.Random(seed)
    return [row for prompt in range(prompts) for row in _of_prompt(draw, str(prompt), each, repeats)]


def _of_prompt(draw: random.Random, prompt: str, each: int, repeats: int) -> Iterator[Comparison]:
    modes = draw.choice((MODES, ALWAYS))
    for _ in range(each):
        people, longer = draw.choice((1.0, 0.0)), draw.choice((1.0, -1.0))
        turns = [said((draw.choice(modes), draw.choice(modes)), people, longer) for _ in range(repeats)]
        yield Comparison(prompt, people, *turns[0], longer, again=tuple(turns[1:]))
