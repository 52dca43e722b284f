"""Many talks with teachers at once, as many as a teacher reads ahead, and no more of them in memory than that takes.

A talk is a generator: it yields what it wants to ask, is sent the reply, and returns what came of it. So a stage writes
one dialogue as straight code, and thousands of them are held side by side, each going on as soon as its reply is there.
Teachers that cannot be asked while they work, such as local models and batch jobs, take turns instead, each with
everything that waits for it.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from potstill.teachers.base import Asynchronous, Reply, Request, Teacher

MOST_OPEN = 8192
"""Talks that are begun and not yet handed out: what a stage holds in memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What a talk wants next."""

    whom: str
    """The part that is to reply, such as "teacher" or "user"."""
    request: Request


Talk = Generator[Ask, Reply, T]
"""Yields what it asks, is sent the replies, returns its result. What it asks depends on its replies alone."""


def convey(talks: Iterable[Talk[T]], parts: Mapping[str, Teacher], most_open: int = MOST_OPEN) -> Iterator[T]:
    """What came of each talk, in the order of the talks, whatever order they ended in.

    `parts`: who replies to what; one teacher may play several. At most `most_open` talks are held at a time.
    """
    return _Conveyor(talks, parts, most_open).results()


class _Conveyor(Generic[T]):
    def __init__(self, talks: Iterable[Talk[T]], parts: Mapping[str, Teacher], most_open: int) -> None:
        self._talks, self._parts, self._most_open = iter(talks), parts, most_open
        self._teachers = list({id(teacher): teacher for teacher in parts.values()}.values())
        self._ready: dict[int, deque[tuple[int, Talk[T], Request]]] = {id(t): deque() for t in self._teachers}
        self._begun = self._given = 0
        self._exhausted = False
        self._ended: dict[int, T] = {}

    def results(self) -> Iterator[T]:
        if all(isinstance(teacher, Asynchronous) for teacher in self._teachers):
            return self._as_they_come()
        return self._in_turns()

    def _as_they_come(self) -> Iterator[T]:
        came: SimpleQueue[tuple[int, Talk[T], Future[Reply]]] = SimpleQueue()
        asked = 0
        while True:
            while any(self._ready.values()) or self._begin():
                for teacher in self._teachers:
                    assert isinstance(teacher, Asynchronous)
                    ready = self._ready[id(teacher)]
                    while ready:
                        place, talk, request = ready.popleft()
                        future, asked = teacher.submit(request), asked + 1
                        future.add_done_callback(partial(_hand_over, came, place, talk))
            yield from self._in_order()
            if not asked:
                return
            place, talk, future = came.get()
            asked -= 1
            self._go_on(place, talk, future.result())

    def _in_turns(self) -> Iterator[T]:
        while not (self._exhausted and self._given == self._begun):
            for teacher in self._teachers:
                asked: deque[tuple[int, Talk[T]]] = deque()
                for reply in teacher.complete(self._requests(teacher, asked)):
                    place, talk = asked.popleft()
                    self._go_on(place, talk, reply)
                    yield from self._in_order()
                yield from self._in_order()

    def _requests(self, teacher: Teacher, asked: deque[tuple[int, Talk[T]]]) -> Iterator[Request]:
        """What a teacher is to reply to: talks under way first, then new ones, until nothing can be asked just now.

        A teacher reads these a window ahead and replies meanwhile, which makes more of them ready. Ending is not the
        end of the matter: once every reply is there, the teacher is asked anew for what those brought.
        """
        ready = self._ready[id(teacher)]
        while ready or self._begin():
            if ready:
                place, talk, request = ready.popleft()
                asked.append((place, talk))
                yield request

    def _begin(self) -> bool:
        if self._exhausted or self._begun - self._given >= self._most_open:
            return False
        talk = next(self._talks, None)
        if talk is None:
            self._exhausted = True
            return False
        self._begun += 1
        self._go_on(self._begun - 1, talk, None)
        return True

    def _go_on(self, place: int, talk: Talk[T], reply: Reply | None) -> None:
        try:
            ask = next(talk) if reply is None else talk.send(reply)
        except StopIteration as end:
            self._ended[place] = end.value
        else:
            self._ready[id(self._parts[ask.whom])].append((place, talk, ask.request))

    def _in_order(self) -> Iterator[T]:
        while self._given in self._ended:
            result = self._ended.pop(self._given)
            self._given += 1
            yield result


def _hand_over(
    came: "SimpleQueue[tuple[int, Talk[T], Future[Reply]]]", place: int, talk: Talk[T], future: "Future[Reply]"
) -> None:
    came.put((place, talk, future))
