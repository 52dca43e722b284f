"""What a computation takes, operation by operation: bytes alive, the most of them, and the time that a roofline gives.

It is counted where torch dispatches, so on tensors without memory (`rehearsal`) as well as on real ones.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Roof:
    """What a device does in a second. An operation takes as long as its arithmetic or its traffic, whichever is longer
    (Williams et al. 2009, the roofline model), and never less than a start."""

    flops_per_second: float
    """Of matrix products in half precision."""
    wide_flops_per_second: float
    """In float32 and wider."""
    bytes_per_second: float
    start_seconds: float
    """What it takes to begin an operation."""


NOTHING = Roof(1.0, 1.0, 1.0, 0.0)
HALF = (torch.bfloat16, torch.float16)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts within itself. A number that is asked of a tensor without memory is 1."""

    def __init__(self, roof: Roof = NOTHING) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._roof = roof
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.live = 0
        """Bytes that are there now, of all that was made within."""
        self.peak = 0
        """The most of them since `phase`."""
        self.seconds = 0.0
        """By the roof, since `phase`."""
        self.flops = 0
        """Of products, since `phase`."""

    def phase(self) -> None:
        """Begin anew, with what is alive."""
        self.peak, self.seconds, self.flops = self.live, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].untyped_storage().device.type == "meta":
            return True if args[0].dtype == torch.bool else 1
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        fresh = [self._note(tensor) for tensor in made]
        if any(fresh) or func._schema.is_mutable:
            self._time(func, args, kwargs or {}, out, given + made)
        return out

    def _note(self, tensor: Tensor) -> bool:
        """Count a tensor's bytes while they are there; whether they are new."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return False
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)
        return True

    def _gone(self, size: int) -> None:
        self.live -= size

    def _time(self, func: Any, args: Any, kwargs: Any, out: Any, touched: list[Tensor]) -> None:
        roof = self._roof
        seconds = max(roof.start_seconds, sum(t.nbytes for t in touched) / roof.bytes_per_second)
        if flops := _flops(func, args, kwargs, out):
            half = all(t.dtype in HALF for t in touched if t.is_floating_point())
            seconds = max(seconds, flops / (roof.flops_per_second if half else roof.wide_flops_per_second))
            self.flops += flops
        self.seconds += seconds


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Of one operation; 0 where it is no product."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    name = str(packet)
    if "varlen_attn" not in name:
        return 0
    # Half of the square of the longest path's, as if all were as long; backward, the scores are made again.
    backward = "backward" in name
    query = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.ndim == 3)
    longest = max((leaf for leaf in tree_leaves((args, kwargs)) if type(leaf) is int), default=0)
    tokens, heads, width = query.shape
    return round((2.5 if backward else 1.0) * 2 * tokens * longest * heads * width)
