"""Suite `mt_bench`: dialogues, each turn graded 1 to 10 by a judge (Zheng et al. 2023)."""

from collections.abc import Sequence
from typing import Literal

from potstill.evaluation import mt_bench, published
from potstill.evaluation.continued import take_grades
from potstill.evaluation.fastchat import Judgment, read_judgments
from potstill.evaluation.fastchat_scores import GRADE
from potstill.evaluation.sheets import Sheet, ungraded
from potstill.reading.files import read_lines
from potstill.records import Prompt
from potstill.stages.suites.base import TURNS_A_QUESTION, Bench, Crowd, Load, names_of
from potstill.stages.suites.dialogues import DialogueSuite


class MtBenchSuite(DialogueSuite):
    """Dialogues, each turn graded 1 to 10 by a judge, as MT-Bench does."""

    protocol: Literal["mt_bench"]

    def load(self, rows: int, crowd: Crowd) -> Load:
        judged, answers = rows * crowd.rows, rows * crowd.models * TURNS_A_QUESTION
        return Load(lines=judged, answers=answers, asks=self.asked_alike(), judgments=judged * TURNS_A_QUESTION)

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        self.examiner(bench, name, "single").check(prompts)
        stored = [(row.judge, frozenset({row.model}), str(row.question_id)) for row in self._stored(bench, name)]
        bench.check_judgments(name, stored, (prompt.id for prompt in prompts))

    def take_over(self, bench: Bench, name: str, sheets: list[Sheet]) -> list[Sheet]:
        if self.judgments is None:
            return sheets
        examiner = self.examiner(bench, name, "single")
        asked = {
            (sheet.model, sheet.prompt.id, t + 1): examiner.grade(sheet, t).messages[-1].content
            for sheet in sheets
            for t, turn in enumerate(sheet.turns)
            if turn.assistant is not None
        }
        taken = take_grades(sheets, self._stored(bench, name), names_of(bench.judge(name)), asked)
        return bench.take(name, taken, len(ungraded(taken.sheets)))

    def _stored(self, bench: Bench, name: str) -> list[Judgment]:
        """The grades that are there already."""
        file = bench.file(name, "judgments")
        return [] if file is None else read_judgments(read_lines(file.path), file.name)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        judge, examiner = bench.judge(name), self.examiner(bench, name, "single")
        graded = bench.grade(judge, examiner.grade, mt_bench.read_grade, sheets)
        bench.keep(name, GRADE, graded)
        folder = bench.work.path / published.FASTCHAT / name
        published.write_dialogues(folder, graded)
        published.write_grades(folder, judge.name, graded, examiner)
