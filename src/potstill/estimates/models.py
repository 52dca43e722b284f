"""What the models of a plan are made of, those among them that stages have yet to make."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.recipe.references import Link
from potstill.runs.plan import Plan, Step
from potstill.sources import EndpointModel, LocalModel, Model
from potstill.stages.init import InitConfig
from potstill.stages.pretrain import PretrainConfig
from potstill.training.known import config_of
from potstill.training.making import make_config, renumber, which_layers
from potstill.training.models import load_tokenizer


@dataclass(frozen=True)
class Known:
    """A model, as far as a plan knows it."""

    name: str
    config: PreTrainedConfig
    found: str
    """Where its shape was found."""
    folder: Path | None = None
    """Where its tokenizer is, if it is here."""
    download: bool = False
    """Whether its weights have yet to be fetched."""


def links_of(step: Step, *names: str) -> list[Link]:
    """What fields of these names refer to."""
    return [link for link in step.entry.links if link.field.rpartition(".")[2] in names]


def known_models(plan: Plan, step: Step, link: Link) -> list[Known]:
    """The models at hand behind a name, those behind endpoints left out. ModelError where one is unknown."""
    if link.stage:
        made = plan.steps[link.stage]
        return [_made(plan, made)] if made.entry.produces == "model" else []
    return [_of_recipe(model) for model in link.models if not isinstance(model.spec, EndpointModel)]


def _of_recipe(model: Model) -> Known:
    config, found = config_of(model.local, model.name)
    folder = Path(model.local.path)
    if folder.is_dir():
        return Known(model.name, config, found, folder)
    from huggingface_hub import try_to_load_from_cache

    at = {
        name: try_to_load_from_cache(model.local.path, name, revision=model.local.revision)
        for name in ("tokenizer_config.json", "model.safetensors", "model.safetensors.index.json")
    }
    tokenizer = at.pop("tokenizer_config.json")
    here = Path(tokenizer).parent if isinstance(tokenizer, str) else None
    return Known(model.name, config, found, here, not any(isinstance(path, str) for path in at.values()))


def _made(plan: Plan, step: Step) -> Known:
    """Of a stage that is sealed, or will be made."""
    if step.artifact is not None:
        config, found = config_of(LocalModel(path=str(step.artifact.path)), step.name)
        return Known(step.name, config, found, step.artifact.path)
    config_ = step.entry.config
    if isinstance(config_, PretrainConfig):
        return Known(step.name, make_config("mistral", config_, config_.vocabulary), "the recipe")
    starts = [known for link in links_of(step, "model") for known in known_models(plan, step, link)]
    if not starts:
        what = "what it will make is known only when it has run"
        raise ModelError(f"stage {step.name}", what, f"Run it first: potstill run ... --until {step.name}")
    base = starts[0]
    if not isinstance(config_, InitConfig):
        return Known(step.name, base.config, base.found, base.folder)
    if config_.family is not None and config_.size is not None:
        rows = base.config.get_text_config().vocab_size
        return Known(step.name, make_config(config_.family, config_.size, rows), "the recipe", base.folder)
    import copy

    assert config_.layers is not None, "it has a family or layers"
    fewer = copy.deepcopy(base.config)
    text = fewer.get_text_config()
    kept = which_layers(config_.layers, text.num_hidden_layers, step.name)
    renumber(text, dict(zip((layer - 1 for layer in kept), range(len(kept)), strict=True)))
    return Known(step.name, fewer, base.found, base.folder)


def tokenizer_of(known: Known) -> PreTrainedTokenizerBase | None:
    """Its tokenizer, where that is here and can be read."""
    if known.folder is None:
        return None
    try:
        return load_tokenizer(Model(known.name, LocalModel(path=str(known.folder))))
    except ModelError:
        return None


def downloads(found: Mapping[str, Known], parameters: Mapping[str, float]) -> dict[str, int]:
    """Bytes of what has to be fetched, two for each parameter."""
    return {name: round(2 * parameters[name]) for name, known in found.items() if known.download and name in parameters}
