"""Talking on the terminal: commands, what is kept, old turns that no longer fit, servers, rows that `import` reads."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub, refusal

from potstill.artifact import add_line
from potstill.cli import main
from potstill.errors import DataError, ModelError, StorageError, TeacherError
from potstill.reading.formats import read_file
from potstill.records import Chat, Message
from potstill.speakers import FarSpeaker
from potstill.teachers.base import Request
from potstill.terminal import chat as chats
from potstill.terminal.chat import Conversation, Options, Speaker, Talk, fitted, save

OPTIONS = Options("", 0.0, 1.0, 0, 8, 0)


class Parrot:
    """It counts words as tokens, and repeats the last turn and how many turns it sees."""

    def __init__(self, name: str = "parrot", context: int = 1000) -> None:
        self.name, self.context, self.written = name, context, 0
        self.requests: list[Request] = []
        self.closed = False
        self.break_at = -1

    def length(self, request: Request) -> int:
        return sum(len(message.content.split()) for message in request.messages)

    def stream(self, request: Request) -> Iterator[str]:
        self.requests.append(request)
        pieces = [f"{len(request.messages)} ", request.messages[-1].content]
        for place, piece in enumerate(pieces):
            if place == self.break_at:
                raise KeyboardInterrupt
            self.written = place + 1
            yield piece

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Somebody at a terminal who types these lines; KeyboardInterrupt is Ctrl-C."""

    def types(*lines: str | type[BaseException]) -> None:
        waiting = iter(lines)

        def read(prompt: str) -> str:
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    return types


def contents(request: Request) -> list[str]:
    return [message.content for message in request.messages]


def test_a_retry_asks_the_same_with_another_seed(typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parrot = Parrot()
    typing("/retry", "hello", "/retry", "more")
    Talk(parrot, OPTIONS).run()
    first, again, more = parrot.requests
    assert contents(first) == contents(again) == ["hello"]
    assert first.seed != again.seed
    assert contents(more) == ["hello", "1 hello", "more"]
    assert "Nothing was asked yet." in capsys.readouterr().out


def test_another_model_goes_on_with_what_was_said(typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parrot, made = Parrot("sft"), []

    def load(name: str) -> Speaker:
        if name != "dpo":
            raise ModelError("run", f"this run has no model '{name}'", "Name one of: sft, dpo")
        made.append(Parrot(name))
        return made[0]

    typing("hello", "/model", "/model dqo", "/model dpo", "and you?")
    Talk(parrot, OPTIONS, load, ("sft", "dpo")).run()
    out = capsys.readouterr().out
    assert "There are: sft, dpo. This is sft." in out
    assert "this run has no model 'dqo'" in out
    assert parrot.closed
    assert contents(made[0].requests[0]) == ["hello", "1 hello", "and you?"]


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parrot = Parrot()
    talk = Talk(parrot, OPTIONS)
    parrot.break_at = 1
    talk.on_terminal = True
    talk.ask("hello")
    assert [turn.content for turn in talk.conversation.turns] == ["hello", "1 "]
    parrot.break_at = 0
    talk.ask("more")
    assert [turn.content for turn in talk.conversation.turns] == ["hello", "1 "]
    assert "stopped; forgotten" in capsys.readouterr().out


def test_ctrl_c_at_the_prompt_warns_once(typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    typing(KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt)
    parrot = Parrot()
    with pytest.raises(KeyboardInterrupt):
        Talk(parrot, OPTIONS).run()
    assert capsys.readouterr().out.count("Ctrl-C again leaves") == 2
    assert len(parrot.requests) == 1


def test_speed_is_told_on_a_terminal_alone(typing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    typing("# A *title*\t`code`")
    Talk(Parrot(), OPTIONS).run()
    out = capsys.readouterr().out
    assert "1 # A *title*\t`code`\n\033[2m2 tokens, " in out
    talk = Talk(Parrot(), OPTIONS)
    talk.on_terminal = False
    talk.ask("hello")
    assert capsys.readouterr().out == "1 hello\n"


def test_a_full_context_forgets_the_oldest_turns_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    parrot = Parrot(context=40)
    talk = Talk(parrot, Options("be brief", 0.0, 1.0, 0, 8, 0))
    for number in range(6):
        talk.ask(f"w{number} a b c")
    for request in parrot.requests:
        assert parrot.length(request) + 8 <= 40
        assert [message.role for message in request.messages[:2]] == ["system", "user"]
    assert len(parrot.requests[-1].messages) < 1 + 2 * 5 + 1
    assert len(talk.conversation.turns) == 12, "all of it is kept for /save"
    err = capsys.readouterr().err
    assert "oldest turns no longer fit" in err
    with pytest.raises(ModelError, match="this alone has 52 tokens, and the model reads 40"):
        talk.ask("x " * 50)
    assert len(talk.conversation.turns) == 12


def test_what_fits_is_left_as_it_is() -> None:
    conversation = Conversation(OPTIONS, "", [Message(role="user", content="a b c")])
    request = conversation.request()
    assert fitted(Parrot(), request) == (request, 0)
    assert fitted(FarSpeaker("http://127.0.0.1:1/v1", "m"), request) == (request, 0)


def test_a_saved_conversation_is_a_row_that_import_reads(tmp_path: Path, typing: Any, capsys: Any) -> None:
    file = tmp_path / "chats.jsonl"
    talk = Talk(Parrot(), Options("be ★ brief", 0.0, 1.0, 0, 8, 0))
    typing("/save", f"/save {file}", "hello", f"/save {file}", 'a\\n"b"', f"/save {file}")
    talk.on_terminal = True
    talk.run()
    rows = list(read_file(file, Chat))
    assert [len(row.messages) for row in rows] == [3, 5]
    assert rows[1].messages == talk.conversation.messages
    out = capsys.readouterr().out
    assert "Name a file" in out
    assert "Nothing was said yet." in out
    assert "holds 2 conversations" in out


def test_a_conversation_is_not_lost_where_its_file_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nope/x.json: the folder that it belongs into is not there"):
        add_line(tmp_path / "nope" / "x.json", "{}\n")


def test_no_other_file_is_spoilt(tmp_path: Path) -> None:
    said = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk\n")
    with pytest.raises(DataError, match="something other than conversations"):
        save(notes, said)
    assert notes.read_text() == "buy milk\n"
    with pytest.raises(DataError, match="this is a folder"):
        save(tmp_path, said)
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps({"messages": []}))  # without an end of line
    assert save(torn, said) == 2
    assert len(torn.read_text().splitlines()) == 2


def test_once_prints_the_answer_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        stub.fault = _streamed
        said = main(["chat", "--endpoint", stub.base_url, "--name", "m", "--once", "hello", "--system", "be brief"])
    assert (said, capsys.readouterr().out) == (0, "a b c\n")


async def _streamed(stub: Stub, body: dict[str, Any], before: int) -> Any:
    from starlette.responses import Response

    assert body["stream"] is True
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("a ", "b ", "c")]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


PIECE = 'data: {"choices": [{"index": 0, "delta": {"content": "abc"}}]}\n\n'


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ("<html>hello</html>", "is no stream of a chat"),
        ("[]", "is no stream of a chat"),
        ("", "is no stream of a chat"),
        (PIECE, "broke off before its end"),
        ("data: []\n\n", "is no stream of a chat"),
        ("data: null\n\n", "is no stream of a chat"),
        ('data: {"choices": [5]}\n\n', "is no stream of a chat"),
        ('data: {"choices": {"a": 1}}\n\n', "is no stream of a chat"),
        ('data: {"choices": [{"delta": {"content": 5}}]}\n\n', "its content is of the type int"),
        ("data: " + "[" * 100_000 + "\n\n", "m \\(http"),
    ],
)
def test_what_is_no_stream_of_a_chat_is_one_line(sent: str, says: str) -> None:
    async def send(stub: Stub, body: dict[str, Any], before: int) -> Any:
        from starlette.responses import Response

        return Response(sent, media_type="text/event-stream")

    with Stub(fault=send) as stub, pytest.raises(TeacherError, match=says):
        list(FarSpeaker(stub.base_url, "m").stream(Request((Message(role="user", content="a"),), 5)))


def test_what_a_server_says_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(400, "\x1b]0;pwn\x07\x1b[2J\u202eon")

    with Stub(fault=refuse) as stub:
        assert main(["chat", "--endpoint", stub.base_url, "--name", "m", "--once", "hello"]) == 2
    err = capsys.readouterr().err
    assert r"\x1b]0;pwn\x07" in err
    assert not set(err) & {"\x1b", "\x07", "\u202e"}


def test_what_a_server_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(400, "the key sesame-key-123 is of no use")

    monkeypatch.setenv("CHAT_KEY", "sesame-key-123")
    with Stub(fault=refuse) as stub:
        far = ["chat", "--endpoint", stub.base_url, "--name", "m", "--once", "hello", "--key-env", "CHAT_KEY"]
        assert main(far) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "HTTP 400" in err
    assert "sesame" not in err
    for words, says in (
        (["chat"], "nobody is named to talk to"),
        (["chat", "run", "--endpoint", "http://x/v1", "--name", "m"], "and no run"),
        (["chat", "--endpoint", "http://x/v1"], "needs the name of its model"),
        (["chat", "--endpoint", "nowhere", "--name", "m"], "this is no URL"),
        (["chat", "--endpoint", "http://x/v1", "--name", "m", "--key-env", "NOT_SET_AT_ALL"], "is not set"),
    ):
        assert main(words) == 2
        assert says in capsys.readouterr().err


def test_nobody_listens_is_one_line() -> None:
    speaker = FarSpeaker("http://127.0.0.1:9/v1", "m")
    with pytest.raises(TeacherError, match=r"m \(http://127.0.0.1:9/v1\)"):
        list(speaker.stream(Request((Message(role="user", content="a"),), 5)))


def test_help_tells_every_command() -> None:
    for word in ("/retry", "/model", "/save", "/system", "/reset", "/help", "/exit"):
        assert word in chats.HELP
