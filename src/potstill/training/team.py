"""Who trains: one process here; `distributed` has the teams of several, which share every global batch.

A team hides how parameters and gradients are laid out. Everything it says is the same on all of its members.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from potstill.artifact import read_json, storage_errors, write_json
from potstill.errors import StorageError
from potstill.training.batch import Batch, Item, collate, cut
from potstill.training.scoring import Routing, Scorer

STATE_FILE = "state.pt"
WEIGHTS_FILE = "weights.pt"
SIGNATURE_FILE = "team.json"

T = TypeVar("T")


class Team:
    """One process alone."""

    rank = 0
    size = 1
    sharding = "none"
    """How the model is shared; a config's `sharding`."""

    def prepare(self, scorer: Scorer, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Take over what is to be trained. Called once, before anything below."""
        self.scorer = scorer
        self.optimizers = list(optimizers)
        self.trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            if parameter.device.type == "cpu":  # a file's pages, mapped, would be copied one by one at the first step
                parameter.data = parameter.data.clone()

    def rounds(self, items: Sequence[Item], budget: int) -> Iterator[tuple[Batch, float, bool]]:
        """This member's micro-batches of a global batch, each with 1.0 (or 0.0, where it has none left and only keeps
        step with the others), and whether it is the last."""
        groups = cut(items, budget, self.size)[self.rank :: self.size]
        # Padded rows are read a call a bucket, and members have to call what they share equally often.
        alike = self.size > 1 and self.scorer.layout == "padded"
        for number, group in enumerate(groups, start=1):
            share = 1.0 if group else 0.0
            batch = collate(group or [min(items, key=lambda item: item.tokens)], one_bucket=alike)
            yield batch.to(self.scorer.device), share, number == len(groups)

    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities of a batch, or its lesson's figures, through whatever wraps the scorer."""
        scores: Tensor = self.scorer(batch)
        return scores

    def route(self, batch: Batch) -> Routing:
        """The same, and how its tokens were routed to a mixture's experts."""
        routing: Routing = self.scorer(batch, "routing")
        return routing

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradients; they are shared with the others when it is the step's last."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, clip: float, learning_rate: float) -> Tensor:
        """Clip, step, forget the gradients; returns the gradient's norm before it was clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def total(self, sums: Tensor) -> Tensor:
        """The sum over all members."""
        return sums

    def any(self, flag: bool) -> bool:
        """Whether it is so for one member at least."""
        return flag

    def wait(self) -> None:
        """Until all members are here."""

    def first(self, look: Callable[[], T]) -> T:
        """What the first member sees: two that look at one folder may see it differently."""
        return look()

    def facts(self) -> dict[str, Any]:
        """Who trained, for the manifest."""
        return {}

    def whole(self, *, trained_only: bool) -> dict[str, Tensor] | None:
        """The model's weights by their names in its `state_dict`, on the CPU, gathered for the first member alone (the
        others hold nothing); None where nobody has to gather: the model holds them itself."""
        return None

    def save(self, folder: Path) -> None:
        """All that the next step depends on: weights, optimizers' states, random numbers' state."""
        state = {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": random_state(),
        }
        write_tensors(state, folder / STATE_FILE)
        self._sign(folder)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, to the last bit. StorageError where another kind of team did."""
        self._check(folder)
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self._put(state["weights"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        set_random_state(state["random"])

    def save_weights(self, folder: Path) -> None:
        """The trained weights alone."""
        write_tensors({name: p.detach() for name, p in self.trained.items()}, folder / WEIGHTS_FILE)

    def load_weights(self, folder: Path) -> None:
        """What `save_weights` wrote."""
        self._put(torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True))

    def _sign(self, folder: Path) -> None:
        """Say in a checkpoint who wrote it."""
        if self.rank == 0:
            write_json(folder / SIGNATURE_FILE, {"workers": self.size, "sharding": self.sharding})

    def _check(self, folder: Path, *, any_size: bool = False) -> None:
        """StorageError where a checkpoint is one of a team that this one cannot take over from."""
        wrote = read_json(folder / SIGNATURE_FILE)
        here = {"workers": self.size, "sharding": self.sharding}
        if wrote["sharding"] != self.sharding or not (any_size or wrote == here):
            raise StorageError(
                str(folder),
                f"this checkpoint is of {_described(wrote)}, and this run has {_described(here)}",
                "Run as before, or remove this folder to start the stage anew",
            )

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        assert weights.keys() == self.trained.keys(), "a checkpoint of another model"
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])


def _described(team: Mapping[str, Any]) -> str:
    return f"{team['workers']} worker{'s' if team['workers'] > 1 else ''} with sharding: {team['sharding']}"


def write_tensors(value: Mapping[str, Any], path: Path) -> None:
    """As torch.save, into a file of Python's. StorageError where the disk is full."""
    with tensor_errors(path), path.open("wb") as file:
        torch.save(value, file)


@contextmanager
def tensor_errors(path: Path) -> Iterator[None]:
    """As `storage_errors`, also where torch answers a full disk by an error of its own that names none."""
    with storage_errors(path):
        try:
            yield
        except RuntimeError as error:
            if "inline_container" not in str(error):
                raise
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else OSError(errno.ENOSPC, str(error))) from error


def random_state() -> dict[str, Tensor]:
    """The state of every generator that dropout and noise draw from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """What `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
