"""Teams of several processes, which share every global batch and hold a shard of the model each.

A launcher starts them; `join` makes them a team through Accelerate. They train what one process alone would: the same
global batches, gradients summed (not averaged) over workers, denominators of the whole batch. Weights, gradients and
their sums are float32 everywhere, in what travels between workers too: bfloat16 is the scorer's autocast alone, so that
no number depends on how many workers there are, but for the order of sums. `zero3` has the other way to shard.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill.errors import ModelError
from potstill.training.batch import Batch
from potstill.training.scoring import Routing, Scorer
from potstill.training.team import Team, random_state, set_random_state, tensor_errors, write_tensors

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""How long a worker waits for another before it gives up. The longest that one keeps the others waiting in good health
is a checkpoint on its way to a slow disk."""

WEIGHTS_FOLDER = "weights"
OPTIMIZERS_FOLDER = "optimizers"


def join(sharding: str, device: torch.device) -> tuple[Team, torch.device]:
    """Become one of the workers that a launcher started: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
    stand in the environment. Returns the team, when all of it is there, and this worker's own device."""
    if device.type not in ("cpu", "cuda"):
        what = f"several workers cannot share a model on {device.type}"
        raise ModelError(f"device: {device.type}", what, "Set device: cpu, or run without --launch")
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"  # flags of the loop travel by the CPU, so that the GPU need not wait for them
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_SECONDS))
    if sharding == "zero3":
        from potstill.training.zero3 import Zero3  # DeepSpeed is optional, slow to import, and talks

        return Zero3(device, backend), device
    return FullyShard(device, backend), device


class Workers(Team):
    """What does not depend on how the model is sharded."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device

    def total(self, sums: Tensor) -> Tensor:
        shared = sums.clone()
        dist.all_reduce(shared)
        return shared

    def any(self, flag: bool) -> bool:
        return bool(self._most(int(flag)))

    def _most(self, count: int) -> int:
        """The largest of all members'."""
        shared = torch.tensor(count)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        self.any(False)

    def first(self, look: Callable[[], T]) -> T:
        found = [look() if self.rank == 0 else None]
        dist.broadcast_object_list(found, 0, device=torch.device("cpu"))
        return cast(T, found[0])

    def facts(self) -> dict[str, Any]:
        return {"workers": self.size, "sharding": self.sharding}

    def whole(self, *, trained_only: bool) -> dict[str, Tensor]:
        model = self.scorer.model
        parameters = dict(model.named_parameters(remove_duplicate=False))
        gathered: dict[int, Tensor] = {}  # one tensor at a time, and a tied one once
        state: dict[str, Tensor] = {}
        for name, buffer in model.state_dict().items():
            parameter = parameters.get(name)
            if trained_only and not (parameter is not None and parameter.requires_grad):
                continue
            if parameter is None:
                state[name] = buffer
                continue
            if id(parameter) not in gathered:
                gathered[id(parameter)] = self._gather(parameter)
            state[name] = gathered[id(parameter)]
        return state if self.rank == 0 else {}

    def _gather(self, parameter: nn.Parameter) -> Tensor:
        """The whole of a parameter, on the first worker's CPU; empty on the others."""
        raise NotImplementedError

    def _random_file(self, folder: Path) -> Path:
        return folder / f"random-{self.rank}.pt"

    def _save_random(self, folder: Path) -> None:
        write_tensors(random_state(), self._random_file(folder))

    def _load_random(self, folder: Path) -> None:
        if self._random_file(folder).is_file():  # a worker more than there were then keeps its own
            set_random_state(torch.load(self._random_file(folder), map_location="cpu", weights_only=True))


class FullyShard(Workers):
    """FSDP2: every parameter is a DTensor of which each worker holds some rows; a layer is gathered where it is used.

    The mixed precision policy is none. A layer gathered in bfloat16 would halve what travels, but round the weights of
    norms and head, which autocast computes in float32: the loss would depend on there being several workers.
    """

    sharding = "fsdp2"

    def __init__(self, device: torch.device, backend: str) -> None:
        super().__init__(device)
        state = PartialState(backend=backend)
        state.distributed_type = DistributedType.MULTI_GPU  # on CPUs Accelerate would refuse what works there as well
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        self._accelerator = Accelerator(fsdp_plugin=plugin)

    def prepare(self, scorer: Scorer, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        layers = {
            type(module).__name__ for module in scorer.modules() if isinstance(module, GradientCheckpointingLayer)
        }
        self._accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
        torch.set_autocast_cache_enabled(False)  # it would keep a whole copy in bfloat16 until the forward ends
        self._accelerator.prepare(scorer, *optimizers)
        for module in scorer.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum over workers; the default is their mean
                module.set_force_sum_reduction_for_comms(True)
        super().prepare(scorer, optimizers)

    def score(self, batch: Batch) -> Tensor:
        return self._resharded(super().score(batch))

    def route(self, batch: Batch) -> Routing:
        return self._resharded(super().route(batch))

    def _resharded(self, found: T) -> T:
        if not torch.is_grad_enabled():
            cast(FSDPModule, self.scorer).reshard()  # the root waits for a backward to do it
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        """Each micro-batch's gradients are summed over workers at once: kept until the last, they would be whole."""
        super().backward(loss, last)

    def step(self, clip: float, learning_rate: float) -> Tensor:
        norm = super().step(clip, learning_rate)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save(self, folder: Path) -> None:
        self.save_weights(folder)
        with shard_errors(folder):
            save_shards(self._states(), checkpoint_id=folder / OPTIMIZERS_FOLDER)
        self._save_random(folder)
        self._sign(folder)

    def load(self, folder: Path) -> None:
        """Any number of workers may have written it; as many give the same bits."""
        self._check(folder, any_size=True)
        self.load_weights(folder)
        self._touch()
        load_shards(self._states(), checkpoint_id=folder / OPTIMIZERS_FOLDER)
        self._load_random(folder)

    def save_weights(self, folder: Path) -> None:
        with shard_errors(folder):
            save_shards(self._weights(), checkpoint_id=folder / WEIGHTS_FOLDER)

    def load_weights(self, folder: Path) -> None:
        load_shards(self._weights(), checkpoint_id=folder / WEIGHTS_FOLDER)

    def _weights(self) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self.trained.items()}

    def _states(self) -> dict[str, Any]:
        """The tensors that optimizers keep: theirs, not copies, so that what is read into these is read into them."""
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        return {"optimizers": [{str(number): values for number, values in state.items()} for state in states]}

    def _touch(self) -> None:
        """Make optimizers hold the tensors that a checkpoint is read into: by a step that moves nothing."""
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)
        super().step(1.0, 0.0)

    def _gather(self, parameter: nn.Parameter) -> Tensor:
        with torch.no_grad():
            full: Tensor = cast(DTensor, parameter).full_tensor()
        return full.cpu() if self.rank == 0 else full.new_empty(0)


@contextmanager
def shard_errors(folder: Path) -> Iterator[None]:
    """A disk that one worker found full is one clear line on all of them."""
    with tensor_errors(folder):
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from error
