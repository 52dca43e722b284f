"""potstill convert: what becomes of each key of another tool's config, and that what comes out is a recipe."""

from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.convert.converting import Converted, convert
from potstill.document import parse
from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace

HANDBOOK_SFT = """\
model_name_or_path: someone/base-7b
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
chat_template: "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
dataset_mixture:
  datasets:
    - {id: someone/talks, config: default, split: train_sft, columns: [messages], weight: 1.0}
    - {id: someone/more, config: small, split: train, columns: [messages], weight: 0.25}
    - {id: someone/talks, config: default, split: test_sft, columns: [messages], weight: 1.0}
  test_split_size: 1000
  seed: 0
bf16: true
do_eval: true
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: my-model
learning_rate: 2.0e-05
lr_scheduler_type: cosine
max_seq_length: 2048
max_steps: -1
num_train_epochs: 1
per_device_train_batch_size: 16
seed: 42
warmup_ratio: 0.1
"""
HANDBOOK_DPO = """\
model_name_or_path: someone/sft-7b
torch_dtype: null
use_flash_attention_2: true
load_in_4bit: true
use_peft: true
lora_r: 128
lora_alpha: 64
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
dataset_mixer: {someone/pairs: 1.0}
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 12
bf16: true
beta: 0.01
loss_type: ipo
evaluation_strategy: steps
gradient_accumulation_steps: 4
learning_rate: 5e-6
lr_scheduler_type: inverse_sqrt
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: paged_adamw_32bit
output_dir: data/zephyr qlora
per_device_train_batch_size: 4
report_to: [tensorboard, wandb, neptune]
warmup_steps: 100
max_grad_norm: 0.3
"""
AXOLOTL_SFT = """\
base_model: someone/base-8b
model_type: AutoModelForCausalLM
revision_of_model: abc123
load_in_8bit: false
load_in_4bit: true
strict: false
chat_template: chatml
datasets:
  - {path: someone/shared, type: sharegpt, conversation: chatml}
  - path: someone/talks
    type: chat_template
    split: train
    field_messages: conversation
    message_property_mappings: {role: from, content: value}
  - {path: someone/tasks, type: alpaca, shards: 10, name: v2}
  - path: someone/own
    type: {field_instruction: ask, field_output: reply, format: "Q {instruction}"}
test_datasets:
  - {path: someone/talks, type: chat_template, split: held}
val_set_size: 0.05
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.1
lora_target_linear: true
lora_modules_to_save: [embed_tokens]
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
warmup_steps: 10
weight_decay: 0.01
bf16: auto
special_tokens: {pad_token: "<pad>"}
wandb_project:
deepspeed: deepspeed_configs/zero3.json
plugins: [axolotl.integrations.liger.LigerPlugin]
liger_rope: true
"""
AXOLOTL_RL = """\
base_model: someone/sft-8b
rl: RL
datasets:
  - {path: someone/pairs, type: chatml.intel, split: train}
sequence_len: 2048
micro_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5e-6
"""


def made(tmp_path: Path, text: str, name: str = "config.yaml", **how: Any) -> tuple[Converted, Recipe]:
    """What a config comes to, and the recipe that this is: read from a file, and planned."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = convert(path, **how)
    (tmp_path / "recipe.yaml").write_text(found.text)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    steps = make_plan(recipe, Workspace(tmp_path / "run"), Hashes(tmp_path / "hashes.json")).steps
    assert list(steps) == list(recipe.stages)
    return found, recipe


def fates(found: Converted) -> dict[str, str]:
    return {".".join(map(str, steps)): entry.fate for steps, entry in found.account.entries.items()}


def config(recipe: Recipe, stage: str) -> Any:
    return recipe.stages[stage].config


def test_an_sft_config_of_the_handbook(tmp_path: Path) -> None:
    found, recipe = made(tmp_path, HANDBOOK_SFT, devices=4)
    sft = config(recipe, "sft")
    assert (recipe.name, recipe.seed) == ("my-model", 42)
    assert (sft.learning_rate, sft.schedule, sft.warmup, sft.epochs) == (2e-5, "cosine", 0.1, 1)
    assert (sft.global_batch, sft.max_length, sft.dtype, sft.sharding) == (16 * 2 * 4, 2048, "bfloat16", "fsdp2")
    assert sft.learn == "all", "TRL learns every token unless it is told else"
    assert sft.template == parse(HANDBOOK_SFT, "c").value["chat_template"]
    assert sft.data[0] == "talks_train_sft"
    assert (sft.data[1].source, sft.data[1].weight) == ("more_small_train", 0.25)
    assert (config(recipe, "more_small_train").subset, config(recipe, "talks_train_sft").split) == (
        "small",
        "train_sft",
    )
    assert config(recipe, "talks_train_sft").decontaminate == ("talks_test_sft",)
    (suite,) = config(recipe, "scores").suites.values()
    assert (suite.protocol, suite.chats) == ("answer_loss", "talks_test_sft"), "test splits are never trained on"
    assert "packed blocks there, conversations here" in "\n".join(found.told)


def test_a_qlora_dpo_config_of_the_handbook_with_its_older_names(tmp_path: Path) -> None:
    found, recipe = made(tmp_path, HANDBOOK_DPO)
    dpo = config(recipe, "dpo")
    assert recipe.name == "zephyr-qlora"
    assert (dpo.loss, dpo.beta) == ("ipo_length_normalised", 0.01), "TRL's ipo divides by the length"
    assert (dpo.adapter.kind, dpo.adapter.rank, dpo.adapter.alpha) == ("qlora", 128, 64)
    assert (dpo.adapter.dropout, dpo.adapter.targets) == (0.05, ("q_proj", "v_proj"))
    assert (dpo.global_batch, dpo.sharding, dpo.clip) == (16, "none", 0.3), "a QLoRA config trains on one device"
    assert (dpo.schedule, dpo.track) == ("linear", ("tensorboard", "wandb"))
    told = fates(found)
    assert {key for key, fate in told.items() if fate == "left"} == {
        "lr_scheduler_type", "max_prompt_length", "warmup_steps"
    }  # fmt: skip
    assert told["evaluation_strategy"] == told["use_flash_attention_2"] == "ours"
    assert any("1 device" in words for words in found.told)


def test_orpo_is_told_by_the_path_or_by_as(tmp_path: Path) -> None:
    text = HANDBOOK_DPO.replace("loss_type: ipo\n", "chat_template: \"{{ messages[0]['content'] }}\"\n")
    assert config(made(tmp_path, text)[1], "dpo").loss == "sigmoid"
    for how in ({"name": "orpo/full.yaml"}, {"method": "orpo"}):
        dpo = config(made(tmp_path, text, **how)[1], "dpo")  # type: ignore[arg-type]
        assert (dpo.loss, dpo.odds_weight, dpo.template) == ("orpo", 0.01, "{{ messages[0]['content'] }}")


def test_an_sft_config_of_axolotl(tmp_path: Path) -> None:
    found, recipe = made(tmp_path, AXOLOTL_SFT)
    sft = config(recipe, "sft")
    assert (sft.learning_rate, sft.epochs, sft.global_batch, sft.weight_decay) == (2e-4, 3, 8, 0.01)
    assert (sft.adapter.kind, sft.adapter.rank, sft.adapter.targets) == ("qlora", 32, "auto")
    assert (sft.learn, sft.on_long, sft.max_length) == ("assistant", "drop", 4096)
    assert sft.template is not None
    assert "<|im_start|>" in sft.template
    assert sft.data == ("shared_train", "talks_train", "tasks_v2_train", "own_train")
    assert config(recipe, "shared_train").format == "sharegpt"
    talks = config(recipe, "talks_train")
    assert (talks.format, talks.columns) == ("sharegpt", {"conversations": "conversation"})
    assert (config(recipe, "tasks_v2_train").format, config(recipe, "tasks_v2_train").subset) == ("alpaca", "v2")
    assert config(recipe, "own_train").columns == {"instruction": "ask", "output": "reply"}
    assert recipe.models["base"][0].local.revision == "abc123"
    told = fates(found)
    left = {key for key, fate in told.items() if fate == "left"}
    assert left == {
        "val_set_size", "lora_modules_to_save", "optimizer", "warmup_steps", "special_tokens", "deepspeed", "plugins",
        "datasets.2.shards", "datasets.3.type.format",
    }  # fmt: skip
    assert told["sample_packing"] == told["liger_rope"] == told["wandb_project"] == "ours"


@pytest.mark.parametrize(
    ("rl", "more", "loss", "fields"),
    [
        ("dpo", "", "sigmoid", {"beta": 0.1}),
        ("dpo", "rl_beta: 0.2\nrpo_alpha: 0.5\n", "sigmoid", {"beta": 0.2, "sft_term": 0.5}),
        ("dpo", "dpo_beta: 0.3\ndpo_label_smoothing: 0.1\n", "conservative", {"beta": 0.3, "flipped": 0.1}),
        ("dpo", "dpo_loss_type: [hinge]\n", "hinge", {"beta": 0.1}),
        ("ipo", "", "ipo_length_normalised", {"beta": 0.1}),
        ("kto", "kto_desirable_weight: 0.5\n", "kto", {"desirable_weight": 0.5}),
        ("orpo", "orpo_alpha: 0.2\n", "orpo", {"odds_weight": 0.2}),
        ("simpo", "rl_beta: 2.0\nsimpo_gamma: 1.2\n", "simpo", {"beta": 2.0, "gamma": 1.2, "sft_term": 1.0}),
    ],
)
def test_preferences_of_axolotl(rl: str, more: str, loss: str, fields: dict[str, Any], tmp_path: Path) -> None:
    found, recipe = made(tmp_path, AXOLOTL_RL.replace("RL", rl) + more)
    dpo = config(recipe, "dpo")
    assert dpo.loss == loss
    assert {field: getattr(dpo, field) for field in fields} == fields
    assert config(recipe, "pairs_train").rows == ("feedback" if rl == "kto" else "pairs")
    assert "<|im_start|>" in dpo.template, "chatml.intel names its template"
    assert "unknown" not in fates(found).values()


@pytest.mark.parametrize("text", [HANDBOOK_SFT, HANDBOOK_DPO, AXOLOTL_SFT, AXOLOTL_RL.replace("RL", "dpo")])
def test_every_key_is_accounted_for_and_an_unknown_one_is_named(text: str, tmp_path: Path) -> None:
    found, _ = made(tmp_path, text)
    keys = set(parse(text, "c").value)
    assert {steps[0] for steps in found.account.entries} == keys
    assert "unknown" not in fates(found).values()
    planted, _ = made(tmp_path, text + "frobnicate: 3\nzapp: {a: 1}\n")
    assert {key for key, fate in fates(planted).items() if fate == "unknown"} == {"frobnicate", "zapp"}
    line = text.count("\n") + 1
    assert f"#   frobnicate (line {line})" in planted.text
    assert f"  frobnicate (line {line})" in planted.told


def test_options_of_another_task_are_named(tmp_path: Path) -> None:
    found, _ = made(tmp_path, AXOLOTL_RL.replace("RL", "dpo") + "neftune_noise_alpha: 5\ntrain_on_inputs: false\n")
    assert {key for key, fate in fates(found).items() if fate == "left"} == {"neftune_noise_alpha", "train_on_inputs"}
    other, _ = made(tmp_path, HANDBOOK_SFT + "beta: 0.1\n", method="sft")
    assert fates(other)["beta"] == "left"


def test_an_unknown_key_inside_a_data_set_is_named(tmp_path: Path) -> None:
    text = HANDBOOK_SFT.replace("weight: 0.25", "weight: 0.25, flavour: sour")
    found, _ = made(tmp_path, text)
    assert [key for key, fate in fates(found).items() if fate == "unknown"] == ["dataset_mixture.datasets.1.flavour"]


def test_each_line_that_came_over_says_from_where(tmp_path: Path) -> None:
    text = made(tmp_path, HANDBOOK_DPO)[0].text
    for line in ("beta: 0.01  # beta", "learning_rate: 5.0e-06  # learning_rate", "clip: 0.3  # max_grad_norm"):
        assert line in text
    assert "global_batch: 16  # per_device_train_batch_size 4 x gradient_accumulation_steps 4 x 1 device" in text


def test_what_is_trained_on_is_not_held_out_and_names_differ(tmp_path: Path) -> None:
    same = "  - {path: someone/pairs, type: chatml.intel, split: train}\n"
    text = AXOLOTL_RL.replace("RL", "dpo").replace(same, same * 2) + f"test_datasets:\n{same}"
    recipe = made(tmp_path, text)[1]
    assert config(recipe, "dpo").data == ("pairs_train", "pairs_train_2")
    assert "scores" not in recipe.stages


def test_files_on_this_machine_are_paths(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Q", "chosen": "A", "rejected": "B"}\n')
    recipe = made(tmp_path, AXOLOTL_RL.replace("RL", "dpo").replace("someone/pairs", "mine.jsonl"))[1]
    assert (config(recipe, "mine").path, config(recipe, "mine").hub) == ("mine.jsonl", None)
    files = AXOLOTL_RL.replace("RL", "dpo").replace("path: someone/pairs", "path: json, data_files: [mine.jsonl]")
    assert config(made(tmp_path, files)[1], "mine").path == "mine.jsonl"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: 1\n", "neither a config of axolotl"),
        ("- 1\n", "it holds no keys"),
        (AXOLOTL_RL.replace("RL", "grpo"), "config.yaml:2: rl: grpo has no counterpart"),
        (AXOLOTL_RL.replace("rl: RL", "reward_model: true"), "config.yaml:2: 'reward_model' is of a task"),
        (
            AXOLOTL_RL.replace("rl: RL\n", "").replace("chatml.intel", "completion"),
            "is plain text, and chats are wanted",
        ),
        (AXOLOTL_RL.replace("RL", "dpo").replace("5e-6", "fast"), "'learning_rate' is 'fast'; expected a number"),
        (AXOLOTL_RL.replace("RL", "dpo") + "dpo_loss_type: exo_pair\n", "the loss 'exo_pair' has no counterpart"),
        (HANDBOOK_DPO.replace("dataset_mixer: {someone/pairs: 1.0}\n", ""), "it names no data"),
        (HANDBOOK_DPO.replace("{someone/pairs: 1.0}", "[1]"), "other things than alignment-handbook takes there"),
        (HANDBOOK_DPO.replace("[train_prefs, test_prefs]", "5"), "other things than alignment-handbook takes there"),
        (HANDBOOK_DPO.replace("[train_prefs, test_prefs]", "[test_prefs]"), "all splits that it names are for tests"),
    ],
)
def test_what_cannot_be_a_recipe_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        convert(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_verb_prints_writes_and_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "config.yaml", tmp_path / "recipe.yaml"
    source.write_text(HANDBOOK_SFT)
    assert main(["convert", str(source)]) == 0
    printed = capsys.readouterr().out
    assert load_recipe(_written(tmp_path / "again.yaml", printed)).name == "my-model"
    assert main(["convert", str(source), "--to", str(target), "--devices", "2"]) == 0
    told = capsys.readouterr().out
    assert "Not carried over" not in told
    assert "learning_rate (line 19): sft.learning_rate" in told
    assert config(load_recipe(str(target)), "sft").global_batch == 64
    before = target.read_text()
    assert main(["convert", str(source), "--to", str(target)]) == 2
    assert "there is a file already" in capsys.readouterr().err
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_value_that_no_recipe_takes_is_refused_with_its_reason(tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "config.yaml"
    source.write_text(AXOLOTL_RL.replace("RL", "dpo").replace("sequence_len: 2048", "sequence_len: 2"))
    assert main(["convert", str(source)]) == 2
    err = capsys.readouterr().err
    assert "what it comes to is refused" in err
    assert "max_length" in err
