"""Hidden states between decoder layers: which layers of student and teacher belong together, and how they are read.

Layer i, from 1 to L, is the output of the i-th decoder layer, before the final norm; L is the last. The embeddings are
no layer. transformers counts otherwise: its `hidden_states[0]` are the embeddings, and its last is behind the norm.
Suffixes: N positions, D a model's width, R the width of a target.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import ModelError, RecipeError
from potstill.training.probe import bare

Pairs = tuple[tuple[int, int], ...]
"""(student's layer, teacher's layer), from the lowest up; no student's layer twice."""


def spread(layers: int, count: int) -> tuple[int, ...]:
    """`count` of a model's layers at equal distances, the last of them its last. RecipeError where it has fewer."""
    if not 1 <= count <= layers:
        raise RecipeError("layers", f"{count} of {layers} decoder layers cannot be chosen", f"Set 1 to {layers}")
    return tuple(_nearest(step * layers, count) for step in range(1, count + 1))


def depth_map(student_layers: int, teacher_layers: int, chosen: int | Mapping[int, int] | None = None) -> Pairs:
    """Which layer of the student learns from which of the teacher.

    `chosen` is how many pairs, of equal relative depth and the last layers together (the uniform strategy of Jiao et
    al. 2020, TinyBERT); None: as many as the shallower has layers. Or they are given, as {2: 6, 4: 12}. Raises
    RecipeError where there are not so many, and ModelError for a layer that does not exist.
    """
    if not isinstance(chosen, Mapping):
        count = min(student_layers, teacher_layers) if chosen is None else chosen
        return tuple(zip(spread(student_layers, count), spread(teacher_layers, count), strict=True))
    if not chosen:
        raise RecipeError("layers", "no pair of layers is given", "Give some, as {2: 6, 4: 12}, or how many there are")
    check_layers(chosen, student_layers, "the student")
    check_layers(chosen.values(), teacher_layers, "the teacher")
    return tuple(sorted(chosen.items()))


def captured_map(
    student_layers: int, teacher_layers: int, captured: Sequence[int], chosen: int | Mapping[int, int] | None = None
) -> Pairs:
    """As `depth_map`, of the teacher's layers that were captured: as many as asked for, at equal distances among them,
    the deepest with them; None: all. Each goes to the student's layer of the nearest relative depth.

    Raises RecipeError where there are not so many or two would go to one layer, ModelError for a layer that does not
    exist or was not captured.
    """
    there = sorted(captured)
    if isinstance(chosen, Mapping):
        pairs = depth_map(student_layers, teacher_layers, chosen)
        for _, teacher in pairs:
            if teacher not in there:
                what = f"the teacher's layer {teacher} was not captured: {_listed(there)} were"
                raise ModelError("layers", what, "Choose of these, or capture it")
        return pairs
    wanted = [there[place - 1] for place in spread(len(there), len(there) if chosen is None else chosen)]
    nearest = [max(1, _nearest(teacher * student_layers, teacher_layers)) for teacher in wanted]
    for (one, student), (other, next_student) in pairwise(zip(wanted, nearest, strict=True)):
        if student == next_student:
            what = f"the teacher's layers {one} and {other} are both nearest to the student's layer {student}"
            raise RecipeError("layers", f"{what}, of {student_layers}", "Choose fewer, or give pairs, as {2: 6, 4: 12}")
    return tuple(zip(nearest, wanted, strict=True))


def _nearest(numerator: int, denominator: int) -> int:
    """Of their quotient; halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def check_layers(layers: Iterable[int], there: int, whose: str) -> None:
    """ModelError for a layer that does not exist; `whose` is "the teacher", for the message."""
    for layer in layers:
        if not 1 <= layer <= there:
            what = f"{whose} has no decoder layer {layer}: it has {there}, and the embeddings are not counted"
            raise ModelError("layers", what, f"Choose from 1 to {there}, which is the last")


def layer_list(model: PreTrainedModel) -> nn.ModuleList | None:
    """What holds the model's decoder layers, whatever its family calls it; None where it is not to be found."""
    body = bare(model).base_model
    expected = bare(model).config.get_text_config().num_hidden_layers
    for module in body.modules():  # from the outside in: experts inside a layer come later
        if isinstance(module, nn.ModuleList) and len(module) == expected == len(set(module)):
            return module
    return None


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The model's decoder layers from the first to the last. ModelError where they are not to be found."""
    layers = layer_list(model)
    if layers is None:
        expected = bare(model).config.get_text_config().num_hidden_layers
        raise ModelError(
            f"model {bare(model).name_or_path}",
            f"its hidden states cannot be read: there is no list of {expected} decoder layers in it",
            "Distil from its logits alone, or use a model of another architecture",
        )
    return list(layers)


@contextmanager
def collect(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Within this, the outputs of these layers are gathered, by layer: one tensor a call of the body, in their order,
    each of the shape that the body computes in, with their gradients.

    The model may be adapted, sharded and under autocast. Layers that are computed again in the backward are not
    gathered again. Raises ModelError for a layer that does not exist.
    """
    blocks = decoder_layers(model)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    check_layers(found, len(blocks), "the model")
    with ExitStack() as stack:
        for layer, outputs in found.items():
            hook = blocks[layer - 1].register_forward_hook(partial(_gather, outputs))
            stack.callback(hook.remove)
        yield found


def _gather(outputs: list[Tensor], block: nn.Module, inputs: Any, output: Any) -> None:
    """Some families' layers return a tuple whose first is the hidden state."""
    outputs.append(output[0] if isinstance(output, tuple) else output)


class Projections(nn.Module):
    """What stands between a student's hidden states and their targets: a linear map a pair, without bias.

    A target is the teacher's hidden state itself, or a sketch of it (`signals.states`), of fewer numbers. It belongs
    to the scorer, so that its weights are gathered, clipped, stepped and checkpointed with all others, and not to the
    student: what is sealed knows nothing of it.
    """

    def __init__(
        self,
        pairs: Pairs,
        student_width: int,
        teacher_width: int,
        seed: int,
        *,
        learnt: bool = True,
        sketches: Mapping[int, Tensor] | None = None,
    ) -> None:
        """`learnt`: False, where widths are equal, compares the student's own states (or their sketches) with the
        teacher's. `sketches` has the matrix of shape (R, D) by the teacher's layer. The same seed gives the same
        weights: where widths are equal the map begins as what it would be if it were not learnt, so that a student who
        inherited the teacher's layers begins beside it; else as an isometry, or its transpose (Saxe et al. 2014).

        Raises RecipeError where widths differ and nothing is to be learnt.
        """
        super().__init__()
        if student_width != teacher_width and not learnt:
            what = f"the student's hidden states have width {student_width} and the teacher's {teacher_width}"
            raise RecipeError("projection", f"{what}, and no projection between them is to be learnt", "Have it learnt")
        self.pairs = pairs
        self.linears = nn.ModuleDict()
        drawn = torch.Generator().manual_seed(seed)
        for student, teacher in pairs:
            sketch_RD = sketches[teacher].detach().float() if sketches is not None else None
            if learnt:
                size = teacher_width if sketch_RD is None else len(sketch_RD)
                linear = nn.Linear(student_width, size, bias=False, device="meta")  # draws from nobody's generator
                linear = linear.to_empty(device="cpu")
                self.linears[str(student)] = linear
                if student_width != teacher_width:
                    nn.init.orthogonal_(linear.weight, generator=drawn)
                else:
                    linear.weight.data.copy_(torch.eye(student_width) if sketch_RD is None else sketch_RD)
            elif sketch_RD is not None:
                self.register_buffer(_sketch_name(student), sketch_RD.clone(), persistent=False)

    def forward(self, layer: int, states_ND: Tensor) -> Tensor:
        """The student's states of this layer, to be compared with the target's; shape (N, R), in the weights' type or,
        where there are none, in float32 or wider.

        Computed outside autocast: two states that are nearly equal differ by less than bfloat16 can say.
        """
        wide = torch.promote_types(states_ND.dtype, torch.float32)
        with torch.autocast(states_ND.device.type, enabled=False):
            if str(layer) in self.linears:
                linear = cast(
                    nn.Linear, self.linears[str(layer)]
                )  # called as a module: wrappers gather its weight then
                return cast(Tensor, linear(states_ND.to(linear.weight.dtype)))
            sketch_RD = getattr(self, _sketch_name(layer), None)
            return states_ND.to(wide) if sketch_RD is None else states_ND.to(wide) @ sketch_RD.to(wide).t()


def _sketch_name(student: int) -> str:
    return f"sketch_{student}"
