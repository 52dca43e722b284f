"""init: a student that nobody has trained yet, from layers of a model, or of another family at a chosen size."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.errors import ModelError
from potstill.sources import Inputs, LocalModel, Model
from potstill.stages.base import Facts, LocalModelName, Stage, StageConfig, Work
from potstill.training.size import Size

Layer = Annotated[int, Field(ge=1)]


class InitConfig(StageConfig):
    """Make a student without training it: either of chosen `layers` of a model, or of a `family` at a `size`."""

    kind: Literal["init"]
    model: LocalModelName
    """The model whose layers are kept, with its embeddings and its head. With `family`, the one whose tokenizer, chat
    template and end tokens the student has; what else the two share is nothing."""
    layers: Annotated[int, Field(ge=1)] | Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """The layers that are kept, counted from 1, such as [1, 3, 5, 8, 10, 12]; or how many, at even distances, the first
    and the last among them. Their weights are copied."""
    family: str | None = Field(default=None, min_length=1)
    """A model_type of transformers, such as llama, qwen3 or gemma2; the weights are random, by the stage's seed."""
    size: Size | None = None
    """How large the student of a `family` is."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.layers is None) == (self.family is None):
            raise ValueError("expected either layers, which are kept, or a family and a size")
        if (self.family is None) != (self.size is None):
            raise ValueError("family and size belong together; expected both or none of them")
        if isinstance(self.layers, tuple):
            for before, layer in pairwise(self.layers):
                if layer == before:
                    raise ValueError(f"layer {layer} is named twice; expected each once, since it is kept or it is not")
                if layer < before:
                    raise ValueError(
                        f"layer {layer} stands behind layer {before}; expected them in the model's order, since each "
                        "reads what those before it wrote"
                    )
        return self


def run(config: InitConfig, inputs: Inputs, work: Work) -> Facts:
    """Make the model, and keep it with the tokenizer."""
    import torch

    from potstill.training.making import keep_layers, make_model, which_layers
    from potstill.training.models import end_tokens, load_model, load_tokenizer, refuse_quantized, save_model
    from potstill.training.preflight import first_token_difference

    source, cpu = inputs.model("model"), torch.device("cpu")
    tokenizer, where = load_tokenizer(source), f"model {source.name}"
    decided: Facts
    if config.family is not None and config.size is not None:
        model = make_model(config.family, config.size, tokenizer, work.seed, cpu)
        model.generation_config.eos_token_id = end_tokens(source)
        decided = {"family": config.family}
    else:
        assert config.layers is not None
        model = load_model(source, tokenizer, cpu, dtype=None)
        refuse_quantized(source, model)
        total: int = model.config.get_text_config().num_hidden_layers
        kept = which_layers(config.layers, total, where)
        keep_layers(model, kept, where)
        decided = {"family": model.config.model_type, "kept_layers": f"{', '.join(map(str, kept))} of {total}"}
    save_model(model, tokenizer, work.path)
    made = Model(work.name, LocalModel(path=str(work.path)))
    if wrong := first_token_difference(load_tokenizer(made), tokenizer):
        what = f"transformers would read the tokenizer of {source.name} otherwise beside a model of it: {wrong}"
        raise ModelError(f"family: {decided['family']}", what, "Choose another family, such as llama or qwen3")
    shape = model.config.get_text_config()
    return {
        **decided,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": shape.num_hidden_layers,
        "width": shape.hidden_size,
        "vocabulary": shape.vocab_size,
    }


STAGE = Stage(config=InitConfig, produces="model", run=run, trains=True)
