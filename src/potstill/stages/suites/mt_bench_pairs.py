"""Suite `mt_bench_pairs`: dialogues, each turn compared with a baseline's in both orders (Zheng et al. 2023)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from potstill.evaluation import published
from potstill.evaluation.comparing import Contest
from potstill.evaluation.continued import take_pairs
from potstill.evaluation.fastchat import read_pair_judgments
from potstill.evaluation.fastchat_scores import WON
from potstill.evaluation.judge_prompts import Examiner
from potstill.evaluation.sheets import Sheet
from potstill.files import read_lines
from potstill.sources import Model
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

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        judge, examiner = bench.judge(name), self.examiner(bench, name, "pairwise")
        compared = self._continued(bench, name, self.contests(bench, name, sheets), judge, examiner)
        graded = bench.compare(judge, compared, "both", examiner.form())
        compared = [replace(contest, model=sheet) for contest, sheet in zip(compared, graded, strict=True)]
        self.keep_baseline(bench, name, compared)
        bench.keep(name, WON, graded)
        self.tell(bench, name, compared)
        folder = bench.work.path / published.FASTCHAT / name
        published.write_dialogues(folder, [*graded, *{id(c.baseline): c.baseline for c in compared}.values()])
        published.write_pairs(folder, judge.name, compared, examiner)

    def _continued(
        self, bench: Bench, name: str, compared: list[Contest], judge: Model, examiner: Examiner
    ) -> list[Contest]:
        """The contests with the verdicts that are there already."""
        file = bench.file(name, "judgments")
        if file is None:
            return compared
        asked = {
            (contest.model.model, contest.model.prompt.id, t + 1): published.sent_pair(contest, t, examiner)
            for contest in compared
            for t in range(len(contest.model.turns))
            if not contest.fault(t)
        }
        rows = read_pair_judgments(read_lines(file.path), file.name)
        taken = take_pairs(compared, rows, names_of(judge), asked)
        bench.notes[name] = {"judgments_taken": taken.count}
        return [replace(contest, model=sheet) for contest, sheet in zip(compared, taken.sheets, strict=True)]
