"""Suite `mt_bench_pairs`: dialogues, each turn compared with a baseline's in both orders (Zheng et al. 2023)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from potstill.evaluation import published
from potstill.evaluation.continued import take_pairs
from potstill.evaluation.fastchat import PairJudgment, read_pair_judgments
from potstill.evaluation.fastchat_scores import WON
from potstill.evaluation.sheets import Sheet
from potstill.reading.files import read_lines
from potstill.records import Prompt
from potstill.stages.suites.base import TURNS_A_QUESTION, Bench, Crowd, Load, names_of
from potstill.stages.suites.compared import ComparedSuite
from potstill.stages.suites.dialogues import DialogueSuite


class MtBenchPairsSuite(DialogueSuite, ComparedSuite):
    """Dialogues, each turn compared with a baseline's in both orders, as MT-Bench's pairwise grading does. A turn is
    won only where both orders say so, else it is a tie, which counts as half."""

    protocol: Literal["mt_bench_pairs"]

    def load(self, rows: int, crowd: Crowd) -> Load:
        turns = rows * TURNS_A_QUESTION
        return Load(
            lines=rows * (crowd.rows + 1),
            answers=turns * (crowd.models + crowd.others),
            asks=self.asked_alike(),
            judgments=2 * turns * crowd.rows,
        )

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        super().check_rows(bench, name, prompts)
        self.examiner(bench, name, "pairwise").check(prompts)
        rows = self._stored(bench, name)
        stored = [(row.judge, frozenset({row.model_1, row.model_2}), str(row.question_id)) for row in rows]
        bench.check_judgments(name, stored, (prompt.id for prompt in prompts))

    def take_over(self, bench: Bench, name: str, sheets: list[Sheet]) -> list[Sheet]:
        if self.judgments is None:
            return sheets
        compared, examiner = self.contests(bench, name, sheets), self.examiner(bench, name, "pairwise")
        asked = {
            (contest.model.model, contest.model.prompt.id, t + 1): published.sent_pair(contest, t, examiner)
            for contest in compared
            for t in range(len(contest.model.turns))
            if not contest.fault(t)
        }
        taken = take_pairs(compared, self._stored(bench, name), names_of(bench.judge(name)), asked)
        return self.with_taken(bench, name, sheets, compared, taken, 2)

    def _stored(self, bench: Bench, name: str) -> list[PairJudgment]:
        """The comparisons that are there already."""
        file = bench.file(name, "judgments")
        return [] if file is None else read_pair_judgments(read_lines(file.path), file.name)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        judge, examiner = bench.judge(name), self.examiner(bench, name, "pairwise")
        compared = self.contests(bench, name, sheets)
        graded = bench.compare(judge, compared, "both", examiner.form())
        compared = [replace(contest, model=sheet) for contest, sheet in zip(compared, graded, strict=True)]
        self.keep_baseline(bench, name, compared)
        bench.keep(name, WON, graded)
        self.tell(bench, name, compared)
        folder = bench.work.path / published.FASTCHAT / name
        published.write_dialogues(folder, [*graded, *{id(c.baseline): c.baseline for c in compared}.values()])
        published.write_pairs(folder, judge.name, compared, examiner)
