"""Tasks: objectives over batches whose denominator is known before, and what is watched of them, by hand.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import numpy as np
import pytest
import torch
from engine import FAMILIES, random_items, tiny_model
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from potstill.objectives.preference import LOSSES, parameters
from potstill.stages.dpo import OPTIONS, READS, REFERENCE_FREE, DpoConfig
from potstill.training.balance import Balance
from potstill.training.batch import Item, collate
from potstill.training.loop import Desk, score_all, train
from potstill.training.scoring import Scorer
from potstill.training.tasks import Task, feedback, likelihood, preference
from potstill.training.team import Team

PAIRS = random_items([(6, 5, 9), (3, 4, 4), (8, 12, 2), (0, 6, 7), (1, 3, 3), (5, 10, 1)])
DESIRABLE = {item.row: number % 3 != 0 for number, item in enumerate(PAIRS)}
KTO = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
SETTINGS = replace(
    engine.SETTINGS,
    learning_rate=1.0,
    schedule="constant",
    warmup=0.0,
    weight_decay=0.0,
    clip=1e9,
    evaluations=1,
    micro_tokens=1000,
)


def team_of(model: PreTrainedModel) -> Team:
    team = Team()
    team.prepare(Scorer(model), [torch.optim.SGD(model.parameters(), lr=1.0)])
    return team


def log_probabilities(model: PreTrainedModel, item: Item, answer: int) -> Tensor:
    """Of an answer's scored tokens, by the model's own forward."""
    ids_L, learn_L = item.answers[answer]
    whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64))
    logp_LV = model(input_ids=whole[None], use_cache=False).logits[0].log_softmax(-1)
    at = torch.from_numpy(np.flatnonzero(learn_L) + len(item.prompt_ids))
    return logp_LV[at - 1, whole[at]]


def with_signals(items: Sequence[Item], family: str = "mistral", shift: float = 0.0) -> list[Item]:
    """The items with the column of a model whose weights were all moved a little, so that log-ratios are not 0."""
    reference = tiny_model(family)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(shift * torch.randn_like(parameter))
        return [
            replace(
                item,
                signals=tuple(
                    log_probabilities(reference, item, answer).numpy().astype(np.float32)
                    for answer in range(len(item.answers))
                ),
            )
            for item in items
        ]


def one_step(task: Task, micro_tokens: int, out: Path, family: str = "mistral") -> tuple[dict[str, Any], list[Tensor]]:
    """The curve's row, and the step's gradient: what SGD at a rate of 1 took off the weights."""
    model = tiny_model(family)
    before = [p.detach().clone() for p in model.parameters()]
    out.mkdir(exist_ok=True)
    train(team_of(model), task, replace(SETTINGS, micro_tokens=micro_tokens), Desk(out, out / "unfinished"))
    rows = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if row.pop("split") == "train")
    return row, [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).norm() <= 1e-6 * two.norm() + 1e-9


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


# --- what a recipe may say ------------------------------------------------------------------------------------------


def config(**fields: Any) -> DpoConfig:
    return DpoConfig.model_validate({"kind": "dpo", "model": "m", "data": "d", **fields})


def test_the_recipe_s_options_are_those_that_the_losses_read() -> None:
    """Trap: "An option accepted and ignored". The table says it without torch; the functions are asked here."""
    for loss, spec in LOSSES.items():
        assert frozenset(READS.get(loss, ("beta",))) == parameters(loss), loss
        assert config(loss=loss).parameters.keys() == parameters(loss)
        assert (loss in REFERENCE_FREE) == (not spec.needs_reference)
    assert READS.keys() <= LOSSES.keys()
    assert set(OPTIONS) == set().union(*(parameters(loss) for loss in LOSSES))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_an_option_that_a_loss_does_not_read_is_refused(loss: str) -> None:
    """Trap: "An option accepted and ignored", even where it is given as what it would be anyway."""
    reads = parameters(loss) | (set() if loss == "kto" else {"sft_term"})
    for option in (*OPTIONS, "sft_term"):
        given = {option: DpoConfig.model_fields[option].default}
        if option in reads:
            config(loss=loss, **given)
            continue
        with pytest.raises(ValidationError, match=f"loss {loss} does not read {option}; it reads ") as caught:
            config(loss=loss, **given)
        assert "\n" not in caught.value.errors()[0]["msg"]


# --- denominators and couplings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - {"kto"}))
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_micro_batches_of_pairs_are_the_whole_batch(tmp_path: Path, loss: str, weight: float) -> None:
    """Trap: "Gradient accumulation averages micro-batch means", for every loss, its SFT term and its figures."""
    items = with_signals(PAIRS, shift=0.02) if LOSSES[loss].needs_reference else PAIRS
    task = preference([items], [], loss, config(loss=loss).parameters, weight)
    whole, gradient = one_step(task, 1000, tmp_path / "whole")
    assert any(part.norm() > 1e-6 for part in gradient)
    for tokens in (1, 30):
        row, parts = one_step(task, tokens, tmp_path / str(tokens))
        assert_same(parts, gradient)
        assert row == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_the_sft_term_is_the_chosen_answers_mean_a_token(tmp_path: Path) -> None:
    items = with_signals(PAIRS, shift=0.02)
    plain, _ = one_step(preference([items], [], "sigmoid", {"beta": 0.1}), 1000, tmp_path / "plain")
    added, _ = one_step(preference([items], [], "sigmoid", {"beta": 0.1}, 0.25), 1000, tmp_path / "added")
    model = tiny_model()
    means = [-log_probabilities(model, item, 0).mean().item() for item in items]
    assert added["loss"] - plain["loss"] == pytest.approx(0.25 * sum(means) / len(means), rel=1e-4)


def plain_kto(model: PreTrainedModel, items: Sequence[Item]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ethayarajh et al. 2024, eqs. 5 to 8, a row at a time: loss, KL, log-ratios."""

    def ratio(item: Item, answer: int) -> Tensor:
        return (log_probabilities(model, item, answer) - torch.from_numpy(item.signals[answer]).double()).sum()

    with torch.no_grad():
        kl = torch.stack([ratio(item, 1) for item in items]).mean().clamp(min=0)
    losses, ratios = [], [ratio(item, 0) for item in items]
    for item, each in zip(items, ratios, strict=True):
        if DESIRABLE[item.row]:
            losses.append(1.3 * (1 - torch.sigmoid(0.3 * (each - kl))))
        else:
            losses.append(0.7 * (1 - torch.sigmoid(0.3 * (kl - each))))
    return torch.stack(losses).mean(), kl, ratios


@pytest.mark.parametrize("tokens", [1, 25, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2])
def test_kto_is_the_plain_one_over_the_global_batch_however_it_is_cut(
    tmp_path: Path, tokens: int, shift: float
) -> None:
    """Trap: "Gradient accumulation averages micro-batch means": its KL is that of the whole batch."""
    items = with_signals(PAIRS, shift=shift)
    model = tiny_model()
    loss, kl, ratios = plain_kto(model, items)
    assert shift == 0 or kl > 0.01
    row, gradient = one_step(feedback([items], [], DESIRABLE, KTO), tokens, tmp_path / "ours")
    assert_same(gradient, gradients(model, loss))
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["kl"] == pytest.approx(kl.item(), rel=1e-5, abs=1e-6)
    assert row["log_ratio"] == pytest.approx(sum(ratio.item() for ratio in ratios) / len(items), rel=1e-4, abs=1e-6)


def test_kto_measures_held_out_rows_by_a_kl_of_their_own(tmp_path: Path) -> None:
    train_rows, held_out = with_signals(PAIRS[:3], shift=0.1), with_signals(PAIRS[3:], shift=0.3)
    task = feedback([train_rows], held_out, DESIRABLE, KTO)
    one_step(task, 20, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()]
    loss, kl, _ = plain_kto(tiny_model(), held_out)
    assert (rows[0]["split"], rows[0]["step"]) == ("held_out", 0)
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["kl"] == pytest.approx(kl.item(), rel=1e-5)


def test_the_measure_of_a_coupling_leaves_training_mode_as_it_was(tmp_path: Path) -> None:
    """Dropout has to be on again when gradients are computed."""
    model = tiny_model()
    modes: list[tuple[bool, bool]] = []
    team = team_of(model)
    team.scorer.register_forward_pre_hook(lambda *given: modes.append((model.training, torch.is_grad_enabled())))
    train(team, feedback([with_signals(PAIRS)], [], DESIRABLE, KTO), SETTINGS, Desk(tmp_path, tmp_path / "unfinished"))
    assert modes == [(False, False), (True, True)]


# --- what people watch ----------------------------------------------------------------------------------------------


def watched(items: Sequence[Item], loss: str = "sigmoid", **given: float) -> Mapping[str, float]:
    task = preference([], [], loss, given or {"beta": 0.1})
    assert task.objective is not None
    return score_all(team_of(tiny_model()), items, task.objective, 25)


def test_figures_of_pairs_by_hand() -> None:
    """Trap: "DPO metrics from rank 0 only": means over all pairs, from every pair's own log-probabilities."""
    items, model = with_signals(PAIRS, shift=0.1), tiny_model()
    expected: dict[str, list[float]] = {}
    for item in items:
        logp = [log_probabilities(model, item, answer).detach() for answer in (0, 1)]
        ratios = [(logp[a] - torch.from_numpy(item.signals[a]).double()) for a in (0, 1)]
        chosen, rejected = (part.sum().item() for part in ratios)
        k3 = [(torch.exp(-r) - 1 + r).mean().item() for r in ratios]
        lengths = [len(signal) for signal in item.signals]
        lead = np.sign(chosen - rejected)
        values = {
            "loss": np.log1p(np.exp(-0.1 * (chosen - rejected))),
            "margin": 0.1 * (chosen - rejected),
            "accuracy": (lead + 1) / 2,
            "chosen_logp": logp[0].sum().item(),
            "rejected_logp": logp[1].sum().item(),
            "chosen_log_ratio": chosen,
            "rejected_log_ratio": rejected,
            "kl": sum(k3) / 2,
            "longer": (lead * np.sign(lengths[0] - lengths[1]) + 1) / 2,
        }
        for name, value in values.items():
            expected.setdefault(name, []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in expected.items()}
    assert 0 < means["accuracy"] < 1
    assert 0 < means["longer"] < 1
    assert watched(items) == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e-4, 0.02, 0.3, 1.0])
def test_the_kl_is_0_at_the_reference_and_never_negative(shift: float) -> None:
    found = watched(with_signals(PAIRS, shift=shift))
    if shift == 0:  # the column is kept in float32, the model here computes in float64
        assert found["kl"] == pytest.approx(0, abs=1e-12)
        assert found["margin"] == pytest.approx(0, abs=1e-6)
        assert found["loss"] == pytest.approx(np.log(2), abs=1e-6)
    else:
        assert found["kl"] > 0


def test_per_token_losses_watch_margins_per_token() -> None:
    items, model = PAIRS, tiny_model()
    leads = [
        (log_probabilities(model, item, 0).mean() - log_probabilities(model, item, 1).mean()).item() for item in items
    ]
    found = watched(items, "simpo", beta=2.0, gamma=0.5)
    assert found["margin"] == pytest.approx(2 * sum(leads) / len(leads), rel=1e-5)
    assert found["accuracy"] == sum(lead > 0 for lead in leads) / len(leads)
    assert "kl" not in found


def test_kto_s_accuracy_is_by_the_side_of_the_baseline() -> None:
    items, model = with_signals(PAIRS, shift=0.1), tiny_model()
    _, _, ratios = plain_kto(model, items)
    found: list[Mapping[str, Tensor]] = []
    task = feedback([], [], DESIRABLE, KTO)
    assert task.coupling is not None
    kl = torch.tensor(0.4, dtype=torch.float64)
    objective = task.coupling.objective(kl)
    batch = collate([task.coupling.then(item) for item in items])
    with torch.no_grad():
        found.append(objective(Scorer(model)(batch), batch).figures)
    right = [(ratio.item() > 0.4) == DESIRABLE[item.row] for ratio, item in zip(ratios, items, strict=True)]
    assert 0 < sum(right) < len(right)
    assert found[0]["accuracy"].item() == sum(right)
    below = task.coupling.objective(-kl)  # an estimate may be: the baseline and what is told may not
    with torch.no_grad():
        assert below(Scorer(model)(batch), batch).figures["kl"].item() == 0.0


# --- mixtures of experts --------------------------------------------------------------------------------------------


def plain_experts(model: PreTrainedModel, items: Sequence[Item]) -> Tensor:
    """The model's own loss with `output_router_logits`, padded: the mean over learnt tokens and the balance."""
    rows = [(ids_L, learn_L) for item in items for ids_L, learn_L in item.answers]
    longest = max(len(ids_L) for ids_L, _ in rows)
    ids_BL, mask_BL = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    labels_BL = torch.full((len(rows), longest), -100)
    for place, (ids_L, learn_L) in enumerate(rows):
        ids = torch.from_numpy(ids_L.astype(np.int64))
        ids_BL[place, : len(ids)], mask_BL[place, : len(ids)] = ids, 1
        labels_BL[place, : len(ids)] = torch.where(torch.from_numpy(learn_L), ids, -100)
    loss = model(ids_BL, attention_mask=mask_BL, labels=labels_BL, output_router_logits=True, use_cache=False).loss
    assert isinstance(loss, Tensor)
    return loss


CHATS = random_items([(0, 9), (0, 4), (0, 14), (0, 6), (0, 11)])


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "qwen2-moe-window"])
@pytest.mark.parametrize("tokens", [1, 16, 1000])
def test_a_step_of_a_mixture_is_plain_training_s(tmp_path: Path, family: str, tokens: int) -> None:
    """The balance loss couples the batch: loss and gradients are transformers' own, however the batch is cut."""
    model = tiny_model(family)
    loss = plain_experts(model, CHATS)
    layout = "padded" if family == "qwen2-moe-window" else "shared"
    ours = tiny_model(family)
    before = [p.detach().clone() for p in ours.parameters()]
    team = Team()
    team.prepare(Scorer(ours, layout), [torch.optim.SGD(ours.parameters(), lr=1.0)])
    train(
        team, likelihood([CHATS], []), replace(SETTINGS, micro_tokens=tokens), Desk(tmp_path, tmp_path / "unfinished")
    )
    gradient = [old - new.detach() for old, new in zip(before, ours.parameters(), strict=True)]
    for one, two in zip(gradient, gradients(model, loss), strict=True):
        assert (one - two).norm() <= 2e-5 * two.norm() + 1e-8
    row = json.loads((tmp_path / "curves.jsonl").read_text().splitlines()[-1])
    coefficient = FAMILIES[family].router_aux_loss_coef
    assert row["loss"] + row["balance"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["balance"] > coefficient


def test_counting_the_experts_first_draws_nothing(tmp_path: Path) -> None:
    """With dropout, both passes see the same model: what is counted is what is then learnt."""
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    team = team_of(model)
    team.scorer.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    balance = Balance(team, CHATS, 16)
    assert torch.equal(torch.get_rng_state(), state)
    counted = balance._routed_E
    seen = [team.route(batch)[1] for batch, _, _ in team.rounds(CHATS, 16)]
    assert counted is not None
    assert torch.equal(counted, torch.stack(seen).sum(0))


def test_pairs_of_a_mixture_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    task = preference([with_signals(PAIRS, "mixtral", 0.05)], [], "sigmoid", {"beta": 0.1})
    whole, gradient = one_step(task, 1000, tmp_path / "whole", "mixtral")
    parts, again = one_step(task, 20, tmp_path / "parts", "mixtral")
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)
    for one, two in zip(again, gradient, strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm() + 1e-8
