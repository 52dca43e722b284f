"""The loop, learning rates, the order of rows. A docstring that begins with "Trap" quotes the bug it would catch."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine import random_items, tiny_model

from potstill.errors import DataError, ModelError
from potstill.objectives.base import Loss
from potstill.training.batch import Item
from potstill.training.data import hold_out
from potstill.training.loop import Desk, Settings
from potstill.training.loop import train as run
from potstill.training.optimizers import make_optimizers
from potstill.training.schedule import global_batches, rate
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tasks import Task, likelihood
from potstill.training.team import Team

SETTINGS = replace(engine.SETTINGS, learning_rate=3e-3, schedule="cosine", evaluations=2, micro_tokens=1000)
# Long rows beside short ones, so that a mean of means would show.
ROWS = random_items([(0, 3 + (n * 7) % 23) for n in range(18)])


def optimizers(scorer: Scorer, settings: Settings) -> list[torch.optim.Optimizer]:
    s = settings
    return make_optimizers(scorer, s.optimizer, s.learning_rate, s.weight_decay, s.beta2)


def train(scorer: Scorer, task: Task, settings: Settings, out: Path, **desk: Any) -> dict[str, Any]:
    team = Team()
    team.prepare(scorer, optimizers(scorer, settings))
    return run(team, task, settings, Desk(out, out / "unfinished", **desk))


def trained(out: Path, settings: Settings = SETTINGS, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    scorer = build_scorer(tiny_model())
    task = likelihood([ROWS[:6], ROWS[6:12], ROWS[12:16]] * 2, ROWS[16:])
    facts = train(scorer, replace(task, **changes), settings, out)
    return {name: p.detach().clone() for name, p in scorer.named_parameters()}, facts


def curve(out: Path, split: str) -> list[dict[str, Any]]:
    lines = (out / "curves.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["split"] == split]


def test_rates_by_hand() -> None:
    assert [rate(s, 10, "linear", 0.2) for s in (0, 1, 2, 6)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5])
    assert rate(6, 10, "cosine", 0.2) == pytest.approx(0.5)
    assert rate(9, 10, "cosine", 0.2) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert [rate(s, 10, "constant", 0.0) for s in (0, 9)] == [1.0, 1.0]
    assert rate(0, 1, "cosine", 0.1) == 0.5  # one step in all still moves


def test_every_epoch_is_a_new_order_of_all_rows() -> None:
    """Trap: "Order differs after resume from the second epoch on". It depends on the seed and the epoch alone."""
    batches = global_batches([1] * 10, 4, 3, seed=5)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[row for batch in batches[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert global_batches([1] * 10, 4, 1, seed=5) == batches[:3]
    assert global_batches([1] * 10, 4, 1, seed=6) != batches[:3]
    assert len(global_batches([1] * 10, 4, 0.4, seed=5)) == 1
    assert len(global_batches([1] * 10, 4, 1.7, seed=5)) == 5


def test_batches_of_tokens_keep_to_their_capacity() -> None:
    sizes = [5, 3, 8, 1, 9, 2, 30]
    batches = global_batches(sizes, 10, 1, seed=0)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(sum(sizes[row] for row in batch) <= 10 or len(batch) == 1 for batch in batches)


def test_the_split_into_micro_batches_changes_nothing(tmp_path: Path) -> None:
    """Trap: "Gradient accumulation averages micro-batch means, so short micro-batches weigh more"."""
    whole, _ = trained(tmp_path)
    parts, _ = trained(tmp_path, replace(SETTINGS, micro_tokens=25))
    for name, weight in whole.items():
        assert torch.allclose(parts[name], weight, rtol=1e-5, atol=1e-7), name


def test_one_step_is_the_step_of_plain_torch(tmp_path: Path) -> None:
    """The mean over all learnt tokens, clipped, by AdamW: written out once more with the model's own forward."""
    model = tiny_model()
    settings = replace(SETTINGS, warmup=0.0, schedule="constant", clip=0.5)
    scorer = build_scorer(tiny_model())
    train(scorer, likelihood([ROWS[:6]], []), settings, tmp_path)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for item in ROWS[:6]:
        ids_L, learn_L = item.answers[0]
        ids = torch.from_numpy(ids_L.astype("int64"))
        logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total, count = total - logp[torch.from_numpy(learn_L[1:])].sum(), count + int(learn_L.sum())
    (total / count).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99)).step()
    for ours, theirs in zip(scorer.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    assert curve(tmp_path, "train")[0]["loss"] == pytest.approx((total / count).item(), rel=1e-5)


def test_muon_moves_the_matrices_of_the_body_and_adamw_the_rest(tmp_path: Path) -> None:
    """Each parameter by exactly one of them, and by the split of the batch as little as before."""
    scorer = build_scorer(tiny_model())
    adamw, muon = optimizers(scorer, replace(SETTINGS, optimizer="muon"))
    moved = [[id(p) for group in o.param_groups for p in group["params"]] for o in (adamw, muon)]
    assert sorted(moved[0] + moved[1]) == sorted(id(p) for p in scorer.parameters())
    names = {id(p): name for name, p in scorer.named_parameters()}
    assert all("_proj" in names[number] for number in moved[1])
    assert not any("_proj" in names[number] for number in moved[0])
    whole, facts = trained(tmp_path, replace(SETTINGS, optimizer="muon"))
    parts, _ = trained(tmp_path, replace(SETTINGS, optimizer="muon", micro_tokens=25))
    assert facts["held_out_loss"]["last"] < facts["held_out_loss"]["first"]
    # Muon orthogonalises in bfloat16, so that a difference in the gradient's last bits shows.
    assert all(torch.allclose(parts[name], weight, atol=5e-4) for name, weight in whole.items())


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (trained(tmp_path / name)[0] for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "first" / "curves.jsonl").read_bytes() == (tmp_path / "second" / "curves.jsonl").read_bytes()


def test_the_curve_holds_every_step_and_every_evaluation(tmp_path: Path) -> None:
    _, facts = trained(tmp_path)
    rows = curve(tmp_path, "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row.keys() == {"step", "split", "loss", "grad_norm", "learning_rate"} for row in rows)
    assert rows[1]["learning_rate"] == pytest.approx(3e-3 * 2 / 3, rel=1e-5)
    assert [row["step"] for row in curve(tmp_path, "held_out")] == [0, 3, 6]
    assert facts["steps"] == 6
    assert facts["held_out_loss"]["first"] == curve(tmp_path, "held_out")[0]["loss"]


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path) -> None:
    """A rate far too high makes the held-out loss rise from the first evaluation on."""
    wild = replace(SETTINGS, learning_rate=5.0, schedule="constant", warmup=0.0, evaluations=6)
    start = {name: p.detach().clone() for name, p in build_scorer(tiny_model()).named_parameters()}
    best, facts = trained(tmp_path, replace(wild, keep="best", patience=2))
    held = [row["loss"] for row in curve(tmp_path, "held_out")]
    assert min(held) == held[0]
    assert facts["kept"] == "step 0"
    assert facts["steps"] == 2
    assert all(torch.equal(best[name], start[name]) for name in best)
    last, facts = trained(tmp_path, wild)
    assert facts["kept"] == "last"
    assert facts["steps"] == 6
    assert any(not torch.equal(last[name], start[name]) for name in last)


def test_a_loss_that_is_no_number_stops_with_one_line(tmp_path: Path) -> None:
    def poisoned(logp_N: torch.Tensor, batch: object) -> Loss:
        return Loss(logp_N.sum() * float("nan"), 1.0)

    with pytest.raises(ModelError, match=r"step 1 of 6: training has diverged: the loss is nan.*Lower learning_rate"):
        trained(tmp_path, objective=poisoned, held_out=[])
    with pytest.raises(ModelError, match=r"step 0 of 6: the held-out loss is nan before training"):
        trained(tmp_path, objective=poisoned)
    assert not (tmp_path / "curves.jsonl").exists()


def test_an_objective_and_its_denominator_agree(tmp_path: Path) -> None:
    """What rows add to the denominator is what the objective counts, or gradients are scaled wrongly."""
    task: Task = likelihood([], [])
    scorer: Scorer = build_scorer(tiny_model())
    from potstill.training.batch import collate

    batch = collate(ROWS)
    assert task.objective(scorer(batch), batch).count == sum(task.denominator(item) for item in ROWS)


def test_rows_with_one_prompt_are_held_out_together() -> None:
    keys = [f"prompt {n // 3}" for n in range(30)]
    held = hold_out(keys, 7, seed=1, where="rows")
    assert 7 <= sum(held) <= 9
    assert not {k for k, h in zip(keys, held, strict=True) if h} & {k for k, h in zip(keys, held, strict=True) if not h}
    assert hold_out(keys, 7, seed=1, where="rows") == held != hold_out(keys, 7, seed=2, where="rows")
    again = dict(zip(reversed(keys), hold_out(keys[::-1], 7, seed=1, where="rows"), strict=True))
    assert all(again[key] == out for key, out in zip(keys, held, strict=True))  # whatever the order of rows
    with pytest.raises(DataError, match="holding out 30 of 30 rows leaves nothing"):
        hold_out(keys, 30, seed=1, where="rows")


def test_blocks_of_a_long_text_learn_every_token_once() -> None:
    from engine import tiny_tokenizer

    from potstill.records import Text
    from potstill.training.data import text_items

    text = Text(id="t", text="the cat sat on the mat. " * 9)
    for length in (8, 13, 500):
        split = text_items(tiny_tokenizer(), [("t", text)], block_length=length, held_out=0, seed=0, where="t")
        learnt = [int(i) for item in split.train for ids, learn in item.answers for i in ids[learn]]
        whole: Item = text_items(
            tiny_tokenizer(), [("t", text)], block_length=9999, held_out=0, seed=0, where="t"
        ).train[0]
        assert learnt == whole.answers[0][0][1:].tolist()
        assert all(item.tokens <= length + 1 for item in split.train)
