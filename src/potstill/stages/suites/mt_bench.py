"""Suite `mt_bench`: dialogues, each turn graded 1 to 10 by a judge (Zheng et al. 2023)."""

from collections.abc import Sequence
from typing import Literal

from potstill.evaluation import mt_bench, published
from potstill.evaluation.continued import take_grades
from potstill.evaluation.fastchat import read_judgments
from potstill.evaluation.fastchat_scores import GRADE
from potstill.evaluation.judge_prompts import Examiner
from potstill.evaluation.sheets import Sheet
from potstill.files import read_lines
from potstill.sources import Model
from potstill.stages.suites.base import TURNS_A_QUESTION, Bench, Crowd, Load, names_of
from potstill.stages.suites.dialogues import DialogueSuite


class MtBenchSuite(DialogueSuite):
    """Dialogues, each turn graded 1 to 10 by a judge, as MT-Bench does."""

    protocol: Literal["mt_bench"]

    def load(self, rows: int, crowd: Crowd) -> Load:
        judged, answers = rows * crowd.rows, rows * crowd.models * TURNS_A_QUESTION
        return Load(lines=judged, answers=answers, asks=self.asked_alike(), judgments=judged * TURNS_A_QUESTION)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        judge, examiner = bench.judge(name), self.examiner(bench, name, "single")
        known = self._continued(bench, name, sheets, judge, examiner)
        graded = bench.grade(judge, examiner.grade, mt_bench.read_grade, known)
        bench.keep(name, GRADE, graded)
        folder = bench.work.path / published.FASTCHAT / name
        published.write_dialogues(folder, graded)
        published.write_grades(folder, judge.name, graded, examiner)

    def _continued(
        self, bench: Bench, name: str, sheets: Sequence[Sheet], judge: Model, examiner: Examiner
    ) -> Sequence[Sheet]:
        """The sheets with the grades that are there already."""
        file = bench.file(name, "judgments")
        if file is None:
            return sheets
        asked = {
            (sheet.model, sheet.prompt.id, t + 1): examiner.grade(sheet, t).messages[-1].content
            for sheet in sheets
            for t, turn in enumerate(sheet.turns)
            if turn.assistant is not None
        }
        taken = take_grades(sheets, read_judgments(read_lines(file.path), file.name), names_of(judge), asked)
        bench.notes[name] = {"judgments_taken": taken.count}
        return taken.sheets
