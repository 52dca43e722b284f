"""Captures stopped, killed and gone on with, of mixtures and for other templates; what a plan knows of one; damage.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kills import Killed, kill_in
from rich.console import Console
from tokenizer_families import family
from training_stages import CHATS, PRETRAIN, SFT, TEXTS, Bench, curve
from transformers import AutoTokenizer

from potstill.errors import DataError, ModelError, RecipeError, Stopped, StorageError
from potstill.objectives.divergence import DivergenceName, takes_drawn
from potstill.recipe import load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.signals.files import Reader, Writer
from potstill.signals.sparse import to_sparse
from potstill.sources import Data, Inputs, LocalModel, Model
from potstill.stages import capture as stage
from potstill.stages import distill, pretrain, sft
from potstill.stages.distill import SERVED_BY_DRAWS
from potstill.terminal import signal_view
from potstill.training import capture as engine
from potstill.training.batch import Batch

KEPT: dict[str, Any] = {"draws": 20, "top": 3, "layers": [1], "width": 8, "dtype": "float32"}
STEPS: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "global_batch": 8, "dtype": "float32"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("captures"))


@pytest.fixture(scope="module")
def base(bench: Bench) -> Model:
    return bench.run(pretrain, "base", {**PRETRAIN, "epochs": 1}, bench.data("texts", "texts", TEXTS))[0]


@pytest.fixture(scope="module")
def chats(bench: Bench) -> Data:
    return bench.data("chats", "chats", CHATS)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SHARD_POSITIONS", 60)


def taken(
    bench: Bench, out: str, teacher: Model, data: Data | tuple[Data, ...], *, student: Model | None = None,
    stopping: Callable[[], bool] = lambda: False, **config: Any,
) -> Data:  # fmt: skip
    """A capture by that name."""
    models = {"teacher": (teacher,)} | ({"student": (student,)} if student else {})
    given = {"teacher": teacher.name, "data": "chats", **({"student": student.name} if student else {})}
    inputs = Inputs({"data": data if isinstance(data, tuple) else (data,)}, models, {})
    bench._run(stage, out, {**given, **KEPT, **config}, inputs, stopping)
    return Data(out, "signals", bench.root / out)


def learnt(bench: Bench, out: str, student: Model, signals: Data, data: Data | tuple[Data, ...], **config: Any) -> Any:
    given = {"model": student.name, "teacher": signals.name, "data": "chats", **STEPS, **config}
    sources = {"data": data if isinstance(data, tuple) else (data,), "teacher": (signals,)}
    return bench._run(distill, out, given, Inputs(sources, {"model": (student,)}, {}))


def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that the teacher reads from now on."""
    rows: list[str] = []
    said = engine._said

    def counted(scorer: Any, batch: Batch, asked: Any) -> Any:
        rows.extend(batch.row_ids)
        return said(scorer, batch, asked)

    monkeypatch.setattr(engine, "_said", counted)
    return rows


# --- ended anywhere -------------------------------------------------------------------------------------------------


def test_asked_to_stop_it_goes_on_where_it_was(
    bench: Bench, base: Model, chats: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = taken(bench, "calm", base, chats)
    assert len(list((calm.path / "signals").glob("*.signal"))) > 4
    rows = read(monkeypatch)
    asks: Iterator[int] = iter(range(1000))
    for _ in range(2):
        with pytest.raises(Stopped, match=r"token [\d,]+ of [\d,]+: the capture was asked to stop"):
            taken(bench, "stopped", base, chats, stopping=lambda: next(asks) % 3 == 2)
    taken(bench, "stopped", base, chats)
    assert sorted(rows) == sorted({f"chats/{row.id}" for row in CHATS}), "a row was read twice, or never"
    assert bench.hashes("stopped") == bench.hashes("calm")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (Writer, "add", 1),
        (Writer, "add", 4),
        (Path, "write_bytes", 2),
        (Path, "rename", 1),
        (Path, "rename", 3),
        (shutil, "copytree", 1),
    ],
)
def test_killed_while_it_writes_it_seals_the_same_bytes(
    bench: Bench, base: Model, chats: Data, owner: Any, name: str, at: int, before: bool
) -> None:
    taken(bench, "calm", base, chats)
    state = bench.root / "unfinished" / "killed"
    shutil.rmtree(state, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, owner, name, at, before=before)
        with pytest.raises(Killed):
            taken(bench, "killed", base, chats)
    with pytest.MonkeyPatch.context() as patch:
        there = set(Reader(state / "signals").keys()) if list(state.glob("signals/*.signal")) else set()
        rows = read(patch)
        signals = taken(bench, "killed", base, chats)
    assert len(there) + len(rows) == len(CHATS)
    assert len(Reader(signals.path / "signals")) == len(CHATS)
    assert bench.hashes("killed") == bench.hashes("calm")


def test_killed_at_random_again_and_again_it_seals_the_same_bytes(bench: Bench, base: Model, chats: Data) -> None:
    """By the system, in processes of their own."""
    began = time.monotonic()
    taken(bench, "calm", base, chats)
    whole = time.monotonic() - began
    fork, draw = multiprocessing.get_context("fork"), random.Random(0)
    kept = []
    for _ in range(6):
        process = fork.Process(target=taken, args=(bench, "shot", base, chats))
        process.start()
        time.sleep(draw.uniform(0.1, 1.2) * whole)
        assert process.pid is not None
        with_kill = process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept.append((with_kill, len(list((bench.root / "unfinished" / "shot").glob("signals/*.signal")))))
    assert any(with_kill for with_kill, _ in kept)
    assert [count for _, count in kept] == sorted(count for _, count in kept), "a whole shard was lost"
    taken(bench, "shot", base, chats)
    assert bench.hashes("shot") == bench.hashes("calm")


def test_what_another_teacher_left_behind_is_not_gone_on_with(bench: Bench, base: Model, chats: Data) -> None:
    """Of a model on the Hub, say, that changed under its name while the capture was stopped."""
    other, _ = bench.run(sft, "other", {**SFT, "epochs": 1}, chats, base)
    asks: Iterator[int] = iter(range(1000))
    with pytest.raises(Stopped):
        taken(bench, "changed", base, chats, stopping=lambda: next(asks) == 2)
    with pytest.raises(DataError, match=r"of another capture: teacher \w+\.\.\., not \w+"):
        taken(bench, "changed", other, chats)


# --- of what --------------------------------------------------------------------------------------------------------


def test_a_mixture_is_captured_whole_and_learnt_by_its_weights(bench: Bench, base: Model, chats: Data) -> None:
    """Held-out rows are rows of the capture like all others."""
    more = bench.data("more", "chats", CHATS[:16])
    signals = taken(bench, "mixed", base, (chats, replace(more, weight=0.25)), draws=0, top=300)
    assert len(Reader(signals.path / "signals")) == 64
    sources = (chats, replace(more, weight=0.5))
    model, facts = learnt(bench, "from-mixed", base, signals, sources, held_out=6)
    assert facts["sources"]["more"] == {"rows": 14, "weight": 0.5, "rows_per_epoch": 7} | facts["sources"]["more"]
    assert curve(model, "held_out")[0]["divergence"] < 2e-3


def test_rows_may_be_written_with_the_students_template(bench: Bench, base: Model, chats: Data) -> None:
    shutil.copytree(base.local.path, bench.root / "others", dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(bench.root / "others")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(bench.root / "others", save_jinja_files=False)
    student = Model("others", LocalModel(path=str(bench.root / "others")))
    own = taken(bench, "own-template", base, chats, draws=0, top=300)
    for given, remedy in (({}, "give the teacher"), ({"template": tokenizer.chat_template}, "mend this stage's")):
        with pytest.raises(
            ModelError, match=f"its chat template is not the student's: .* Set template: teacher, or {remedy}"
        ):
            learnt(bench, "refused", student, own, chats, **given)
    theirs = taken(bench, "their-template", base, chats, student=student, draws=0, top=300)
    model, _ = learnt(bench, "by-template", student, theirs, chats, held_out=6)
    assert curve(model, "held_out")[0]["divergence"] < 2e-3  # it is its teacher, and reads the same tokens


def test_a_student_of_other_tokens_is_refused(bench: Bench, base: Model, chats: Data) -> None:
    """Trap: "Same size is not same vocabulary: compare id-to-token maps.\""""
    other, _ = bench.run(
        pretrain, "fewer", {**PRETRAIN, "epochs": 1, "vocabulary": 290}, Data("texts", "texts", bench.root / "texts")
    )
    message = "the teacher has 290 tokens and the student 300; the first that the teacher lacks is"
    with pytest.raises(ModelError, match=message):
        taken(bench, "fewer-tokens", other, chats, student=base)
    signals = taken(bench, "fewer-tokens", other, chats)
    with pytest.raises(ModelError, match=message):
        learnt(bench, "refused", base, signals, chats)


def test_another_type_is_another_signal_and_nearly_the_same(bench: Bench, base: Model, chats: Data) -> None:
    exact, rounded = (
        Reader(taken(bench, dtype, base, chats, draws=0, top=5, dtype=dtype).path / "signals")
        for dtype in ("float32", "bfloat16")
    )
    assert exact.header.teacher != rounded.header.teacher
    assert exact.keys() == rounded.keys()
    pairs = list(zip(exact.read(exact.keys()), rounded.read(rounded.keys()), strict=True))
    assert any((one.hidden[1].codes_CH != two.hidden[1].codes_CH).any() for one, two in pairs)
    assert max(float(abs(one.entropy - two.entropy).max()) for one, two in pairs) < 0.1  # type: ignore[operator]


# --- damaged --------------------------------------------------------------------------------------------------------


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-40])


def flipped(shard: Path) -> None:
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 1
    shard.unlink()  # it may be one file with the stage's own
    shard.write_bytes(whole)


def gone(shard: Path) -> None:
    shard.unlink()


DAMAGE = {
    "cut short": (cut_short, StorageError, "000002.signal: it is cut short"),
    "flipped": (flipped, StorageError, "000002.signal: .* not those that were written"),
    "gone": (gone, DataError, "row chats/.* was not captured"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_refused(bench: Bench, base: Model, chats: Data, damage: str) -> None:
    do, error, message = DAMAGE[damage]
    signals = taken(bench, damage, base, chats)
    shutil.copytree(signals.path, bench.root / "copy", dirs_exist_ok=True)
    signals = Data("copy", "signals", bench.root / "copy")
    do(signals.path / "signals" / "000002.signal")
    with pytest.raises(error, match=message):
        learnt(bench, "refused", base, signals, chats)
    assert not list((bench.root / "refused").iterdir())
    shutil.rmtree(signals.path)


# --- shown to a person ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [{}, {"draws": 0}, {"top": 0, "layers": []}, {"top": 0, "draws": 0}])
def test_what_was_captured_is_shown_as_text(
    bench: Bench, base: Model, chats: Data, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal_view, "POSITIONS", 3)
    kept = {**kept, "width": None} if kept.get("layers") == [] else kept
    signals = taken(bench, f"shown-{'-'.join(kept)}", base, chats, **kept)
    console = Console(width=120, record=True, file=io.StringIO())
    signal_view.show_signals(console, signals.path, rows=2)
    said = console.export_text()
    reader = Reader(signals.path / "signals")
    assert re.search(rf"bytes a token +{reader.bytes_per_token():.2f}", said)
    assert "2 of 48 rows" in said
    assert "chats/1" in said
    assert "chats/2" not in said
    if "layers" not in kept:
        assert re.search(r"^(kept)? +layer 1 of 1, 8 of 32 directions *$", said, re.MULTILINE), said
    assert reader.header.teacher in said
    assert not re.search(r"^(teacher|data) ", said, re.MULTILINE), "the manifest has these names above"
    assert re.search(r"^… \d+ more tokens?$", said, re.MULTILINE)
    assert ("likeliest" in said) == (reader.header.top > 0)
    assert ("drawn from" in said) == (reader.header.draws > 0)
    if reader.header.distribution:
        found = to_sparse(reader.read(reader.keys()[:1]), reader.header)
        tokenizer = AutoTokenizer.from_pretrained(signals.path / "tokenizer")
        place = int(found.mass_CK[0].argmax())
        likeliest = tokenizer.decode([int(found.ids_CK[0, place])])
        assert re.search(rf'"{re.escape(likeliest)}" +{found.mass_CK[0, place]:.1%}', said), said
    else:
        assert "layer 1: length" in said


@pytest.mark.parametrize("name", ["small", "metaspace", "legacy", "unigram"])
def test_a_shown_token_has_its_blank(tmp_path: Path, name: str) -> None:
    """Trap: some vocabularies leave out the blank that a text begins with, and so that of every token alone."""
    tokenizer = family(name, "default")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = signal_view._Words(tmp_path)
    ids = tokenizer.encode("the cat\n", add_special_tokens=False)
    assert "".join(words(token)[1:-1] for token in ids).strip() == "the cat\\n"


# --- what a plan knows ----------------------------------------------------------------------------------------------

RECIPE = """\
name: toy
models: {m: {path: some/teacher}}
stages:
  told: {kind: capture, teacher: m, data: [chats.jsonl, more.jsonl], %s}
  s: {kind: distill, model: m, teacher: [{from: told, weight: 0.5}], data: chats.jsonl, %s}
"""
UNFIT = {
    "temperature": ("top: 5, temperature: 2", "", "captured at temperature 2, and the divergence is at 1"),
    "draws": ("draws: 5", "divergence: reverse_kl", "its draws are right on average for forward_kl alone"),
    "both": ("draws: 5, top: 5", "divergence: jsd", "its draws are right on average for forward_kl alone"),
    "no states": ("top: 5", "hidden_weight: 1", "no hidden states are captured"),
    "nothing said": ("layers: [1]", "", "no distributions are captured"),
    "another layer": ("layers: [1, 3], top: 5", "hidden_weight: 1, layers: {1: 2}", "layer 2 is not captured: 1, 3"),
    "too many": ("layers: [1, 3], top: 5", "hidden_weight: 1, layers: 3", "3 layers are to be learnt, and 2"),
    "on policy": ("top: 5", "on_policy: {}", "it is captured, and cannot be asked about the student's own answers"),
    "prompt": ("top: 5", "teacher_prompt: be kind", "it is captured, and cannot be asked about other prompts"),
    "across": ("top: 5", "divergence: uld", "it is captured, and uld asks a teacher about other tokens"),
    "learnt": ("top: 5, learn: all", "", "captured with learn: all, and this stage has learn: assistant"),
    "data": ("top: 5, data: more.jsonl", "", "'told' captures rows of more.jsonl, and none of 'chats.jsonl'"),
}
FIT = {
    "draws": ("draws: 5", ""),
    "top": ("top: 5, temperature: 2", "temperature: 2, divergence: reverse_kl"),
    "states alone": ("layers: [1], draws: 5", "hidden_weight: 1, divergence_weight: 0"),
    "layers": ("layers: [1, 3], top: 5", "hidden_weight: 1, layers: {1: 3}"),
}


def planned(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str, asked: str) -> None:
    monkeypatch.chdir(folder)
    for name in ("chats", "more"):
        Path(f"{name}.jsonl").write_text("".join(row.to_line() for row in CHATS))
    told, _, given = kept.partition("data: ")
    recipe = RECIPE % (told.rstrip(", "), asked)
    recipe = recipe.replace("[chats.jsonl, more.jsonl]", given) if given else recipe
    Path("toy.yaml").write_text(recipe.replace(", }", "}"))
    make_plan(load_recipe("toy.yaml", ()), Workspace(folder / "run"), Hashes(folder / "hashes.json"))


@pytest.mark.parametrize("case", UNFIT)
def test_a_plan_refuses_what_a_capture_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Before the teacher is read for hours."""
    kept, asked, message = UNFIT[case]
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        planned(tmp_path, monkeypatch, kept, asked)
    assert caught.value.where.startswith("toy.yaml:5"), "the line that names it"


@pytest.mark.parametrize("case", FIT)
def test_a_plan_lets_pass_what_it_can_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    planned(tmp_path, monkeypatch, *FIT[case])


def test_draws_serve_what_the_objectives_say() -> None:
    assert [name for name in DivergenceName.__args__ if takes_drawn(name)] == [SERVED_BY_DRAWS]  # type: ignore[attr-defined]
