"""How many answer tokens a second does a local teacher write, where answers differ in length?

    python bench/local.py [--model tiny] [--requests 192] [--rows 32] [--rounds 2] [--peers grouped generate]

`ours` fills the place of every answer that ends. `grouped` decodes alike, in groups of rows that last until their
longest answer ends; an answer that has ended leaves its group. `generate` is transformers' own on the same groups,
where an answer that has ended is computed on. `continuous` is transformers' own continuous batching, with no seed a
row. All decode greedily, at most `--rows` rows at once, in one process; lengths are log-normal, set by limits.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import OURS, Results, Round, alternate, commit, hardware, short
from rows import ARCHITECTURES, FIRST_WORD, Lengths, read, save_model, write
from serve import release, versions
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from potstill.training import decoding
from potstill.training.decoding import Batch, Row

PROMPT = Lengths(mean=32, longest=128, sigma=0.7)
ANSWER = Lengths(mean=48, longest=256, sigma=1.0)

Asked = list[dict[str, Any]]
Side = Callable[[PreTrainedModel, Asked, int], list[list[int]]]
"""The answers to these rows {prompt, limit}, so many at once, as token ids."""


def ours(model: PreTrainedModel, asked: Asked, most: int) -> list[list[int]]:
    with patch.object(decoding, "MOST_ROWS", most):
        return _decode(model, asked)


def grouped(model: PreTrainedModel, asked: Asked, most: int) -> list[list[int]]:
    with patch.object(decoding, "MOST_ROWS", most):
        return [answer for group in _groups(asked, most) for answer in _decode(model, group)]


def _decode(model: PreTrainedModel, asked: Asked) -> list[list[int]]:
    rows = [Row(np.array(row["prompt"], dtype=np.int32), row["limit"], 0.0, 1.0, 0, 0) for row in asked]
    batch, waiting = Batch(model, []), deque(rows)
    while waiting or batch.rows:
        batch.step(waiting)
    return [row.tokens for row in rows]


def generate(model: PreTrainedModel, asked: Asked, most: int) -> list[list[int]]:
    answers = []
    for group in _groups(asked, most):
        width = max(len(row["prompt"]) for row in group)
        ids = torch.tensor([[0] * (width - len(row["prompt"])) + row["prompt"] for row in group])
        mask = torch.tensor([[0] * (width - len(row["prompt"])) + [1] * len(row["prompt"]) for row in group])
        limit = max(row["limit"] for row in group)
        settings = GenerationConfig(max_new_tokens=limit, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
        answers += [tokens[: row["limit"]] for row, tokens in zip(group, out.tolist(), strict=True)]
    return answers


def continuous(model: PreTrainedModel, asked: Asked, most: int) -> list[list[int]]:
    settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    pages = ContinuousBatchingConfig(max_requests_per_batch=most, num_blocks=512, page_size=64, max_batch_tokens=512)
    answers: dict[str, list[int]] = {}
    chosen = model.config._attn_implementation
    with model.continuous_batching_context_manager(
        generation_config=settings, continuous_batching_config=pages
    ) as manager:
        names = [
            manager.add_request(input_ids=row["prompt"], max_new_tokens=row["limit"], eos_token_id=-1) for row in asked
        ]
        while len(answers) < len(asked):
            answer = manager.get_result(timeout=60)
            if answer is None:
                raise SystemExit("transformers' continuous batching gave no answer within a minute")
            answers[answer.request_id] = list(answer.generated_tokens)
    model.set_attn_implementation(chosen)
    return [answers[name] for name in names]


def _groups(asked: Asked, most: int) -> list[Asked]:
    """Of like prompt length: what can be known before an answer is written."""
    longest = sorted(asked, key=lambda row: -len(row["prompt"]))
    return [longest[first : first + most] for first in range(0, len(asked), most)]


PEERS: dict[str, Side] = {"grouped": grouped, "generate": generate, "continuous": continuous}


def rounds(folder: Path, count: int, requests: int, vocabulary: int) -> list[Round]:
    """Rows {prompt, limit} in files; the amount is the tokens of the answers."""
    draw = np.random.default_rng(7)
    prompts, limits = PROMPT.draw(draw, count * requests), ANSWER.draw(draw, count * requests)
    made = []
    for number in range(count):
        part = slice(number * requests, (number + 1) * requests)
        path = folder / f"rows-{number}.jsonl"
        words = [draw.integers(FIRST_WORD, vocabulary, length).tolist() for length in prompts[part]]
        write(path, [{"prompt": w, "limit": limit} for w, limit in zip(words, limits[part], strict=True)])
        made.append(Round(path, sum(limits[part])))
    return made


def timed(side: Side, model: PreTrainedModel, most: int) -> Callable[[Round], dict[str, Any]]:
    """Runs a round: its seconds and its answers."""

    def run(round_: Round) -> dict[str, Any]:
        asked = read(round_.rows)
        release()
        begun, spent = time.perf_counter(), time.process_time()
        answers = side(model, asked, most)
        seconds, spent = time.perf_counter() - begun, time.process_time() - spent
        assert sum(map(len, answers)) == round_.amount
        return {"seconds": seconds, "cpu_seconds": spent, "answers": sorted(map(tuple, answers))}

    return run


def cpu_seconds(results: Results, side: str) -> float:
    """Of all rounds: what a machine that others use as well does not blur."""
    return sum(answer["cpu_seconds"] for answer in results.by_side[side] if answer)


def main() -> None:
    """One row of JSON as the last line."""
    parser = argparse.ArgumentParser(description="local teacher: answer tokens a second, one row of JSON at the end")
    parser.add_argument("--model", choices=ARCHITECTURES, default="60m")
    parser.add_argument("--requests", type=int, default=192, help="requests a round")
    parser.add_argument("--rows", type=int, default=32, help="rows decoded together, on every side")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        size = save_model(folder / "model", chosen.model)
        model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        model.generation_config.eos_token_id = None  # answers end at their limits alone
        sides = {side: timed(run, model, chosen.rows) for side, run in {OURS: ours, **PEERS}.items()}
        sides = {side: run for side, run in sides.items() if side in (OURS, *chosen.peers)}
        (warm,) = rounds(folder, 1, 8, size.vocabulary)
        for run in sides.values():
            run(warm)
        results = alternate(
            sides, rounds(folder, chosen.rounds, chosen.requests, size.vocabulary), list(sides), say=_say
        )
    first = results.first(OURS)["answers"]
    row = {
        "question": "local",
        "unit": "tokens_per_second",
        **commit(),
        "hardware": hardware(),
        **versions("torch", "transformers"),
        "config": {**vars(chosen), "weights": size.weights, "prompt": vars(PROMPT), "answer": vars(ANSWER)},
        "ours": short(results.rate(OURS)),
        "peers": {peer: short(results.rate(peer)) for peer in chosen.peers},
        "ratios": {peer: short(results.ratio(peer)) for peer in chosen.peers},
        "cpu_ratios": {peer: short(cpu_seconds(results, peer) / cpu_seconds(results, OURS)) for peer in chosen.peers},
        "spread": {side: results.spread(side) for side in sides},
        "same_answers": {
            peer: short(np.mean([a == b for a, b in zip(first, results.first(peer)["answers"], strict=True)]))
            for peer in chosen.peers
        },
    }
    sys.stdout.write(json.dumps(row) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
