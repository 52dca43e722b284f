"""Steps in which the student answers: which rows, when, and that a run that was stopped goes on to the same answers."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import SETTINGS, VOCABULARY, random_items, tiny_model
from kills import Done, Killed, kept, kill_in

from potstill.errors import Stopped, StorageError
from potstill.training import on_policy
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.batch import Item
from potstill.training.loop import Desk, Settings, train
from potstill.training.on_policy import FOLDER, OnPolicySteps, Plan
from potstill.training.optimizers import make_optimizers
from potstill.training.sampling import Prompt, Sampling, Speaker, answered
from potstill.training.scoring import Scorer
from potstill.training.tasks import likelihood
from potstill.training.team import Team

ROWS = random_items([(0, 4 + (n * 5) % 11) for n in range(13)])
OFFLINE = [ROWS[:4], ROWS[4:8], ROWS[8:11], ROWS[:3], ROWS[3:7], ROWS[7:9], ROWS[9:11]]
HELD_OUT = ROWS[11:]
STOPS = frozenset(range(4))
PLAN = Plan(share=0.5, reuse=3, sampling=Sampling(1.0, 1.0, 0, 8), seed=7)


class Parrot:
    """Answers with the number of the call, and with nothing every second time."""

    def __init__(self) -> None:
        self.asked: list[list[Prompt]] = []

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Item]:
        self.asked.append(list(prompts))
        return [answered(prompt, [50 + len(self.asked), 0][place % 2 :]) for place, prompt in enumerate(prompts)]

    def is_cut(self, item: Item) -> bool:
        return item.answers[0][0][-1] != 0


def parroted(folder: Path, plan: Plan = PLAN) -> tuple[OnPolicySteps, list[list[Prompt]]]:
    parrot: Any = Parrot()
    return OnPolicySteps(OFFLINE, parrot, plan, folder), parrot.asked


def test_a_share_of_rows_is_the_students(tmp_path: Path) -> None:
    """GKD's lambda, a row: as a share of many rows, all of them at 1, none at 0; the others are as they were."""
    many = [random_items([(2, 3)] * 100, seed) for seed in range(20)]
    nobody: Any = None
    half = OnPolicySteps(many, nobody, replace(PLAN, share=0.3), tmp_path)
    chosen = [half.own(step) for step in range(20)]
    assert abs(np.mean(chosen) - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert chosen[0] != chosen[1]
    for share in (0.0, 1.0):
        steps, asked = parroted(tmp_path / str(share), replace(PLAN, share=share, reuse=1))
        batches = list(steps)
        assert len(asked) == (len(OFFLINE) if share else 0)
        for batch, rows in zip(batches, OFFLINE, strict=True):
            assert all((own is row) == (share == 0) for own, row in zip(batch, rows, strict=True))


def test_a_round_serves_as_many_steps_as_asked(tmp_path: Path) -> None:
    steps, asked = parroted(tmp_path)
    batches = [steps[index] for index in range(len(steps))]
    assert len(asked) == 3  # of steps 1 to 3, 4 to 6 and 7
    for index, (batch, rows) in enumerate(zip(batches, OFFLINE, strict=True)):
        for own, row, was in zip(steps.own(index), batch, rows, strict=True):
            assert row.row == was.row
            if own:
                assert row.answers[0][0][-1] in (0, 51 + index // 3)
                assert was.answers[0][0].tolist()[: len(row.prompt_ids)] == row.prompt_ids.tolist()
            else:
                assert row is was
    assert steps[6] is not batches[6]
    assert [a is b for a, b in zip(steps[6], batches[6], strict=True)] == [True] * 2  # asked again, it is the same
    assert len(asked) == 3


def test_turns_and_seeds_are_drawn_by_step_and_row(tmp_path: Path) -> None:
    """The same row at another step has another seed, perhaps another turn; another seed of the stage has others."""
    whole = replace(PLAN, share=1.0, reuse=1)
    steps, asked = parroted(tmp_path / "one", whole)
    assert list(steps)
    again, same = parroted(tmp_path / "two", whole)
    assert list(again)
    other, others = parroted(tmp_path / "three", replace(whole, seed=8))
    assert list(other)
    seeds = [prompt.seed for prompts in asked for prompt in prompts]
    assert len(set(seeds)) == len(seeds) == sum(map(len, OFFLINE))
    assert seeds == [prompt.seed for prompts in same for prompt in prompts]
    assert set(seeds).isdisjoint(prompt.seed for prompts in others for prompt in prompts)
    lengths: dict[str, set[int]] = {}
    for prompts in [*asked, *others]:
        for prompt in prompts:
            lengths.setdefault(prompt.row, set()).add(len(prompt.ids))
    assert any(len(found) > 1 for found in lengths.values())


def test_answers_are_counted_that_are_cut_or_empty(tmp_path: Path) -> None:
    """Every second one of a round is the end alone; where nothing is an end, all are cut and none is empty."""
    steps, asked = parroted(tmp_path, replace(PLAN, share=1.0, reuse=1))
    assert steps.facts(0) == {"rows": 0, "tokens": 0, "cut": 0, "empty": 0}
    assert list(steps)
    rows = sum(map(len, OFFLINE))
    empty = sum(len(prompts) // 2 for prompts in asked)
    assert steps.facts(7) == {"rows": rows, "tokens": 2 * rows - empty, "cut": 0, "empty": empty}
    one = Speaker(Scorer(tiny_model(dtype=torch.float32)), frozenset(), VOCABULARY)
    steps = OnPolicySteps(OFFLINE, one, replace(PLAN, sampling=Sampling(1.0, 1.0, 0, 1)), tmp_path / "cut")
    assert list(steps)
    counts = steps.facts(7)
    assert counts["rows"] == counts["tokens"] == counts["cut"] > 0 == counts["empty"]


@pytest.mark.parametrize(("enough", "step", "rows"), [(10, 3, 11), (99, 7, 22)])
def test_it_is_said_once_that_many_answers_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int, step: int, rows: int
) -> None:
    """As soon as there are enough of them, or at the last step."""
    monkeypatch.setattr(on_policy, "ENOUGH", enough)
    for cut in (False, True):
        parrot: Any = Parrot()
        parrot.is_cut = lambda item, cut=cut: cut
        said: list[str] = []
        steps = OnPolicySteps(OFFLINE, parrot, replace(PLAN, share=1.0, reuse=1), tmp_path / str(cut), said.append)
        assert list(steps)
        what = f"{rows} of {rows} were cut after 8 tokens and teach nobody to end; raise max_tokens"
        assert said == [f"own answers at step {step}: {what}"] * cut


def test_a_fifth_of_the_answers_may_be_cut(tmp_path: Path) -> None:
    for cut in (2, 3):
        parrot: Any = Parrot()
        parrot.is_cut = lambda item, cut=cut: item.row in [row.row for row in ROWS[:cut]]
        said: list[str] = []
        plan = replace(PLAN, share=1.0, reuse=1)
        assert list(OnPolicySteps([ROWS[:10]], parrot, plan, tmp_path / str(cut), said.append))
        assert len(said) == (cut > 2)


def run(
    out: Path,
    plan: Plan = PLAN,
    settings: Settings = SETTINGS,
    *,
    seed: int = 3,
    behind: int = 0,
    follow: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Done:
    """A run of a team and a model that are new; it is asked to stop behind the step `behind`."""
    out.mkdir(exist_ok=True)
    model = attach(tiny_model(dtype=torch.float32), Adapter(rank=2, dropout=0.2), seed=1)
    scorer, team, asked, s = Scorer(model, neftune_alpha=5.0), Team(), iter(range(1, 1000)), settings
    team.prepare(scorer, make_optimizers(scorer, s.optimizer, s.learning_rate, s.weight_decay, s.beta2))
    torch.manual_seed(seed)
    steps = OnPolicySteps(OFFLINE, Speaker(scorer, STOPS, VOCABULARY), plan, out / "unfinished")
    desk = Desk(out, out / "unfinished", follow, lambda: next(asked) == behind)
    facts = train(team, likelihood(steps, HELD_OUT), settings, desk)
    weights = {name: p.detach().clone() for name, p in scorer.named_parameters()}
    return Done(weights, (out / "curves.jsonl").read_bytes(), {**facts, "own": steps.facts(facts["steps"])})


@pytest.mark.parametrize("reuse", [1, 3, 10])
def test_stopped_behind_any_step_it_goes_on_to_the_last_bit(tmp_path: Path, reuse: int) -> None:
    """Within a round and between rounds: weights, curve, counts. Dropout, noise and answers are drawn."""
    plan = replace(PLAN, reuse=reuse)
    straight = run(tmp_path / "straight", plan)
    assert straight.facts["own"]["rows"] > 8
    assert not straight.same(run(tmp_path / "other", replace(plan, seed=8)))
    for behind in range(1, 8):
        out = tmp_path / str(behind)
        if behind < 7:
            with pytest.raises(Stopped):
                run(out, plan, behind=behind)
        else:
            run(out, plan, behind=behind)
        assert run(out, plan, seed=99).same(straight), behind


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (on_policy, "sync", 1),  # written aside, not in its place
        (on_policy, "sync", 2),  # in its place, the older ones not forgotten
        (on_policy, "sync", 4),
        (os, "fsync", 9),
        (Path, "unlink", 1),
        (Speaker, "answer", 1),
        (Speaker, "answer", 3),
        (Team, "save", 1),
        (Team, "save", 3),
        (Team, "step", 5),
    ],
)
def test_killed_while_it_writes_it_goes_on_to_the_last_bit(
    tmp_path: Path, owner: Any, name: str, at: int, before: bool
) -> None:
    plan, settings = replace(PLAN, reuse=2), replace(SETTINGS, checkpoint_steps=1)
    straight = run(tmp_path / "straight", plan, settings)
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, owner, name, at, before=before)
        with pytest.raises(Killed):
            run(tmp_path / "killed", plan, settings)
    found = any(name.startswith("step") for name in kept(tmp_path / "killed"))
    assert run(tmp_path / "killed", plan, settings, seed=99 if found else 3).same(straight)


def test_rounds_are_kept_as_long_as_a_checkpoint_goes_on_with_them(tmp_path: Path) -> None:
    plan, settings = replace(PLAN, reuse=2), replace(SETTINGS, checkpoint_steps=3)
    run(tmp_path, plan, settings)
    assert kept(tmp_path)[1:] == ["step-00000003", "step-00000006"]
    rounds = sorted(path.name for path in (tmp_path / "unfinished" / FOLDER).iterdir())
    assert rounds == ["00000002.npz", "00000004.npz", "00000006.npz"]  # of steps 3 and 4, 5 and 6, 7


def test_where_the_latest_checkpoint_is_spoilt_the_one_before_finds_its_round(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_steps=2)
    straight = run(tmp_path / "straight", settings=settings)
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(out, settings=settings, behind=4)
    (out / "unfinished" / "step-00000004" / "state.pt").write_bytes(b"")
    assert run(out, settings=settings, seed=99).same(straight)


@pytest.mark.parametrize("how", ["gone", "cut", "bits", "another"])
def test_a_round_that_is_not_as_it_was_is_refused(tmp_path: Path, how: str) -> None:
    """Rather than gone on from with other answers than were learnt from before."""
    with pytest.raises(Stopped):
        run(tmp_path, behind=2)
    file = tmp_path / "unfinished" / FOLDER / "00000000.npz"
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:100])
    elif how == "bits":
        content[content.index(b"tokens.npy") + 200] ^= 1
        file.write_bytes(content)
    plan = replace(PLAN, seed=8) if how == "another" else PLAN
    with pytest.raises(
        StorageError, match=r"answered at step 1, which .* is gone or damaged\. Remove the folder above"
    ):
        run(tmp_path, plan)


def test_the_curve_learns_from_what_is_said_now(tmp_path: Path) -> None:
    """Strictly on-policy, answers change as the model does; within a round they are of its beginning."""
    said: dict[int, list[list[int]]] = {}

    def answers(reuse: int) -> list[list[int]]:
        said.clear()
        original = Speaker.answer

        def noting(self: Speaker, prompts: Sequence[Prompt], sampling: Sampling) -> list[Item]:
            same = [Prompt("same", np.array([9, 8, 7], dtype=np.int32), 1)]
            said[len(said)] = [original(self, same, replace(sampling, max_tokens=30))[0].answers[0][0].tolist()]
            return original(self, prompts, sampling)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Speaker, "answer", noting)
            hot = replace(SETTINGS, learning_rate=0.2, schedule="constant", warmup=0.0)
            run(tmp_path / str(reuse), replace(PLAN, reuse=reuse, share=1.0), hot)
        return [found for (found,) in said.values()]

    strict, rounds = answers(1), answers(7)
    assert len(strict) == 7
    assert len({json.dumps(found) for found in strict}) > 3
    assert rounds == strict[:1]
