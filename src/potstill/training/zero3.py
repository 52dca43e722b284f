"""The team that shares a model by DeepSpeed's ZeRO-3: each parameter is cut flat, and whole only while it is used.

Everything is float32, as in `distributed`: DeepSpeed's own bfloat16 mode would round the weights of norms and head.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from potstill.errors import ModelError
from potstill.training.batch import Batch
from potstill.training.distributed import Workers
from potstill.training.scoring import Routing, Scorer
from potstill.training.team import write_tensors

CONFIG: dict[str, Any] = {
    # Batches and their accumulation are the loop's; these two only have to be there.
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,  # on; how much is said at every step
    "steps_per_print": 1 << 30,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "stage3_param_persistence_threshold": 0,  # small ones would stay whole, and old where weights are put back
        "memory_efficient_linear": False,  # it would put another function in F.linear's place, for all of the process
    },
}
STATE_KEYS = ("optimizer_state_dict", "fp32_flat_groups")
"""What of the optimizer's state a checkpoint holds; the rest belongs to float16."""


class Zero3(Workers):
    """ZeRO-3. A checkpoint is of as many workers as wrote it."""

    sharding = "zero3"

    def __init__(self, device: torch.device, backend: str) -> None:
        super().__init__(device)
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        try:
            import deepspeed
        except ImportError as error:
            what = f"DeepSpeed cannot be imported ({error})"
            raise ModelError("sharding: zero3", what, "Run pip install 'potstill[scale]', or set fsdp2") from error
        # On a CPU it would compile collectives of its own at its first run, for a minute; gloo's will do.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(backend=backend)
        plugin = DeepSpeedPlugin(hf_ds_config=CONFIG, zero3_init_flag=False)
        self._accelerator = Accelerator(deepspeed_plugin=plugin)
        # Else transformers would cut every model that it loads from now on.
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]

    def prepare(self, scorer: Scorer, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        (optimizer,) = optimizers
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self._engine: Any = self._accelerator.prepare(scorer, optimizer)[0]
        super().prepare(scorer, optimizers)

    def score(self, batch: Batch) -> Tensor:
        self._call_alike(batch)
        logp_N: Tensor = self._engine(batch)
        return logp_N

    def route(self, batch: Batch) -> Routing:
        self._call_alike(batch)
        routing: Routing = self._engine(batch, "routing")
        return routing

    def _call_alike(self, batch: Batch) -> None:
        """Every call of a module gathers it: a worker that called the head once more would wait for the others."""
        self.scorer.head.least_chunks = self._most(self.scorer.head.chunks(len(batch.scored_N)))

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.size)  # DeepSpeed takes the mean over workers

    def step(self, clip: float, learning_rate: float) -> Tensor:
        self._engine.optimizer.clip_grad = clip
        for group in self.optimizers[0].param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)

    def save(self, folder: Path) -> None:
        state = self._engine.optimizer.state_dict()
        write_tensors({key: state[key] for key in STATE_KEYS}, self._shard(folder, "state"))
        self._save_random(folder)
        self._sign(folder)

    def load(self, folder: Path) -> None:
        self._check(folder)
        state = torch.load(self._shard(folder, "state"), map_location="cpu", weights_only=True)
        optimizer = self._engine.optimizer
        optimizer.load_state_dict({self.rank: {**optimizer.state_dict(), **state}})
        self._load_random(folder)

    def save_weights(self, folder: Path) -> None:
        write_tensors({name: _cut(p) for name, p in self.trained.items()}, self._shard(folder, "weights"))

    def load_weights(self, folder: Path) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        kept = torch.load(self._shard(folder, "weights"), map_location=self.device, weights_only=True)
        for name, parameter in self.trained.items():
            _cut(parameter).copy_(kept[name])
            safe_set_local_fp32_param(parameter, kept[name])

    def _shard(self, folder: Path, what: str) -> Path:
        return folder / f"{what}-{self.rank}.pt"

    def _gather(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().cpu().clone() if self.rank == 0 else parameter.new_empty(0)


def _cut(parameter: nn.Parameter) -> Tensor:
    """This worker's part of a parameter, flat."""
    part: Tensor = parameter.ds_tensor.data  # type: ignore[attr-defined]
    return part
