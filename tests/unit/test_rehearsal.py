"""A step without memory takes what the same step takes with it: bytes to the last one, whatever is trained."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine import FAMILIES, SETTINGS, VOCABULARY, random_items
from torch import nn

from potstill.objectives.divergence import Divergence
from potstill.training import head
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach, hold_base
from potstill.training.lesson import Aims
from potstill.training.loop import learn
from potstill.training.memory import bytes_at_once, middling
from potstill.training.models import footprint
from potstill.training.optimizers import STATES, make_optimizers
from potstill.training.rehearsal import Cast, build, rehearse, scorer_of, with_layers, without_memory
from potstill.training.tally import Roof, Tally
from potstill.training.tasks import distillation, likelihood
from potstill.training.team import Team
from potstill.training.tellers import Present, lessons

ROOF = Roof(1e12, 1e12, 1e11, 1e-6)
ITEMS = random_items([(0, 20 + n) for n in range(6)])


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """What other tests of this process have left is not lent here, nor what these leave elsewhere."""
    with head.nothing_spare():
        yield


def plain(scorer: Any, teachers: Any) -> Any:
    return likelihood([], [])


def taught(scorer: Any, teachers: Any) -> Any:
    aims = Aims(Divergence("jsd"), VOCABULARY)
    return distillation([], [], lessons(aims, [Present(one, VOCABULARY) for one in teachers]), ["divergence"])


def role(family: str = "mistral", **how: Any) -> Cast:
    settings = replace(SETTINGS, micro_tokens=1 << 62)
    return Cast(FAMILIES[family], torch.float32, settings, precision=torch.float32, device="cpu", **how)


def real(cast: Cast, play: Any) -> Any:
    """The same on real tensors."""
    torch.manual_seed(0)
    model = build(cast.config)
    if cast.adapter is not None:
        attach(model, cast.adapter, 0)
        hold_base(model, cast.stored)
    scorer = scorer_of(model, cast)
    teachers = []
    for config in cast.teachers:
        teacher = build(config)
        teacher.requires_grad_(False)
        teachers.append(scorer_of(teacher, cast).narrow().eval())
    optimizers = make_optimizers(scorer, cast.settings.optimizer, 1e-6, 0.0, 0.99)
    team = Team()
    team.prepare(scorer, optimizers)
    scorer.checkpoint(cast.checkpoint)
    return scorer, team, play(scorer, teachers), teachers


@pytest.mark.parametrize(
    ("how", "play"),
    [
        ({}, plain),
        ({"family": "llama-tied"}, plain),
        ({"checkpoint": True}, plain),
        ({"adapter": Adapter(rank=4)}, plain),
        ({"teachers": (FAMILIES["mistral"],)}, taught),
    ],
)
def test_what_is_counted_without_memory_is_there_with_it(how: dict[str, Any], play: Any) -> None:
    cast = role(**how)
    before, takes = (rehearse(cast, ITEMS, play, ROOF, standing=standing) for standing in (True, False))
    scorer, team, task, teachers = real(cast, play)
    sizes = footprint(scorer, STATES[cast.settings.optimizer])
    assert takes.weights == sizes.trained + sizes.frozen
    assert takes.gradients == sizes.gradients
    assert (before.weights, before.gradients, before.optimizer) == (takes.weights, sizes.gradients, sizes.optimizer)
    # AdamW keeps two moments, and how many steps it has taken, of each parameter.
    assert takes.optimizer == sizes.optimizer + 4 * len(team.trained)
    head.give_back(torch.zeros(1000, VOCABULARY))  # what something larger has left in this process
    assert before.each == bytes_at_once(scorer, middling(ITEMS), task.teach)
    assert takes.teachers == sum(t.nbytes for one in teachers for t in (*one.parameters(), *one.buffers()))
    assert takes.trained == sum(p.numel() for p in team.trained.values())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_worst_moment_is_the_real_ones(checkpoint: bool) -> None:
    """The same two steps on real tensors, counted by the same tally."""
    cast = role(checkpoint=checkpoint)
    takes = rehearse(cast, ITEMS, plain, ROOF)
    with Tally() as tally:
        scorer, team, task, _ = real(cast, plain)
        scorer.train()
        for step in (1, 2):
            tally.phase()
            learn(team, task, ITEMS, cast.settings, step, 1e-6)
        peak = tally.peak
    assert takes.standing + takes.worst == pytest.approx(peak, rel=0.03)


def test_gradients_of_an_earlier_micro_batch_are_there_in_the_forward() -> None:
    alone, several = (rehearse(replace(role(), accumulates=more), ITEMS, plain, ROOF) for more in (False, True))
    assert several.activations == pytest.approx(alone.activations, abs=64)
    assert several.at_head - alone.at_head == pytest.approx(alone.gradients, rel=0.05)


def test_deep_models_go_on_in_a_line() -> None:
    """Rehearsed with 2 and 4 of 12 layers it is what it is with all of them."""
    from potstill.training import rehearsal

    config = type(FAMILIES["mistral"])(**{**FAMILIES["mistral"].to_dict(), "num_hidden_layers": 12})
    cast = role()
    cast = Cast(config, cast.stored, cast.settings, precision=torch.float32, device="cpu")
    line = rehearse(cast, ITEMS, plain, ROOF)
    whole = rehearsal._rehearse(cast, ITEMS, plain, ROOF, [12])
    for name in ("weights", "gradients", "optimizer", "activations", "parameters", "flops"):
        assert getattr(line, name) == pytest.approx(getattr(whole, name), rel=1e-3), name
    assert line.peak == pytest.approx(whole.peak, rel=0.02)
    assert line.seconds == pytest.approx(whole.seconds, rel=0.02)


def test_layers_that_take_turns_are_kept_in_whole_turns() -> None:
    from potstill.training.rehearsal import _period

    assert _period(FAMILIES["gemma3"]) == 1  # two layers, no pattern that repeats
    kinds = ["sliding_attention", "full_attention"] * 4
    config = type(FAMILIES["gemma3"])(**{**FAMILIES["gemma3"].to_dict(), "num_hidden_layers": 8, "layer_types": kinds})
    assert _period(config) == 2
    assert with_layers(config, 4).layer_types == kinds[:4]
    assert config.num_hidden_layers == 8


def test_no_trace_is_left() -> None:
    apply, spare = nn.Module._apply, dict(head._spare)
    rehearse(role(), ITEMS, plain, ROOF)
    assert nn.Module._apply is apply
    assert head._spare == spare
    assert type(torch.ones(2) + 1) is torch.Tensor


def test_four_bits_take_about_an_eighth() -> None:
    lora, qlora = (
        rehearse(role(adapter=Adapter(kind=kind, rank=2)), ITEMS, plain, ROOF)
        for kind in ("lora", "qlora")  # type: ignore[arg-type]
    )
    assert qlora.weights < lora.weights
    assert qlora.trained == lora.trained


def test_a_tally_by_hand() -> None:
    """Three tensors of 4,000 bytes, of which two are there at once; a product of 2 * 10 * 20 * 30 operations."""
    with without_memory(Roof(1e3, 1e3, 1e12, 0.0)) as tally:
        a = torch.empty(1000)
        b = a + 1
        assert tally.live == 8000
        del a
        c = b * 2
        assert (tally.live, tally.peak) == (8000, 8000)
        del b, c
        assert tally.live == 0
        tally.phase()
        left, right = torch.empty(10, 20), torch.empty(20, 30)
        left @ right
        assert tally.flops == 12_000
        assert tally.seconds == pytest.approx(12.0, rel=0.01)
        assert bool((left > 0).all())  # a number that is asked of it is 1
