"""What `plan --trial` says of the miniature before a run, beside what the journal says after it."""

import contextlib
import sys
from pathlib import Path

import pytest

from potstill.recipe import load_recipe
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.trial import run_trial
from potstill.runs.workspace import Hashes, Workspace
from potstill.stages.base import Expected
from potstill.teachers.journal import JOURNAL, Journal, Total

pytestmark = pytest.mark.slow
ROWS = 60


def forecast(folder: Path, until: str, seed: int) -> tuple[dict[str, Expected], dict[str, Total]]:
    """By stage: what was expected after a trial, and what was asked once the run had ended."""
    recipe = load_recipe("miniature", [f"seed={seed}"])
    run_trial(recipe, folder, ROWS, until)
    plan = make_plan(recipe, Workspace(folder), Hashes(folder / "hashes.json")).until(until)
    expected = {name: step.expected for name, step in plan.steps.items() if step.expected.calls}
    run(recipe, folder, until=until)
    found: dict[str, Total] = {}
    with contextlib.closing(Journal(folder / JOURNAL, read_only=True)) as journal:
        for total in journal.totals():
            old = found.get(total.stage)
            if old is not None:
                total = Total(
                    total.stage, "", "", old.calls + total.calls, old.prompt_tokens + total.prompt_tokens,
                    old.completion_tokens + total.completion_tokens, 0.0, 0.0,
                )  # fmt: skip
            found[total.stage] = total
    return expected, found


def test_sampling_and_judging_are_told_exactly_and_their_tokens_within_a_tenth(tmp_path: Path) -> None:
    expected, found = forecast(tmp_path, "rated", 0)
    for stage in ("answers", "rated"):
        tokens = found[stage].prompt_tokens + found[stage].completion_tokens
        said = expected[stage]
        sys.stdout.write(
            f"{stage}: {said.calls} calls, {found[stage].calls} asked; {said.tokens} tokens, {tokens} used\n"
        )
        assert found[stage].calls == said.calls == 4000
        assert said.calls_range == (4000, 4000)
        assert abs(said.tokens - tokens) < 0.1 * tokens


def test_a_loop_that_rejects_keeps_to_its_interval(tmp_path: Path) -> None:
    inside = []
    for seed in range(20):
        expected, found = forecast(tmp_path / str(seed), "prompts", seed)
        assert expected["prompts"].calls_range is not None
        low, high = expected["prompts"].calls_range
        inside.append(low <= found["prompts"].calls <= high)
        sys.stdout.write(f"seed {seed}: {low} to {high}, {found['prompts'].calls} asked\n")
    assert sum(inside) >= 17
