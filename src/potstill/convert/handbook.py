"""Configs of the alignment handbook (SFT, DPO, ORPO), with its older names and its present ones; and of TRL's scripts.

Numbers that a config does not say are those of transformers' TrainingArguments, which the handbook's configs extend.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.convert import common
from potstill.convert.account import Account
from potstill.convert.draft import Draft, Line, Part, plain_name
from potstill.convert.losses import loss_of
from potstill.convert.rows import Rows, apart, held_out, import_stage
from potstill.document import Steps
from potstill.errors import RecipeError

METHODS = ("sft", "dpo", "orpo")
NAMES = common.Names(
    "transformers", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "optim",
    "num_train_epochs", default_rows=8, default_epochs=3.0, default_schedule="linear", default_warmup=0.0,
)  # fmt: skip
OF_PREFERENCES = ("beta", "loss_type", "max_prompt_length", "rpo_alpha", "label_smoothing", "precompute_ref_log_probs")
DEVICES = 8
"""Where nothing is said: the handbook's README trains full models on eight, and its QLoRA on one."""

OURS = {
    "attention is chosen for the machine": "attn_implementation use_flash_attention_2",
    "a matter of speed": "gradient_checkpointing_kwargs use_liger_kernel dataloader_num_workers dataset_num_proc "
    "preprocessing_num_workers ddp_timeout dataset_kwargs dataloader_drop_last group_by_length torch_compile "
    "eval_accumulation_steps padding_free packing packing_strategy remove_unused_columns use_cache",
    "each loss is divided by the count of the whole global batch": "average_tokens_across_devices",
    "a run's folder is named on the command line": "output_dir overwrite_output_dir",
    "models are sealed when they are done, and pushed by nobody": "push_to_hub hub_model_id hub_strategy "
    "hub_private_repo hub_model_revision hub_revision push_to_hub_revision",
    "checkpoints are written every ten minutes (checkpoint_minutes)": "save_strategy save_steps save_total_limit "
    "save_only_model save_safetensors resume_from_checkpoint save_first_step",
    "every step stands in the curves": "logging_steps logging_strategy logging_first_step log_level run_name "
    "disable_tqdm include_num_input_tokens_seen",
    "held-out rows are scored by the stage 'scores'": "do_eval do_train eval_strategy evaluation_strategy eval_steps "
    "per_device_eval_batch_size eval_on_start",
    "the model's config says it": "model_type tokenizer_type use_fast_tokenizer",
    "the reference is the model that training starts from, computed once": "precompute_ref_log_probs ref_model_name "
    "ref_model_init_kwargs model_init_kwargs",
}
"""Keys that say how the handbook works, and what potstill does there."""
LEFT = {
    "pairs are never cut: longer ones are left out and counted": "max_prompt_length max_completion_length",
    "schedules end at 0": "lr_scheduler_kwargs",
    "the token that the template ends a turn with ends an answer": "eos_token",
    "only the columns that potstill knows are read": "auto_insert_empty_system_msg text_column",
}


def convert(account: Account, devices: int | None, method: str | None) -> tuple[Draft, list[str]]:
    """The recipe, and what was assumed of the config. RecipeError where it cannot be one."""
    kind, why = _method(account, method)
    quantized = account.get("load_in_4bit") is True
    assumed = [f"This is {kind.upper()}: {why}."]
    if devices is None:
        devices = 1 if quantized else DEVICES
        assumed.append(
            f"{devices} device{'s' if devices > 1 else ''}, as in the handbook's README (--devices N says else)."
        )
    seed = account.get("seed", 42)
    account.note("seed", "carried", "seed")
    draft = Draft(
        _name(account, kind), Line("seed", seed, "seed" if account.has("seed") else "default of transformers")
    )
    draft.models.append(_model(account))
    sources, tests = _rows(account, "chats" if kind == "sft" else "pairs")
    part = Part(kind if kind == "sft" else "dpo")
    part.add("kind", "sft" if kind == "sft" else "dpo")
    part.add("model", "base")
    part.add("data", [source.reference() for source in sources])
    _template(account, part)
    if kind == "sft":
        _sft(account, part)
    else:
        loss_of(account, part, "orpo" if kind == "orpo" else str(_first(account.get("loss_type", "sigmoid"))))
    common.rates(account, part, NAMES)
    common.optimizer(account, part, NAMES)
    common.batch(account, part, NAMES, devices, packed=kind == "sft" and account.get("packing") is not False)
    _length(account, part, kind)
    common.precision(account, part)
    _adapter(account, part)
    _rest(account, part, tests)
    common.sharded(part, devices, "fsdp2", "with --launch: zero3 is DeepSpeed's")
    draft.stages += [import_stage(rows, tests) for rows in (*sources, *tests)]
    draft.stages.append(part)
    draft.stages += held_out(tests, part.name)
    return draft, assumed


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _method(account: Account, asked: str | None) -> tuple[str, str]:
    """Which script the config was for: it does not say so itself."""
    if asked is not None:
        if asked not in METHODS:
            what = f"a config of the handbook is for sft, dpo or orpo, not for {asked}"
            raise RecipeError("command line, --as", what, "Name one of those three")
        return asked, "--as says so"
    path = Path(account.document.name.lower())
    if path.parent.name == "orpo" or "orpo" in re.split(r"[^a-z]", path.stem):
        return "orpo", "its path says orpo (--as says else)"
    found = [key for key in OF_PREFERENCES if account.has(key)]
    if found:
        return "dpo", f"it has {found[0]} (--as says else)"
    return "sft", "nothing in it is of preferences (--as says else)"


def _name(account: Account, kind: str) -> str:
    for key in ("hub_model_id", "output_dir"):
        if account.has(key):
            account.note(key, "carried", "name")
            return plain_name(str(account.get(key)).rstrip("/").rpartition("/")[2])
    return plain_name(f"{Path(account.document.name).stem}-{kind}")


def _model(account: Account) -> Part:
    part = Part("base")
    part.add("path", str(account.get("model_name_or_path")), "model_name_or_path")
    account.note("model_name_or_path", "carried", "models.base.path")
    if account.get("model_revision") not in (None, "main"):
        part.add("revision", str(account.get("model_revision")), "model_revision")
        account.note("model_revision", "carried", "models.base.revision")
    account.note("model_revision", "ours", "the newest; name a commit so that it cannot change")
    if account.get("trust_remote_code") is True:
        part.add("trust_remote_code", True, "trust_remote_code: read that code first")
        account.note("trust_remote_code", "carried", "models.base.trust_remote_code")
    account.note("trust_remote_code", "ours", "off")
    return part


def _rows(account: Account, rows: str) -> tuple[list[Rows], list[Rows]]:
    """What is trained on, and what is held out: splits whose names say test are never trained on."""
    found = list(_mixer(account, rows)) or list(_mixture(account, rows)) or list(_one(account, rows))
    if not found:
        what = "it names no data: none of dataset_mixer, dataset_mixture and dataset_name"
        raise RecipeError(account.document.name, what, "Write the data that it was trained on into the config")
    train, tests = apart(found)
    if not train:
        raise RecipeError(account.document.name, "all splits that it names are for tests", "Name one to train on")
    return train, tests


def _mixer(account: Account, rows: str) -> Iterator[Rows]:
    """The older way: names with shares, and beside them splits."""
    mixer, splits = account.get("dataset_mixer"), account.get("dataset_splits", ["train", "test"])
    configs = account.get("dataset_configs", [])
    if isinstance(mixer, str):
        mixer = {mixer: 1.0}
    for place, (name, share) in enumerate((mixer or {}).items()):
        subset = configs[place] if place < len(configs) else None
        for split in splits:
            yield Rows(str(name), rows, split=str(split), weight=float(share), subset=subset)
    account.note_all("dataset_mixer dataset_splits dataset_configs", "carried", "stages of kind import, and data")


def _mixture(account: Account, rows: str) -> Iterator[Rows]:
    """The present way: a list with a split and a weight each."""
    mixture = account.get("dataset_mixture")
    if mixture is None:
        return
    for place, one in enumerate(mixture.get("datasets") or ()):
        at: Steps = ("dataset_mixture", "datasets", place)
        weight = float(one.get("weight") or 1.0)
        subset = None if one.get("config") in (None, "default") else str(one["config"])
        yield Rows(str(one.get("id")), rows, split=str(one.get("split") or "train"), weight=weight, subset=subset)
        for key in ("id", "config", "split", "weight"):
            account.note((*at, key), "carried", "stages of kind import, and data")
        account.note((*at, "columns"), "ours", "columns are told by their names")
    account.note(("dataset_mixture", "seed"), "ours", "seeds are made of the recipe's")
    words = "whole test splits are held out, and nothing of them is trained on"
    account.note(("dataset_mixture", "test_split_size"), "ours", words)


def _one(account: Account, rows: str) -> Iterator[Rows]:
    """TRL's way: one data set."""
    name, subset = account.get("dataset_name"), account.get("dataset_config")
    if name is not None:
        for key, default in (("dataset_train_split", "train"), ("dataset_test_split", None)):
            split = account.get(key, default)
            if split is not None:
                yield Rows(str(name), rows, split=str(split), subset=subset, test=key == "dataset_test_split" or None)
    words = "stages of kind import"
    account.note_all("dataset_name dataset_config dataset_train_split dataset_test_split", "carried", words)


def _template(account: Account, part: Part) -> None:
    if isinstance(account.get("chat_template"), str):
        template = str(account.get("chat_template"))
        part.add("template", template, "chat_template")
        begins = "" if "bos_token" in template else "; it writes no start token, which older TRL put before it"
        account.note("chat_template", "carried", f"{part.name}.template{begins}")


def _sft(account: Account, part: Part) -> None:
    """TRL learns every token of a conversation unless it is told else."""
    only = account.get("assistant_only_loss") is True or account.get("completion_only_loss") is True
    words = "assistant_only_loss" if only else "default of TRL; potstill's own is assistant"
    part.add("learn", "assistant" if only else "all", words)
    account.note_all("assistant_only_loss completion_only_loss", "carried", f"{part.name}.learn")
    part.add("on_long", "cut", "whole turns at the end; TRL cuts anywhere")
    common.carry(account, part, "neftune_noise_alpha", "neftune_alpha")


def _length(account: Account, part: Part, kind: str) -> None:
    for key in ("max_seq_length", "max_length"):
        if common.carry(account, part, key, "max_length"):
            account.note_all("max_seq_length max_length", "ours", "the other name of the same")
            return
    part.add("max_length", 1024, "default of TRL")


def _adapter(account: Account, part: Part) -> None:
    if account.get("use_peft") is True or account.has("lora_r"):
        kind = "qlora" if account.get("load_in_4bit") is True else "dora" if account.get("use_dora") is True else "lora"
        common.adapter(account, part, kind)
        account.note_all("use_peft load_in_4bit use_dora", "carried", f"{part.name}.adapter.kind: {kind}")
    if account.get("load_in_8bit") is True:
        account.note("load_in_8bit", "left", "bases are whole, or in 4 bits (adapter.kind: qlora)")
    if account.get("load_in_4bit") is True:
        account.note("load_in_4bit", "left", "4 bits are for adapters, and there is none")
    account.note_all("use_peft load_in_4bit load_in_8bit use_rslora use_dora", "ours", "off")
    words = "nf4 with scales rounded too, computed in bfloat16"
    account.note_all("bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage", "ours", words)


def _rest(account: Account, part: Part, tests: list[Rows]) -> None:
    checkpoints = account.get("gradient_checkpointing")
    if isinstance(checkpoints, bool):
        part.add("activation_checkpointing", checkpoints, "gradient_checkpointing")
        account.note("gradient_checkpointing", "carried", f"{part.name}.activation_checkpointing")
    asked = account.get("report_to", [])
    common.trackers(account, part, [asked] if isinstance(asked, str) else list(asked))
    account.note("report_to", "carried", f"{part.name}.track, where potstill knows the tracker")
    common.other_task(account)
    for words, keys in OURS.items():
        account.note_all(keys, "ours", words)
    for words, keys in LEFT.items():
        account.note_all(keys, "left", words)
