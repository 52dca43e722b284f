"""What a local model worked out is not lost with the process: killed anywhere, only the rest is computed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import evaluation_fakes
import pytest
import torch
from engine import say, tiny_tokenizer
from kills import Killed, kill_in
from transformers import MistralConfig, MistralForCausalLM

from potstill.artifact import hash_file
from potstill.errors import StorageError
from potstill.records import Prompt
from potstill.sources import LocalModel, Model
from potstill.stages import sample
from potstill.stages.base import Work
from potstill.teachers import local
from potstill.teachers.base import Exchange, Reply, Request
from potstill.teachers.local import LocalTeacher, answer_logprobs
from potstill.teachers.spool import Spool, weights_identity
from potstill.training import decoding
from potstill.training.decoding import Batch
from potstill.training.models import save_model

DRIVER = Path(__file__).with_name("slow_evaluation.py")


def small(path: Path, seed: int) -> Model:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    made = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
        made.lm_head.weight[tokenizer.eos_token_id] *= 3  # so that it stops now and then
    save_model(made, tokenizer, path)
    return Model(path.name, LocalModel(path=str(path)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small(tmp_path_factory.mktemp("models") / "one", 2)


def lines(state: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(state.glob("*.jsonl")) for line in path.read_text().splitlines()]


# The store.


def test_each_result_is_handed_out_once_and_a_torn_one_never(tmp_path: Path) -> None:
    with Spool(tmp_path / "s", "x", "model") as spool:
        spool.keep([("a", [1]), ("b", 0.1), ("a", [2])])
        assert spool.take("a") is None, "what it has just kept is for those to come"
    (file,) = (tmp_path / "s").iterdir()
    with file.open("ab") as out:
        out.write(b'{"key":"c","fou')
    with Spool(tmp_path / "s", "x", "model") as spool:
        assert len(spool) == 3
        assert [spool.take(key) for key in ("a", "a", "a", "b", "c")] == [[1], [2], None, 0.1, None]
        spool.keep([("c", [3])])
    with Spool(tmp_path / "s", "x", "model") as spool:
        assert spool.take("c") == [3]
        assert len(spool) == 3
    with Spool(tmp_path / "s", "x", "another model") as spool:
        assert len(spool) == 0


def test_what_follows_a_damaged_line_is_computed_again(tmp_path: Path) -> None:
    with Spool(tmp_path, "x", 1) as spool:
        spool.keep([(str(n), n) for n in range(5)])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*whole[:2], b"\0" * 20 + b"\n", *whole[3:]]))
    with Spool(tmp_path, "x", 1) as spool:
        assert [spool.take(str(n)) for n in range(5)] == [0, 1, None, None, None]
    assert file.read_bytes() == b"".join(whole[:2])


def test_without_a_folder_nothing_is_kept() -> None:
    with Spool(None) as spool:
        spool.keep([("a", 1)])
        assert spool.take("a") is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder was expected"):
        Spool(tmp_path / "file", "x", 1)


def test_weights_are_known_by_their_seal_or_their_files(tmp_path: Path, model: Model) -> None:
    assert weights_identity("org/name") == "org/name"
    folder = Path(model.local.path)
    before = weights_identity(str(folder))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert weights_identity(str(folder)) != before


# The model.


def some_requests(count: int = 24) -> list[Request]:
    """Every third one twice: with the same words and seed, as two suites may ask."""
    texts = ("the cat", "what is this? it is a cat.", "a", "mat")
    asked = [
        Request(say(f"user: {texts[n % 4]} {n}"), 3 + 5 * (n % 4), float(n % 2), seed=n, attempts=1 + n % 2)
        for n in range(count)
    ]
    return [one for n, request in enumerate(asked) for one in ([request] * 2 if n % 3 == 0 else [request])]


def answers(model: Model, state: Path | None) -> list[Reply]:
    with LocalTeacher(model, state=state) as teacher:
        return list(teacher.complete(some_requests()))


@pytest.mark.parametrize("at", [1, 5, 20, 60])
def test_killed_at_any_step_it_goes_on_to_the_same_replies(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Rows that ended, and what was rejected and asked for again, are written once and never once more."""
    for module in (local, decoding):
        monkeypatch.setattr(module, "MOST_ROWS", 4)
    calm = answers(model, tmp_path / "calm")
    assert {reply.finish for reply in calm} >= {"stop", "length"}
    with monkeypatch.context() as patch:
        kill_in(patch, Batch, "step", at, before=True)
        with pytest.raises(Killed):
            answers(model, tmp_path / "killed")
    before = len(lines(tmp_path / "killed"))
    assert answers(model, tmp_path / "killed") == calm == answers(model, None)
    assert lines(tmp_path / "killed") == lines(tmp_path / "calm")
    assert (before > 0) == (at > 1)


def exchanges() -> list[Exchange]:
    words = ["the", "cat", "sat", "on", "the", "mat", "hello", "there"]
    return [
        Exchange(str(n), say(f"user: {words[n % 8]}?"), say(f"assistant: {' '.join(words[: 1 + n % 7])}"))
        for n in range(30)
    ]


@pytest.mark.parametrize("at", [1, 3, 5])
def test_scores_of_given_answers_are_kept_batch_by_batch(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(local, "SCORE_ROWS", 10)
    monkeypatch.setattr(local, "SCORE_TOKENS", 60)
    computed: list[int] = []
    collate = local.collate
    monkeypatch.setattr(local, "collate", lambda items: computed.append(len(items)) or collate(items))
    calm = answer_logprobs(model, exchanges(), None)
    whole, computed[:] = Counter(computed), []
    with monkeypatch.context() as patch:
        kill_in(patch, local, "collate", at, before=False)
        with pytest.raises(Killed):
            answer_logprobs(model, exchanges(), tmp_path)
    done = len(lines(tmp_path))
    assert done == at - 1
    computed.clear()
    assert answer_logprobs(model, exchanges(), tmp_path) == calm
    assert len(computed) == whole.total() - done
    computed.clear()
    assert answer_logprobs(model, exchanges(), tmp_path) == calm
    assert not computed


# A whole evaluation.


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    small(folder / "one", 1)
    small(folder / "two", 2)
    rows = [
        {"id": str(n), "prompt": f"what is this? {n}", "references": [f"it is a cat {n}"], "category": "x"}
        for n in range(24)
    ]
    chats = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "a cat"}],
        }
        for n in range(24)
    ]
    for name, found in (("questions", rows), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "recipe.yaml").write_text(
        "name: e\n"
        "models: {one: {path: one}, two: {path: two}}\n"
        "stages:\n"
        "  scores:\n"
        "    kind: evaluate\n"
        "    models: [one, two]\n"
        "    max_tokens: 24\n"
        "    suites:\n"
        "      right: {protocol: exact, questions: questions.jsonl}\n"
        "      loss: {protocol: answer_loss, chats: chats.jsonl}\n"
    )
    return folder / "recipe.yaml"


def started(recipe: Path, out: Path, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(recipe), str(out), str(seconds)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(recipe: Path, out: Path) -> None:
    process = started(recipe, out, 0)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def sealed(out: Path) -> dict[str, str]:
    files = (path for path in (out / "artifacts").rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hash_file(path) for path in files}


@pytest.fixture(scope="module")
def calm(recipe: Path) -> Path:
    finished(recipe, recipe.parent / "calm")
    return recipe.parent / "calm"


@pytest.mark.parametrize("results", [9, 33])
def test_an_evaluation_that_is_killed_asks_for_the_rest_and_seals_the_same_bytes(
    recipe: Path, calm: Path, results: int, tmp_path: Path
) -> None:
    """In the middle of the first model's answers, and of the second's."""
    out = tmp_path / "killed"
    process = started(recipe, out, 0.02)
    deadline = time.monotonic() + 120
    while sum(path.read_bytes().count(b"\n") for path in (out / "unfinished").glob("scores-*/*")) < results:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (state,) = (out / "unfinished").glob("scores-*")
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    assert not (out / "artifacts").exists() or not sealed(out)
    watched = {path: path.stat().st_ino for path in state.iterdir()}
    held = {path: os.open(path, os.O_RDONLY) for path in watched}  # they go when the stage is sealed
    try:
        finished(recipe, out)
        for path, descriptor in held.items():
            after = os.pread(descriptor, 1 << 24, 0)
            assert after.startswith(before[path.name])
            keys = Counter(json.loads(line)["key"] for line in after.splitlines())
            assert set(keys.values()) == {1}, "nothing was worked out twice"
    finally:
        for descriptor in held.values():
            os.close(descriptor)
    assert sealed(out) == sealed(calm)
    assert not list((out / "unfinished").iterdir())


def test_sample_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stage asks: here two models of a pool, the first of which was through when the second was killed."""
    models = tuple(small(tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    rows = [Prompt(id=str(n), messages=say(f"user: the cat {n}")) for n in range(10)]
    config = sample.Sample.model_validate(
        {"kind": "sample", "models": "pool", "prompts": "p", "per_prompt": 2, "max_tokens": 12, "truncated": "keep"}
    )
    for module in (local, decoding):
        monkeypatch.setattr(module, "MOST_ROWS", 4)

    def made(name: str) -> bytes:
        folder = tmp_path / name
        given = evaluation_fakes.inputs(
            {"prompts": evaluation_fakes.data(tmp_path / f"{name}-data", "p", "prompts", rows)}, {"models": models}
        )
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        sample.run(config, given, Work(draft, folder, 1, name="answers-0"))
        return (draft / "rows.jsonl").read_bytes()

    calm = made("calm")
    with monkeypatch.context() as patch:
        kill_in(patch, Batch, "step", 50, before=True)
        with pytest.raises(Killed):
            made("killed")
    state = tmp_path / "killed" / "unfinished" / "answers-0"
    before = len(lines(state))
    shutil.rmtree(tmp_path / "killed-data")
    assert made("killed") == calm
    assert (
        10 < before < 20 == len(lines(state)) == len({str(line["key"]) + str(line["found"]) for line in lines(state)})
    )
