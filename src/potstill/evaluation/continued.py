"""Judgments that are there already: taken over where they are of the same answer, so that only the others are asked.

A judgment is taken where question, model, turn and judge are the same and it was given to this very answer. FastChat
keeps the prompt that the judge read: it has to be the one that would be sent, or hold every answer up to that turn
between marks of its own. AlpacaEval keeps the answers. A judgment that failed is not there; of several, the first is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from potstill.evaluation.alpaca_eval import LOWEST, Annotation
from potstill.evaluation.comparing import Contest
from potstill.evaluation.fastchat import ERROR, Judgment, PairJudgment
from potstill.evaluation.mt_bench import HIGHEST
from potstill.evaluation.sheets import Sheet, Turn, Verdict
from potstill.reading.files import quote

Found = Callable[[Sheet, int, Turn], Turn | bool]
"""The turn, counted from 1, with the judgment that there is of it; else whether there is one of another answer."""
Stored = tuple[str, frozenset[str], str]
"""A judgment's judge, the models that it is of, and the question, by its id or text."""
NAMED = 3
"""How many names a message shows."""
ORDERS_COLUMN = "orders"
"""Where potstill's annotations say that both orders were asked; AlpacaEval's were asked in one."""


@dataclass(frozen=True)
class Taken:
    """The sheets with what was taken over, and how much that is."""

    sheets: list[Sheet]
    count: int
    met: int
    """Turns that a judgment is there of, by this judge, of this answer or another."""


def strange(stored: Sequence[Stored], judges: Set[str], models: Set[str], questions: Set[str]) -> str:
    """What all judgments have otherwise than is asked: the judge, the models or the questions. Empty where some have
    all three."""
    left = list(stored)
    for place, (what, ours) in enumerate((("judge", judges), ("models", models), ("questions", questions))):
        theirs = [{one} if isinstance(one, str) else one for one in (row[place] for row in left)]
        left = [row for row, names in zip(left, theirs, strict=True) if names & ours]
        if not left:
            return f"their {what}: {_listed(set[str]().union(*theirs))}; here: {_listed(ours)}"
    return ""


def _listed(names: Set[str]) -> str:
    shown = ", ".join(quote(name) for name in sorted(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def take_grades(
    sheets: Sequence[Sheet], rows: Iterable[Judgment], judges: set[str], asked: Mapping[tuple[str, str, int], str]
) -> Taken:
    """FastChat's single grades. `asked`: what the judge would be sent, by model, question and turn from 1."""
    known: dict[tuple[str, str, int], list[Judgment]] = {}
    for row in rows:
        if row.judge in judges and row.score is not None and 0 <= row.score <= HIGHEST:
            known.setdefault((row.model, str(row.question_id), row.turn), []).append(row)

    def found(sheet: Sheet, number: int, turn: Turn) -> Turn | bool:
        key = (sheet.model, sheet.prompt.id, number)
        said = [sheet.turns[at].assistant or "" for at in range(number)]
        for row in known.get(key, ()):
            if row.user_prompt == asked.get(key) or _holds(row.user_prompt, said):
                return replace(turn, score=row.score, judgment=row.judgment)
        return key in known

    return _taken(sheets, found)


def take_pairs(
    contests: Sequence[Contest],
    rows: Iterable[PairJudgment],
    judges: set[str],
    asked: Mapping[tuple[str, str, int], Sequence[str]],
) -> Taken:
    """FastChat's comparisons. `asked`: what the judge would be sent, the model's answer first and second."""
    known: dict[tuple[str, str, str, int], list[PairJudgment]] = {}
    for row in rows:
        if row.judge in judges and ERROR not in row.winners:
            known.setdefault((row.model_1, row.model_2, str(row.question_id), row.turn), []).append(row)
    by_sheet = {(contest.model.model, contest.model.prompt.id): contest for contest in contests}

    def found(sheet: Sheet, number: int, turn: Turn) -> Turn | bool:
        contest, question, met = by_sheet[sheet.model, sheet.prompt.id], sheet.prompt.id, False
        said = [one.turns[at].assistant or "" for one in (sheet, contest.baseline) for at in range(number)]
        sent = asked.get((sheet.model, question, number), ())
        for mine in (True, False):
            names = (sheet.model, contest.baseline.model) if mine else (contest.baseline.model, sheet.model)
            for row in known.get((*names, question, number), ()):
                met = True
                # In game 1 model_1 stands first, in game 2 the other does.
                ours = tuple(sent if mine else reversed(sent))
                if row.user_prompts == ours or all(_holds(prompt, said) for prompt in row.user_prompts):
                    verdicts = tuple(_game(row, game, mine) for game in (0, 1))
                    share = row.share if mine or row.share is None else 1 - row.share
                    return replace(turn, score=share, verdicts=verdicts)
        return met

    return _taken([contest.model for contest in contests], found)


def _game(row: PairJudgment, game: int, mine: bool) -> Verdict:
    """One of the two games. `mine`: model_1 is the sheet's."""
    own = "model_1" if mine else "model_2"
    share = {own: 1.0, "tie": 0.5}.get(row.winners[game], 0.0)
    return Verdict((game == 0) == mine, share, row.judgments[game])


def take_annotations(contests: Sequence[Contest], rows: Iterable[Annotation], judges: set[str], orders: str) -> Taken:
    """AlpacaEval's annotations of these two answers, asked in as many orders."""
    known: dict[tuple[str, str], list[Annotation]] = {}
    for row in rows:
        if row.annotator in judges and row.preference is not None:
            known.setdefault((row.generator_2, row.instruction), []).append(row)
    baselines = {(contest.model.model, contest.model.prompt.id): contest.baseline for contest in contests}

    def found(sheet: Sheet, number: int, turn: Turn) -> Turn | bool:
        other = baselines[sheet.model, sheet.prompt.id].turns[0].assistant
        if number > 1 or other is None:
            return False
        there, said = known.get((sheet.model, turn.user), ()), (other, turn.assistant or "", orders)
        for row in there:
            asked = (row.output_1 or "", row.output_2 or "", row.rest.get(ORDERS_COLUMN, "drawn"))
            if asked == said and row.preference is not None:
                return replace(turn, score=row.preference - LOWEST, judgment=str(row.rest.get("raw_completion") or ""))
        return bool(there)

    return _taken([contest.model for contest in contests], found)


def _taken(sheets: Sequence[Sheet], found: Found) -> Taken:
    """The sheets with what `found` gives for their answered turns."""
    made, count, met = [], 0, 0
    for sheet in sheets:
        turns = []
        for number, turn in enumerate(sheet.turns, start=1):
            other = turn.assistant is not None and found(sheet, number, turn)
            count, met = count + isinstance(other, Turn), met + bool(other)
            turns.append(other if isinstance(other, Turn) else turn)
        made.append(replace(sheet, turns=tuple(turns)))
    return Taken(made, count, met)


def _holds(prompt: str, said: Sequence[str]) -> bool:
    """Each text stands in a judge's prompt as a whole: behind a line that ends like a mark, and before one that begins
    like one."""
    return all(text and re.search(rf"[\]:>]\n{re.escape(text)}\n+(?=[\[#<])", prompt) for text in said)
