"""The arena: blind, each vote durable, ties counted and left out of pairs, standings with intervals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from potstill.arena.battles import MOST_OPEN, Arena, Stable
from potstill.arena.terminal import _round, table
from potstill.arena.votes import VOTES_FILE, Battle, Side, keep, read_votes, standings
from potstill.errors import DataError, ModelError
from potstill.reading.formats import examine, read_file
from potstill.reading.found import ShapeError
from potstill.records import Message, Pair
from potstill.teachers.base import Reply, Request
from potstill.terminal.chat import Options

OPTIONS = Options("be brief", 0.7, 0.95, 50, 16, 0)


class Voice:
    """A model that says its own word."""

    def __init__(self, name: str, path: Path) -> None:
        self.word = path.read_text() if path.is_file() else f"<b>{path.name}</b>"
        self.closed = False
        self.asked: list[Request] = []

    def say(self, request: Request) -> Reply:
        self.asked.append(request)
        if request.messages[-1].content == "long":
            return Reply("", "error", "the prompt has 900 tokens and the model reads 512")
        return Reply(f"{self.word} says {request.messages[-1].content}")

    def close(self) -> None:
        self.closed = True


def models_in(folder: Path, names: tuple[str, ...] = ("secret_one", "secret_two")) -> dict[str, Path]:
    """Models whose words are not their names."""
    paths = {}
    for place, name in enumerate(names):
        paths[name] = folder / f"word{place}"
        paths[name].mkdir(parents=True, exist_ok=True)
    return paths


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path, models_in(tmp_path / "models"), OPTIONS, Stable(Voice))


def test_order_is_drawn_anew_and_both_get_the_same_question(arena: Arena) -> None:
    battles = [arena.begin("hello") for _ in range(60)]
    left = Counter(battle.left.model for battle in battles)
    assert set(left) == {"secret_one", "secret_two"}
    assert min(left.values()) >= 12  # below that once in a million
    assert len({battle.request.seed for battle in battles}) > 50
    for battle in battles:
        assert {battle.left.model, battle.right.model} == {"secret_one", "secret_two"}
        assert [message.role for message in battle.request.messages] == ["system", "user"]
    asked = [voice.asked for voice in arena._stable._loaded.values()]  # type: ignore[attr-defined]
    assert asked[0] == asked[1]


def test_a_vote_is_on_the_disk_before_a_name_is_told_and_counts_once(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), real(number)))
    battle = arena.begin("hello")
    assert arena.vote(battle.id, "left", "ann") is battle
    assert synced
    row = json.loads((arena.folder / VOTES_FILE).read_text())
    assert (row["winner"], row["model_a"], row["model_b"]) == ("model_a", battle.left.model, battle.right.model)
    assert (row["judge"], row["seed"], row["system"]) == ("ann", battle.request.seed, "be brief")
    assert row["artifact_a"].startswith("word")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["at"])
    with pytest.raises(DataError, match="was voted on"):
        arena.vote(battle.id, "left", "ann")
    assert len(arena.votes()) == 1


def test_a_vote_that_could_not_be_kept_may_be_given_again(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    battle = arena.begin("hello")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"(?i)full|space"):
            arena.vote(battle.id, "right", "ann")
    arena.vote(battle.id, "right", "ann")


def vote_all(arena: Arena, votes: list[tuple[str, str]]) -> list[Battle]:
    return [arena.vote(arena.begin(question).id, vote, "ann") for question, vote in votes]  # type: ignore[arg-type]


def test_import_reads_pairs_and_counts_ties(arena: Arena) -> None:
    given = [("a", "left"), ("b", "right"), ("c", "tie"), ("d", "both_bad"), ("a", "left")]
    battles = vote_all(arena, given)
    found = list(examine(arena.folder / VOTES_FILE, Pair))
    pairs = [row.record for row in found if isinstance(getattr(row, "record", None), Pair)]
    assert len(found) == 5
    assert len(pairs) == 3
    for pair, battle, vote in zip(pairs, [battles[0], battles[1], battles[4]], ["left", "right", "left"], strict=True):
        better, worse = (battle.left, battle.right) if vote == "left" else (battle.right, battle.left)
        assert [(m.role, m.content) for m in pair.prompt] == [("system", "be brief"), ("user", battle.question)]
        assert pair.chosen[0].content == better.text
        assert pair.rejected[0].content == worse.text
        assert pair.id == battle.id
    with pytest.raises((DataError, ShapeError), match=r"tie|preferred"):
        list(read_file(arena.folder / VOTES_FILE, Pair))


def test_an_import_stage_reads_the_file_as_it_lies(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.cli import main

    vote_all(arena, [("a", "left"), ("b", "right"), ("c", "tie"), ("d", "both_bad")])
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        f"name: r\nstages:\n  pairs: {{kind: import, path: '{arena.folder / VOTES_FILE}', rows: pairs}}\n"
    )
    assert main(["run", "r.yaml"]) == 0
    facts = json.loads(Path("runs/r/pairs/manifest.json").read_text())["facts"]
    assert facts["rows"] == 2
    dropped = [json.loads(line) for line in Path("runs/r/pairs/dropped.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in dropped] == ["tie", "tie"]


def test_a_torn_line_is_no_vote_and_spoils_no_other(arena: Arena) -> None:
    vote_all(arena, [("a", "left"), ("b", "right")])
    path = arena.folder / VOTES_FILE
    whole = path.read_bytes()
    for size in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        path.write_bytes(whole[:size])
        assert len(arena.votes()) in (1, 2)
    path.write_bytes(whole[:-20])
    vote_all(arena, [("c", "left")])
    assert len(arena.votes()) == 2
    assert [len(line) > 0 for line in path.read_bytes().splitlines()] == [True] * 3


KILLED = """
import sys
from pathlib import Path
from potstill.arena.votes import Battle, Side, keep
from potstill.records import Message
from potstill.teachers.base import Request
request = Request((Message(role="user", content="q"),), 5)
number = 0
while True:
    battle = Battle(f"b{number}", request, Side("x", "x", "1", "stop"), Side("y", "y", "2", "stop"))
    keep(Path(sys.argv[1]), battle, "left", "ann")
    number += 1
    print(number, flush=True)
"""


def test_what_was_told_to_be_kept_survives_a_kill(tmp_path: Path) -> None:
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    told = 0
    for line in running.stdout:
        told = int(line)
        if told == 40:
            running.send_signal(signal.SIGKILL)
            break
    rest = running.stdout.read().split()
    running.wait()
    running.stdout.close()
    assert len(list(read_votes(tmp_path))) >= max([told, *map(int, rest)])


def test_many_may_vote_at_once(tmp_path: Path) -> None:
    request = Request((Message(role="user", content="q" * 5000),), 5)

    def vote(name: str) -> None:
        for number in range(20):
            sides = Side("x", "x", "1", "stop"), Side("y", "y", "2", "stop")
            keep(tmp_path, Battle(f"{name}{number}", request, *sides), "tie", name)

    threads = [threading.Thread(target=vote, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({vote.id for vote in read_votes(tmp_path)}) == 80


def row(number: int, left: str, right: str, vote: str, question: str | None = None) -> tuple[Battle, Any]:
    asked = Request((Message(role="user", content=question or f"q{number}"),), 5)
    return Battle(f"b{number}", asked, Side(left, left, "1", "stop"), Side(right, right, "2", "stop")), vote


def test_standings_do_not_depend_on_the_side_and_know_their_doubt(tmp_path: Path) -> None:
    """x wins 15 of 20, from either side: 75%, Wilson's interval 53 to 89."""
    for number in range(20):
        wins, on_left = number < 15, number % 2 == 0
        names = ("x", "y") if on_left else ("y", "x")
        keep(tmp_path, *row(number, *names, "left" if wins == on_left else "right"), voter="ann")
    best, other = standings(read_votes(tmp_path))
    assert (best.model, best.wins, best.losses, best.ties) == ("x", 15, 5, 0)
    assert (best.share.mean, best.share.n) == (0.75, 20)
    assert (best.share.low, best.share.high) == (pytest.approx(0.531, abs=0.002), pytest.approx(0.888, abs=0.002))
    assert other.share.mean == 0.25
    assert "x: 75.0% (95% interval 53.1% to 88.8%, n 20" in table([best]).replace("n=20", "n 20")


def test_votes_on_one_question_are_not_many_questions(tmp_path: Path) -> None:
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    for folder in (wide, narrow):
        folder.mkdir()
        for number in range(40):
            question = f"q{number % 4}" if folder == wide else f"q{number}"
            vote = "left" if number % 4 else "right"
            keep(folder, *row(number, "x", "y", vote, question), voter="ann")
    spread = {}
    for folder in (wide, narrow):
        share = standings(read_votes(folder))[0].share
        assert share.low is not None
        assert share.high is not None
        spread[folder.name] = share.high - share.low
    assert spread["wide"] > 1.5 * spread["narrow"]


def test_three_models_are_also_told_two_by_two(tmp_path: Path) -> None:
    for number, (left, right) in enumerate([("x", "y"), ("y", "z"), ("z", "x")] * 4):
        keep(tmp_path, *row(number, left, right, "tie" if number % 2 else "left"), voter="ann")
    found = standings(read_votes(tmp_path))
    assert [bool(one.against) for one in found] == [False] * 3 + [True] * 3
    assert all(one.wins + one.losses + one.ties == one.share.n for one in found)


def test_where_memory_is_short_models_take_turns(tmp_path: Path) -> None:
    made: list[Voice] = []

    def load(name: str, path: Path) -> Voice:
        made.append(Voice(name, path))
        return made[-1]

    for free, most_open in ((1e9, 3), (1000.0, 1)):
        made.clear()
        paths = models_in(tmp_path, ("x", "y", "z"))
        for path in paths.values():
            (path / "model.safetensors").write_bytes(b"x" * 400)
        models = Stable(load, free=lambda free=free: free)
        for name in "xyzx":
            models.get(name, paths[name])
            assert sum(not voice.closed for voice in made) <= most_open
        assert len(made) == (3 if most_open == 3 else 4)
        models.close()
        assert all(voice.closed for voice in made)


def test_errors_name_no_model(arena: Arena) -> None:
    with pytest.raises(ModelError) as told:
        arena.begin("long")
    assert "secret" not in str(told.value)
    with pytest.raises(DataError, match="two models or more"):
        Arena(arena.folder, models_in(arena.folder / "m", ("one",)), OPTIONS, Stable(Voice))


def test_a_model_that_cannot_be_loaded_is_left_out_until_it_is_mended(tmp_path: Path) -> None:
    def load(name: str, path: Path) -> Voice:
        if (path / "bad").exists():
            raise RuntimeError("torn weights\nand more")
        return Voice(name, path)

    models = models_in(tmp_path / "models", ("x", "y", "z"))
    (models["z"] / "bad").touch()
    arena = Arena(tmp_path, models, OPTIONS, Stable(load))
    told = []
    for _ in range(40):
        try:
            battle = arena.begin("hello")
        except ModelError as error:
            told.append(str(error))
            continue
        assert {battle.left.model, battle.right.model} <= {"x", "y"}
    assert len(told) == 1  # missed in all 40 draws once in two million
    assert "it cannot be loaded (RuntimeError: torn weights)." in told[0]
    assert arena.broken == {"z": told[0]}
    assert arena.doing == "waits"
    (models["y"] / "bad").touch()
    arena.close()
    assert arena.loaded == 0
    assert arena.broken == {}
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be loaded"):
            arena.begin("hello")
    with pytest.raises(ModelError, match="only x of its models"):
        arena.begin("hello")
    (tmp_path / "anew").mkdir()
    arena.offer({**models, "z": tmp_path / "anew"})  # the stage ran again
    assert list(arena.broken) == ["y"]
    assert {one.model for one in vars(arena.begin("hello")).values() if isinstance(one, Side)} == {"x", "z"}


def test_battles_that_nobody_votes_on_are_forgotten(arena: Arena) -> None:
    first = arena.begin("hello")
    for _ in range(MOST_OPEN):
        arena.begin("hello")
    with pytest.raises(DataError):
        arena.vote(first.id, "left", "ann")


# The terminal.


def test_the_terminal_asks_and_tells(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["hello", "what", "R", "/standings", "again", "s"])
    _round(arena, lines, "ann", prompted=False)
    out = capsys.readouterr().out
    before, _, after = out.partition("Left was")
    assert "secret" not in before
    assert "secret" in after
    assert [vote.winner for vote in arena.votes()] == ["model_b"]
    _round(arena, lines, "ann", prompted=False)
    assert "won" in capsys.readouterr().out
    _round(arena, lines, "ann", prompted=False)
    assert len(arena.votes()) == 1
