"""An evaluation in the layouts of FastChat and AlpacaEval, so that others' tools can open it. No times, no ids drawn:
the same scores are the same bytes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from potstill.artifact import storage_errors
from potstill.evaluation import alpaca_eval, fastchat
from potstill.evaluation.alpaca_eval import LOWEST, Annotation, Output
from potstill.evaluation.comparing import SAME, Contest, Orders
from potstill.evaluation.continued import ORDERS_COLUMN
from potstill.evaluation.fastchat import ERROR, TIE, Judgment, PairJudgment
from potstill.evaluation.fastchat_sheets import answers_of, question_id, questions_of
from potstill.evaluation.judge_prompts import Examiner
from potstill.evaluation.sheets import Ask, Sheet, Turn

FASTCHAT, ALPACA_EVAL = "fastchat", "alpaca_eval"
"""The folders of an evaluation that these lie in, one below them for each suite."""

LONGEST_FILE = 128
"""Bytes of a file's name that are a model's."""
_NO_NAME = re.compile(r"[/\x00-\x1f\x7f]")


def write_dialogues(folder: Path, sheets: Sequence[Sheet]) -> None:
    """question.jsonl and model_answer/MODEL.jsonl, the baseline's too."""
    _make(folder / "model_answer")
    prompts = {sheet.prompt.id: sheet.prompt for sheet in sheets}
    fastchat.write_rows(folder / "question.jsonl", questions_of(prompts.values()))
    for model, found in _by_model(sheets).items():
        fastchat.write_rows(folder / "model_answer" / f"{_file(model)}.jsonl", answers_of(found))


def write_grades(folder: Path, judge: str, sheets: Sequence[Sheet], examiner: Examiner) -> None:
    """model_judgment/JUDGE_single.jsonl: every turn, one without a grade too, as a -1."""
    rows = [
        Judgment(
            question_id=question_id(sheet.prompt),
            model=sheet.model,
            judge=judge,
            prompt_name=examiner.filed_under(sheet, t),
            turn=t + 1,
            score=turn.score,
            judgment=turn.judgment,
            user_prompt=_sent(examiner.grade, sheet, t),
        )
        for sheet in sheets
        for t, turn in enumerate(sheet.turns)
    ]
    _make(folder / "model_judgment")
    fastchat.write_rows(folder / "model_judgment" / f"{_file(judge)}_single.jsonl", rows)


def write_pairs(folder: Path, judge: str, contests: Sequence[Contest], examiner: Examiner) -> None:
    """model_judgment/JUDGE_pair.jsonl: model_1 is the model, which stands first in game 1; model_2 is the baseline."""
    rows = [_pair(contest, t, judge, examiner) for contest in contests for t in range(len(contest.model.turns))]
    _make(folder / "model_judgment")
    fastchat.write_rows(folder / "model_judgment" / f"{_file(judge)}_pair.jsonl", rows)


def sent_pair(contest: Contest, turn: int, examiner: Examiner) -> tuple[str, str]:
    """What a judge is sent for a turn, with the model's answer first and second."""
    one, other = (examiner.compare(*contest.shown(first), turn).messages[-1].content for first in (True, False))
    return one, other


def _pair(contest: Contest, t: int, judge: str, examiner: Examiner) -> PairJudgment:
    turn = contest.model.turns[t]
    games = [_game(turn, model_first) for model_first in (True, False)]
    return PairJudgment(
        question_id=question_id(contest.model.prompt),
        model_1=contest.model.model,
        model_2=contest.baseline.model,
        winners=(games[0][0], games[1][0]),
        judge=judge,
        prompt_name=examiner.filed_under(contest.model, t),
        turn=t + 1,
        judgments=(games[0][1], games[1][1]),
        user_prompts=("", "") if contest.fault(t) else sent_pair(contest, t, examiner),
    )


def _game(turn: Turn, model_first: bool) -> tuple[str, str]:
    """The winner and the judgment of one of the two games."""
    if turn.judgment == SAME:
        return TIE, SAME
    verdict = next((verdict for verdict in turn.verdicts if verdict.model_first == model_first), None)
    if verdict is None or verdict.share is None:
        return ERROR, "" if verdict is None else verdict.judgment
    return {1.0: "model_1", 0.0: "model_2"}.get(verdict.share, TIE), verdict.judgment


def write_comparisons(
    folder: Path, judge: str, contests: Sequence[Contest], orders: Orders
) -> dict[str, list[Annotation]]:
    """MODEL/model_outputs.json and MODEL/annotations.json; of the baseline its outputs. Returns the annotations."""
    found: dict[str, list[Annotation]] = {}
    for contest in contests:
        found.setdefault(contest.model.model, []).append(_annotation(contest, judge, orders))
    for model, annotations in found.items():
        _make(folder / _file(model))
        alpaca_eval.write_rows(folder / _file(model) / "annotations.json", annotations)
    both = [contest.model for contest in contests] + [contest.baseline for contest in contests]
    for model, sheets in _by_model(both).items():
        _make(folder / _file(model))
        alpaca_eval.write_rows(folder / _file(model) / "model_outputs.json", map(_output, _once(sheets)))
    return found


def _annotation(contest: Contest, judge: str, orders: Orders) -> Annotation:
    (turn,), (other,) = contest.model.turns, contest.baseline.turns
    rest: dict[str, object] = {} if orders == "drawn" else {ORDERS_COLUMN: orders}
    rest |= {"shown_first": [_file_side(one.model_first) for one in turn.verdicts]} if turn.verdicts else {}
    return Annotation(
        instruction=turn.user,
        generator_1=contest.baseline.model,
        generator_2=contest.model.model,
        preference=None if turn.score is None else LOWEST + turn.score,
        output_1=other.assistant,
        output_2=turn.assistant,
        dataset=contest.model.prompt.category,
        annotator=judge,
        rest=rest | {"raw_completion": _raw(turn)},
    )


def _raw(turn: Turn) -> str:
    return "\n\n".join([turn.judgment] if turn.judgment else [verdict.judgment for verdict in turn.verdicts])


def _file_side(model_first: bool) -> str:
    return "output_2" if model_first else "output_1"


def _output(sheet: Sheet) -> Output:
    (turn,) = sheet.turns
    return Output(turn.user, turn.assistant or "", sheet.model, sheet.prompt.category)


def _sent(ask: Ask, sheet: Sheet, turn: int) -> str:
    return ask(sheet, turn).messages[-1].content if sheet.turns[turn].assistant is not None else ""


def _by_model(sheets: Iterable[Sheet]) -> Mapping[str, list[Sheet]]:
    found: dict[str, list[Sheet]] = {}
    for sheet in sheets:
        found.setdefault(sheet.model, []).append(sheet)
    return found


def _once(sheets: Iterable[Sheet]) -> list[Sheet]:
    return list({sheet.prompt.id: sheet for sheet in sheets}.values())


def _file(model: str) -> str:
    """A name that a file can have: baselines' are others'."""
    plain = _NO_NAME.sub("_", model).lstrip(".").encode("utf-8", "replace")
    return plain[:LONGEST_FILE].decode("utf-8", "ignore") or "model"


def _make(folder: Path) -> None:
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
