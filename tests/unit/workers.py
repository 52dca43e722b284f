"""One of several workers, for test_distributed.py: `python workers.py SHARDING OUT`, its rank in the environment.

Every case is a function of a team; the same functions run in one process alone, to compare with.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine import VOCABULARY, random_items, tiny_model
from torch import Tensor

from potstill.errors import Stopped, StorageError
from potstill.objectives.divergence import Divergence
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.distributed import Workers
from potstill.training.layers import Projections, depth_map
from potstill.training.lesson import FIGURES, Aims
from potstill.training.loop import Desk, Settings, train
from potstill.training.optimizers import make_optimizers
from potstill.training.reference import Cache, column, with_reference
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tasks import Task, distillation, feedback, likelihood, preference
from potstill.training.team import Team
from potstill.training.tellers import Present, lessons

SETTINGS = Settings(
    optimizer="adamw",
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.2,
    weight_decay=0.1,
    beta2=0.99,
    clip=1.0,
    evaluations=2,
    keep="last",
    patience=None,
    micro_tokens=26,
)
# Long rows beside short ones, of which one worker gets more than the other.
CHATS = random_items([(0, 3 + (n * 7) % 23) for n in range(18)])
PAIRS = random_items([(2 + n % 5, 3 + (n * 3) % 11, 4 + (n * 5) % 7) for n in range(14)], seed=1)
SFT = likelihood([CHATS[:6], CHATS[6:11], CHATS[11:12], CHATS[12:15]], CHATS[15:])


def prepared(team: Team, family: str, adapter: Adapter | None = None, **scorer: Any) -> Team:
    model = tiny_model(family, torch.float32)
    if adapter is not None:
        attach(model, adapter, seed=3, new_tokens=[59, 60])
    return take(team, build_scorer(model, **scorer))


def take(team: Team, ready: Scorer) -> Team:
    s = SETTINGS
    team.prepare(ready, make_optimizers(ready, s.optimizer, s.learning_rate, s.weight_decay, s.beta2))
    return team


def trained(team: Team, task: Task, settings: Settings, out: Path, **desk: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    facts = train(team, task, settings, Desk(out, out / "unfinished", **desk))
    return {"facts": facts, "weights": weights(team)}


def weights(team: Team, *, trained_only: bool = False) -> dict[str, Tensor]:
    found = team.whole(trained_only=trained_only)
    if found is None:
        named = dict(team.scorer.model.named_parameters(remove_duplicate=False))
        state = team.scorer.model.state_dict()
        found = {n: t for n, t in state.items() if not trained_only or (n in named and named[n].requires_grad)}
    return {name: tensor.clone() for name, tensor in found.items()}


def sft(team: Team, out: Path) -> dict[str, Any]:
    return trained(prepared(team, "mistral"), SFT, SETTINGS, out)


def tied(team: Team, out: Path) -> dict[str, Any]:
    """A head that is the embeddings, layers computed twice, and the best weights kept instead of the last."""
    prepared(team, "llama-tied", checkpoint_activations=True)
    return trained(team, SFT, replace(SETTINGS, keep="best", learning_rate=0.02, evaluations=4), out)


def padded(team: Team, out: Path) -> dict[str, Any]:
    """Rows of unlike lengths are read in several calls, of which one worker alone would have more than another."""
    take(team, Scorer(tiny_model("mistral", torch.float32), "padded"))
    return trained(team, SFT, SETTINGS, out)


def dpo(team: Team, out: Path) -> dict[str, Any]:
    """A head that caps its logits, and so is called in chunks, of which one worker alone would have more as well."""
    prepared(team, "gemma2").scorer.head.chunk_logits = 4 * VOCABULARY
    items = with_reference(PAIRS, team, Cache(out / "cache"), 26, lambda done, total: None)
    task = preference([items[:5], items[5:6], items[6:11]], items[11:], "sigmoid", {"beta": 0.1})
    result = trained(team, task, SETTINGS, out)
    return {**result, "reference": [list(item.signals) for item in items], "column": column(team, PAIRS, 26)}


def kto(team: Team, out: Path) -> dict[str, Any]:
    prepared(team, "mistral")
    items = with_reference(PAIRS, team, Cache(out / "cache"), 26, lambda done, total: None)
    labels = {item.row: number % 3 > 0 for number, item in enumerate(items)}
    parameters = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    return trained(team, feedback([items[:5], items[5:11]], items[11:], labels, parameters), SETTINGS, out)


def lora(team: Team, out: Path) -> dict[str, Any]:
    """With two rows of the embeddings that are trained as well."""
    prepared(team, "mistral", Adapter(kind="lora", rank=3, dropout=0.0))
    return {**trained(team, SFT, SETTINGS, out), "adapter": weights(team, trained_only=True)}


AIMS = Aims(Divergence("jsd"), VOCABULARY, 0.8, 0.3, 0.5, "mse")


def lesson(team: Team, family: str, out: Path) -> dict[str, Any]:
    """Whole distributions and hidden states of a teacher that every worker holds, and learnt projections, which are
    gathered, stepped and checkpointed as all else is."""
    ready = build_scorer(tiny_model(family, torch.float32), checkpoint_activations=True)
    ready.head.chunk_logits = 4 * VOCABULARY
    ready.projections.append(Projections(depth_map(2, 2), 16, 16, seed=5))
    teacher = tiny_model("qwen3", torch.float32).requires_grad_(False)
    teller = Present(build_scorer(teacher).eval(), VOCABULARY, layers={1: 1, 2: 2})
    take(team, ready)
    task = distillation(SFT.steps, SFT.held_out, lessons(AIMS, [teller]), FIGURES[1:])
    result = trained(team, task, replace(SETTINGS, keep="best"), out)
    return {**result, "weights": {**result["weights"], **projections(team)}}


def taught(team: Team, out: Path) -> dict[str, Any]:
    return lesson(team, "mistral", out)


def taught_capped(team: Team, out: Path) -> dict[str, Any]:
    """By a head that caps its logits, and so is called in chunks."""
    return lesson(team, "gemma2", out)


def taught_experts(team: Team, out: Path) -> dict[str, Any]:
    """A mixture, whose experts' balance is learnt beside the lesson."""
    return lesson(team, "qwen3-moe", out)


def projections(team: Team) -> dict[str, Tensor]:
    """The whole of each, on the first worker."""
    found = {name: p for name, p in team.scorer.named_parameters() if name.startswith("projections.")}
    if not isinstance(team, Workers):
        return {name: p.detach().clone() for name, p in found.items()}
    return {name: team._gather(p) for name, p in found.items()}


def resumed(team: Team, out: Path) -> dict[str, Any]:
    """Stopped behind the second step, and gone on by a team and a model that were made anew. Noise is drawn."""
    settings, noisy = replace(SETTINGS, checkpoint_steps=2, keep="best"), {"neftune_alpha": 5.0}
    straight = trained(prepared(team, "mistral", **noisy), SFT, settings, out / "straight")
    stopped = _stopped(prepared(team, "mistral", **noisy), settings, out)
    torch.manual_seed(99)
    again = trained(prepared(team, "mistral", **noisy), SFT, settings, out)
    return {"straight": straight, "again": again, "stopped": stopped}


def _stopped(team: Team, settings: Settings, out: Path) -> str:
    asked = iter([False, True])
    try:
        trained(team, SFT, settings, out, stopping=lambda: next(asked))
    except Stopped as error:
        return error.where
    return ""


def left(team: Team, out: Path) -> dict[str, Any]:
    """Stopped behind the second step, for `taken` to go on."""
    return {"stopped": _stopped(prepared(team, "mistral"), SETTINGS, out)}


def taken(team: Team, out: Path) -> dict[str, Any]:
    """Gone on from where `left`, of more workers perhaps, was stopped."""
    try:
        return trained(prepared(team, "mistral"), SFT, SETTINGS, out.with_name("left"))
    except StorageError as error:
        return {"refused": str(error)}


Case = Callable[[Team, Path], dict[str, Any]]
CASES: dict[str, Case] = {
    case.__name__: case
    for case in (sft, tied, padded, dpo, kto, lora, taught, taught_capped, taught_experts, resumed, left)
}
LATER: dict[str, Case] = {"taken": taken}


def main() -> None:
    from potstill.training.distributed import join

    torch.set_num_threads(1)
    sharding, out = sys.argv[1], Path(sys.argv[2])
    only = sys.argv[3:] or list(CASES)
    team, _ = join(sharding, torch.device("cpu"))
    for name in only:
        torch.manual_seed(team.rank)
        result = (CASES | LATER)[name](team, out / name)
        if team.rank == 0:
            torch.save(result, out / f"{name}.pt")
    team.wait()
    os._exit(0)


if __name__ == "__main__":
    main()
