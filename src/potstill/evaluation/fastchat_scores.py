"""What FastChat's stored judgments of MT-Bench come to, as its `show_result.py` counts them, and what their texts say.

A judgment is counted as it is stored, for that is what was published; beside that its text is read again. A stored -1,
or the winner "error", is a judgment that failed: it lowers the coverage and enters no mean. Judging again appends rows
under the names that stand there already: FastChat's means are over all of them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.evaluation.fastchat import ERROR, TIE, Judgment, PairJudgment, Question
from potstill.evaluation.mt_bench import HIGHEST, LOWEST, parse_grade
from potstill.evaluation.scores import Measure
from potstill.evaluation.statistics import Observation
from potstill.evaluation.stored import numbered

GRADE = Measure("mt_bench", (LOWEST, HIGHEST), unit="points")
WON = Measure("mt_bench_pairs", (0.0, 1.0), share=True, unit="share won")
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_ID, IN_CATEGORY = 81, 10
"""MT-Bench's own questions are numbered from 81, ten to a category."""


def categories(questions: Iterable[Question] = ()) -> dict[str, str]:
    """The category of each question by its id: as its file says, else by MT-Bench's own numbers."""
    own = {str(FIRST_ID + i): CATEGORIES[i // IN_CATEGORY] for i in range(IN_CATEGORY * len(CATEGORIES))}
    return {str(row.question_id): row.category for row in questions} or own


def observations(judgments: Iterable[Judgment], category: Mapping[str, str]) -> dict[str, list[Observation]]:
    """One a row, by model. The parts of a question are its turns; each further run of one is a part of its own.

    Every stored score counts but the -1 of a failed judgment, as in FastChat, also one beyond the scale.
    """
    met: dict[tuple[str, str, int], int] = defaultdict(int)
    found: dict[str, list[Observation]] = defaultdict(list)
    for row in judgments:
        question = str(row.question_id)
        met[row.model, question, row.turn] += 1
        part = numbered(str(row.turn), met[row.model, question, row.turn])
        found[row.model].append(Observation(question, part, row.score, category=category.get(question, "")))
    return dict(found)


def is_beyond(score: float | None) -> bool:
    """Whether a score leaves the scale. Zeros, which judges do give, are not told."""
    return score is not None and score != 0 and not LOWEST <= score <= HIGHEST


def pair_observations(
    judgments: Iterable[PairJudgment], category: Mapping[str, str], baseline: str | None
) -> dict[str, list[Observation]]:
    """One a row and model: 1, 0.5 or 0. With a baseline only the rows that it is in, and none of its own."""
    met: dict[tuple[str, str, str], int] = defaultdict(int)
    found: dict[str, list[Observation]] = defaultdict(list)
    for row in judgments:
        question, share = str(row.question_id), row.share
        sides = ((row.model_1, row.model_2, share), (row.model_2, row.model_1, None if share is None else 1 - share))
        for model, other, won in sides:
            if baseline is not None and other != baseline:
                continue
            part = f"{row.turn}, against {other}"
            met[model, question, part] += 1
            whole = numbered(part, met[model, question, part])
            found[model].append(Observation(question, whole, won, category=category.get(question, "")))
    return dict(found)


def baseline_of(judgments: Sequence[PairJudgment]) -> str | None:
    """The one model that stands in every row: the second, where two do. None where all were set against all."""
    if not judgments:
        return None
    always = set.intersection(*({row.model_1, row.model_2} for row in judgments))
    second = judgments[0].model_2
    return second if second in always else next(iter(sorted(always)), None)


@dataclass(frozen=True)
class Unlike:
    """A judgment that is stored otherwise than its text reads."""

    question: str
    turn: int
    stored: float | str | None
    said: float | str | None

    def to_json(self) -> dict[str, Any]:
        """Its parts by name."""
        return asdict(self)


_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_GAMES = ({"A": "model_1", "B": "model_2", TIE: TIE}, {"A": "model_2", "B": "model_1", TIE: TIE})
"""Who a verdict means: in the second game the second model's answer stands first."""


def grade_in(row: Judgment) -> float | None:
    """The grade in a judgment's text. What the judge read, below its instructions, may be quoted there."""
    _, marker, shown = row.user_prompt.partition("[Question]")
    return parse_grade(row.judgment, quoted=[shown if marker else row.user_prompt] if row.user_prompt else [])


def parse_verdict(judgment: str, quoted: Iterable[str] = ()) -> str | None:
    """A, B or tie, as the text says; None where it says none, or several. What the judge read says nothing."""
    texts = list(quoted)
    said = {match[1] for match in _VERDICT.finditer(judgment) if not any(match[0] in text for text in texts)}
    if len(said) != 1:
        return None
    letter = said.pop()
    return TIE if letter == "C" else letter


def unlike(rows: Iterable[Judgment | PairJudgment]) -> list[Unlike]:
    """The judgments whose text says another score or winner than is stored, none, or one where none is stored."""
    found = []
    for row in rows:
        pairs: list[tuple[float | str | None, float | str | None]]
        if isinstance(row, Judgment):
            pairs = [(row.score, grade_in(row))] if row.judgment else []
        else:
            pairs = [
                (None if winner == ERROR else winner, game.get(parse_verdict(text, [shown]) or ""))
                for winner, game, text, shown in zip(row.winners, _GAMES, row.judgments, row.user_prompts, strict=True)
                if text
            ]
        found += [Unlike(str(row.question_id), row.turn, stored, said) for stored, said in pairs if stored != said]
    return found
