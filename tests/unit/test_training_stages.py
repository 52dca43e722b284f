"""pretrain, sft and dpo by hand, from text to a model that transformers runs without us."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import say
from training_stages import CHATS, DPO, PAIRS, PRETRAIN, SFT, TEXTS, Bench, curve
from transformers import AutoTokenizer, pipeline

from potstill.artifact import write_rows
from potstill.errors import DataError, ModelError
from potstill.records import Chat, Feedback, Message, Pair, ToolCall
from potstill.sources import Data, LocalModel, Model
from potstill.stages import dpo, pretrain, sft
from potstill.teachers.base import Request
from potstill.teachers.local import LocalTeacher


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, Any], dict[str, Model]]:
    """base → sft → dpo, once for all tests here."""
    bench = Bench(tmp_path_factory.mktemp("stages"))
    base, base_facts = bench.run(pretrain, "base", PRETRAIN, bench.data("texts", "texts", TEXTS))
    tuned, sft_facts = bench.run(sft, "sft", SFT, bench.data("chats", "chats", CHATS), base)
    better, dpo_facts = bench.run(dpo, "dpo", DPO, bench.data("pairs", "pairs", PAIRS), tuned)
    facts = {"base": base_facts, "sft": sft_facts, "dpo": dpo_facts}
    return bench, facts, {"base": base, "sft": tuned, "dpo": better}


def test_every_stage_learns(made: Any) -> None:
    _, facts, models = made
    for name in ("base", "sft", "dpo"):
        losses = facts[name]["held_out_loss"]
        assert losses["best"] < 0.8 * losses["first"], name
        assert curve(models[name], "held_out")[0]["step"] == 0
    assert facts["sft"]["learnt_tokens"] < facts["sft"]["tokens"] < 48 * 40
    assert facts["base"]["layout"] == facts["sft"]["layout"] == "shared"


def test_dpo_begins_at_ln_2_and_raises_the_accuracy_on_held_out_pairs(made: Any) -> None:
    """Trap: "loss sits at ln 2"; "reference computed with the model that is being trained"."""
    _, facts, models = made
    held = curve(models["dpo"], "held_out")
    assert held[0]["loss"] == pytest.approx(0.693147, abs=2e-6)
    assert held[0]["accuracy"] == 0.5
    assert held[0]["margin"] == 0.0
    assert held[-1]["accuracy"] >= 0.9
    assert held[-1]["margin"] > 0.5
    assert held[-1].keys() >= {"chosen_logp", "rejected_logp"}
    assert facts["dpo"]["held_out_pairs"]["n"] == 16
    assert facts["dpo"]["held_out_pairs"]["accuracy"]["mean"] == held[-1]["accuracy"]
    assert facts["dpo"]["held_out_pairs"]["longer"]["mean"] < 0.1


def test_figures_are_over_all_pairs(made: Any) -> None:
    """Trap: "DPO metrics from rank 0 only". Recomputed from the pairs' own log-probabilities."""
    bench, _, models = made
    rows = [json.loads(line) for line in (bench.root / "dpo" / "held_out.jsonl").read_text().splitlines()]
    margins = [r["policy"][0] - r["reference"][0] - r["policy"][1] + r["reference"][1] for r in rows]
    last = curve(models["dpo"], "held_out")[-1]
    assert last["margin"] == pytest.approx(0.1 * sum(margins) / 16, rel=1e-3)
    assert last["accuracy"] == sum(margin > 0 for margin in margins) / 16
    assert last["chosen_logp"] == pytest.approx(sum(r["policy"][0] for r in rows) / 16, rel=1e-3)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_transformers_alone_runs_the_result_and_it_stops(made: Any, name: str) -> None:
    """Trap: "the model never learns to stop"; "Pad listed among eos in the saved generation config"."""
    _, _, models = made
    path = models[name].local.path
    run = pipeline("text-generation", model=path, device="cpu")
    answer = run([{"role": "user", "content": "what does the owl do? 21"}], max_new_tokens=40, do_sample=False)
    said = answer[0]["generated_text"][-1]
    assert said["role"] == "assistant"
    with LocalTeacher(models[name]) as teacher:
        (own,) = teacher.complete([Request(say("user: what does the owl do? 21"), max_tokens=40)])
    assert own.finish == "stop"
    assert said["content"].strip() == own.text.strip()
    assert said["content"].startswith("the ")
    assert name != "sft" or said["content"].startswith("the owl hoots")  # the toy's DPO may spoil what SFT knew
    assert len(said["content"]) < 40
    generation = json.loads((Path(path) / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert generation["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("</s>")
    assert generation["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert "chat_template" in json.loads((Path(path) / "tokenizer_config.json").read_text())


def test_what_is_sealed_tells_no_path_and_no_time(made: Any) -> None:
    bench, _, models = made
    for model in models.values():
        for file in Path(model.local.path).rglob("*.json*"):
            assert str(bench.root) not in file.read_text(), file.name
            assert "seconds" not in file.read_text(), file.name


def test_the_same_run_gives_the_same_bytes(made: Any) -> None:
    bench, _, models = made
    bench.run(pretrain, "base2", PRETRAIN, bench.data("texts", "texts", TEXTS))
    bench.run(sft, "sft2", SFT, bench.data("chats", "chats", CHATS), models["base"])
    bench.run(dpo, "dpo2", DPO, bench.data("pairs", "pairs", PAIRS), models["sft"])

    for name in ("base", "sft", "dpo"):
        assert bench.hashes(name) == bench.hashes(f"{name}2"), name
        assert "model.safetensors" in bench.hashes(name)


def test_rows_left_out_are_counted_with_their_reasons(made: Any, tmp_path: Path) -> None:
    _, _, models = made
    bench = Bench(tmp_path)
    long = Chat(id="long", messages=say("user: hi", "assistant: " + "the cat purrs. " * 30))
    steering = Chat(id="steering", messages=say("user: say </s> now", "assistant: no."))
    mute = Chat(id="mute", messages=say("user: hi", "assistant: hello.", train=False))
    turns = Chat(id="turns", messages=say("user: hi", "assistant: yes.", "user: go on", "assistant: " + "cat " * 60))
    rows = [*CHATS, long, steering, mute, turns]
    config = {**SFT, "epochs": 1, "max_length": 50}
    _, facts = bench.run(sft, "drop", config, bench.data("chats", "chats", rows), models["base"])
    assert facts["dropped"] == {"control_token": 1, "nothing_learnt": 1, "too_long": 2}
    dropped = [json.loads(line) for line in (tmp_path / "drop" / "dropped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped}["chats/steering"] == "control_token"
    _, facts = bench.run(sft, "cut", {**config, "on_long": "cut"}, bench.data("chats", "chats", rows), models["base"])
    assert facts["dropped"] == {"control_token": 1, "nothing_learnt": 1, "too_long": 1}
    assert facts["cut"] == 1


def test_pairs_that_teach_nothing_are_left_out(made: Any, tmp_path: Path) -> None:
    """Trap: "Chosen and rejected equal, or tied scores binarized into a pair with itself"."""
    _, _, models = made
    same = Pair(id="same", prompt=say("user: hi"), chosen=say("assistant: yes"), rejected=say("assistant: yes"))
    long = Pair(
        id="long", prompt=say("user: hi"), chosen=say("assistant: yes"), rejected=say("assistant: " + "no " * 99)
    )
    bench = Bench(tmp_path)
    data = bench.data("pairs", "pairs", [*PAIRS, same, long])
    _, facts = bench.run(dpo, "out", {**DPO, "epochs": 1, "max_length": 60}, data, models["sft"])
    assert facts["dropped"] == {"identical": 1, "too_long": 1}


@pytest.mark.parametrize("changes", [{"loss": "ipo", "beta": 0.05}, {"loss": "hinge"}, {"sft_term": 0.5}])
def test_other_losses_widen_the_margin_too(made: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    _, _, models = made
    bench = Bench(tmp_path)
    better, _ = bench.run(dpo, "out", {**DPO, "epochs": 2, **changes}, bench.data("p", "pairs", PAIRS), models["sft"])
    held = curve(better, "held_out")
    assert held[-1]["margin"] > held[0]["margin"]
    assert held[-1]["accuracy"] > 0.7


def broken(kind: str) -> Callable[[Path], Model]:
    def make(folder: Path) -> Model:
        folder.mkdir()
        if kind != "empty":
            (folder / "config.json").write_text('{"model_type": "mistral"}' if kind == "bare" else "{")
        return Model("student", LocalModel(path=str(folder)))

    return make


@pytest.mark.parametrize(("kind", "says"), [("empty", "there is no config.json in it"), ("bare", ""), ("torn", "")])
def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, kind: str, says: str) -> None:
    bench = Bench(tmp_path)
    model = broken(kind)(tmp_path / "model")
    with pytest.raises(ModelError, match="model student: ") as caught:
        bench.run(sft, "out", SFT, bench.data("chats", "chats", CHATS), model)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held_out", [0, 6])
def test_no_rows_is_one_line(made: Any, tmp_path: Path, held_out: int) -> None:
    _, _, models = made
    bench, config = Bench(tmp_path), {**SFT, "held_out": held_out, "keep": "best" if held_out else "last"}
    with pytest.raises(DataError, match=r"chats: no row is left \(there were none\)"):
        bench.run(sft, "out", config, bench.data("chats", "chats", []), models["base"])
    with pytest.raises(DataError, match=r"no row is left \(48 too_long\)"):
        bench.run(sft, "out2", {**config, "max_length": 8}, bench.data("chats", "chats", CHATS), models["base"])


def test_two_rows_of_one_name_are_refused(made: Any, tmp_path: Path) -> None:
    """Trap: "Offline logits matched to rows by step number": what is cached for a row is found by its name."""
    _, _, models = made
    bench = Bench(tmp_path)
    with pytest.raises(DataError, match="two rows have the id pairs/0"):
        bench.run(dpo, "out", DPO, bench.data("pairs", "pairs", [*PAIRS, PAIRS[0]]), models["sft"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"heads": 3}, "not a multiple of twice heads"), ({"kv_heads": 3, "heads": 4}, "does not divide"),
     ({"block_length": 999}, "longer than the context")],
)  # fmt: skip
def test_shapes_that_cannot_be_are_refused_before_anything_runs(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pretrain.STAGE.config(kind="pretrain", **{**PRETRAIN, **changes})


@pytest.mark.parametrize("number", range(4))
def test_a_row_beyond_the_models_positions_is_refused_held_out_or_not(made: Any, tmp_path: Path, number: int) -> None:
    """Two of three rows are held out; which of them depends on what they say."""
    _, _, models = made
    long = Chat(id="long", messages=say(f"user: what does cat {number} do?", f"assistant: {'the cat purrs. ' * 30}"))
    rows = Bench(tmp_path).data("chats", "chats", [*CHATS[:2], long])
    with pytest.raises(ModelError, match=r"row 'chats/long': it has \d+ tokens, and the model reads 128 at most"):
        Bench(tmp_path).run(sft, "out", {**SFT, "max_length": 500, "held_out": 2}, rows, models["base"])


def test_kto_reads_pairs_from_a_file_and_warns_of_one_label_alone(made: Any, tmp_path: Path) -> None:
    _, _, models = made
    bench, config = Bench(tmp_path), {**DPO, "loss": "kto", "epochs": 1, "held_out": 0}
    write_rows(tmp_path / "pairs.jsonl", PAIRS[:8])
    _, facts = bench.run(dpo, "both", config, Data("pairs.jsonl", "file", tmp_path / "pairs.jsonl"), models["sft"])
    assert (facts["desirable"], facts["undesirable"]) == (8, 8)
    assert bench.warnings == []
    good = [Feedback(id=p.id, prompt=p.prompt, answer=p.chosen, desirable=True) for p in PAIRS[:8]]
    bench.run(dpo, "out", config, bench.data("good", "feedback", good), models["sft"])
    assert bench.warnings == ["every answer is labelled true; kto learns from both"]


@pytest.mark.parametrize("field", [{"keep": "best"}, {"patience": 2}])
def test_what_goes_by_held_out_rows_wants_some(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="goes by the held-out loss, and no rows are held out"):
        sft.SftConfig(kind="sft", model="base", data="chats", **field)


TOOLS = """\
{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}\
{% endfor %}{{ eos_token }}{% endfor %}{{ tools | tojson if tools }}\
{% if add_generation_prompt %}[assistant] {% endif %}"""


def test_another_template_takes_the_place_of_the_models_own_and_is_kept(made: Any, tmp_path: Path) -> None:
    _, _, models = made
    bench = Bench(tmp_path)
    config = {**SFT, "template": TOOLS, "epochs": 1, "held_out": 0, "keep": "last"}
    call = ToolCall(name="look", arguments='{"animal": "cat"}')
    asked = (*say("user: what does the cat do?"), Message(role="assistant", content="", tool_calls=(call,)))
    rows = [*CHATS[:8], Chat(id="call", messages=asked)]
    plain = {**config, "template": TOOLS.replace("m.tool_calls or []", "[]")}
    with pytest.raises(ModelError, match="leaves out a tool's call"):
        bench.run(sft, "plain", plain, bench.data("chats", "chats", rows), models["base"])
    tuned, facts = bench.run(sft, "out", config, bench.data("chats", "chats", rows), models["base"])
    assert facts["rows"] == 9
    assert AutoTokenizer.from_pretrained(tuned.local.path).chat_template == TOOLS
