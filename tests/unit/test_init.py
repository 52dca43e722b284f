"""Students that nobody has trained: of chosen layers, bit for bit; of a family at random, the same for a seed."""

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import FALLBACKS, FAMILIES, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_stages import CHATS, SFT, Bench
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GenerationConfig,
    GPT2Config,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from potstill.errors import ModelError, RecipeError
from potstill.recipe import load_recipe
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import LocalModel, Model
from potstill.stages import init, sft
from potstill.training.making import keep_layers, make_model, which_layers
from potstill.training.models import load_model, load_tokenizer, save_model
from potstill.training.preflight import first_template_difference, first_token_difference, vocabulary
from potstill.training.scoring import build_scorer
from potstill.training.size import Size

CPU = torch.device("cpu")
ROWS = len(tiny_tokenizer()) + 5  # padded, as most models are
IDS_L = torch.arange(3, 17)
SMALL = Size(layers=2, width=32, heads=4, kv_heads=2, expansion=2, context=64, tied=False)
SMALL_GIVEN = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "expansion": 2, "context": 64}
PATTERN = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def deep(family: str) -> Any:
    """The family's config with four layers, no two neighbours alike where layers can differ."""
    config = deepcopy(FAMILIES[family])
    config.num_hidden_layers = 4
    if getattr(config, "sliding_window", None) is not None and getattr(config, "layer_types", None) is not None:
        config.layer_types = list(PATTERN)
    elif getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[0]] * 4
    config.vocab_size = ROWS
    return config


def model_of(config: Any) -> PreTrainedModel:
    """With weights that matter, other ones in every layer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def teacher(root: Path, config: Any, dtype: torch.dtype = torch.float32) -> Model:
    """Saved, as a stage would find it."""
    model = model_of(config).to(dtype)
    model.config.dtype = dtype
    save_model(model, tiny_tokenizer(), root / "teacher")
    return Model("teacher", LocalModel(path=str(root / "teacher")))


def weights(model: Model) -> dict[str, torch.Tensor]:
    return load_file(Path(model.local.path) / "model.safetensors")


def read(model: Model) -> PreTrainedModel:
    return load_model(model, load_tokenizer(model), CPU).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_L[None], use_cache=False).logits[0]


def pass_by(model: PreTrainedModel, *gone: int) -> PreTrainedModel:
    """The whole model, whose forward leaves some layers' work undone: what a student without them is to be equal to."""
    decoder: Any = model.get_decoder()
    layers = getattr(decoder, "h", None) or decoder.layers
    for number in gone:
        real = layers[number].forward

        def idle(hidden: torch.Tensor, *args: Any, real: Any = real, **rest: Any) -> Any:
            said = real(hidden, *args, **rest)
            return (hidden, *said[1:]) if isinstance(said, tuple) else hidden

        layers[number].forward = idle
    return model


# Of chosen layers.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_chosen_layers_is_the_teacher_that_leaves_the_others_out(tmp_path: Path, family: str) -> None:
    """Windows, masks and experts follow the layers that they belong to, in every family. With all layers it is the
    teacher itself, weights and answers."""
    bench, source = Bench(tmp_path), teacher(tmp_path, deep(family))
    student, facts = bench.run(init, "student", {"model": "teacher", "layers": [1, 3, 4]}, (), source)
    theirs, ours = weights(source), weights(student)
    numbers = {0: 0, 2: 1, 3: 2}
    for name, tensor in theirs.items():
        parts = name.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            if int(parts[place]) not in numbers:
                continue
            parts[place] = str(numbers[int(parts[place])])
        assert torch.equal(ours.pop(".".join(parts)), tensor), name
    assert ours == {}
    made = read(student)
    assert made.config.num_hidden_layers == facts["layers"] == 3
    assert torch.equal(logits(made), logits(pass_by(read(source), 1)))
    if getattr(read(source).config, "layer_types", None) == PATTERN:
        assert made.config.layer_types == [PATTERN[0], *PATTERN[2:]]
    assert facts["kept_layers"] == "1, 3, 4 of 4"
    assert facts["parameters"] == sum(parameter.numel() for parameter in made.parameters())
    assert build_scorer(made).layout == FALLBACKS.get(family, "shared")
    whole, _ = bench.run(init, "whole", {"model": "teacher", "layers": 4}, (), source)
    ours = weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert torch.equal(logits(read(whole)), logits(read(source)))


def test_half_precision_is_copied_as_it_is(tmp_path: Path) -> None:
    """Weights near the end of float16's range, whose sum lies beyond it, are sound."""
    source = teacher(tmp_path, deep("mistral"), torch.float16)
    path = Path(source.local.path)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.norm.weight.fill_(60_000.0)
    model.save_pretrained(path)
    student, _ = Bench(tmp_path).run(init, "student", {"model": "teacher", "layers": [4]}, (), source)
    ours = weights(student)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}
    assert torch.equal(ours["model.layers.0.mlp.up_proj.weight"], weights(source)["model.layers.3.mlp.up_proj.weight"])


def test_the_model_in_memory_is_what_will_be_read(tmp_path: Path) -> None:
    """Generation with a cache too, which goes by each layer's own number."""
    model = model_of(deep("gemma2"))
    keep_layers(model, (2, 4), "model m")
    save_model(model, tiny_tokenizer(), tmp_path / "student")
    again = read(Model("student", LocalModel(path=str(tmp_path / "student"))))
    assert torch.equal(logits(model), logits(again))
    told = [one.generate(IDS_L[None], max_new_tokens=12, do_sample=False).tolist() for one in (model, again)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [False, True, False, False, False, True]),
        ({"mlp_only_layers": [0, 4]}, [False, True, True, True, False, True]),
    ],
)
def test_layers_without_experts_stay_without(tmp_path: Path, config: dict[str, Any], experts: list[bool]) -> None:
    small = deep("qwen3-moe").to_dict() | {"num_hidden_layers": 6} | config
    source = teacher(tmp_path, Qwen3MoeConfig(**small))
    kept = [2, 4, 5, 6]
    student, _ = Bench(tmp_path).run(init, "student", {"model": "teacher", "layers": kept}, (), source)
    made = read(student)
    found = [hasattr(layer.mlp, "experts") for layer in made.get_decoder().layers]  # type: ignore[union-attr]
    assert found == [experts[layer - 1] for layer in kept]
    assert torch.equal(logits(made), logits(pass_by(read(source), 0, 2)))


def test_layers_that_are_counted_from_the_first_are_counted_anew(tmp_path: Path) -> None:
    """The first two of DeepSeek's are dense here; of those kept, one is."""
    small = {
        "vocab_size": ROWS, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 64, "first_k_dense_replace": 2,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    source = teacher(tmp_path, DeepseekV3Config(**small))
    student, _ = Bench(tmp_path).run(init, "student", {"model": "teacher", "layers": [2, 4]}, (), source)
    assert read(student).config.first_k_dense_replace == 1
    assert torch.equal(logits(read(student)), logits(pass_by(read(source), 0, 2)))


def test_layers_without_positions_stay_without(tmp_path: Path) -> None:
    small = FAMILIES["llama-tied"].to_dict() | {"num_hidden_layers": 4, "vocab_size": ROWS}
    for name in ("model_type", "head_dim", "rope_parameters"):
        small.pop(name)
    source = teacher(tmp_path, SmolLM3Config(**small, no_rope_layers=[1, 0, 1, 0]))
    student, _ = Bench(tmp_path).run(init, "student", {"model": "teacher", "layers": [2, 3]}, (), source)
    assert read(student).config.no_rope_layers == [0, 1]
    assert torch.equal(logits(read(student)), logits(pass_by(read(source), 0, 3)))


def test_a_layer_that_computes_by_its_number_cannot_get_another() -> None:
    small: dict[str, Any] = {"vocab_size": 61, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
    model = model_of(GPT2Config(**small, scale_attn_by_inverse_layer_idx=True))
    before = logits(model)
    with pytest.raises(ModelError, match=r"^model m: layer 3 would be another as layer 2: attn.scaling is 0.117"):
        keep_layers(model, (1, 3), "model m")
    assert torch.equal(logits(model), before)
    keep_layers(model, (1, 2), "model m")
    plain = model_of(GPT2Config(**small))
    keep_layers(plain, (1, 3), "model m")
    assert plain.config.n_layer == 2


def test_layers_that_read_the_keys_of_others_are_not_parted_from_them() -> None:
    model = model_of(deep("mistral"))
    model.config.num_kv_shared_layers = 2
    with pytest.raises(ModelError, match=r"its last 2 layers read keys and values of layers before them"):
        keep_layers(model, (1, 4), "model m")


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (12, 6, (1, 3, 5, 8, 10, 12)),  # DistilBERT's
        (12, 3, (1, 7, 12)),
        (32, 2, (1, 32)),
        (32, 1, (1,)),
        (5, 5, (1, 2, 3, 4, 5)),
        (5, [4], (4,)),
    ],
)
def test_which_layers_a_number_stands_for(total: int, layers: int | list[int], kept: tuple[int, ...]) -> None:
    assert which_layers(layers, total, "model m") == kept


@given(st.integers(2, 130).flatmap(lambda total: st.tuples(st.just(total), st.integers(2, total))))
def test_the_first_and_the_last_are_kept_and_the_gaps_differ_by_one_at_most(sizes: tuple[int, int]) -> None:
    total, count = sizes
    kept = which_layers(count, total, "model m")
    gaps = {after - before for before, after in pairwise(kept)}
    assert (len(kept), kept[0], kept[-1]) == (count, 1, total)
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([1, 5], "model teacher: the model has 4 layers, 1 to 4, and none with the number 5. Name layers that it has."),
        (5, "model teacher: the model has 4 layers, and 5 are asked for. Ask for 4 at most."),
    ],
)
def test_a_layer_that_does_not_exist(tmp_path: Path, layers: Any, says: str) -> None:
    bench, source = Bench(tmp_path), teacher(tmp_path, deep("mistral"))
    with pytest.raises(ModelError) as caught:
        bench.run(init, "student", {"model": "teacher", "layers": layers}, (), source)
    assert str(caught.value) == says
    assert list((tmp_path / "student").iterdir()) == []


# At random.


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "granite", "phi3", "olmo2", "gpt_neox"]
)
def test_a_family_at_a_chosen_size(tmp_path: Path, family: str) -> None:
    """What is asked for is what is made; a scorer computes it as its own forward does, and it learns."""
    bench, source = Bench(tmp_path), teacher(tmp_path, deep("mistral"))
    size = {**SMALL_GIVEN, **({"kv_heads": 4} if family == "gpt_neox" else {})}
    config = {"model": "teacher", "family": family, "size": size}
    student, facts = bench.run(init, "student", config, (), source)
    made = read(student)
    assert made.config.model_type == family
    assert {made.config.num_hidden_layers, facts["layers"]} == {2}
    assert made.get_input_embeddings().weight.shape == (len(tiny_tokenizer()), 32)  # type: ignore[union-attr]
    shapes = {tuple(parameter.shape) for name, parameter in made.named_parameters() if ".layers.0." in name}
    assert any(64 in shape or 128 in shape for shape in shapes)  # the feed-forward's, or its gate with it
    assert facts["parameters"] == sum(parameter.numel() for parameter in made.parameters())
    assert facts["vocabulary"] == len(tiny_tokenizer())
    assert torch.isfinite(logits(made)).all()
    assert build_scorer(made).layout == "shared"
    first = bench.hashes("student")
    bench.run(init, "student", config, (), source)
    assert bench.hashes("student") == first
    torch.manual_seed(99)
    other = make_model(family, Size(**size), tiny_tokenizer(), 4, CPU).state_dict()
    ours = weights(student)
    assert not all(torch.equal(ours[name], other[name]) for name in ours.keys() & other.keys())


def test_a_tied_student_has_one_table(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        model = make_model("llama", SMALL.model_copy(update={"tied": tied}), tiny_tokenizer(), 0, CPU)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        sizes[tied] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[False] - sizes[True] == len(tiny_tokenizer()) * 32


def test_what_scales_with_a_heads_width_follows_it() -> None:
    """Gemma's default divides attention by the root of 256 and Granite's by nothing, whatever the heads are."""
    for family in ("gemma2", "gemma3_text", "granite", "llama", "qwen3"):
        model = make_model(family, SMALL, tiny_tokenizer(), 0, CPU)
        assert model.get_decoder().layers[0].self_attn.scaling == pytest.approx(8**-0.5), family


def test_a_mistral_is_what_pretraining_always_began_with() -> None:
    """Written out here as it was before other families could be made: the same config, the same weights."""
    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, sliding_window=None,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )  # fmt: skip
    torch.manual_seed(7)
    plain = MistralForCausalLM(config)
    made = make_model("mistral", SMALL, tokenizer, 7, CPU)
    assert made.config.to_dict() == plain.config.to_dict()
    assert made.training
    theirs = plain.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in made.state_dict().items())


def test_making_one_draws_from_nobody_elses_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_model("llama", SMALL, tiny_tokenizer(), 0, CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("qwen33", {}, "knows no causal language models of that name (did you mean 'qwen3'?)"),
        ("clip_text_model", {}, "knows no causal language models of that name"),
        ("mixtral", {}, "it is a mixture of experts, which has more sizes than can be given here"),
        ("bloom", {}, "its config has no intermediate_size; expected a family of text decoders"),
        ("gemma3", {}, "its config has no vocab_size; expected a family of text decoders"),
        ("bert", {"kv_heads": None}, "it reads tokens before their time"),
        ("gpt_neox", {}, "its heads have keys and values of their own, and kv_heads is 2. Leave kv_heads out"),
    ],
)
def test_a_family_that_cannot_be_made(family: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        make_model(family, SMALL.model_copy(update=changes), tiny_tokenizer(), 0, CPU)
    assert str(caught.value).startswith(f"family: {family}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("way", [{"layers": 2}, {"family": "llama", "size": SMALL_GIVEN}])
def test_the_student_speaks_as_the_model_does(tmp_path: Path, way: dict[str, Any]) -> None:
    """Its tokenizer, its template, and every token that ends an answer, of which some models have two."""
    source = teacher(tmp_path, deep("mistral"))
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    tokenizer.save_pretrained(source.local.path, save_jinja_files=False)
    GenerationConfig(eos_token_id=[2, 5]).save_pretrained(source.local.path)
    student, _ = Bench(tmp_path).run(init, "student", {"model": "teacher", **way}, (), source)
    folders = Path(student.local.path), Path(source.local.path)
    ours, theirs = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert ours == theirs
    ours, theirs = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in folders)
    assert {name: ours[name] for name in theirs} == theirs
    assert json.loads((folders[0] / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert load_tokenizer(student).chat_template == tokenizer.chat_template
    told = load_tokenizer(student), load_tokenizer(source)
    assert first_token_difference(*told) == first_template_difference(*told) == ""
    assert vocabulary(read(student), read(source), told[0]) == len(tiny_tokenizer())


def test_a_family_whose_tokenizers_transformers_reads_in_its_own_way(tmp_path: Path) -> None:
    """Beside a config.json of Qwen2 any tokenizer.json is read as Qwen2's: other rules, and tokens that it adds. With a
    tokenizer of that family there is nothing to refuse."""
    bench, config = Bench(tmp_path), {"model": "teacher", "family": "qwen2", "size": SMALL_GIVEN}
    with pytest.raises(ModelError) as caught:
        bench.run(init, "student", config, (), teacher(tmp_path, deep("mistral")))
    says = (
        "family: qwen2: transformers would read the tokenizer of teacher otherwise beside a model of it: the teacher "
    )
    assert str(caught.value).startswith(says)
    student, facts = bench.run(init, "student", config, (), teacher(tmp_path, deep("qwen2")))
    assert facts["vocabulary"] == len(load_tokenizer(student)) == len(tiny_tokenizer()) + 1


# In a recipe.

RECIPE = """\
name: students
models:
  big: {path: teacher}
stages:
  shallow: {kind: init, model: big, layers: 2}
  other: {kind: init, model: big, family: llama, size: {layers: 1, width: 16, heads: 2, context: 64}}
  again: {kind: init, model: shallow, layers: [2]}
"""
"""The layers of `again` are those of a student."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    teacher(tmp_path, deep("mistral"))
    Path("students.yaml").write_text(RECIPE)
    return tmp_path


def test_a_recipe_makes_students_and_a_second_run_finds_them(here: Path) -> None:
    sealed = run(load_recipe("students.yaml"), Path("out"), until="again")
    assert sealed["shallow"].facts["kept_layers"] == "1, 4 of 4"
    assert sealed["shallow"].produces == "model"
    assert sealed["again"].facts == {**sealed["shallow"].facts, "kept_layers": "2 of 2", "layers": 1} | {
        "parameters": sealed["again"].facts["parameters"]
    }
    theirs = weights(Model("big", LocalModel(path="teacher")))
    last = weights(Model("again", LocalModel(path=str(sealed["again"].path))))
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(last[name.format(0)], theirs[name.format(3)])
    assert run(load_recipe("students.yaml"), Path("out"), until="again") == sealed


def test_keys_go_by_what_decides_the_student(here: Path) -> None:
    def keys(*overrides: str) -> dict[str, str]:
        plan = make_plan(load_recipe("students.yaml", overrides), Workspace(here), Hashes(here / "hashes.json"))
        return {name: step.key for name, step in plan.steps.items()}

    plain = keys()
    for change, changed in {
        "shallow.layers=3": {"shallow", "again"},
        "shallow.layers=[1, 4]": {"shallow", "again"},  # said otherwise: nobody knows yet that it is the same
        "other.size.width=32": {"other"},
        "other.family=qwen3": {"other"},
        "seed=5": {"shallow", "other", "again"},
    }.items():
        assert {name for name, key in keys(change).items() if plain[name] != key} == changed, change


def test_a_student_is_trained_like_any_model(tmp_path: Path) -> None:
    bench, source = Bench(tmp_path), teacher(tmp_path, deep("qwen3"))
    chats = bench.data("chats", "chats", CHATS)
    ways: dict[str, dict[str, Any]] = {
        "kept": {"layers": 2},
        "random": {"family": "gemma2", "size": {**SMALL_GIVEN, "context": 128}},
    }
    for name, way in ways.items():
        student, _ = bench.run(init, name, {"model": "teacher", **way}, (), source)
        _, facts = bench.run(sft, f"{name}-sft", {**SFT, "epochs": 3, "model": name}, chats, student)
        assert facts["held_out_loss"]["best"] < 0.8 * facts["held_out_loss"]["first"], name
        assert facts["layout"] == "shared"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ("layers: [2, 2]", "layer 2 is named twice; expected each once"),
        ("layers: [2, 1]", "layer 1 stands behind layer 2; expected them in the model's order"),
        ("layers: [-1]", "'shallow.layers.0' is -1: input should be greater than or equal to 1"),
        ("layers: 0", "'shallow.layers' is 0: input should be greater than or equal to 1"),
        ("layers: []", "'shallow.layers'"),
        ("layers: [1, 1.5]", "'shallow.layers.1' is 1.5"),
        ("layers: true", "'shallow.layers' is true"),
        ("family: llama", "family and size belong together"),
        ("size: {layers: 2}, layers: 2", "family and size belong together"),
        (
            "layers: 2, family: llama, size: {layers: 2}",
            "expected either layers, which are kept, or a family and a size",
        ),
        ("seed: 2", "unknown key 'shallow.seed'"),
        ("family: llama, size: {layer: 2}", "unknown key 'shallow.size.layer' (did you mean 'layers'?)"),
        ("family: llama, size: {width: 30, heads: 4}", "width 30 is not a multiple of twice heads (4)"),
    ],
)
def test_what_a_recipe_cannot_ask_for(here: Path, fields: str, says: str) -> None:
    Path("bad.yaml").write_text(RECIPE.replace("layers: 2}", fields + "}", 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe("bad.yaml")
    assert says in str(caught.value)
    assert "bad.yaml:5" in str(caught.value)
    assert "\n" not in str(caught.value)
