"""What "auto" becomes: how many tokens at once, and whether activations are remembered: a memory model and a probe.

Weights, gradients and the optimizer's state are known from the parameters (`models.footprint`). What the activations of
a token take is measured on the user's own rows, by counting what autograd keeps for the backward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.training.batch import Batch, Item, collate
from potstill.training.head import nothing_spare
from potstill.training.models import footprint
from potstill.training.probe import bare
from potstill.training.scoring import Scorer
from potstill.training.tasks import Teach, untaught
from potstill.training.taught_head import room_bytes

PREFERRED_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 8192}
"""More at once makes nothing faster."""
PROBE_TOKENS = 1024
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.8
"""The share of free memory that is planned for: kernels need some, and rows differ."""


AGAIN = 2
"""Of a layer that is computed again in the backward: what it leaves, and the gradients of as much."""


@dataclass(frozen=True)
class Plan:
    """How training will use memory."""

    micro_tokens: int
    checkpoint_activations: bool
    bytes_per_token: int
    free_bytes: int

    def notes(self) -> dict[str, int | bool]:
        """What was decided, by the names of the config's fields."""
        return {"micro_batch_tokens": self.micro_tokens, "activation_checkpointing": self.checkpoint_activations}


def plan(
    scorer: Scorer,
    items: Sequence[Item],
    optimizer_states: int,
    workers: int,
    micro_tokens: int | None,
    checkpoint: bool | None,
    teach: Teach = untaught,
) -> Plan:
    """What is None is decided: as many tokens at once as are worth while and fit, activations remembered where the
    longest row then fits. Leaves the scorer as decided. `teach`: what training will do with each batch."""
    free = free_bytes(scorer.device) - _to_come(scorer, optimizer_states) // workers
    if teach is not untaught:
        free -= room_bytes(bare(scorer.model).config.get_text_config().vocab_size)

    def each(checkpointed: bool) -> int:
        scorer.checkpoint(checkpointed)
        return bytes_at_once(scorer, middling(items), teach)

    longest = max(item.tokens for item in items)
    return decide(each, longest, free, PREFERRED_TOKENS[scorer.device.type], micro_tokens, checkpoint)


def decide(
    each: Callable[[bool], int],
    longest: int,
    free: int,
    worth_while: int,
    micro_tokens: int | None,
    checkpoint: bool | None,
) -> Plan:
    """The same by numbers: bytes of a token, with activations computed again or not; tokens of the longest row; bytes
    that are left beside all that stays; and how many tokens at once make training faster."""
    preferred = max(micro_tokens or worth_while, longest)
    for checkpointed in [False, True] if checkpoint is None else [checkpoint]:
        kept = each(checkpointed)
        fitting = int(HEADROOM * free / kept)
        if fitting >= longest:
            break
    tokens = micro_tokens or (preferred if fitting >= preferred else max(longest, _power_of_two(fitting)))
    return Plan(tokens, checkpointed, kept, free)


@contextmanager
def memory_errors(micro_tokens: int) -> Iterator[None]:
    """Turn a device that ran out of memory into one clear line: ModelError."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("out of memory", "DefaultCPUAllocator")):
            raise
        raise ModelError(
            f"micro-batches of {micro_tokens} tokens",
            "the device's memory ran out",
            f"Set micro_batch_tokens: {max(1, micro_tokens // 2)} or activation_checkpointing: true and run again, "
            "which goes on from the last checkpoint",
        ) from error


def _to_come(scorer: Scorer, optimizer_states: int) -> int:
    """What the first step will take for good."""
    sizes = footprint(scorer, optimizer_states)
    return sizes.gradients + sizes.optimizer


def _power_of_two(value: int) -> int:
    """The largest that is not above it, so that a little more free memory changes nothing."""
    return 1 << max(0, max(0, value).bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(int(psutil.virtual_memory().available), _cgroup_bytes())


def _cgroup_bytes() -> int:
    """What a container's limit leaves, where there is one (Linux, cgroups of version 2)."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no such files, or "max"
        return 1 << 62


def middling(items: Sequence[Item]) -> Batch:
    """Rows of middling length, some."""
    by_length = sorted(items, key=lambda item: item.tokens)
    probe: list[Item] = []
    size = 0
    for item in by_length[len(by_length) // 2 :]:
        if probe and size + item.tokens > PROBE_TOKENS:
            break
        probe.append(item)
        size += item.tokens
    return collate(probe)


def bytes_at_once(scorer: Scorer, batch: Batch, teach: Teach = untaught) -> int:
    """What is there of one token at the worst moment: what is kept of it, and where layers are computed again, one of
    them at work."""
    kept = bytes_per_token(scorer, batch, teach)
    if not scorer.checkpoint_activations:
        return kept
    with scorer.remembering_a_layer():
        return kept + AGAIN * max(0, bytes_per_token(scorer, batch, teach) - kept)


def bytes_per_token(scorer: Scorer, batch: Batch, teach: Teach = untaught) -> int:
    """What is kept of one token until the backward, averaged over a batch: by autograd, and by the lesson that the
    batch is given."""
    size = len(batch.tokens_T)
    own = {_place(p) for p in scorer.parameters()}
    slopes = {p.shape for p in scorer.parameters() if p.ndim == 2 and len(p) > size}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> None:
        """Without its history: a tensor kept by the node that made it would never be freed."""
        place = _place(tensor)
        if place not in own and tensor.shape not in slopes:  # a gradient made in the forward: it is of no token
            kept.setdefault(place, tensor.detach())

    training = scorer.training
    scorer.train()
    state = torch.get_rng_state()
    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing)
    with nothing_spare(), watched, scorer.products():
        batch = teach(batch.to(scorer.device))
        for tensor in _tensors(batch.lesson):
            keep(tensor)
        scorer(batch)
    torch.set_rng_state(state)
    scorer.train(training)
    return max(1, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // size)


def _place(tensor: Tensor) -> int:
    """Where its bytes are, also of one that has none (`rehearsal`), as long as somebody holds it."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All that a lesson holds; not what it asks a teacher's own weights."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
