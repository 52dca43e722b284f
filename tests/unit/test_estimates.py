"""`plan --hardware` on tiny models: what fits, what does not and what would, what is said of it."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import FAMILIES, tiny_model

from potstill import cli
from potstill.artifact import seal
from potstill.estimates import measured, trying
from potstill.estimates.models import Known
from potstill.estimates.rows import Sample
from potstill.estimates.training import Lot, Trainer, Variant
from potstill.estimates.trying import Tried, tried
from potstill.hardware import GIB, OF_PRINTED, Device, Hardware
from potstill.recipe import load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.tokens.tokenization import train_tokenizer
from potstill.training.tally import Roof

ROWS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a local model, its rows, and stages of all kinds that compute."""
    at = tmp_path_factory.mktemp("estimates")
    said = [f"word{n} goes here and there" for n in range(ROWS)]
    tokenizer = train_tokenizer(said, 300)
    model = tiny_model(dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(at / "model")
    tokenizer.save_pretrained(at / "model")
    with (at / "chats.jsonl").open("w") as chats, (at / "pairs.jsonl").open("w") as pairs:
        for text in said:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            chats.write(json.dumps({"messages": turns}) + "\n")
            pairs.write(json.dumps({"prompt": text, "chosen": text + " yes", "rejected": text + " no"}) + "\n")
    (at / "r.yaml").write_text(
        "name: r\nmodels:\n  base: {path: ./model}\n  big: {path: mistralai/Mistral-7B-v0.1}\nstages:\n"
        "  chats: {kind: import, path: chats.jsonl, rows: chats}\n"
        "  sft: {kind: sft, model: base, data: chats, max_length: 64, held_out: 2}\n"
        "  dpo: {kind: dpo, model: sft, data: pairs.jsonl, max_length: 64, epochs: 3}\n"
        "  taught: {kind: distill, model: base, teacher: sft, data: chats, max_length: 64}\n"
        "  kept: {kind: capture, teacher: base, data: chats, max_length: 64, draws: 50}\n"
    )
    return at


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's speed is told, not measured."""

    def look(device: Device) -> Device:
        return Device("cpu", "cpu", 8 << 30, 1e12, 1e12, 1e10, here=True)

    monkeypatch.setattr(measured, "_look", look)
    monkeypatch.setattr("potstill.estimates.run.tried", lambda *given: Tried(1 << 29, 2.0, 0.5))


def planned(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["plan", str(folder / "r.yaml"), "--out", str(folder / "out"), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_stage_that_computes_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(folder, capsys, "--hardware", "1x24GB@1.2USD")
    stages = {one["stage"]: one for one in found["stages"]}
    assert list(stages) == ["sft", "dpo", "taught", "kept"]
    for one in stages.values():
        assert one["fits"]
        assert one["peak_bytes"] >= sum(one["memory_bytes"].values()) > 0
        assert one["seconds"] > 0
        assert one["usd"] == pytest.approx(one["seconds"] / 3600 * 1.2, abs=1e-4)
    assert stages["dpo"]["tokens"] > 3 * 20 * ROWS
    assert stages["taught"]["memory_bytes"]["teachers"] > 0
    assert "cache of the reference" in stages["dpo"]["disk_bytes"]
    assert found["usd"] == pytest.approx(sum(one["usd"] for one in stages.values()), abs=0.01)
    assert "assumed: 60%" in found["pace"]


def test_rows_that_are_here_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the model's tokenizer; nothing about lengths is assumed."""
    found = planned(folder, capsys, "--hardware", "24GB", "--until", "sft")
    (sft,) = found["stages"]
    assert sft["assumed"] == []
    assert found["teachers_usd"] == [0.0, 0.0]


def test_a_model_takes_its_own_part_of_what_an_evaluation_asks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a judge behind an endpoint reads and writes is no work of the models; what is scored is read alone."""
    (tmp_path / "questions.jsonl").write_text('{"id": "1", "messages": [{"role": "user", "content": "word1?"}]}\n')
    models = f"{{base: {{path: {folder}/model}}, judge: {{endpoint: 'http://x/v1', name: j}}}}"
    suites = {
        "loss": f"loss: {{protocol: answer_loss, chats: {folder}/chats.jsonl}}",
        "talk": f"talk: {{protocol: mt_bench, questions: {tmp_path}/questions.jsonl}}",
    }
    found = {}
    for name, asked in {**suites, "both": ", ".join(suites.values())}.items():
        judge = "" if name == "loss" else ", judge: judge"
        stage = f"{{kind: evaluate, models: [base]{judge}, suites: {{{asked}}}}}"
        (tmp_path / "r.yaml").write_text(f"name: r\nmodels: {models}\nstages:\n  scores: {stage}\n")
        (found[name],) = planned(tmp_path, capsys, "--hardware", "24GB")["stages"]
    assert found["loss"]["memory_bytes"]["cache of what was read"] == 0
    assert found["loss"]["assumed"] == []
    assert found["loss"]["tokens"] == ROWS * 512
    assert 0 < found["talk"]["tokens"] < 2 * 1024, "two turns of answers, without what the judge reads of them"
    assert found["both"]["tokens"] == found["loss"]["tokens"] + found["talk"]["tokens"]
    assert "tokens a call, prompts with them" in found["talk"]["assumed"][0]


def test_more_memory_is_needed_for_more_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for tokens in (64, 512):
        found = planned(folder, capsys, "--hardware", "24GB", "--until", "sft", f"sft.micro_batch_tokens={tokens}")
        (sft,) = found["stages"]
        assert sft["settings"]["micro_batch_tokens"] == tokens
        sizes.append(sft["memory_bytes"]["activations"])
    assert sizes[1] > 4 * sizes[0]


def test_what_does_not_fit_is_told_with_what_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--hardware", "24GB", "--until", "sft"]
    few, many = (
        planned(folder, capsys, *words, f"sft.micro_batch_tokens={tokens}")["stages"][0]["peak_bytes"]
        for tokens in (64, 4096)
    )
    assert few < many
    gib = (few + many) / 2 / OF_PRINTED / GIB
    words = ["--hardware", f"{gib:.9f}GB", "--until", "sft", "sft.micro_batch_tokens=4096"]
    (sft,) = planned(folder, capsys, *words)["stages"]
    assert not sft["fits"]
    (change,) = sft["nearest_setting"]["overrides"]
    assert change.startswith("sft.micro_batch_tokens=")
    tokens = int(change.partition("=")[2])
    for asked, fits in ((tokens, True), (2 * tokens, False)):
        (sft,) = planned(folder, capsys, *words[:-1], f"sft.micro_batch_tokens={asked}")["stages"]
        assert sft["fits"] is fits


def test_what_is_proposed_can_be_written(folder: Path) -> None:
    from potstill.estimates.training import _overrides
    from potstill.training.adapter_config import Adapter

    changes = {"adapter": Adapter(kind="qlora"), "micro_batch_tokens": 64, "activation_checkpointing": True}
    written = _overrides("sft", changes)
    config: Any = load_recipe(str(folder / "r.yaml"), written).stages["sft"].config
    assert {name: getattr(config, name) for name in changes} == changes


def test_a_model_that_nobody_knows_leaves_the_others_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(folder, capsys, "--hardware", "24GB", "--until", "kept", "kept.teacher=big", "big.path=who/what")
    (kept,) = found["stages"]
    assert "who/what is made of is not known here" in kept["unknown"]


def test_rows_that_are_not_here_are_as_long_as_their_import_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through `curate`, for both tables: what would run, and what it takes."""
    (tmp_path / "hub.yaml").write_text(
        f"name: hub\nmodels:\n  base: {{path: {folder / 'model'}}}\nstages:\n"
        "  read: {kind: import, hub: who/what, split: train, rows: chats, expected_rows: 100,"
        " expected_row_tokens: 40}\n"
        "  kept: {kind: curate, data: read}\n"
        "  sft: {kind: sft, model: base, data: kept, max_length: 64, held_out: 0, epochs: 3}\n"
    )
    recipe, place = load_recipe(str(tmp_path / "hub.yaml"), []), Workspace(tmp_path / "out")
    assert make_plan(recipe, place, Hashes(tmp_path / "h.json")).steps["sft"].expected.tokens == 3 * 100 * 40
    words = ["plan", str(tmp_path / "hub.yaml"), "--hardware", "24GB", "--json"]
    assert cli.main(words) == 0
    (sft,) = json.loads(capsys.readouterr().out)["stages"]
    assert sft["tokens"] == 3 * 100 * 40
    assert sft["assumed"] == ["sft's rows of 40 tokens each, as the stage that imports them says"]
    assert cli.main([*words, "read.expected_row_tokens=null"]) == 0
    (sft,) = json.loads(capsys.readouterr().out)["stages"]
    assert "since none is here yet" in sft["assumed"][0]


def test_this_machine_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(folder, capsys, "--hardware", "cpu", "--until", "sft")
    assert found["hardware"]["memory_bytes"] == 8 << 30
    assert "measured here" in found["pace"]
    assert "reached of that: sft 50%" in found["pace"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_its_terminal(
    width: int, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["plan", str(folder / "r.yaml"), "--out", str(folder / "out"), "--hardware", "8xH100"]) == 0
    shown = capsys.readouterr().out
    table = [line for line in shown.splitlines() if line.startswith(("sft ", "dpo ", "taught ", "kept "))]
    assert len(table) >= 4
    assert max(len(line) for line in table) <= width
    for word in ("fits", "H100", "of disk", "sharding=fsdp2", "at $3.00 an hour and device"):
        assert word in shown


def test_without_hardware_nothing_is_new(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(folder / "r.yaml"), "--out", str(folder / "out")]) == 0
    shown = capsys.readouterr().out
    assert "5 of 5 stages would run" in shown
    assert "memory" not in shown
    assert cli.main(["plan", str(folder / "r.yaml"), "--json"]) == 2
    assert "Add --hardware" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (["sft.learning_rate=1e-4"], True),
        (["sft.learning_rate=1e-4", "sft.micro_batch_tokens=64"], False),
        (["sft.epochs=7"], False),
    ],
)
def test_a_stage_that_ran_here_before_takes_what_it_took(
    change: list[str], known: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another learning rate changes no time. Then half of the tokens that there are now were read, in 60 seconds of
    which 10 were the start."""
    place = Workspace(tmp_path / "out")
    step = make_plan(load_recipe(str(folder / "r.yaml"), []), place, Hashes(tmp_path / "h.json")).steps["sft"]
    words = ["plan", str(folder / "r.yaml"), "--out", str(place.path), "--json", "--hardware", "cpu", "--until", "sft"]
    assert cli.main([*words, *change]) == 0
    (first,) = json.loads(capsys.readouterr().out)["stages"]
    epochs = load_recipe(str(folder / "r.yaml"), change).stages["sft"].config.epochs  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"device": "cpu", "micro_batch_tokens": 2048, "activation_checkpointing": "none"}
    draft = shutil.copytree(folder / "model", tmp_path / "draft")
    place.artifacts.mkdir(parents=True)
    facts["tokens"] = first["tokens"] / epochs / 2
    seal(
        draft, place.artifacts / step.folder, {**step.head, "facts": {**facts, "tokens": first["tokens"] / epochs / 2}}
    )
    for whole in (False, True):
        place.note_time(step.key, "sft", 60.0, whole=whole)
        assert cli.main([*words, *change]) == 0
        (now,) = json.loads(capsys.readouterr().out)["stages"]
        if known and whole:
            assert now["seconds"] == pytest.approx(10 + 2 * 50, rel=0.01)
            assert "sft's time is as measured here before, by its rows of now" in now["assumed"]
        else:
            assert now["seconds"] == first["seconds"]


def test_what_a_process_keeps_beyond_its_tensors_is_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of what comes and goes, and half a GiB before there is a model."""
    (sft,) = planned(folder, capsys, "--hardware", "cpu", "--until", "sft")["stages"]
    parts = sft["memory_bytes"]
    assert parts["framework"] == 1 << 29
    worst = sum(parts.get(name, 0) for name in ("gradients", "activations", "temporary"))
    assert parts["kept between uses"] == pytest.approx(worst / 2, rel=1e-3)
    assert sft["peak_bytes"] == sum(parts.values())


@pytest.fixture(scope="module")
def rehearsed() -> tuple[Trainer, Variant]:
    """A stage of several micro-batches a step, and as the plan rehearsed it."""
    from test_rehearsal import ITEMS

    from potstill.stages.sft import SftConfig

    config = SftConfig.model_validate(
        {"kind": "sft", "model": "m", "data": "d", "global_batch": 12, "micro_batch_tokens": 80, "held_out": 0}
    )
    hardware = Hardware(1, Device("cpu", "cpu", 8 << 30, 1e12, 1e12, 1e10, here=True))
    pace = measured.Pace("cpu", Roof(1e12, 1e12, 1e10, 1e-6), "")
    model = Known("m", FAMILIES["mistral"], "a test")
    trainer = Trainer(config, model, [], Lot(Sample(tuple(ITEMS), ""), 24, 0), pace)
    variant = trainer.variant(config, 1, hardware)
    assert variant is not None
    assert variant.pieces > 1
    return trainer, variant


def test_steps_are_set_against_what_the_roofline_says_of_them(
    rehearsed: tuple[Trainer, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as fast a roof makes the share half; what the process grew by beyond the tensors is kept."""
    trainer, variant = copy.copy(rehearsed[0]), rehearsed[1]
    jobs: list[trying.Job] = []

    def asked(job: trying.Job) -> tuple[list[float], int, int]:
        jobs.append(job)
        return [3.0, 3.0], 100, round(variant.takes.standing + 3 * variant.takes.worst)

    monkeypatch.setattr(trying, "_asked", asked)
    slow = tried(trainer, variant)
    roof = trainer.pace.roof
    trainer.pace = replace(trainer.pace, roof=Roof(2e12, 2e12, 2 * roof.bytes_per_second, roof.start_seconds / 2))
    fast = tried(trainer, variant)
    assert slow is not None
    assert fast is not None
    assert fast.factor == pytest.approx(2 * slow.factor)
    assert slow.kept == pytest.approx(2.0, rel=1e-3)
    assert slow.own_bytes == 100
    shapes = [tuple(item.tokens for item in step) for step in jobs[0].steps]
    assert shapes[0] != shapes[1], "the same rows twice would break up no memory"


def test_what_is_tried_is_tried_for_real(rehearsed: tuple[Trainer, Variant]) -> None:
    """In a process of its own: it imports, trains and answers."""
    found = tried(*rehearsed)
    assert found is not None
    assert 100 << 20 < found.own_bytes < 2 << 30
    assert found.factor > 0
    assert found.kept > 0


def test_what_is_too_large_is_not_tried(rehearsed: tuple[Trainer, Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "PARAMETERS", 10)
    assert tried(*rehearsed) is None
    monkeypatch.undo()
    monkeypatch.setattr(trying, "free_bytes", lambda device: 10)
    assert tried(*rehearsed) is None


def test_a_try_that_dies_says_nothing(rehearsed: tuple[Trainer, Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying.sys, "executable", "/bin/false")
    assert tried(*rehearsed) is None
