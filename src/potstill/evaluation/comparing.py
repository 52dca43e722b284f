"""Two answers to a question before a judge: in which order they are shown, what the verdicts come to, what was odd."""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from potstill.errors import TeacherError
from potstill.evaluation.sheets import Sheet, Tick, Turn, Verdict, unreadable
from potstill.teachers.base import REPLIES_ARE_KEPT, Reply, Request, Teacher, request_seed

Orders = Literal["drawn", "both"]

SAME = "the answers are the same"
NO_LOGPROBS = "it gives no log-probabilities of its answer's first token (top_logprobs)"
LOGPROBS_REMEDY = f"Serve it by a server that gives them, such as vLLM, or set verdict: choice. {REPLIES_ARE_KEPT}"


@dataclass(frozen=True)
class Contest:
    """A model's dialogue and the baseline's over the same question."""

    model: Sheet
    baseline: Sheet

    def shown(self, model_first: bool) -> tuple[Sheet, Sheet]:
        """Both in the order in which a judge sees them."""
        return (self.model, self.baseline) if model_first else (self.baseline, self.model)

    def fault(self, turn: int) -> str:
        """Why there is nothing to compare in a turn; empty where there is."""
        if self.model.turns[turn].assistant is None:
            return self.model.turns[turn].reason or "no answer"
        return "the baseline has no answer" if self.baseline.turns[turn].assistant is None else ""

    def same(self, turn: int) -> bool:
        """Both said the same up to that turn, so that there is nothing to choose between."""
        mine, its = (sheet.turns[: turn + 1] for sheet in (self.model, self.baseline))
        return all(a.assistant == b.assistant for a, b in zip(mine, its, strict=True))


@dataclass(frozen=True)
class Form:
    """How a judge is asked to compare, and how its reply is read."""

    ask: Callable[[Sheet, Sheet, int], Request]
    """The request for a turn of two sheets, in the order in which they are shown."""
    read: Callable[[Sheet, Sheet, int, Reply], tuple[float | None, str]]
    """What the sheet shown first got of the win, and without that why not."""
    settle: Callable[[Sequence[float]], float]
    """What the verdicts of all orders, as the model's shares, come to."""
    again: int = 0
    """How often to ask once more, with another seed, for a verdict that cannot be read; the last one stands."""

    def request(self, one: Sheet, other: Sheet, turn: int) -> Request:
        """What is asked, until it is read or asked often enough."""
        asked = self.ask(one, other, turn)
        if not self.again:
            return asked
        attempts = 1 + self.again
        return replace(asked, attempts=attempts, accept=lambda reply: self.read(one, other, turn, reply)[0] is not None)


def mean_share(shares: Sequence[float]) -> float:
    """The mean over the orders: verdicts that contradict each other are half a win."""
    return math.fsum(shares) / len(shares)


def agreed_share(shares: Sequence[float]) -> float:
    """A win or a loss only where all orders say so, else a tie: FastChat's rule (Zheng et al. 2023, section 3.4)."""
    return shares[0] if len(set(shares)) == 1 else 0.5


def orders_shown(orders: Orders, seed: int, question: str, turn: int) -> tuple[bool, ...]:
    """Whether the model's answer stands first, for each time that a judge is asked.

    Drawn by seed and question: every model of a question is shown in the same place, so that no difference between two
    models is one of places.
    """
    if orders == "both":
        return (True, False)
    return (random.Random(request_seed(seed, question, "order", turn)).random() < 0.5,)


def compare(
    judge: Callable[[], Teacher], contests: Sequence[Contest], orders: Orders, form: Form, seed: int, tick: Tick
) -> list[Sheet]:
    """The models' sheets with the share of the win in each turn. What has a score already is not asked for.

    `judge` is called where there is something to ask. Where the answers are the same, it is a draw and nobody is asked.
    TeacherError where nothing could be read of all that was said.
    """
    turns = [list(contest.model.turns) for contest in contests]
    asked = []
    for i, contest in enumerate(contests):
        for t, turn in enumerate(turns[i]):
            if turn.score is not None:
                continue
            if fault := contest.fault(t):
                turns[i][t] = replace(turn, reason=fault)
            elif contest.same(t):
                turns[i][t] = replace(turn, score=0.5, judgment=SAME)
            else:
                shown = orders_shown(orders, seed, contest.model.prompt.id, t)
                asked += [(i, t, model_first) for model_first in shown]
    if asked:
        _ask(judge(), contests, turns, asked, form, tick)
    return [replace(contest.model, turns=tuple(found)) for contest, found in zip(contests, turns, strict=True)]


def undecided(contests: Sequence[Contest]) -> list[tuple[int, int]]:
    """What a judge has to be asked: the contest and the turn, each by its place."""
    return [
        (i, t)
        for i, contest in enumerate(contests)
        for t, turn in enumerate(contest.model.turns)
        if turn.score is None and not contest.fault(t) and not contest.same(t)
    ]


def _ask(
    judge: Teacher,
    contests: Sequence[Contest],
    turns: list[list[Turn]],
    asked: Sequence[tuple[int, int, bool]],
    form: Form,
    tick: Tick,
) -> None:
    """Put the verdicts into the turns."""
    replies = judge.complete(form.request(*contests[i].shown(first), t) for i, t, first in asked)
    bad: Reply | None = None
    for (i, t, first), reply in zip(asked, replies, strict=True):
        share, why = form.read(*contests[i].shown(first), t, reply)
        bad = bad or (reply if share is None else None)
        verdict = Verdict(first, share if share is None or first else 1 - share, reply.text, why)
        turns[i][t] = replace(turns[i][t], verdicts=(*turns[i][t].verdicts, verdict))
        tick()
    for i, t, _ in asked:
        turns[i][t] = _settled(turns[i][t], form.settle)
    places = [turns[i][t] for i, t in dict.fromkeys((i, t) for i, t, _ in asked)]
    if bad is not None and all(verdict.share is None for turn in places for verdict in turn.verdicts):
        raise unreadable(judge.name, len(asked), places[0].verdicts[0].reason, bad)


def _settled(turn: Turn, settle: Callable[[Sequence[float]], float]) -> Turn:
    """A comparison of which one order could not be read has no score: half of it would be a matter of place."""
    shares = [verdict.share for verdict in turn.verdicts if verdict.share is not None]
    if len(shares) < len(turn.verdicts):
        return replace(turn, reason=next(verdict.reason for verdict in turn.verdicts if verdict.share is None))
    return replace(turn, score=settle(shares))


def label_share(reply: Reply, labels: tuple[str, str], judge: str) -> tuple[float | None, str]:
    """What the text shown first got of the win: P(first label) / (P(first) + P(second)), as AlpacaEval 2 has it.

    With labels m and M it is 2 - p of the stored preference p where the baseline stands first. A label that is not
    among the listed tokens counts as likely as the least likely of those. TeacherError where the judge answered and
    gives no log-probabilities at all.
    """
    if not reply.likeliest:
        if reply.finish in ("stop", "length", "empty"):
            raise TeacherError(f"judge {judge}", NO_LOGPROBS, LOGPROBS_REMEDY)
        return None, reply.reason or f"no judgment: {reply.finish}"
    mass = dict.fromkeys(labels, 0.0)
    for token, logp in reply.likeliest:
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logp)
    if not any(mass.values()):
        return None, f"neither {labels[0]} nor {labels[1]} is among the likeliest first tokens of the judgment"
    least = math.exp(min(logp for _, logp in reply.likeliest))
    one, other = (mass[label] or least for label in labels)
    return one / (one + other), ""


_RANK = re.compile(r"""['"]model['"]\s*:\s*['"]model_([12])['"]\s*,\s*['"]rank['"]\s*:\s*([12])\b""")


def ranking_share(reply: str) -> float | None:
    """What model_1 got of the win in a ranking of AlpacaEval 1's form, [{'model': 'model_1', 'rank': 1}, ...].

    None where the reply does not rank both models once, as where it quotes a ranking beside its own.
    """
    ranks = [(found[1], found[2]) for found in _RANK.finditer(reply)]
    if sorted(model for model, _ in ranks) != ["1", "2"] or len({rank for _, rank in ranks}) < 2:
        return None
    return float(dict(ranks)["1"] == "1")


def oddities(sheets: Sequence[Sheet]) -> dict[str, int]:
    """What is to be counted of comparisons: answers that were the same, orders that contradict each other, and of the
    verdicts that decide, how many went to whatever stood first."""
    turns = [turn for sheet in sheets for turn in sheet.turns]
    decided = [one for turn in turns for one in turn.verdicts if one.share is not None and one.share != 0.5]
    return {
        "same": sum(turn.judgment == SAME for turn in turns),
        "contradictory": sum(_contradictory(turn) for turn in turns),
        "decided": len(decided),
        "first_won": sum((one.share > 0.5) == one.model_first for one in decided if one.share is not None),
    }


def _contradictory(turn: Turn) -> bool:
    shares = [verdict.share for verdict in turn.verdicts if verdict.share is not None]
    return any(share > 0.5 for share in shares) and any(share < 0.5 for share in shares)


def contests(sheets: Sequence[Sheet], baseline: Sequence[Sheet]) -> Iterator[Contest]:
    """Each sheet with the baseline's over the same question."""
    its = {sheet.prompt.id: sheet for sheet in baseline}
    for sheet in sheets:
        yield Contest(sheet, its[sheet.prompt.id])
