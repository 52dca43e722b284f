"""Talks side by side: results in order, each as if it had been held alone, and a bounded number of them in memory."""

from collections import deque
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.records import Message
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.teachers.base import Reply, Request


class Windowed:
    """Reads so many requests ahead of the reply it gives, as teachers do."""

    def __init__(self, name: str, window: int) -> None:
        self.name, self.window = name, window
        self.waiting = self.most_waiting = self.rounds = self.served = 0

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        self.rounds += 1
        ahead: deque[Request] = deque()
        for request in requests:
            ahead.append(request)
            self.most_waiting = max(self.most_waiting, len(ahead))
            if len(ahead) >= self.window:
                yield self._reply(ahead.popleft())
        while ahead:
            yield self._reply(ahead.popleft())

    def _reply(self, request: Request) -> Reply:
        self.served += 1
        return Reply(f"{self.name} {request.messages[0].content}")


def asked(text: str) -> Request:
    return Request((Message(role="user", content=text),), max_tokens=1)


def talk(name: int, whom: str) -> Talk[list[str]]:
    """Asks each of the parts named by the letters of `whom`, each time about what was said before."""
    said = [str(name)]
    for letter in whom:
        reply = yield Ask(letter, asked(said[-1]))
        said.append(reply.text)
    return said


def alone(name: int, whom: str, names: dict[str, str]) -> list[str]:
    said = [str(name)]
    for letter in whom:
        said.append(f"{names[letter]} {said[-1]}")
    return said


@given(
    st.lists(st.text("tu", max_size=6), max_size=30),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
    st.booleans(),
)
def test_each_talk_as_if_it_were_alone_and_all_in_order(
    talks: list[str], window: int, other: int, most_open: int, one_teacher: bool
) -> None:
    """Whatever is read ahead, however many are open, whether one teacher plays both parts or two do."""
    teacher = Windowed("T", window)
    user = teacher if one_teacher else Windowed("U", other)
    found = list(convey((talk(i, whom) for i, whom in enumerate(talks)), {"t": teacher, "u": user}, most_open))
    names = {"t": "T", "u": user.name}
    assert found == [alone(i, whom, names) for i, whom in enumerate(talks)]


@given(st.integers(1, 8), st.integers(1, 20))
def test_no_more_are_begun_than_may_be_open(most_open: int, window: int) -> None:
    begun, given_out = 0, 0
    most = 0

    def talks() -> Iterator[Talk[list[str]]]:
        nonlocal begun, most
        for i in range(40):
            begun += 1
            most = max(most, begun - given_out)
            yield talk(i, "t" * (1 + i % 3))

    for _ in convey(talks(), {"t": Windowed("T", window)}, most_open):
        given_out += 1
    assert begun == given_out == 40
    assert most <= most_open + 1  # the one that is just being handed out


def test_one_teacher_is_never_left_waiting_for_a_round_to_end() -> None:
    """With one teacher and more talks than it reads ahead, it is kept full until there is nothing left to begin."""
    teacher = Windowed("T", 10)
    assert len(list(convey((talk(i, "ttt") for i in range(200)), {"t": teacher}))) == 200
    assert teacher.served == 600
    assert teacher.rounds <= 5, "only what is left at the very end goes in rounds"


def test_what_a_talk_raises_is_heard() -> None:
    def broken() -> Talk[int]:
        yield Ask("t", asked("x"))
        raise ValueError("no sense in this")

    with pytest.raises(ValueError, match="no sense"):
        list(convey([broken()], {"t": Windowed("T", 2)}))
