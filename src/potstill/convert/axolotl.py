"""Configs of axolotl: SFT, and preferences (`rl: dpo, ipo, kto, orpo, simpo`), by its present and its older names."""

from pathlib import Path
from typing import Any

from potstill.convert import common
from potstill.convert.account import Account
from potstill.convert.axolotl_keys import LEFT, OURS
from potstill.convert.axolotl_rows import datasets
from potstill.convert.draft import Draft, Line, Part, plain_name
from potstill.convert.losses import loss_of
from potstill.convert.rows import held_out, import_stage
from potstill.convert.templates import NAMED
from potstill.errors import RecipeError

NAMES = common.Names(
    "axolotl", "micro_batch_size", "gradient_accumulation_steps", "lr_scheduler", "optimizer", "num_epochs",
    default_rows=1, default_epochs=1.0, default_schedule="cosine", default_warmup=0.03,
)  # fmt: skip
PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")
OTHER_TASKS = ("reward_model", "process_reward_model", "pretraining_dataset", "diffusion", "ebft", "num_labels")
"""Keys of configs that train something else than a chat model on given rows."""
ON_LONG = {"drop": "drop", "truncate": "cut"}


def convert(account: Account, devices: int | None, method: str | None) -> tuple[Draft, list[str]]:
    """The recipe, and what was assumed of the config. RecipeError where it cannot be one."""
    loss = _task(account, method)
    assumed = []
    if devices is None:
        devices = 1
        assumed.append("1 device, as the config does not say on how many it ran (--devices N says else).")
    draft = Draft(
        _name(account), Line("seed", account.get("seed", 42), "seed" if account.has("seed") else "default of axolotl")
    )
    account.note("seed", "carried", "seed")
    draft.models.append(_model(account))
    kind = "chats" if loss is None else "feedback" if loss == "kto" else "pairs"
    sources, tests, templates = datasets(account, kind)
    part = Part("sft" if loss is None else "dpo")
    part.add("kind", part.name)
    part.add("model", "base")
    part.add("data", [source.reference() for source in sources])
    _template(account, part, templates)
    if loss is None:
        _sft(account, part)
    else:
        loss_of(account, part, loss)
    common.rates(account, part, NAMES)
    common.optimizer(account, part, NAMES)
    common.batch(account, part, NAMES, devices, packed=account.get("sample_packing") is True)
    _lengths(account, part, sft=loss is None)
    common.precision(account, part)
    _adapter(account, part)
    _held_out(account, part)
    _rest(account, part)
    _sharding(account, part, devices)
    draft.stages += [import_stage(rows, tests) for rows in (*sources, *tests)]
    draft.stages.append(part)
    draft.stages += held_out(tests, part.name)
    return draft, assumed


def _task(account: Account, asked: str | None) -> str | None:
    """The preference loss, or None for SFT."""
    for key in OTHER_TASKS:
        if account.get(key):
            what = f"'{key}' is of a task that no recipe has"
            raise RecipeError(account.document.place((key,)), what, "Convert configs of SFT and of preferences")
        account.note(key, "ours", "off")
    kind = asked if asked not in (None, "sft") else account.get("rl")
    if kind in (None, False) or asked == "sft":
        account.note("rl", "ours", "off")
        return None
    if kind not in PREFERENCES:
        what = f"rl: {kind} has no counterpart in potstill"
        raise RecipeError(account.document.place(("rl",)), what, f"Those that have one: {', '.join(PREFERENCES)}")
    account.note("rl", "carried", f"dpo.loss, for {kind}")
    given = account.get("dpo_loss_type")
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    return str(given) if kind == "dpo" and given else "sigmoid" if kind == "dpo" else str(kind)


def _name(account: Account) -> str:
    for key in ("wandb_name", "output_dir"):
        if words := str(account.get(key, "")).rstrip("/").rpartition("/")[2]:
            account.note(key, "carried", "name")
            return plain_name(words)
    return plain_name(Path(account.document.name).stem)


def _model(account: Account) -> Part:
    part = Part("base")
    part.add("path", str(account.get("base_model")), "base_model")
    account.note("base_model", "carried", "models.base.path")
    for key in ("revision_of_model", "model_revision"):
        if account.has(key):
            part.add("revision", str(account.get(key)), key)
            account.note(key, "carried", "models.base.revision")
    if account.get("trust_remote_code") is True:
        part.add("trust_remote_code", True, "trust_remote_code: read that code first")
        account.note("trust_remote_code", "carried", "models.base.trust_remote_code")
    account.note("trust_remote_code", "ours", "off")
    account.note("output_dir", "ours", "a run's folder is named on the command line")
    return part


def _template(account: Account, part: Part, named_by_rows: list[str]) -> None:
    """What is spelt out, or known by its name; else the model's own."""
    jinja, name = account.get("chat_template_jinja"), account.get("chat_template")
    if jinja is not None:
        part.add("template", str(jinja), "chat_template_jinja")
        account.note_all("chat_template_jinja chat_template", "carried", f"{part.name}.template")
        return
    chosen = str(name or next(iter(named_by_rows), "tokenizer_default"))
    if chosen in NAMED:
        part.add("template", NAMED[chosen], f"chat_template: {chosen}, in potstill's own words")
        account.note("chat_template", "carried", f"{part.name}.template")
    elif chosen.startswith("tokenizer_default"):
        account.note("chat_template", "ours", "the model's own; Zephyr's where it has none")
    else:
        account.note("chat_template", "left", f"'{chosen}' is not known here; the model's own is used, or set template")


def _sft(account: Account, part: Part) -> None:
    everything = account.get("train_on_inputs") is True
    part.add("learn", "all" if everything else "assistant", "train_on_inputs")
    account.note("train_on_inputs", "carried", f"{part.name}.learn")
    for key in ("neftune_noise_alpha", "noisy_embedding_alpha"):
        if common.carry(account, part, key, "neftune_alpha"):
            break
    if account.get("tokens"):
        part.add("new_tokens", list(account.get("tokens")), "tokens")
        account.note("tokens", "carried", f"{part.name}.new_tokens")


def _lengths(account: Account, part: Part, *, sft: bool) -> None:
    if not common.carry(account, part, "sequence_len", "max_length"):
        part.add("max_length", 512, "default of axolotl")
    if sft:
        asked = str(account.get("excess_length_strategy", "drop"))
        part.add("on_long", ON_LONG.get(asked, "drop"), "excess_length_strategy" if asked in ON_LONG else "")
        if asked in ON_LONG:
            account.note("excess_length_strategy", "carried", f"{part.name}.on_long")
        account.note("excess_length_strategy", "left", "longer rows are dropped and counted, or cut")
    account.note("excess_length_strategy", "left", "pairs are never cut: longer ones are left out and counted")


def _adapter(account: Account, part: Part) -> None:
    asked = account.get("adapter")
    if asked in ("lora", "qlora"):
        kind = "dora" if asked == "lora" and account.get("peft_use_dora") is True else asked
        common.adapter(account, part, kind)
        account.note_all("adapter peft_use_dora", "carried", f"{part.name}.adapter.kind: {kind}")
        if asked == "qlora":
            account.note("load_in_4bit", "carried", f"{part.name}.adapter.kind: qlora")
    elif asked is not None:
        account.note("adapter", "left", f"'{asked}' is none of lora, dora and qlora: all weights are trained")
    for key in ("load_in_8bit", "load_in_4bit"):
        off = not account.get(key)
        account.note(key, "ours" if off else "left", "off" if off else "bases are whole, or in 4 bits under qlora")
    account.note_all("lora_r lora_alpha lora_dropout lora_target_linear lora_target_modules peft_use_rslora "
                     "peft_use_dora lora_fan_in_fan_out", "ours", "there is no adapter")  # fmt: skip


def _held_out(account: Account, part: Part) -> None:
    size = common.number(account, "val_set_size", 0)
    if size >= 1:
        part.add("held_out", int(size), "val_set_size")
        account.note("val_set_size", "carried", f"{part.name}.held_out")
        patience = common.number(account, "early_stopping_patience")
        if patience:
            part.add("patience", int(patience), "early_stopping_patience")
            account.note("early_stopping_patience", "carried", f"{part.name}.patience")
        if account.get("load_best_model_at_end") is True:
            part.add("keep", "best", "load_best_model_at_end")
            account.note("load_best_model_at_end", "carried", f"{part.name}.keep")
    elif size:
        account.note("val_set_size", "left", f"a recipe counts rows: {part.name}.held_out = {size:g} x all rows")
    account.note("val_set_size", "ours", "none")
    words = f"they go by held-out rows: set {part.name}.held_out first, then patience and keep"
    account.note_all("early_stopping_patience load_best_model_at_end metric_for_best_model", "left", words)


def _rest(account: Account, part: Part) -> None:
    checkpoints = account.get("gradient_checkpointing")
    if checkpoints is not None:
        part.add("activation_checkpointing", bool(checkpoints), "gradient_checkpointing")
        account.note("gradient_checkpointing", "carried", f"{part.name}.activation_checkpointing")
    wanted = {"wandb": "wandb_project use_wandb", "tensorboard": "use_tensorboard", "trackio": "use_trackio"}
    asked = [name for name, keys in wanted.items() if any(account.get(key) for key in keys.split())]
    common.trackers(account, part, asked)
    account.note_all(
        " ".join(wanted.values()), "carried" if asked else "ours", f"{part.name}.track" if asked else "none"
    )
    if account.get("dataset_exact_deduplication") is True:
        words = "put a stage of kind curate with deduplicate: exact between import and sft"
        account.note("dataset_exact_deduplication", "left", words)
    account.note("dataset_exact_deduplication", "ours", "off")
    common.other_task(account)
    for words, keys in OURS.items():
        account.note_all(keys, "ours", words)
    for words, keys in LEFT.items():
        for key in keys.split():
            empty = account.get(key) in (None, False, [], {}, "")
            account.note(key, "ours" if empty else "left", "it is empty, or off" if empty else words)


def _sharding(account: Account, part: Part, devices: int) -> None:
    deepspeed, fsdp = account.get("deepspeed"), account.get("fsdp") or account.get("fsdp_config")
    kind = "zero3" if deepspeed and "zero3" in str(deepspeed) else "fsdp2"
    common.sharded(part, devices, kind, "deepspeed" if deepspeed else "fsdp" if fsdp else "with --launch")
    done = any(line.name == "sharding" for line in part.lines)
    words = (
        f"{part.name}.sharding: {kind}" if done else f"on one device there is nothing to share; --devices N sets {kind}"
    )
    state: Any = "carried" if done else "left"
    account.note_all("deepspeed fsdp fsdp_config fsdp_version fsdp_final_state_dict_type deepcompile", state, words)
