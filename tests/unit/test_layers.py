"""Which layers of student and teacher belong together, their outputs, and the projections between them.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine import FAMILIES, PAIRS_AND_CHATS, VOCABULARY, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from potstill.errors import ModelError, RecipeError
from potstill.objectives.hidden import mse
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.batch import collate
from potstill.training.layers import Projections, captured_map, collect, decoder_layers, depth_map, spread
from potstill.training.models import save_model
from potstill.training.optimizers import OptimizerName, make_optimizers
from potstill.training.scoring import Scorer
from potstill.training.team import Team

TOKENS = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def run(model: PreTrainedModel, **options: Any) -> Any:
    return model.base_model(input_ids=TOKENS, use_cache=False, **options)


def final_norm(model: PreTrainedModel) -> nn.Module:
    body = model.base_model
    return next(module for name, module in body.named_children() if name in ("norm", "final_layer_norm", "ln_f"))


# Which layers


def test_layers_by_relative_depth() -> None:
    assert depth_map(4, 12) == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert depth_map(4, 12, 2) == ((2, 6), (4, 12))
    assert depth_map(3, 8) == ((1, 3), (2, 5), (3, 8))  # 2.67 and 5.33
    assert depth_map(6, 3) == ((2, 1), (4, 2), (6, 3))
    assert depth_map(5, 5) == tuple((n, n) for n in range(1, 6))
    assert depth_map(7, 32, 1) == ((7, 32),)
    assert depth_map(4, 12, {4: 12, 2: 7}) == ((2, 7), (4, 12))


@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_last_to_last_always_and_never_the_embeddings(student: int, teacher: int, data: st.DataObject) -> None:
    """Trap: "All layers" that includes the embeddings and misses the last (DistillKit 0.1)."""
    count = data.draw(st.integers(1, min(student, teacher)))
    pairs = depth_map(student, teacher, count)
    assert len(pairs) == count
    assert pairs[-1] == (student, teacher)
    assert pairs[0][0] >= 1
    assert pairs[0][1] >= 1
    for (low, low_teacher), (high, high_teacher) in pairwise(pairs):
        assert low < high
        assert low_teacher < high_teacher
    for step, pair in enumerate(pairs, start=1):
        for layer, there in zip(pair, (student, teacher), strict=True):
            assert abs(layer - step * there / count) <= 0.5
    assert tuple(layer for _, layer in pairs) == spread(teacher, count)  # what is captured for any student


def test_all_layers_are_all_and_the_last() -> None:
    assert spread(5, 5) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {5: 12},
            "the student has no decoder layer 5: it has 4, and the embeddings are not counted. Choose from 1 to 4",
        ),
        ({0: 1}, "the student has no decoder layer 0: it has 4"),
        ({4: 13}, "the teacher has no decoder layer 13: it has 12"),
        ({4: -1}, "the teacher has no decoder layer -1: it has 12"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(chosen: dict[int, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        depth_map(4, 12, chosen)


@pytest.mark.parametrize("chosen", [0, 5, -1, {}])
def test_as_many_pairs_as_there_are_layers_at_most(chosen: Any) -> None:
    with pytest.raises(RecipeError, match=r"^layers: .* Set 1 to 4\.|^layers: no pair of layers is given"):
        depth_map(4, 12, chosen)


@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_layers_captured_for_any_student_are_mapped_as_if_it_had_been_known(
    student: int, teacher: int, data: st.DataObject
) -> None:
    """Of so many layers captured at equal distances each goes to the student's of like depth, the last to the last."""
    count = data.draw(st.integers(1, max(1, min(student // 2, teacher))))  # of more, two may be nearest to one layer
    captured = spread(teacher, count)
    pairs = captured_map(student, teacher, captured)
    assert tuple(layer for _, layer in pairs) == captured
    assert pairs[-1] == (student, teacher)
    assert all(abs(one - other * student / teacher) <= max(0.5, 1 - student / teacher) for one, other in pairs)
    if teacher % count == 0 and student % count == 0:
        assert pairs == depth_map(student, teacher, count)


def test_some_of_the_layers_that_were_captured() -> None:
    assert captured_map(4, 12, (3, 6, 9, 12)) == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert captured_map(4, 12, (12, 3, 9, 6), 2) == ((2, 6), (4, 12))
    assert captured_map(4, 12, (6, 12), {1: 6, 3: 12}) == ((1, 6), (3, 12))
    with pytest.raises(ModelError, match=r"the teacher's layer 5 was not captured: 6, 12 were\. Choose of these, or"):
        captured_map(4, 12, (12, 6), {1: 5})
    with pytest.raises(ModelError, match="the teacher has no decoder layer 13: it has 12"):
        captured_map(4, 12, (12, 6), {1: 13})
    with pytest.raises(RecipeError, match=r"layers 11 and 12 are both nearest to the student's layer 4, of 4\. Ch"):
        captured_map(4, 12, (11, 12))
    with pytest.raises(RecipeError, match="3 of 2 decoder layers cannot be chosen"):
        captured_map(4, 12, (6, 12), 3)


# Their outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_collected_is_what_transformers_says(family: str) -> None:
    """Trap: "All layers" that includes the embeddings and misses the last. Its `hidden_states` begin with the
    embeddings, and the last of them is behind the final norm."""
    model = tiny_model(family)
    count = len(decoder_layers(model))
    with collect(model, range(1, count + 1)) as found:
        output = run(model, output_hidden_states=True)
    assert list(found) == list(range(1, count + 1))
    assert all(len(calls) == 1 for calls in found.values())
    for layer in range(1, count):
        assert torch.equal(found[layer][0], output.hidden_states[layer])
    last = found[count][0]
    assert torch.equal(final_norm(model)(last), output.hidden_states[count])
    assert not torch.equal(last, output.hidden_states[count])


@pytest.mark.parametrize("family", ["mistral", "bloom", "mixtral"])
def test_gradients_flow_through_what_was_collected(family: str) -> None:
    """Those of a loss on it are the ones of transformers' own."""
    ours, theirs = tiny_model(family), tiny_model(family)
    with collect(ours, [1]) as found:
        run(ours)
    found[1][0].square().sum().backward()
    run(theirs, output_hidden_states=True).hidden_states[1].square().sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (name not in expected)
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name]), name
    assert any(".1." not in name for name in expected)


def test_nothing_is_gathered_outside_and_one_tensor_a_call_inside() -> None:
    model = tiny_model()
    with collect(model, [2]) as found:
        first = run(model).last_hidden_state
        second = model.base_model(input_ids=TOKENS[:1, :4], use_cache=False).last_hidden_state
    run(model)
    assert [call.shape for call in found[2]] == [first.shape, second.shape]
    assert not any(module._forward_hooks for module in decoder_layers(model))


def test_after_a_failure_nothing_is_gathered_any_more() -> None:
    model = tiny_model()
    with pytest.raises(IndexError), collect(model, [2]):
        model.base_model(input_ids=TOKENS + VOCABULARY, use_cache=False)
    assert not any(module._forward_hooks for module in decoder_layers(model))


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_the_model_has_not_is_refused(layer: int) -> None:
    with pytest.raises(ModelError, match="the model has no decoder layer"), collect(tiny_model(), [1, layer]):
        pass


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny_model()
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="there is no list of 2 decoder layers in it"):
        decoder_layers(model)


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_recomputed_layers_are_gathered_once(layout: Any) -> None:
    """Under activation checkpointing each layer runs again in the backward, inside the `with` too; in every layout."""
    batch = collate(PAIRS_AND_CHATS)
    calls = len(batch.tree.buckets) if layout == "padded" else 1
    gradients = {}
    for checkpointed in (False, True):
        model = tiny_model()
        scorer = Scorer(model, layout, checkpoint_activations=checkpointed).train()
        with collect(model, [1, 2]) as found:
            logp_N = scorer(batch)
            values = sum(call.square().mean() for layer in found.values() for call in layer)
            (logp_N.mean() + values).backward()
        assert [len(found[layer]) for layer in (1, 2)] == [calls, calls]
        gradients[checkpointed] = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients[False].items():
        assert torch.equal(gradient, gradients[True][name]), name


def test_every_layout_has_the_same_states_at_scored_positions() -> None:
    """The states of the scored positions, found as the scorer finds those of the head."""
    batch, model = collate(PAIRS_AND_CHATS), tiny_model("mistral-window")
    states = {}
    for layout in ("shared", "packed", "padded"):
        scorer = Scorer(model, layout)
        with collect(model, [1]) as found:
            scorer(batch)
        if layout == "padded":
            every_TD = torch.cat([call.flatten(0, 1) for call in found[1]]).index_select(0, batch.tree.home_T)
        else:
            every_TD = found[1][0][0, : len(batch.tokens_T)]
        states[layout] = every_TD.index_select(0, batch.scored_N)
    torch.testing.assert_close(states["packed"], states["shared"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(states["padded"], states["shared"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["mistral", "bloom"])
def test_an_adapted_models_layers_are_its_own(family: str) -> None:
    model = attach(tiny_model(family), Adapter(rank=2), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    with collect(model, [1, 2]) as found:
        output = run(model, output_hidden_states=True)
    assert torch.equal(found[1][0], output.hidden_states[1])
    assert not torch.equal(found[1][0], run(tiny_model(family), output_hidden_states=True).hidden_states[1])


def test_under_autocast_states_stay_as_the_body_has_them() -> None:
    model = tiny_model(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), collect(model, [1]) as found:
        output = run(model, output_hidden_states=True)
    assert torch.equal(found[1][0], output.hidden_states[1])


@pytest.fixture
def alone() -> Iterator[None]:
    """A team of one, for what wants a process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Lesson(nn.Module):
    """What a scorer does with hidden states, and nothing else: all inside one forward."""

    def __init__(self, model: PreTrainedModel, projections: Projections) -> None:
        super().__init__()
        self.model, self.projections = model, projections

    def forward(self) -> Tensor:
        with collect(self.model, [1, 2]) as found:
            last = run(self.model).last_hidden_state
        values = [self.projections(layer, found[layer][0].flatten(0, 1)).square().mean() for layer in (1, 2)]
        return torch.stack([last.square().mean(), *values])


def lesson() -> Lesson:
    model = tiny_model(dtype=torch.float32)
    return Lesson(model, Projections(((1, 1), (2, 3)), 16, 20, seed=5))


def test_a_sharded_model_gives_the_same_states_and_gradients(alone: None) -> None:
    """FSDP2 puts hooks of its own on the layers; the projections are gathered with what stands at the root."""
    plain, sharded = lesson(), lesson()
    for block in decoder_layers(sharded.model):
        fully_shard(block, mesh=dist.init_device_mesh("cpu", (1,)))
    fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)))
    values = [each() for each in (plain, sharded)]
    assert torch.equal(values[0], values[1])
    for value in values:
        value.sum().backward()
    theirs = {name: p.grad.full_tensor() for name, p in sharded.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert theirs.keys() == ours.keys()
    assert "projections.linears.2.weight" in theirs
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient)


# Projections


def test_a_projection_begins_as_an_isometry_and_the_same_for_one_seed() -> None:
    """Up to a wider target lengths are kept; down to a narrower one its rows are orthonormal."""
    before = torch.get_rng_state()
    up, again, other = (Projections(((1, 2), (3, 4)), 6, 10, seed=s).double() for s in (4, 4, 5))
    down = Projections(((1, 2),), 10, 6, seed=4)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn from anyone else's generator
    assert all(torch.equal(p, q) for p, q in zip(up.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(up.parameters(), other.parameters(), strict=True))
    assert not torch.equal(up.linears["1"].weight, up.linears["3"].weight)
    states_ND = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(up(1, states_ND).norm(dim=1), states_ND.norm(dim=1), rtol=1e-6, atol=0)
    weight_RD = down.linears["1"].weight
    torch.testing.assert_close(weight_RD @ weight_RD.t(), torch.eye(6), rtol=0, atol=1e-6)


def test_where_widths_are_equal_it_begins_as_if_there_were_none() -> None:
    """A student who inherited a teacher's layers has nothing to learn at first."""
    states_ND = torch.randn(5, 8)
    for learnt in (True, False):
        assert torch.equal(Projections(((2, 2),), 8, 8, 0, learnt=learnt)(2, states_ND), states_ND)
    sketch_RD = torch.randn(3, 8)
    for learnt in (True, False):
        made = Projections(((2, 4),), 8, 8, 0, learnt=learnt, sketches={4: sketch_RD})
        torch.testing.assert_close(made(2, states_ND), states_ND @ sketch_RD.t())
        assert len(list(made.parameters())) == int(learnt)


def test_a_sketch_decides_the_width_of_the_target() -> None:
    made = Projections(((1, 4), (2, 8)), 6, 10, 0, sketches={4: torch.randn(3, 10), 8: torch.randn(3, 10)})
    assert [p.shape for p in made.parameters()] == [(3, 6), (3, 6)]
    assert made(2, torch.randn(5, 6)).shape == (5, 3)


def test_unequal_widths_want_a_projection() -> None:
    with pytest.raises(RecipeError, match="have width 8 and the teacher's 9, and no projection between them"):
        Projections(((2, 2),), 8, 9, 0, learnt=False)


@pytest.mark.parametrize("learnt", [True, False])
def test_states_are_projected_in_float32_under_autocast(learnt: bool) -> None:
    states_ND, sketch_RD = torch.randn(5, 8), torch.randn(4, 8)
    made = Projections(((1, 1),), 8, 8, 0, learnt=learnt, sketches={1: sketch_RD})
    with torch.autocast("cpu", torch.bfloat16):
        seen_NR, coarse_NR = made(1, states_ND), made(1, states_ND.bfloat16())
    torch.testing.assert_close(seen_NR, states_ND @ sketch_RD.t())
    torch.testing.assert_close(coarse_NR, states_ND.bfloat16().float() @ sketch_RD.t())


def with_projections() -> Scorer:
    scorer = Scorer(tiny_model(dtype=torch.float32))
    scorer.projections.append(Projections(((1, 2), (2, 4)), 16, 20, seed=2))
    return scorer


def hidden_loss(scorer: Scorer) -> Tensor:
    """Both layers against a teacher of width 20."""
    batch, teacher = collate(PAIRS_AND_CHATS), torch.Generator().manual_seed(9)
    with collect(scorer.model, [1, 2]) as found:
        scorer(batch)
    states = {layer: found[layer][0][0].index_select(0, batch.scored_N) for layer in (1, 2)}
    targets_NR = torch.randn(len(batch.scored_N), 20, generator=teacher)
    return sum(
        (mse(scorer.projections[0](n, states_ND), targets_NR).sum() for n, states_ND in states.items()),
        start=torch.zeros(()),
    )


NAMES = {f"projections.0.linears.{layer}.weight" for layer in (1, 2)}


def step(team: Team) -> dict[str, Tensor]:
    """One step; returns what it made of the weights."""
    team.backward(hidden_loss(team.scorer), True)
    assert {name for name, p in team.trained.items() if p.grad is not None} > NAMES
    lengths = [p.grad.norm() for p in team.trained.values() if p.grad is not None]
    torch.testing.assert_close(team.step(1.0, 1e-2), torch.stack(lengths).norm())
    return {name: p.detach().clone() for name, p in team.trained.items()}


def taken(name: OptimizerName) -> Team:
    team, scorer = Team(), with_projections()
    team.prepare(scorer, make_optimizers(scorer, name, 1e-2, 0.1, 0.99))
    return team


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_projections_are_stepped_clipped_and_restored_with_all_others(name: OptimizerName, tmp_path: Path) -> None:
    """Trap: "projections absent from the optimizer (DistillKit 0.1)". Muon is for the body's matrices: AdamW moves
    these beside it. What was stopped goes on to the last bit."""
    team = taken(name)
    assert len(team.optimizers) == (1 if name == "adamw" else 2)
    held = [id(p) for group in team.optimizers[0].param_groups for p in group["params"]]
    assert [held.count(id(team.trained[projection])) for projection in NAMES] == [1, 1]
    before = {projection: team.trained[projection].detach().clone() for projection in NAMES}
    after = step(team)
    assert not any(torch.equal(after[projection], weight) for projection, weight in before.items())
    team.save(tmp_path)
    further = step(team)
    again = taken(name)
    again.load(tmp_path)
    assert all(torch.equal(parameter, after[key]) for key, parameter in again.trained.items())
    assert all(torch.equal(parameter, further[key]) for key, parameter in step(again).items())


def test_a_sealed_student_knows_nothing_of_projections(tmp_path: Path) -> None:
    scorer, plain = with_projections(), Scorer(tiny_model(dtype=torch.float32))
    for each, folder in ((scorer, tmp_path / "one"), (plain, tmp_path / "other")):
        save_model(each.release(), tiny_tokenizer(), folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "other").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in files)
