"""Diversity: whether a student says the same to everything, or its teacher's many answers in one way alone.

Three things, each against the teacher (or the stage before) over the same prompts and the same number of words: the
share of different runs of words (distinct-n, Li et al. 2016); how alike several answers to one prompt are; and how
alike answers to different prompts are. Alike: the cosine of two answers' counts of words and of pairs of neighbours.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from potstill.curation.novelty import words
from potstill.evaluation.audits.base import Cell, Danger, Plot, Series, figure, point
from potstill.evaluation.audits.hypotheses import (
    OF_DIFFERENCES,
    OF_SHARES,
    Bounds,
    Effect,
    Hypothesis,
    hypothesis,
    jackknife,
    mean_effect,
)
from potstill.evaluation.audits.thresholds import ALIKE, DISTINCT

DANGER = Danger(
    "diversity",
    "Loss of diversity",
    "Are the student's answers hardly more alike, and its words hardly fewer, than those of what it is set against?",
    "Li et al. 2016 (distinct-n); Zhu et al. 2018 (Texygen, self-similarity); Kirk et al. 2024 (RLHF and diversity)",
    {"alike": ALIKE, "distinct_2": DISTINCT},
)
Samples = Mapping[str, Sequence[str]]
"""By prompt: one answer or several."""


@dataclass(frozen=True)
class Diverse:
    """What can be said of one model's answers to some prompts."""

    distinct: tuple[Effect | None, ...]
    """Of runs of one, two and three words."""
    within: Effect | None
    """How alike answers to one prompt are; None with one answer a prompt."""
    across: Effect | None
    """How alike answers to different prompts are."""
    entropy: Effect | None
    """Of which answer is given to a prompt, of the most that so many answers can have."""


class Compared(NamedTuple):
    """A student's answers beside those of what it is set against."""

    model: str
    reference: str
    where: str
    """Which answers: "greedy", "sampled"."""
    own: Samples
    other: Samples


def diversity(found: Sequence[Compared], missing: Mapping[str, str]) -> Danger:
    """Of each student perhaps several comparisons: a collapse may show in its likeliest answers, or in drawn ones."""
    hypotheses, rows, series = list[Hypothesis](), list[tuple[Cell, ...]](), list[Series]()
    for one in found:
        both = [prompt for prompt in one.own if prompt in one.other]
        own, other, budgets = _words(one.own, both), _words(one.other, both), _budgets(one.own, one.other, both)
        hypotheses += _tests(one, own, other, budgets)
        for name, said in ((one.model, own), (f"{one.reference}, beside {one.model}", other)):
            measured = _measure(said, budgets)
            rows.append((name, one.where, *_cells(measured)))
            points = [point(f"{one.where}: {what}", effect)
                      for what, effect in _named(measured).items() if effect is not None]  # fmt: skip
            series.append(Series(name, tuple(points)))
    columns = ("model", "answers", "distinct-1", "distinct-2", "distinct-3", "alike, one prompt",
               "alike, other prompts", "entropy of answers")  # fmt: skip
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows),
                   plot=Plot("", "share", tuple(series)), missing=dict(missing))  # fmt: skip


Texts = Sequence[Sequence[Sequence[str]]]
"""By prompt, by sample: words."""


def _words(samples: Samples, prompts: Sequence[str]) -> list[list[list[str]]]:
    return [[words(text) for text in samples[prompt]] for prompt in prompts]


def _budgets(own: Samples, other: Samples, prompts: Sequence[str]) -> list[int]:
    """How many words of each prompt's answers count: as many as both have."""
    return [min(sum(len(words(text)) for text in samples[prompt]) for samples in (own, other)) for prompt in prompts]


def _tests(one: Compared, own: Texts, other: Texts, budgets: Sequence[int]) -> list[Hypothesis]:
    """The student against the other."""

    def lost(kept: Sequence[int]) -> float:
        return _distinct(other, budgets, 2, kept) - _distinct(own, budgets, 2, kept)

    def test(about: str, claim: str, effect: Effect | None, margin: float) -> Hypothesis:
        return hypothesis(one.model, f"{one.where}: {about}", f"{claim} ({one.where})", effect, margin)

    fewer = jackknife(lost, len(own), OF_DIFFERENCES)
    found = [test("distinct-2", f"repeats its words more than {one.reference}", fewer, DISTINCT)]
    pairs = list(zip(own, other, strict=True))
    if any(len(group) > 1 for group in own):
        within = [(str(i), _within(a) - _within(b)) for i, (a, b) in enumerate(pairs) if len(a) > 1 and len(b) > 1]
        claim = f"gives answers to one prompt that are more alike than those of {one.reference}"
        found.append(test("one prompt", claim, mean_effect(within, bounds=OF_DIFFERENCES), ALIKE))
    across = [(str(i), a - b) for i, (a, b) in enumerate(zip(_across(own), _across(other), strict=True))]
    claim = f"gives answers to different prompts that are more alike than those of {one.reference}"
    found.append(test("other prompts", claim, _second_order(across, OF_DIFFERENCES), ALIKE))
    return found


def _measure(said: Texts, budgets: Sequence[int]) -> Diverse:
    def distinct(n: int) -> Effect | None:
        return jackknife(lambda kept: _distinct(said, budgets, n, kept), len(said), OF_SHARES)

    several = [(str(i), group) for i, group in enumerate(said) if len(group) > 1]
    return Diverse(
        (distinct(1), distinct(2), distinct(3)),
        mean_effect(((i, _within(group)) for i, group in several), bounds=OF_SHARES),
        _second_order([(str(i), value) for i, value in enumerate(_across(said))], OF_SHARES),
        mean_effect(((i, _entropy(group)) for i, group in several), bounds=OF_SHARES),
    )


def _named(found: Diverse) -> dict[str, Effect | None]:
    return {"distinct-2": found.distinct[1], "alike, one prompt": found.within, "alike, other prompts": found.across}


def _cells(found: Diverse) -> tuple[Cell, ...]:
    return tuple(
        figure(effect) if effect else "" for effect in (*found.distinct, found.within, found.across, found.entropy)
    )


def _distinct(said: Texts, budgets: Sequence[int], n: int, kept: Sequence[int]) -> float:
    """The share of different runs of n words among the first words of each prompt's answers, as many as it may."""
    runs: list[tuple[str, ...]] = []
    for i in kept:
        left = budgets[i]
        for text in said[i]:
            part = text[:left]
            left -= len(part)
            runs += [tuple(part[j : j + n]) for j in range(len(part) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def _unit(text: Sequence[str]) -> dict[object, float]:
    """An answer's words and pairs of neighbours, counted, as a vector of length one."""
    counts: Counter[object] = Counter(text)
    counts.update(pairwise(text))
    norm = math.sqrt(math.fsum(count * count for count in counts.values()))
    return {key: count / norm for key, count in counts.items()} if norm else {}


def _likeness(texts: Sequence[Sequence[str]]) -> list[float]:
    """Of each text: its mean cosine with the others. Silence is like silence."""
    units = [_unit(text) for text in texts]
    total: Counter[object] = Counter()
    silent = sum(not unit for unit in units)
    for unit in units:
        total.update(unit)
    found = []
    for unit in units:
        with_all = math.fsum(value * total[key] for key, value in unit.items()) if unit else float(silent)
        found.append((with_all - 1) / (len(units) - 1))
    return found


def _within(group: Sequence[Sequence[str]]) -> float:
    alike = _likeness(group)
    return math.fsum(alike) / len(alike)


def _across(said: Texts) -> list[float]:
    """Of each prompt's first answer: how like the first answers to other prompts it is."""
    return _likeness([group[0] for group in said]) if len(said) > 1 else []


def _second_order(values: Sequence[tuple[str, float]], bounds: Bounds) -> Effect | None:
    """A mean over pairs, by each one's mean with the others: twice the error of a plain mean (Hoeffding 1948)."""
    plain = mean_effect(values, bounds=bounds)
    return None if plain is None else replace(plain, error=2 * plain.error)


def _entropy(group: Sequence[Sequence[str]]) -> float:
    counts = Counter(tuple(text) for text in group)
    shares = [count / len(group) for count in counts.values()]
    return abs(-math.fsum(share * math.log(share) for share in shares)) / math.log(len(group))
