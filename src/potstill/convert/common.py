"""What the converters of all tools share: batches, schedules, optimizers, adapters, types of numbers."""

from dataclasses import dataclass
from typing import Any

from potstill.convert.account import Account
from potstill.convert.draft import Part
from potstill.errors import RecipeError

ADAMW = {
    "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused", "paged_adamw_32bit", "optimi_adamw",
    "flash_adamw",
}  # fmt: skip
EIGHT_BITS = {"adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "ao_adamw_8bit", "ao_adamw_4bit", "ao_adamw_fp8"}
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
AT_ITS_DEFAULT = {"adam_beta1": 0.9, "adam_epsilon": 1e-8}
"""What potstill's AdamW has, and a recipe cannot say otherwise."""
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Names:
    """What a tool calls what all of them have, and what it takes where nothing is said."""

    tool: str
    rows: str
    """Rows a device and step."""
    accumulated: str
    schedule: str
    optimizer: str
    epochs: str
    default_rows: int
    default_epochs: float
    default_schedule: str
    default_warmup: float


def carry(account: Account, part: Part, key: str, field: str, *, where: str = "") -> bool:
    """A key whose value becomes a field's as it is; whether it stands there."""
    if not account.has(key):
        return False
    part.add(field, account.get(key), key)
    account.note(key, "carried", f"{where or part.name}.{field}")
    return True


def number(account: Account, key: str, default: Any = None) -> Any:
    """The key's value, which has to be a number. RecipeError."""
    value = account.get(key, default)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    what = f"'{key}' is {value!r}; expected a number"
    raise RecipeError(account.document.place((key,)), what, "Mend the config, and convert it again")


def batch(account: Account, part: Part, names: Names, devices: int, packed: bool) -> None:
    """The global batch: rows a device, times those accumulated, times devices."""
    rows = int(number(account, names.rows, names.default_rows))
    accumulated = number(account, names.accumulated, 1)
    accumulated = int(accumulated) if accumulated is not None else 1
    why = f"{names.rows} {rows} x {names.accumulated} {accumulated} x {devices} device{'s' if devices > 1 else ''}"
    part.add("global_batch", rows * accumulated * devices, why)
    note = f"{part.name}.global_batch = {rows} x {accumulated} x {devices}"
    if packed:
        note += "; packed blocks there, conversations here"
    account.note(names.rows, "carried", note)
    account.note(names.accumulated, "carried", note)


def rates(account: Account, part: Part, names: Names) -> None:
    """The learning rate, how it rises and falls, and for how long."""
    rate = number(account, "learning_rate")
    if rate is None:
        what = "there is no learning_rate"
        raise RecipeError(account.document.name, what, "Write the one that was used into the config")
    part.add("learning_rate", float(rate), "learning_rate")
    account.note("learning_rate", "carried", f"{part.name}.learning_rate")
    _epochs(account, part, names)
    _schedule(account, part, names)
    _warmup(account, part, names)
    carry(account, part, "weight_decay", "weight_decay")
    if carry(account, part, "max_grad_norm", "clip"):
        return
    part.add("clip", 1.0, f"default of {names.tool}")


def _epochs(account: Account, part: Part, names: Names) -> None:
    epochs = number(account, names.epochs)
    why = names.epochs if epochs is not None else f"default of {names.tool}"
    part.add("epochs", float(epochs) if epochs is not None else names.default_epochs, why)
    account.note(names.epochs, "carried", f"{part.name}.epochs")
    steps = number(account, "max_steps")
    if steps is not None and steps > 0:
        account.note("max_steps", "left", f"a recipe counts passes: set {part.name}.epochs to that part of one")
    account.note("max_steps", "ours", "no bound")


def _schedule(account: Account, part: Part, names: Names) -> None:
    asked = str(account.get(names.schedule, names.default_schedule))
    known = SCHEDULES.get(asked)
    if known is None:
        known = "cosine" if asked.startswith("cosine") else "linear"
        part.add("schedule", known, f"{names.schedule}: {asked} has no counterpart; this is the nearest")
        account.note(names.schedule, "left", f"'{asked}' is none of potstill's; it became {known}, which ends at 0")
    else:
        part.add("schedule", known, names.schedule if account.has(names.schedule) else f"default of {names.tool}")
    account.note(names.schedule, "carried", f"{part.name}.schedule")


def _warmup(account: Account, part: Part, names: Names) -> None:
    share, steps = number(account, "warmup_ratio"), number(account, "warmup_steps")
    if share is None and steps is not None and 0 < steps < 1:  # newer transformers: a share under the name of steps
        share, steps = steps, None
        account.note("warmup_steps", "carried", f"{part.name}.warmup, as it is below 1")
    if steps:
        account.note("warmup_steps", "left", f"a recipe has a share: {part.name}.warmup = {steps:g} / all steps")
    account.note("warmup_steps", "ours", "none")
    if share is None:
        share, why = (0.0, "warmup_steps is a number of steps: set it to that share") if steps else (
            names.default_warmup, f"default of {names.tool}"
        )  # fmt: skip
    else:
        why = "warmup_ratio" if account.has("warmup_ratio") else "warmup_steps"
    part.add("warmup", float(share), why)
    account.note("warmup_ratio", "carried", f"{part.name}.warmup")


def optimizer(account: Account, part: Part, names: Names) -> None:
    """AdamW or Muon; its other numbers where a recipe can say them."""
    asked = account.get(names.optimizer)
    if asked == "muon":
        part.add("optimizer", "muon", names.optimizer)
        account.note(names.optimizer, "carried", f"{part.name}.optimizer")
    elif asked in ADAMW:
        account.note(names.optimizer, "ours", "AdamW")
    elif asked in EIGHT_BITS:
        account.note(names.optimizer, "left", "potstill's AdamW keeps its states in float32: more memory, no rounding")
    else:
        account.note(names.optimizer, "left", f"'{asked}' is not here; AdamW takes its place, with the same rate")
    carry(account, part, "adam_beta2", "beta2")
    for key, value in AT_ITS_DEFAULT.items():
        same = number(account, key, value) == value
        account.note(key, "ours" if same else "left", "the same" if same else f"potstill's AdamW has {value:g}")


def precision(account: Account, part: Part) -> None:
    """What products are computed in."""
    asked = str(account.get("torch_dtype", account.get("dtype", "")))
    on = {key for key in ("bf16", "bfloat16", "fp16", "float16", "float32") if account.get(key) in (True, "full")}
    if on & {"bf16", "bfloat16"} or asked.endswith("bfloat16"):
        part.add("dtype", "bfloat16", "bf16" if on else "torch_dtype")
        account.note_all("bf16 bfloat16 torch_dtype dtype", "carried", f"{part.name}.dtype; weights stay in float32")
    elif "float32" in on or asked.endswith("float32"):
        part.add("dtype", "float32", "float32")
        account.note_all("float32 torch_dtype dtype", "carried", f"{part.name}.dtype")
    elif on & {"fp16", "float16"} or asked.endswith("float16"):
        account.note_all("fp16 float16 torch_dtype dtype", "left", "potstill computes in bfloat16 or in float32")
    account.note_all("torch_dtype dtype bf16 fp16 bfloat16 float16 float32", "ours", "as the hardware has it")
    account.note("tf32", "ours", "a matter of speed")


def adapter(account: Account, part: Part, kind: str, prefix: str = "lora_") -> None:
    """LoRA's numbers. `kind`: lora, dora or qlora."""
    fields: dict[str, Any] = {"kind": kind}
    for key, field in (("r", "rank"), ("alpha", "alpha"), ("dropout", "dropout")):
        value = number(account, prefix + key)
        if value is not None:
            fields[field] = value
        account.note(prefix + key, "carried", f"{part.name}.adapter.{field}")
    if "dropout" not in fields:
        fields["dropout"] = 0.0
    targets = account.get("lora_target_modules")
    if account.get("lora_target_linear") is True or targets in ("all-linear", ["all-linear"]):
        fields["targets"] = "auto"
        account.note_all("lora_target_linear lora_target_modules", "carried", f"{part.name}.adapter.targets: auto")
    elif isinstance(targets, list):
        fields["targets"] = targets
        account.note("lora_target_modules", "carried", f"{part.name}.adapter.targets")
    account.note("lora_target_modules", "left", "a pattern; write the layers' names, or leave auto")
    account.note("lora_target_linear", "ours", "off")
    for key in ("use_rslora", "peft_use_rslora"):
        if account.get(key) is True:
            fields["rslora"] = True
            account.note(key, "carried", f"{part.name}.adapter.rslora")
    part.add("adapter", fields, "lora_*")
    account.note_all("lora_modules_to_save", "left", "only low-rank additions are trained; see new_tokens of sft")
    account.note_all("lora_fan_in_fan_out lora_bias lora_task_type", "ours", "told by the layer")


def other_task(account: Account) -> None:
    """Options of SFT in a config of preferences, and the other way round; those of its own task are told by now."""
    sft = "neftune_noise_alpha noisy_embedding_alpha tokens train_on_inputs assistant_only_loss completion_only_loss"
    account.note_all(sft, "left", "it is for SFT")
    preferences = (
        "beta rl_beta dpo_beta loss_type dpo_loss_type label_smoothing rpo_alpha orpo_alpha cpo_alpha simpo_gamma"
    )
    account.note_all(preferences, "left", "it is for preferences")


def sharded(part: Part, devices: int, kind: str, why: str) -> None:
    """Several devices share the model, unless its weights are in 4 bits."""
    whole = not any(line.name == "adapter" and line.value["kind"] == "qlora" for line in part.lines)
    if devices > 1 and whole:
        part.add("sharding", kind, why)


def trackers(account: Account, part: Part, asked: list[str]) -> None:
    """Where curves go."""
    known = [name for name in asked if name in TRACKERS]
    if known:
        part.add("track", known, "the package of that name has to be installed")
