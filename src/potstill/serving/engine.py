"""All answers of all models, written in running batches by one thread: whoever asks joins, whoever goes leaves.

transformers' own continuous batching (5.23) draws for all rows from one stream of random numbers, so that a seed is
worth nothing as soon as somebody else asks; the batch of `training.decoding` gives each row its own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from potstill.serving.answer import Answer, Piece
from potstill.teachers.local import LocalTeacher
from potstill.training.decoding import Batch, Row

logger = logging.getLogger(__name__)

MOST_WAITING = 1024
"""Answers under way or waiting, of all models together."""

Event = tuple["Ticket", Piece | Exception | None]
"""News of an answer: a piece; None: it has ended; or what kept it from being written."""
Deliver = Callable[[Sequence[Event]], None]


class Overloaded(Exception):
    """More is asked than may wait."""


@dataclass(eq=False)
class Ticket:
    """One answer that was asked for."""

    model: str
    answer: Answer
    deliver: Deliver
    """Called from the engine's thread with all that one step brought to the tickets that share it."""


@dataclass
class _Desk:
    """One model and the answers that it writes."""

    teacher: LocalTeacher
    waiting: deque[Row] = field(default_factory=deque)
    tickets: dict[Row, Ticket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = Batch(self.teacher.model, self.teacher.stops)

    def step(self) -> list[Event]:
        """A token for each answer; what is new of them."""
        self.batch.step(self.waiting)
        events: list[Event] = []
        for row, ticket in list(self.tickets.items()):
            events += ((ticket, piece) for piece in ticket.answer.read())
            if ticket.answer.end is not None:
                self.forget(row)
                events.append((ticket, None))
        return events

    def forget(self, row: Row) -> None:
        """The answer has ended, or nobody waits for it any more."""
        self.tickets.pop(row, None)
        if row in self.waiting:
            self.waiting.remove(row)
        self.batch.leave([row])

    def fail(self, error: Exception) -> list[Event]:
        """Nothing of this batch can be saved."""
        lost = list(self.tickets.values())
        self.tickets.clear()
        self.waiting.clear()
        self.batch.leave(list(self.batch.rows))
        return [(ticket, error) for ticket in lost]


class Engine:
    """Use it in a `with` block. Its teachers must be open as long as it is."""

    def __init__(self, teachers: Mapping[str, LocalTeacher], most_waiting: int = MOST_WAITING) -> None:
        self._desks = {name: _Desk(teacher) for name, teacher in teachers.items()}
        self._most = most_waiting
        self._changed = threading.Condition()
        self._new: list[Ticket] = []
        self._gone: list[Ticket] = []
        self._open = True
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    @property
    def busy(self) -> int:
        """Answers under way or waiting."""
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return len(self._new) + sum(len(desk.tickets) for desk in self._desks.values())

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Have these written, all or none. Overloaded where too much waits already."""
        with self._changed:
            if self._count() + len(tickets) > self._most:
                raise Overloaded
            self._new += tickets
            self._changed.notify()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Nobody waits for these any more. Those that have ended are passed over."""
        with self._changed:
            self._gone += tickets
            self._changed.notify()

    def _run(self) -> None:
        while self._take():
            for name, desk in self._desks.items():
                if not desk.tickets:
                    continue
                try:
                    events = desk.step()
                except Exception as error:  # of memory, mostly; the others' batches go on
                    logger.exception("%s could not write its answers", name)
                    events = desk.fail(error)
                _spread(events)

    def _take(self) -> bool:
        """Let in who has come, let go who has gone, and wait where nothing is to do; False at the end."""
        with self._changed:
            while self._open and not (self._new or self._gone or any(desk.tickets for desk in self._desks.values())):
                self._changed.wait()
            gone = set(self._gone)
            self._gone.clear()
            new, self._new = [ticket for ticket in self._new if ticket not in gone], []
            for ticket in new:
                desk = self._desks[ticket.model]
                desk.tickets[ticket.answer.row] = ticket
                desk.waiting.append(ticket.answer.row)
            for ticket in gone:
                self._desks[ticket.model].forget(ticket.answer.row)
            return self._open


def _spread(events: Iterable[Event]) -> None:
    """Each receiver gets what is its own, at once."""
    by_receiver: dict[Deliver, list[Event]] = {}
    for event in events:
        by_receiver.setdefault(event[0].deliver, []).append(event)
    for deliver, its in by_receiver.items():
        deliver(its)
