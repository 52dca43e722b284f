"""Suite `aspects`: each turn rated 1 to 5 by a judge on one aspect at a time (UltraFeedback, Cui et al. 2023)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from potstill.evaluation import aspects
from potstill.evaluation.scores import Measure
from potstill.evaluation.sheets import Sheet
from potstill.stages.suites.base import TURNS_A_QUESTION, Bench, Crowd, JudgedSuite, Load
from potstill.teachers.aspects import ASPECTS, HIGHEST, LOWEST, Aspect

MEASURE = Measure("aspects", (LOWEST, HIGHEST), unit="points")


class AspectsSuite(JudgedSuite):
    """Each turn rated 1 to 5 by a judge on one aspect at a time, as UltraFeedback does. The answers are those of
    another suite that asks the same questions."""

    protocol: Literal["aspects"]
    aspects: tuple[Aspect, ...] = Field(default=ASPECTS, min_length=1)
    """What to rate. Each aspect is a suite of its own in the scores, named SUITE/ASPECT."""

    def results(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}/{aspect}" for aspect in self.aspects)

    def load(self, rows: int, crowd: Crowd) -> Load:
        judged = rows * crowd.rows * len(self.aspects)
        answers = rows * crowd.models * TURNS_A_QUESTION
        return Load(lines=judged, answers=answers, asks=self.questions, judgments=judged * TURNS_A_QUESTION)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        for aspect in self.aspects:
            ask = aspects.ask_judge(aspect, bench.config.judge_max_tokens, bench.work.seed)
            graded = bench.grade(bench.judge(name), ask, aspects.read_rating(aspect), sheets)
            bench.keep(f"{name}/{aspect}", MEASURE, graded)
