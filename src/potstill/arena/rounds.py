"""Rounds of the arena's pages: a question is sent, its answers come later, and then a vote."""

import logging
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from potstill.arena.battles import Arena
from potstill.arena.votes import Battle, Vote
from potstill.errors import BusyError, PotstillError

logger = logging.getLogger(__name__)

MOST_KEPT = 100
"""Rounds that a page may come back to; the oldest are forgotten."""
THREAD = "arena"
MOST_WAITING = 4
"""Questions that wait for answers, or get them."""


def at_work() -> bool:
    """Whether a thread of this process loads or writes."""
    return any(thread.name == THREAD for thread in threading.enumerate())


@dataclass
class Round:
    """One question, and what became of it. It waits while it has neither a battle nor an error."""

    id: str
    """Drawn at random: it tells nothing."""
    question: str
    voter: str
    battle: Battle | None = None
    error: str = ""
    vote: Vote | None = None

    @property
    def waits(self) -> bool:
        """For its answers."""
        return self.battle is None and not self.error


class Rounds:
    """The rounds of one arena. Safe to be asked by several threads at once."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._kept: OrderedDict[str, Round] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, question: str, voter: str) -> Round:
        """Have it answered, in a thread of its own. BusyError where too many wait."""
        one = Round(secrets.token_urlsafe(12), question, voter)
        with self._lock:
            if sum(kept.waits for kept in self._kept.values()) >= MOST_WAITING:
                raise BusyError("the arena", f"{MOST_WAITING} questions wait already", "Wait for their answers")
            self._kept[one.id] = one
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        threading.Thread(target=self._answer, args=(one,), name=THREAD, daemon=True).start()
        return one

    def _answer(self, one: Round) -> None:
        try:
            one.battle = self.arena.begin(one.question)
        except PotstillError as error:
            one.error = str(error)
        except Exception as error:  # torch and transformers raise what they like; which model it was is not told
            logger.exception("the arena")
            one.error = f"the arena: a model failed while it wrote ({type(error).__name__}). Ask something else."

    def get(self, round_id: str) -> Round | None:
        """None where there is none of that id, or it was forgotten."""
        with self._lock:
            return self._kept.get(round_id)

    def vote(self, one: Round, vote: Vote) -> None:
        """Keep a vote, once. DataError where there is one already."""
        self.arena.vote(one.battle.id if one.battle is not None else "", vote, one.voter)
        one.vote = vote
