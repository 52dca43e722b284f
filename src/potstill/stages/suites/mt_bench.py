"""Suite `mt_bench`: dialogues, each turn graded 1 to 10 by a judge (Zheng et al. 2023)."""

from collections.abc import Sequence
from typing import Literal

from potstill.evaluation import mt_bench
from potstill.evaluation.scores import Measure
from potstill.evaluation.sheets import Sheet
from potstill.stages.suites.base import TURNS_A_QUESTION, Bench, JudgedSuite, Load

MEASURE = Measure("mt_bench", (mt_bench.LOWEST, mt_bench.HIGHEST), unit="points")


class MtBenchSuite(JudgedSuite):
    """Dialogues, each turn graded 1 to 10 by a judge, as MT-Bench does."""

    protocol: Literal["mt_bench"]

    def load(self, rows: int, models: int) -> Load:
        turns = rows * models * TURNS_A_QUESTION
        return Load(lines=rows * models, answers=turns, asks=self.questions, judgments=turns)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        ask = mt_bench.ask_judge(bench.config.judge_max_tokens, bench.work.seed)
        bench.keep(name, MEASURE, bench.grade(bench.judge(name), ask, mt_bench.read_grade, sheets))
