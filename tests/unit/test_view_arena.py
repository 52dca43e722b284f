"""The arena's pages: blind before the vote, models loaded when asked, other sites refused, a run left in peace."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_arena import Voice
from view_run import Maker

from potstill.arena.votes import VOTES_FILE, read_votes
from potstill.runs.workspace import Workspace
from potstill.terminal.chat import Options
from potstill.verbs import chat
from potstill.view.sections import arena as section
from potstill.view.server import HEADERS, make_app

OWN = {"sec-fetch-site": "same-origin"}
WORDS = {"secret_one": "word0", "secret_two": "word1", "secret_three": "word2"}


class Word(Voice):
    """Says a word that is not its name; `unsaid` for a model that cannot be loaded."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.word = f"<b>{WORDS[name]}</b>"


def run_of(folder: Path, *names: str) -> Workspace:
    maker = Maker(folder)
    for name in names:
        maker.seal(name, "dpo", "model", {"curves.jsonl": []})
    return maker.finish()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded."""
    names: list[str] = []

    def load(name: str, path: Path) -> Word:
        names.append(name)
        return Word(name, path)

    monkeypatch.setattr(section, "load_near", load)
    return names


def client_of(workspace: Workspace) -> TestClient:
    app = make_app(workspace)
    return TestClient(app, base_url="http://127.0.0.1:8000", headers=OWN, raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path, loaded: list[str]) -> TestClient:
    return client_of(run_of(tmp_path, "secret_one", "secret_two"))


def answered(client: TestClient, **fields: str) -> Any:
    """The page of a round, once both answers are there."""
    found = client.post("/arena", data={"question": "<i>hello</i>", "voter": "ann", **fields})
    assert found.history, found.text
    while "Two models are asked" in found.text:
        time.sleep(0.01)
        found = client.get(found.url)
    return found


def test_before_the_vote_nothing_tells(client: TestClient) -> None:
    """With places swapped, all that was sent is the same but for the answers themselves and what is drawn."""
    seen: dict[str, str] = {}
    for _ in range(40):
        found = answered(client)
        assert found.status_code == 200
        assert "secret" not in found.text
        assert "secret" not in str(found.headers)
        assert "<i>" not in found.text
        first = re.findall(r"&lt;b&gt;(word\d)&lt;/b&gt;", found.text)[0]
        bare = re.sub(r"word\d", "word", found.text.replace(str(found.url).rsplit("/", 1)[1], ""))
        assert seen.setdefault(first, bare) == bare
    assert len(seen) == 2
    assert len(set(seen.values())) == 1


def test_a_vote_tells_the_names_once_it_is_kept_and_counts_once(client: TestClient, tmp_path: Path) -> None:
    assert "0 votes so far" in client.get("/arena").text
    page = answered(client)
    left = re.findall(r"&lt;b&gt;(word\d)&lt;/b&gt;", page.text)[0]
    name = next(name for name, word in WORDS.items() if word == left)
    told = client.post(page.url, data={"vote": "left"})
    assert f"Left was {name}" in told.text
    assert "1 vote so far" in told.text
    (vote,) = read_votes(tmp_path)
    assert (vote.left, vote.winner) == (name, "model_a")
    assert json.loads((tmp_path / VOTES_FILE).read_text())["judge"] == "ann"
    again = client.post(page.url, data={"vote": "right"})
    assert (again.status_code, "was voted on" in again.text) == (409, True)
    assert f"Left was {name}" in client.get(page.url).text
    assert len(list(read_votes(tmp_path))) == 1
    assert client.post(answered(client).url, data={"vote": "up"}).status_code == 400
    client.post(answered(client).url, data={"vote": "tie"})
    board = client.get("/arena/standings").text
    assert "secret_one" in board
    assert "75.0%" in board
    assert "95%" in board


def test_models_are_loaded_when_somebody_asks(client: TestClient, loaded: list[str]) -> None:
    for address in ("/", "/arena", "/arena/standings"):
        assert client.get(address).status_code == 200
    assert loaded == []
    answered(client)
    assert sorted(loaded) == ["secret_one", "secret_two"]
    answered(client)
    assert len(loaded) == 2
    assert "2 models are in memory" in client.get("/arena").text
    assert "in memory" not in client.post("/arena/rest").text
    answered(client)
    assert len(loaded) == 4


def test_the_page_says_that_models_are_loaded_and_that_they_write(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, may_write = threading.Event(), threading.Event()

    class Slow(Word):
        def __init__(self, name: str, path: Path) -> None:
            assert may_load.wait(60)
            super().__init__(name, path)

        def say(self, request: Any) -> Any:
            assert may_write.wait(60)
            return super().say(request)

    monkeypatch.setattr(section, "load_near", Slow)
    try:
        page = client.post("/arena", data={"question": "hello"})
        polled = page.url.copy_with(params={"seen": "loads"})
        while "A model is loaded" not in page.text:
            page = client.get(page.url)
        assert client.get(polled).status_code == 204
        may_load.set()
        while (page := client.get(polled)).status_code == 204:
            time.sleep(0.01)
        assert "A model writes" in page.text
        for name in WORDS:
            assert name not in page.text
        may_write.set()
        ended = {"hx-request": "true"}
        while (page := client.get(page.url.copy_with(params={"seen": "writes"}), headers=ended)).status_code == 204:
            time.sleep(0.01)
        while "hx-refresh" not in page.headers:
            page = client.get(page.url, headers=ended)
        assert "Whose answer is better?" in client.get(page.url).text
    finally:
        may_load.set()
        may_write.set()


def test_a_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, path: Path) -> Word:
        if name == "secret_three":
            raise OSError("torn <weights>\nTraceback and more")
        return Word(name, path)

    monkeypatch.setattr(section, "load_near", load)
    client = client_of(run_of(tmp_path, *WORDS))
    for _ in range(60):
        found = answered(client)
        if "cannot be loaded" in found.text:
            break
    text = client.get("/arena").text
    assert "it cannot be loaded (OSError: torn &lt;weights&gt;). Try it alone" in text
    assert "Traceback" not in text
    for _ in range(10):
        assert "Whose answer is better?" in answered(client).text


def test_an_error_of_a_question_keeps_the_question_and_names_no_model(client: TestClient) -> None:
    found = answered(client, question="long")
    assert "900 tokens" in found.text
    assert ">long</textarea>" in found.text
    assert "secret" not in re.search(r'role="alert"[^>]*>(.*?)</p>', found.text)[1]  # type: ignore[index]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # another port of this machine
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_forms_of_other_pages_are_refused(tmp_path: Path, loaded: list[str], sent: dict[str, str], status: int) -> None:
    app = make_app(run_of(tmp_path, "secret_one", "secret_two"))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    found = client.post("/arena/rest", headers=sent)
    assert found.status_code == status
    assert found.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert client.post("/arena", data={"question": "x"}, headers={"host": "evil.example"}).status_code == 400
    assert loaded == []


def test_what_is_no_question_is_said(client: TestClient, loaded: list[str]) -> None:
    assert client.post("/arena", content=b"question=" + b"x" * 2_000_000).status_code == 413
    assert client.post("/arena", data={"question": " "}).status_code == 400
    assert client.post("/arena", content=b"\xff\xfe=%ff&&&").status_code == 400
    assert client.get("/arena/round/none").status_code == 404
    assert client.post("/arena/round/none", data={"vote": "left"}).status_code == 404
    assert loaded == []


def test_beside_a_run_that_works_somebody_agrees_first(tmp_path: Path, loaded: list[str]) -> None:
    workspace = run_of(tmp_path, "secret_one", "secret_two")
    for path in (tmp_path / "artifacts").iterdir():
        (path / "model.safetensors").write_bytes(b"x" * 3_000_000)
    client = client_of(workspace)
    with Workspace(tmp_path).hold():
        page = client.get("/arena").text
        assert "works in this folder" in page
        assert "up to 11 MiB and what torch takes" in page
        refused = client.post("/arena", data={"question": "hello"})
        assert (refused.status_code, "agree to the memory" in refused.text) == (409, True)
        assert ">hello</textarea>" in refused.text
        assert loaded == []
        assert "Whose answer is better?" in answered(client, agreed="yes").text
        assert "works in this folder" not in client.get("/arena").text
        assert "Whose answer is better?" in answered(client).text


def test_the_head_has_a_link_where_there_are_two_models(tmp_path: Path, loaded: list[str]) -> None:
    """And from the moment there are: a run may seal the second while somebody looks."""
    run_of(tmp_path / "one", "secret_one")
    client = client_of(Workspace(tmp_path / "one"))
    assert 'href="/arena"' not in client.get("/").text
    alone = client.get("/arena")
    assert (alone.status_code, "it needs two models or more, and has secret_one" in alone.text) == (409, True)
    run_of(tmp_path / "two", "secret_one", "secret_two")
    for path in (tmp_path / "two" / "artifacts").iterdir():
        target = tmp_path / "one" / "artifacts" / path.name
        if not target.exists():
            path.rename(target)
    (tmp_path / "two" / "run.json").rename(tmp_path / "one" / "run.json")
    assert 'href="/arena"' in client.get("/").text
    assert "Whose answer is better?" in answered(client).text


def test_no_more_questions_wait_than_can_be_answered_soon(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(section, "load_near", lambda name, path: (go.wait(60), Word(name, path))[1])
    try:
        for _ in range(4):
            assert client.post("/arena", data={"question": "hello"}).history
        found = client.post("/arena", data={"question": "hello"})
        assert (found.status_code, "wait already" in found.text) == (409, True)
    finally:
        go.set()


def test_pages_ask_as_the_terminal_does() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    chat.arguments(parser)
    args = parser.parse_args([])
    assert Options() == Options(args.system, args.temperature, args.top_p, args.top_k, args.max_tokens, args.seed)
