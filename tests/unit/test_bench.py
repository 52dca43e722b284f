"""The benchmarks: both sides get the same tokens, ratios are over the same rows, and a row says all it must."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.records import Message
from potstill.tokens.tokenization import encode_chats, encode_pairs
from potstill.training import decoding

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def bench() -> Any:
    sys.path.insert(0, str(ROOT / "bench"))
    yield
    sys.path.remove(str(ROOT / "bench"))


def load(name: str) -> Any:
    """A module of bench/."""
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model")
    load("rows").save_model(folder, "tiny")
    return folder


@pytest.mark.parametrize(("mean", "longest", "sigma"), [(175, 384, 0.7), (1375, 2048, 0.4), (60, 60, 0.0)])
def test_lengths_have_the_mean_they_say_though_they_are_clipped(mean: int, longest: int, sigma: float) -> None:
    drawn = load("rows").Lengths(mean, longest, sigma).draw(np.random.default_rng(0), 64)
    assert np.mean(drawn) == pytest.approx(mean, abs=0.5)
    assert max(drawn) <= longest
    assert len(set(drawn)) > 20 or sigma == 0


def test_the_60m_model_has_60_million_weights() -> None:
    size = load("rows").ARCHITECTURES["60m"]
    assert (size.layers, size.width, size.vocabulary) == (8, 512, 32_000)
    assert size.weights == pytest.approx(60e6, rel=0.005)


def test_text_comes_to_the_very_ids_that_the_peer_is_given(model: Path) -> None:
    rows, tokenizer = load("rows"), AutoTokenizer.from_pretrained(model)
    short = rows.Lengths(12, 12, 0.0)
    (pair,) = rows.pairs(0, 1, 512, short, short, short)
    (chat,) = rows.chats(0, 1, 512, rows.Lengths(40, 40, 0.0), 2)

    def said(role: str, ids: list[int]) -> tuple[Message, ...]:
        text = " ".join(map(rows.word, ids[:-1] if role == "assistant" else ids))
        return (Message.model_validate({"role": role, "content": text}),)

    prompt, chosen, rejected = (
        said("user", pair["prompt"]),
        said("assistant", pair["chosen"]),
        said("assistant", pair["rejected"]),
    )
    (encoded,) = encode_pairs(tokenizer, [(prompt, chosen, rejected)])
    assert encoded.prompt_ids.tolist() == pair["prompt"]
    assert encoded.chosen.ids_L.tolist() == pair["chosen"]
    assert encoded.rejected.ids_L.tolist() == pair["rejected"]
    assert encoded.chosen.learn_L.all()
    turns = [said(("user", "assistant")[n % 2], ids)[0] for n, ids in enumerate(chat["turns"])]
    (whole,) = encode_chats(tokenizer, [turns])
    assert whole.ids_L.tolist() == [index for turn in chat["turns"] for index in turn]
    assert whole.learn_L.tolist() == [bool(n % 2) for n, turn in enumerate(chat["turns"]) for _ in turn]
    assert rows.body_tokens(chat) == len(whole.ids_L)
    assert rows.scored_tokens(chat) == whole.learn_L.sum()


def test_flops_are_those_that_torch_counts_with_half_of_the_attention(model: Path) -> None:
    """torch counts every score; the causal half of them is all that is needed."""
    rows, cost = load("rows"), load("cost")
    size, length = rows.ARCHITECTURES["tiny"], 48
    network = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        network(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
    counted = counter.get_total_flops()
    seen = cost._forward(size, [length], length, length) + cost._attention(size, length)
    assert seen == pytest.approx(counted, rel=1e-3)


def test_a_sharp_teacher_has_the_students_tokens_and_other_logits(tmp_path: Path) -> None:
    rows = load("rows")
    sizes = [rows.save_model(tmp_path / name, "tiny", 1, sharp) for name, sharp in (("flat", 1.0), ("sharp", 5.0))]
    assert sizes[0] == sizes[1]
    ids = torch.arange(8)[None]
    flat, sharp = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("flat", "sharp"))
    torch.testing.assert_close(sharp, 5 * flat)


def test_a_teachers_flops_are_its_forward_alone() -> None:
    rows, cost = load("rows"), load("cost")
    (row,) = rows.chats(0, 1, 512, rows.Lengths(40, 40, 0.0), 1)
    assert 3 * cost.teacher_flops(rows.ARCHITECTURES["tiny"], row) == cost.sft_flops(rows.ARCHITECTURES["tiny"], row)


def test_a_vocabulary_of_128k_stands_beside_small_bodies() -> None:
    sizes, asked = load("rows").ARCHITECTURES, load("distill").QUESTION
    student, teacher = sizes[asked.model], sizes[asked.teacher]
    assert student.vocabulary == teacher.vocabulary == 128_256
    assert student.weights == pytest.approx(56e6, rel=0.01)
    assert teacher.weights == pytest.approx(90e6, rel=0.01)
    assert student.body_weights < student.weights / 5


def answer(seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "peak_bytes": 1, "loss": 0.7, "facts": {}, **more}


class Watch:
    """A clock that only jobs move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def side(self, seconds: float) -> Any:
        def run(round_: Any) -> dict[str, Any]:
            self.now += seconds
            return answer(seconds * round_.amount)

        return run


def rounds(*amounts: int) -> list[Any]:
    return [load("measure").Round(Path(), amount) for amount in amounts]


def test_sides_take_turns_forwards_and_backwards() -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        return lambda round_: order.append(name) or answer(1.0)  # type: ignore[func-returns-value]

    load("measure").alternate({name: side(name) for name in ("ours", "a", "b")}, rounds(1, 1), ["ours", "a"])
    assert order == ["ours", "a", "b", "b", "a", "ours"]


def test_where_time_runs_out_the_leads_go_on_and_ratios_stay_over_the_same_rows() -> None:
    measure, watch = load("measure"), Watch()
    sides = {"ours": watch.side(1), "trl": watch.side(4), "slow": watch.side(10)}
    results = measure.alternate(sides, rounds(1, 1, 3, 1), ["ours", "trl"], deadline=40.0, clock=watch)
    assert watch.now <= 40
    assert [row is not None for row in results.by_side["trl"]] == [True] * 4
    ran = [row is not None for row in results.by_side["slow"]]
    assert ran[0]
    assert not all(ran)
    assert results.ratio("slow") == pytest.approx(10.0)
    assert results.ratio("trl") == pytest.approx(4.0)
    assert measure.summary(results)["amounts"]["slow"] < measure.summary(results)["amounts"]["ours"] == 6
    few = measure.alternate(sides, rounds(1, 1, 1), ["ours", "trl"], deadline=watch.now + 16.0, clock=watch)
    assert len(few.rounds) == len(few.by_side["ours"]) == 1, "a round that cannot be ended is not begun"


def test_sides_that_did_different_things_are_found_out() -> None:
    disagreement = load("measure").disagreement
    alike = {"ours": answer(1, chosen_logp=-100.0), "trl": answer(2, chosen_logp=-101.0)}
    assert disagreement(alike) == ""
    assert disagreement({**alike, "cut": answer(2, chosen_logp=-90.0)}) == "chosen_logp: ours -100, cut -90"
    assert "loss" in disagreement({**alike, "other": answer(2, loss=0.8)})


def test_operators_go_to_their_groups() -> None:
    group_of = load("cost").group_of
    expected = {
        "aten::mm": "products", "aten::bmm": "attention", "aten::_log_softmax": "head's softmax",
        "aten::_softmax": "attention", "aten::_fused_adamw_": "optimizer", "aten::copy_": "moving and casting",
        "aten::silu": "elementwise", "aten::scatter_add_": "moving and casting",
    }  # fmt: skip
    assert {name: group_of(name, [[4, 8], [8, 4]], 512) for name in expected} == expected
    assert group_of("aten::mm", [[4, 8], [8, 512]], 512) == "head's products"


def bench_run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    named = {"BENCH_TINY": "1", "BENCH_DEVICE": "cpu", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **named})


@pytest.mark.parametrize("question", ["dpo", "sft", "distill"])
def test_the_last_line_is_one_row_that_says_everything(question: str) -> None:
    done = bench_run(f"bench/{question}.py", "--quick", "--peers", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["question"] == question
    assert {"commit", "hardware", "versions", "config", "ours", "peers", "ratios", "spread", "peak_bytes"} <= row.keys()
    assert row["ours"] > 0
    assert row["hardware"]["cores"] >= 1
    assert 0 < row["utilisation"]["share_of_peak"] < 1
    head = row["sets"][row["config"]["set"]]
    assert head["ours"] == row["ours"]
    assert head["sides"]["ours"]["facts"]["layout"] == "shared"
    page = load("table").render([row])
    assert "| `ours` |" in page
    assert "Nothing is recorded" not in page


def test_missing_peers_are_one_line(tmp_path: Path) -> None:
    done = bench_run("bench/dpo.py", "--quick", BENCH_PEER_PYTHON=str(tmp_path / "python"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("Run `make peers`, or pass --peers alone")
    assert "Traceback" not in done.stderr


def test_the_page_is_written_from_the_rows() -> None:
    table = load("table")
    assert table.PAGE.read_text() == table.render(table.recorded()), "write it anew: python bench/table.py"


def write_audits(folder: Path, flagged: Mapping[tuple[str, str], Sequence[str]]) -> None:
    """The five audits of planted cases and the five of clean ones; in those named, the dangers named are flagged."""
    for case in load("planted").CASES:
        for kind in ("planted", "clean"):
            dangers = {
                name: {
                    "verdicts": {"first": "not measured", "last": "flagged" if name in found else "clean"},
                    "hypotheses": [{"corrected_p": None}, {"corrected_p": 1.0}]
                    + [{"corrected_p": 0.00123}] * (name in found),
                }
                for name in load("planted").CASES.values()
                for found in [flagged.get((case, kind), ())]
            }
            (folder / f"{case}_{kind}").mkdir(parents=True)
            (folder / f"{case}_{kind}" / "audit.json").write_text(json.dumps({"dangers": dangers}))


def test_planted_cases_are_counted_by_their_own_danger(tmp_path: Path) -> None:
    planted = load("planted")
    write_audits(
        tmp_path / "0", {("bias", "planted"): ["inherited_bias", "diversity"], ("leak", "clean"): ["diversity"]}
    )
    write_audits(tmp_path / "1", {("bias", "clean"): ["inherited_bias"]})
    found = {seed: planted.verdicts(tmp_path / seed) for seed in ("0", "1")}
    assert found["0"]["bias"] == {"planted": "flagged", "clean": "clean"}
    assert [planted.count(found, "bias", kind) for kind in planted.KINDS] == [1, 1]
    assert planted.count(found, "leak", "clean") == 0, "another danger is not the one that was planted"
    assert planted.beside(tmp_path, [0, 1]) == {"bias_planted": {"diversity": 1}, "leak_clean": {"diversity": 1}}
    assert planted.least_p(tmp_path / "0")["bias"] == {"planted": 0.0012, "clean": 1.0}


def test_the_local_teachers_sides_write_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, usual = {"--model": "tiny", "--requests": "6", "--rows": "2", "--rounds": "1"}, decoding.MOST_ROWS
    monkeypatch.setattr(sys, "argv", ["local.py", *(word for option in options.items() for word in option)])
    load("local").main()
    assert usual == decoding.MOST_ROWS > 2, "whatever is decoded after it in this process is not held to its rows"
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["same_answers"] == {"grouped": 1, "generate": 1, "continuous": 1}
    assert row["unit"] == "tokens_per_second"
    assert min(row["ours"], *row["peers"].values()) > 0
    assert row["config"]["answer"] == {"mean": 48, "longest": 256, "sigma": 1.0}
