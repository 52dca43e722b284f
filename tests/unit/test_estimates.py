"""`plan --hardware` on tiny models: what fits, what does not and what would, what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import tiny_model

from potstill import cli
from potstill.estimates import measured
from potstill.hardware import GIB, OF_PRINTED, Device, Hardware
from potstill.tokenization import train_tokenizer

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
    monkeypatch.setattr("potstill.estimates.run.measured_factor", lambda *given: 2.0)


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
    from potstill.recipe import load_recipe
    from potstill.training.adapter_config import Adapter

    changes = {"adapter": Adapter(kind="qlora"), "micro_batch_tokens": 64, "activation_checkpointing": True}
    written = _overrides("sft", changes)
    config: Any = load_recipe(str(folder / "r.yaml"), written).stages["sft"].config
    assert {name: getattr(config, name) for name in changes} == changes


def test_a_model_that_nobody_knows_leaves_the_others_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(folder, capsys, "--hardware", "24GB", "--until", "kept", "kept.teacher=big", "big.path=who/what")
    (kept,) = found["stages"]
    assert "who/what is made of is not known here" in kept["unknown"]


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


def test_a_share_of_what_the_roofline_says_is_measured_on_the_step_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is really taken; twice as fast a roof makes the share half."""
    from test_rehearsal import ITEMS, plain, role

    monkeypatch.setattr(measured, "_timed", lambda *given: 3.0)
    pace = measured.pace_of(Hardware(1, Device("cpu", "cpu", 0, 0.0, 0.0, 0.0, here=True)))[1]
    slow = measured.measured_factor(role(), ITEMS, plain, pace)
    from dataclasses import replace

    fast_roof = replace(pace.roof, flops_per_second=2e12, wide_flops_per_second=2e12, bytes_per_second=2e10,
                        start_seconds=pace.roof.start_seconds / 2)  # fmt: skip
    assert measured.measured_factor(role(), ITEMS, plain, replace(pace, roof=fast_roof)) == pytest.approx(2 * slow)


def test_a_step_that_is_timed_is_a_real_one() -> None:
    from test_rehearsal import ITEMS, plain, role

    assert 0 < measured._timed(role(), ITEMS, plain) < 60
