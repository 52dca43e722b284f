"""The miniature, made small: every stage runs, nothing is learnt well. For what must hold whatever the scores are."""

import os
import subprocess
import sys
from pathlib import Path

OVERRIDES = (
    "articles.editions=1",
    "seeds.per_category=1",
    "questions.per_category=2",
    "base.layers=2",
    "base.width=64",
    "base.heads=2",
    "base.kv_heads=1",
    "base.block_length=128",
    "base.batch_tokens=1024",
    "base.epochs=1",
    "base.held_out=8",
    "prompts.count=48",
    *(f"{stage}.{field}" for stage in ("sft_raw", "sft") for field in ("epochs=1", "held_out=8", "evaluations=1")),
    "answers.per_prompt=3",
    *(f"dpo.{field}" for field in ("epochs=1", "held_out=8", "evaluations=1")),
    "scores.max_tokens=24",
)


def environment(**more: str) -> dict[str, str]:
    """One thread each, so that tests can run side by side, and nothing from the network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def command(out: Path, *overrides: str, recipe: str = "miniature") -> list[str]:
    """The command that runs the reduced miniature in a folder; later overrides win."""
    return [sys.executable, "-m", "potstill.cli", "run", recipe, *OVERRIDES, *overrides, "--out", str(out)]


def run(out: Path, *overrides: str) -> str:
    """Run it to its end; what it printed."""
    return finish(command(out, *overrides))


def finish(words: list[str]) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


LADDER = (
    "articles.editions=1",
    "questions.per_category=2",
    *(
        f"{stage}.{field}"
        for stage in ("teacher_base", "student_base")
        for field in ("width=64", "heads=2", "kv_heads=1")
    ),
    *(f"{stage}.block_length=128" for stage in ("teacher_base", "student_base")),
    "random.size={layers: 2, width: 64, heads: 2, kv_heads: 1, expansion: 3, tied: true, context: 512}",
    "prompts.count=280",
    "teacher_prompts.limit=96",
    "teacher.epochs=2",
    "student_prompts.skip=96",
    "student_prompts.limit=32",
    "rung_prompts.skip=128",
    "rung_prompts.limit=140",
    "first_answers.truncated=keep",
    "said.truncated=keep",
    "answers.limit=96",
    "pairs.largest_margins=16",
    *(f"{stage}.epochs=1" for stage in ("text", "logits", "hidden", "both", "on_policy", "start")),
    *(
        f"{stage}.for.seed=[0, 1]"
        for stage in ("text", "logits", "hidden", "both", "on_policy", "dpo", "random", "start")
    ),
    "dpo.epochs=6",
    *(f"{stage}.max_tokens=24" for stage in ("first_answers", "said", "own_answers", "teacher_answers", "scores")),
    "on_policy.on_policy.max_tokens=24",
)


def ladder(out: Path) -> list[str]:
    """The command that runs the reduced ladder in a folder."""
    return [sys.executable, "-m", "potstill.cli", "run", "miniature-ladder", *LADDER, "--out", str(out)]


ABLATION = (
    "runs=[3]",
    "articles.editions=1",
    "seeds.per_category=1",
    "questions.per_category=2",
    *(f"base.{field}" for field in ("width=64", "heads=2", "kv_heads=1", "block_length=128", "batch_tokens=1024")),
    "prompts.count=140",
    "sft_prompts.limit=64",
    "dpo_prompts.skip=64",
    "dpo_prompts.limit=32",
    "scores.max_tokens=24",
)


def ablation(out: Path) -> list[str]:
    """The command that runs the reduced ablation in a folder."""
    return [sys.executable, "-m", "potstill.cli", "run", "miniature-ablation", *ABLATION, "--out", str(out)]
