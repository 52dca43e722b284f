"""Training stages stopped and run again, and what changes how they work: the same bytes, or the same within rounding.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import say
from safetensors.torch import load_file
from training_stages import CHATS, DPO, PAIRS, PRETRAIN, SFT, TEXTS, Bench, curve
from transformers import AutoTokenizer

from potstill.errors import Stopped
from potstill.recipe import load_recipe
from potstill.records import Chat
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data, Model
from potstill.stages import dpo, pretrain, sft
from potstill.training import memory, reference
from potstill.training.batch import Item

LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.1}
DORA: dict[str, Any] = {**LORA, "kind": "dora"}


@dataclass(frozen=True)
class Made:
    """The bench, its rows and a base that knows a little."""

    bench: Bench
    base: Model
    chats: Data
    pairs: Data

    def run(self, stage: Any, out: str, **changes: Any) -> tuple[Model, dict[str, Any]]:
        """A stage on the base, quick."""
        return self.again(stage, out, lambda: False, **changes)

    def again(self, stage: Any, out: str, stopping: Callable[[], bool], **changes: Any) -> Any:
        if stage is pretrain:
            config, data, model = {**PRETRAIN, "epochs": 2.5}, Data("texts", "texts", self.bench.root / "texts"), None
        elif stage is sft:
            config, data, model = {**SFT, "epochs": 2.5}, self.chats, self.base
        else:
            config, data, model = {**DPO, "epochs": 2.5}, self.pairs, self.base
        return self.bench.run(stage, out, {**config, **changes}, data, model, stopping)

    def weights(self, out: str) -> dict[str, torch.Tensor]:
        return load_file(self.bench.root / out / "model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    bench = Bench(tmp_path_factory.mktemp("runs"))
    base, _ = bench.run(pretrain, "base", PRETRAIN, bench.data("texts", "texts", TEXTS))
    return Made(bench, base, bench.data("chats", "chats", CHATS), bench.data("pairs", "pairs", PAIRS))


def asked_behind(step: int) -> Callable[[], bool]:
    calls: Iterator[int] = iter(range(1, 100_000))
    return lambda: next(calls) == step


def live(bench: Bench, out: str) -> list[int]:
    """The steps that were trained, in the order in which they were."""
    rows = map(json.loads, (bench.root / "logs" / f"{out}.curves.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["split"] == "train"]


RUNS = {
    "pretrain": (pretrain, {}),
    "pretrain-muon": (pretrain, {"optimizer": "muon", "keep": "best"}),
    "sft": (sft, {"neftune_alpha": 5.0, "keep": "best", "evaluations": 5}),
    "sft-lora": (sft, {"adapter": LORA, "neftune_alpha": 5.0}),
    "sft-tokens": (sft, {"adapter": LORA, "new_tokens": ["purrs"]}),
    "dpo": (dpo, {"sft_term": 0.2}),
    "dpo-dora": (dpo, {"adapter": DORA, "keep": "best", "evaluations": 3}),
    "kto": (dpo, {"loss": "kto", "adapter": LORA}),
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_run_again_it_seals_the_same_bytes(made: Made, name: str) -> None:
    """Trap: "epoch 0 replayed; scheduler or RNG not restored". By the config's own ways, adapters and noise among them;
    the live file says which steps were trained: none twice."""
    stage, changes = RUNS[name]
    _, facts = made.run(stage, "straight", **changes)
    for behind in (1, facts["steps"] - 2):
        out = f"{name}-{behind}"
        with pytest.raises(Stopped, match=f"step {behind} of {facts['steps']}"):
            made.again(stage, out, asked_behind(behind), **changes)
        assert live(made.bench, out) == list(range(1, behind + 1))
        _, again = made.run(stage, out, **changes)
        assert again == facts
        assert made.bench.hashes(out) == made.bench.hashes("straight")
        assert live(made.bench, out) == list(range(1, facts["steps"] + 1))


def test_stopped_while_the_reference_is_computed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SHARD_TOKENS", 200)
    _, facts = made.run(dpo, "straight", beta=0.3)
    bench = Bench(made.bench.root / "alone")
    bench.root.mkdir()
    alone = replace(made, bench=bench)
    computed = counted(monkeypatch)
    with pytest.raises(Stopped, match=r"token \d+ of [\d,]+: the reference's pass was asked to stop"):
        alone.again(dpo, "out", asked_behind(2), beta=0.3)
    assert 0 < len(computed) < 32
    _, again = alone.run(dpo, "out", beta=0.3)
    assert len(computed) == 48  # of 32 pairs to train on and 16 held out, none twice
    assert again == facts
    assert bench.hashes("out") == made.bench.hashes("straight")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that the reference's pass computes from now on."""
    rows: list[str] = []
    compute = reference.column

    def column(team: Any, items: list[Item], budget: int) -> Any:
        rows.extend(item.row for item in items)
        return compute(team, items, budget)

    monkeypatch.setattr(reference, "column", column)
    return rows


def test_the_reference_is_shared_by_all_that_reads_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs, betas, losses, learning rates, adapters and rows by other names: the first pays for all of them."""
    bench = Bench(made.bench.root / "shared")
    bench.root.mkdir()
    shared = replace(made, bench=bench)
    computed = counted(monkeypatch)
    shared.run(dpo, "first")
    assert len(computed) == 48
    renamed = [row.model_copy(update={"id": f"other {row.id}"}) for row in PAIRS]
    changes: list[dict[str, Any]] = [
        {"beta": 0.5}, {"epochs": 1}, {"loss": "ipo"}, {"learning_rate": 1e-4}, {"adapter": LORA},
        {"held_out": 8}, {"global_batch": 4},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        shared.run(dpo, f"other{number}", **change)
    replace(shared, pairs=made.bench.data("renamed", "pairs", renamed)).run(dpo, "renamed")
    assert len(computed) == 48
    shared.run(dpo, "precise", dtype="bfloat16" if is_float32(shared, "first") else "float32")
    assert len(computed) == 96
    another, _ = made.run(sft, "another", epochs=1)
    replace(shared, base=another).run(dpo, "model")
    assert len(computed) == 144
    said = [PAIRS[0].model_copy(update={"chosen": say("assistant: the cat sleeps.")}), *PAIRS[1:]]
    replace(shared, pairs=made.bench.data("said", "pairs", said)).run(dpo, "said")
    assert len(computed) == 145
    shared.run(dpo, "without", loss="orpo")
    assert len(computed) == 145


def is_float32(made: Made, out: str) -> bool:
    _, facts = made.run(dpo, out)
    return bool(facts["dtype"] == "float32")


# --- adapters and new tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
def test_adapters_through_sft_and_dpo(made: Made, adapter: dict[str, Any]) -> None:
    """Trap: "a LoRA reference with the adapter still on"; "SFT adapter not merged before the DPO adapter is added".

    The reference is what SFT made, adapter included, and DPO starts there to the last bit."""
    kind = adapter.get("kind", "lora")
    tuned, _ = made.run(sft, f"sft-{kind}", adapter=adapter, epochs=6)
    better, facts = replace(made, base=tuned).run(dpo, f"dpo-{kind}", adapter=adapter)
    for model in (tuned, better):
        folder = Path(model.local.path) / "adapter"
        assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
        assert "lora" not in " ".join(load_file(Path(model.local.path) / "model.safetensors"))
    assert facts["adapter"]["trained"] < 20_000
    first = curve(better, "held_out")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert (first["margin"], first["accuracy"], first["kl"]) == (0.0, 0.5, 0.0)
    learnt = curve(tuned, "held_out")
    assert learnt[-1]["loss"] < 0.9 * learnt[0]["loss"]
    # The reference's column is what the merged SFT model says: as a full run on it would have it.
    whole, _ = replace(made, base=tuned).run(dpo, f"full-{kind}")
    ours, theirs = ([json.loads(line) for line in held_out(model)] for model in (better, whole))
    assert [row["reference"] for row in ours] == [row["reference"] for row in theirs]


def held_out(model: Model) -> list[str]:
    return (Path(model.local.path) / "held_out.jsonl").read_text().splitlines()


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_new_token_is_one_token_of_the_sealed_model_and_is_learnt(made: Made, adapter: Any) -> None:
    thinking = [
        Chat(id=chat.id, messages=(chat.messages[0], *say(f"assistant: <think> {chat.messages[1].content}")))
        for chat in CHATS
    ]
    data = made.bench.data("thinking", "chats", thinking)
    out = f"thinking-{'lora' if adapter else 'full'}"
    changes = {"epochs": 6, "new_tokens": ["<think>"], "adapter": adapter, "learning_rate": 1e-2}
    model, _ = replace(made, chats=data).run(sft, out, **changes)
    before, after = (AutoTokenizer.from_pretrained(m.local.path) for m in (made.base, model))
    assert len(before.encode("<think>")) > 1
    assert after.tokenize("so <think> yes").count("<think>") == 1
    assert len(after) == len(before) + 1
    number = after.convert_tokens_to_ids("<think>")
    tables = [made.weights(name)["model.embed_tokens.weight"].float() for name in ("base", out)]
    assert len(tables[1]) > number
    mean = tables[0][: len(before)].mean(0)
    assert (tables[1][number] - mean).norm() > 1e-3 * mean.norm()  # it began there and was trained
    if adapter:
        assert torch.equal(tables[1][: len(before)], tables[0][: len(before)])
    held = curve(model, "held_out")
    assert held[-1]["loss"] < 0.8 * held[0]["loss"]


# --- how it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [sft, dpo], ids=["sft", "dpo"])
def test_activations_computed_again_change_no_byte(made: Made, stage: Any) -> None:
    name = f"plain-{stage.__name__[-3:]}"
    _, plain = made.run(stage, name, activation_checkpointing=False, adapter=LORA, micro_batch_tokens=100)
    _, again = made.run(stage, f"{name}-again", activation_checkpointing=True, adapter=LORA, micro_batch_tokens=100)
    assert made.bench.hashes(name) == made.bench.hashes(f"{name}-again")
    assert {key for key in plain if plain[key] != again[key]} == {"activation_checkpointing"}


@pytest.mark.parametrize("stage", [sft, dpo], ids=["sft", "dpo"])
def test_micro_batches_change_the_curve_by_no_more_than_rounding(made: Made, stage: Any) -> None:
    """Trap: "Gradient accumulation averages micro-batch means". In float32, where there is nothing random."""
    name = f"whole-{stage.__name__[-3:]}"
    whole, facts = made.run(stage, name, micro_batch_tokens=4096, dtype="float32")
    parts, cut = made.run(stage, f"{name}-cut", micro_batch_tokens=40, dtype="float32")
    assert (facts["micro_batch_tokens"], cut["micro_batch_tokens"]) == (4096, 40)
    for split in ("train", "held_out"):
        ours, theirs = curve(parts, split), curve(whole, split)
        assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=2e-3, abs=1e-4)


def test_stored_in_bfloat16_it_is_the_float32_model_rounded(made: Made) -> None:
    made.run(sft, "wide", store="float32")
    made.run(sft, "narrow", store="bfloat16")
    wide, narrow = made.weights("wide"), made.weights("narrow")
    assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
    assert wide.keys() == narrow.keys()
    assert all(torch.equal(narrow[name], tensor.to(torch.bfloat16)) for name, tensor in wide.items())
    assert json.loads((made.bench.root / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"
    names = made.bench.hashes("wide").keys()
    same = {name for name in names if made.bench.hashes("wide")[name] == made.bench.hashes("narrow")[name]}
    assert names - same == {"config.json", "model.safetensors"}


def test_what_was_decided_at_first_holds_when_it_goes_on(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is another every time: a run that was stopped goes on as it would have gone."""
    _, facts = made.run(sft, "roomy")
    with pytest.raises(Stopped):
        made.again(sft, "cramped", asked_behind(5))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    _, again = made.run(sft, "cramped")
    assert again == facts
    _, scarce = made.run(sft, "scarce")
    assert scarce["activation_checkpointing"] == "every layer"
    assert scarce["micro_batch_tokens"] < facts["micro_batch_tokens"]


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_dpo_that_goes_too_far_says_so_in_its_facts(made: Made) -> None:
    _, calm = made.run(dpo, "calm", learning_rate=1e-6)
    assert "warnings" not in calm
    _, wild = made.run(dpo, "wild", learning_rate=3e-2, beta=0.01, epochs=6)
    assert "chosen_collapse" in wild["warnings"]
    assert wild["warnings"]["chosen_collapse"].startswith("step ")


def test_tensorboard_through_a_stage(made: Made) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, plain = made.run(sft, "silent")
    model, tracked = made.run(sft, "tracked", track=["tensorboard"])
    assert tracked == plain
    assert made.bench.hashes("tracked") == made.bench.hashes("silent")
    accumulator = EventAccumulator(str(made.bench.root / "logs" / "tracked"))
    accumulator.Reload()
    told = [event.value for event in accumulator.Scalars("train/loss")]
    assert told == pytest.approx([row["loss"] for row in curve(model, "train")], rel=1e-5)


def test_a_mixture_takes_what_its_weights_say(made: Made) -> None:
    """`data: [chats, {from: more, weight: 0.5}]`, stopped in its second epoch too: shares are drawn anew each epoch."""
    more = replace(made.bench.data("more", "chats", CHATS[:16]), weight=0.5)
    sources = [made.chats, more]
    config = {**SFT, "epochs": 2, "held_out": 0, "keep": "last"}
    _, facts = made.bench.run(sft, "mixed", config, sources, made.base)
    assert facts["sources"] == {
        "chats": {"rows": 48, "weight": 1.0, "rows_per_epoch": 48},
        "more": {"rows": 16, "weight": 0.5, "rows_per_epoch": 8},
    }
    assert facts["steps"] == 2 * (48 + 8) / 8
    with pytest.raises(Stopped):
        made.bench.run(sft, "stopped", config, sources, made.base, asked_behind(10))
    assert made.bench.run(sft, "stopped", config, sources, made.base)[1] == facts
    assert made.bench.hashes("stopped") == made.bench.hashes("mixed")


# --- keys -----------------------------------------------------------------------------------------------------------

RECIPE = """\
name: toy
stages:
  pre: {kind: pretrain, data: texts.jsonl, vocabulary: 300, layers: 1, width: 32, heads: 2, context: 128}
  other: {kind: pretrain, data: texts.jsonl, vocabulary: 300, layers: 2, width: 32, heads: 2, context: 128}
  tuned: {kind: sft, model: pre, data: chats.jsonl, held_out: 4}
  better: {kind: dpo, model: tuned, data: pairs.jsonl, held_out: 4}
"""
HOW = {
    "device": "cpu", "micro_batch_tokens": "64", "activation_checkpointing": "true", "track": "[tensorboard]",
    "checkpoint_minutes": "3", "checkpoint_steps": "7", "sharding": "fsdp2",
}  # fmt: skip
WHAT = {
    "epochs": "2", "learning_rate": "0.02", "optimizer": "muon", "schedule": "linear", "warmup": "0.2",
    "weight_decay": "0.1", "beta2": "0.9", "clip": "2.0", "held_out": "5", "evaluations": "3", "keep": "best",
    "patience": "3", "dtype": "float32", "adapter": "{rank: 8}", "store": "float32", "model": "other",
    "data": "more.jsonl", "global_batch": "8", "max_length": "100",
}  # fmt: skip
OWN = {
    "tuned": {
        "on_long": "cut",
        "learn": "all",
        "new_tokens": "[a, b]",
        "template": "'{{ eos_token }}'",
        "neftune_alpha": "1",
    },
    "better": {"loss": "hinge", "beta": "0.3", "sft_term": "0.1", "template": "'{{ eos_token }}'"},
}


@pytest.mark.parametrize("stage", ["tuned", "better"])
def test_how_it_computes_is_no_part_of_a_key_and_all_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(RECIPE)
    for name, rows in {"texts": TEXTS, "chats": CHATS, "pairs": PAIRS}.items():
        Path(f"{name}.jsonl").write_text("".join(row.to_line() for row in rows))
    Path("more.jsonl").write_text(Path("chats.jsonl" if stage == "tuned" else "pairs.jsonl").read_text() * 2)

    def keys(*overrides: str) -> dict[str, str]:
        folder = Path("unused")
        plan = make_plan(load_recipe("toy.yaml", overrides), Workspace(folder), Hashes(folder / "hashes.json"))
        return {name: step.key for name, step in plan.steps.items()}

    fields = {"tuned": sft.SftConfig, "better": dpo.DpoConfig}[stage]
    unread = {"flipped", "gamma", "nll_weight", "odds_weight", "desirable_weight", "undesirable_weight"}
    assert HOW.keys() == fields.HOW
    assert {*HOW, *WHAT, *OWN[stage]} == fields.model_fields.keys() - {"kind"} - unread
    plain = keys()
    for field, value in HOW.items():
        assert keys(f"{stage}.{field}={value}") == plain, field
    for field, value in {**WHAT, **OWN[stage]}.items():
        changed = keys(f"{stage}.{field}={value}")
        assert {name for name, key in plain.items() if changed[name] != key} == {stage, "better"}, field
