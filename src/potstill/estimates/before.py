"""How long a stage took here before: where it was sealed in this folder under another key, and computed the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.artifact import Artifact, find
from potstill.errors import PotstillError
from potstill.estimates.models import Known
from potstill.estimates.training import Trainer
from potstill.runs.plan import KEY_LENGTH, Step
from potstill.runs.workspace import Workspace
from potstill.sources import LocalModel
from potstill.training.known import config_of

NO_TIME = frozenset({"learning_rate", "schedule", "warmup", "weight_decay", "beta2", "clip", "store"})
"""Settings that change what is learnt, and not how long that takes. So do those of how it is computed (`HOW`), whose
outcome is compared instead."""
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def took_before(step: Step, trainer: Trainer, workspace: Path) -> float | None:
    """Seconds of the whole stage, by the rows that it has now; None where no earlier run of it is alike."""
    place = Workspace(workspace)
    for key, took in sorted(place.times().items(), key=lambda one: one[1].sealed_at, reverse=True):
        if took.stage != step.name or not took.whole:
            continue
        try:
            sealed = find(place.artifacts / f"{step.entry.family}-{key[:KEY_LENGTH]}")
        except PotstillError:  # it is damaged, which a run that needs it says
            continue
        if sealed is not None and sealed.key == key and _is_alike(sealed, step, trainer):
            start = min(took.seconds, trainer.pace.start_seconds)
            now = trainer.lot.trained * trainer.lot.sample.mean
            return start + (took.seconds - start) * now / max(1, int(sealed.facts["tokens"]))
    return None


def _is_alike(sealed: Artifact, step: Step, trainer: Trainer) -> bool:
    """The same settings and a model of the same shape, computed by the same device in the same way."""
    before: Mapping[str, Any] = sealed.manifest["config"]
    facts = sealed.facts
    ignored = NO_TIME | step.entry.config.HOW
    config = {name: value for name, value in step.head["config"].items() if name not in ignored}
    if config != {name: value for name, value in before.items() if name not in ignored}:
        return False
    said = trainer.config.micro_batch_tokens
    if facts.get("device") != "cpu" or said not in (None, facts.get("micro_batch_tokens")):
        return False
    recomputed = facts.get("activation_checkpointing") != "none"
    if "tokens" not in facts or trainer.config.activation_checkpointing not in (None, recomputed):
        return False
    made, _ = config_of(LocalModel(path=str(sealed.path)), step.name)
    return _shape(Known(step.name, made, "")) == _shape(trainer.model)


def _shape(known: Known) -> list[Any]:
    text = known.config.get_text_config()
    return [getattr(text, name, None) for name in SHAPE]
