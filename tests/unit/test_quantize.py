"""Weights rounded to few bits: what is written, what transformers reads again, how far it drifts, how it is scored."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import say
from pydantic import ValidationError
from safetensors.torch import load_file
from training_stages import CHATS, PRETRAIN, SFT, TEXTS, Bench
from transformers import AutoModelForCausalLM

from potstill.errors import DataError, ModelError
from potstill.recipe import load_recipe
from potstill.records import Chat
from potstill.runs.pipeline import run
from potstill.sources import Inputs, LocalModel, Model
from potstill.stages import pretrain, quantize, sft
from potstill.teachers.base import Request
from potstill.teachers.local import LocalTeacher
from potstill.tokens.tokenization import encode_chats
from potstill.training.batch import Item
from potstill.training.models import load_model, load_tokenizer
from potstill.training.quantized import drift

pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes and what it imports warn of things to come
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes, the extra `qlora`, is not installed",
)
# The sixteen numbers of NormalFloat, Dettmers et al. 2023, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="module")
def taught(bench: Bench) -> Model:
    """A model whose answers are worth keeping."""
    wide = {**PRETRAIN, "width": 64, "heads": 4, "layers": 2}
    base, _ = bench.run(pretrain, "base", wide, bench.data("texts", "texts", TEXTS))
    made, _ = bench.run(sft, "sft", SFT, bench.data("chats", "chats", CHATS), base)
    assert isinstance(made, Model)
    return made


def rounded(bench: Bench, taught: Model, **config: Any) -> tuple[Model, dict[str, Any]]:
    name = "-".join(str(value) for value in config.values())
    return bench.run(quantize, name, {"model": "sft", **config}, bench.data("chats", "chats", CHATS), taught)  # type: ignore[no-any-return]


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "scheme"), [(8, "int8"), (4, "nf4"), (4, "fp4")])
def test_what_is_written_is_smaller_and_is_what_is_read(bench: Bench, taught: Model, bits: int, scheme: str) -> None:
    made, facts = rounded(bench, taught, bits=bits, scheme=scheme)
    config = json.loads((Path(made.local.path) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert config["quantization_config"][f"load_in_{bits}bit"] is True
    sizes = [(Path(model.local.path) / "model.safetensors").stat().st_size for model in (taught, made)]
    assert facts["weights_bytes"] == {"before": sizes[0], "after": sizes[1]}
    assert facts["rounded_parameters"] * (4 - bits / 8) * 0.9 < sizes[0] - sizes[1]
    plain = AutoModelForCausalLM.from_pretrained(made.local.path)  # transformers alone, without anything of ours
    ids = torch.arange(3, 40)[None]
    ours = load_model(made, load_tokenizer(made), torch.device("cpu"))
    assert torch.equal(ours(ids).logits, plain(ids).logits)


@needs_bitsandbytes
def test_four_bits_are_the_published_sixteen_numbers(bench: Bench, taught: Model) -> None:
    """Each weight becomes the nearest of them, times the largest of its 64."""
    made, _ = rounded(bench, taught, bits=4, scheme="nf4")
    name = "model.layers.1.mlp.down_proj.weight"
    whole = load_file(Path(taught.local.path) / "model.safetensors")[name].double()
    few = load_file(Path(made.local.path) / "model.safetensors")
    packed = few[name].flatten()
    places = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    scale_B1 = whole.reshape(-1, 64).abs().amax(1, keepdim=True)
    assert torch.allclose(few[f"{name}.absmax"].double(), scale_B1[:, 0], rtol=1e-6)
    levels = torch.tensor(NF4, dtype=torch.float64)
    unit = (whole.reshape(-1, 64) / scale_B1).flatten()
    nearest = (unit[:, None] - levels).abs()
    assert ((nearest.gather(1, places[:, None])[:, 0] - nearest.amin(1)) < 1e-6).all()


@needs_bitsandbytes
def test_drift_is_the_divergence_of_the_two(bench: Bench, taught: Model) -> None:
    """Against the definition, written anew with numpy; 8 bits move less than 4, and nothing moves against itself."""
    tokenizer = load_tokenizer(taught)
    items = [
        Item.chat(c.id, e) for c, e in zip(CHATS, encode_chats(tokenizer, [c.messages for c in CHATS]), strict=True)
    ]
    found = {}
    for bits in (8, 4):
        made, facts = rounded(bench, taught, bits=bits, scheme="auto")
        found[bits] = drift(taught, Path(made.local.path), tokenizer, items)
        few = drift(taught, Path(made.local.path), tokenizer, items[:32])
        assert facts["drift"]["kl_nats_per_token"] == pytest.approx(few.kl, abs=1e-6)
        assert (facts["drift"]["rows"], facts["drift"]["tokens"]) == (32, few.tokens)
        models = [load_model(model, tokenizer, torch.device("cpu")).eval() for model in (taught, made)]
        kl, change = [], []
        for item in items:
            ((ids_L, learn_L),) = item.answers
            with torch.inference_mode():
                p, q = (np.asarray(m(torch.tensor(ids_L[None].astype("int64"))).logits[0].double()) for m in models)
            p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (p, q))
            for place in np.flatnonzero(learn_L):
                kl.append(float((p[place - 1] * np.log(p[place - 1] / q[place - 1])).sum()))
                change.append(float(np.log(q[place - 1, ids_L[place]] / p[place - 1, ids_L[place]])))
        assert found[bits].kl == pytest.approx(np.mean(kl), rel=1e-5)
        assert found[bits].logp_change == pytest.approx(np.mean(change), rel=1e-4, abs=1e-7)
    assert 0 < found[8].kl < found[4].kl
    itself = drift(taught, Path(taught.local.path), tokenizer, items)
    assert (itself.kl, itself.logp_change, itself.same_choice) == (0, 0, 1)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_it_answers_and_no_row_depends_on_its_batch(bench: Bench, taught: Model, bits: int) -> None:
    made, _ = rounded(bench, taught, bits=bits, scheme="auto")
    asked = [Request(chat.messages[:1], 16) for chat in CHATS[:12]]
    with LocalTeacher(made) as teacher:
        together = [reply.text for reply in teacher.complete(asked)]
        alone = [reply.text for request in asked for reply in teacher.complete([request])]
    assert together == alone
    assert sum(text == chat.messages[1].content for text, chat in zip(together, CHATS, strict=False)) >= 8


@needs_bitsandbytes
def test_a_rounded_model_is_scored_beside_the_one_it_is_made_of(taught: Model, tmp_path: Path) -> None:
    rows = [{"id": c.id, "prompt": c.messages[0].content, "references": [c.messages[1].content]} for c in CHATS[:24]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodels: {{sft: {{path: '{taught.local.path}'}}}}\nstages:\n"
        "  small: {kind: quantize, model: sft, bits: 4}\n"
        "  scores:\n    kind: evaluate\n    models: [sft, small]\n    max_tokens: 24\n"
        "    suites: {right: {protocol: exact, questions: q.jsonl}}\n"
        "  report: {kind: report, scores: [scores], models: [small]}\n"
    )
    sealed = run(load_recipe(str(tmp_path / "r.yaml")), tmp_path / "out")
    assert sealed["small"].produces == "model"
    assert "drift" not in sealed["small"].facts
    right = json.loads((sealed["scores"].path / "scores.json").read_text())["suites"]["right"]
    paired = right["paired"]["small-sft"]
    assert paired["n"] == 24
    assert paired["mean"] == pytest.approx(right["models"]["small"]["mean"] - right["models"]["sft"]["mean"])


@needs_bitsandbytes
def test_it_cannot_be_trained(bench: Bench, taught: Model) -> None:
    made, _ = rounded(bench, taught, bits=4, scheme="auto")
    with pytest.raises(ModelError, match=r"rounded to few bits \(bitsandbytes\), and such weights cannot be trained"):
        bench.run(sft, "again", SFT, bench.data("chats", "chats", CHATS), made)


@needs_bitsandbytes
def test_the_same_weights_give_the_same_bytes(bench: Bench, taught: Model) -> None:
    one, _ = rounded(bench, taught, bits=4, scheme="nf4")
    first = (Path(one.local.path) / "model.safetensors").read_bytes()
    two, _ = rounded(bench, taught, bits=4, scheme="nf4")
    assert (Path(two.local.path) / "model.safetensors").read_bytes() == first


def test_a_scheme_has_the_bits_it_has() -> None:
    with pytest.raises(ValidationError, match="scheme nf4 is none of 8 bits; expected int8"):
        quantize.Quantize.model_validate({"kind": "quantize", "model": "m", "bits": 8, "scheme": "nf4"})
    with pytest.raises(ValidationError, match="expected nf4 or fp4"):
        quantize.Quantize.model_validate({"kind": "quantize", "model": "m", "bits": 4, "scheme": "int8"})


def test_without_bitsandbytes_it_says_so(taught: Model, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read, and whoever is handed such a model is told too."""
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ModelError, match=r"scheme: nf4: bitsandbytes is not installed. Run pip install 'potstill\[qlora"
    ):
        rounded(bench, taught, bits=4)
    folder = bench.root / "told"
    folder.mkdir()
    for file in Path(taught.local.path).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    told = Model("told", LocalModel(path=str(folder)))
    with pytest.raises(ModelError, match="its weights are rounded by bitsandbytes, and bitsandbytes is not installed"):
        LocalTeacher(told)


@needs_bitsandbytes
def test_rows_without_an_answer_are_refused(bench: Bench, taught: Model) -> None:
    silent = bench.data("silent", "chats", [Chat(id="1", messages=say("user: hello", "assistant: no", train=False))])
    inputs = Inputs({"data": (silent,)}, {"model": (taught,)}, {})
    with pytest.raises(DataError, match="its first 32 rows hold no answer"):
        bench._run(quantize, "silent-out", {"model": "sft", "bits": 4}, inputs)
