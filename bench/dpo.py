"""How many pairs a second does DPO train on, its reference computed, against TRL?

    python bench/dpo.py [--quick] [--sweep] [--profile] [--record]

`trl` is TRL as it comes: float32 weights with bfloat16 products, activation checkpointing, the reference computed anew
at every step, 8 pairs a step. `trl_precomputed` computes the reference beforehand, which is timed too, as it is for us.
`trl_best` does that with bfloat16 weights, no checkpointing, and the fastest of three batch sizes.
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from contest import Contest, Question, RowSet, arguments, elapsed, finish, run, same_work, say
from cost import dpo_flops
from measure import OURS, short, spread
from rows import Lengths, pairs

BEST = {"dtype": "bfloat16", "gradient_checkpointing": False, "precompute_ref_log_probs": True}
BETAS = (0.05, 0.1, 0.2)
EPOCHS = 3


def _like_ultrafeedback(seed: int, count: int, vocabulary: int) -> list[dict]:
    prompt, chosen, rejected = Lengths(175, 384, 0.7), Lengths(289, 640, 0.7), Lengths(259, 640, 0.7)
    return pairs(seed, count, vocabulary, prompt, chosen, rejected)


def _short(seed: int, count: int, vocabulary: int) -> list[dict]:
    return pairs(seed, count, vocabulary, Lengths(20, 20, 0.0), Lengths(60, 60, 0.0), Lengths(60, 60, 0.0))


QUESTION = Question(
    name="dpo",
    kind="dpo",
    unit="pairs",
    amount=lambda row: 1,
    flops=dpo_flops,
    learning_rate=5e-7,
    sets=(
        RowSet("short", _short, 32, 8, 1024, 1, 4, "prompt of 20 tokens, answers of 60, all alike"),
        RowSet("ultrafeedback", _like_ultrafeedback, 16, 8, 1024, 2, 4, "log-normal, means 175 + 289 / 259 tokens"),
    ),
    peers={"trl": {}, "trl_precomputed": {"precompute_ref_log_probs": True}, "trl_best": BEST},
    candidates=[{"per_device_train_batch_size": size} for size in (1, 2, 4)],
    gpu_candidates=[{"per_device_train_batch_size": size} for size in (2, 4, 8)],
)


def sweep(chosen: Any) -> dict[str, Any]:
    """Three epochs for each of three betas, one after the other, in the same process and with the same cache: what a
    side computes only once is computed once."""
    with ExitStack() as stack:
        contest = Contest(QUESTION, chosen, stack)
        row_set = contest.question.sets[-1]
        contest.warm_up()
        probed = contest.find_best()
        count = chosen.rounds or (1 if chosen.quick else 4)
        whole = replace(row_set, rows_per_round=count * row_set.rows_per_round)
        (round_,) = contest.rounds(whole, 1)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contest.sides}
        for beta in BETAS:
            for name, side in contest.sides.items():
                same = str(contest.folder / f"workspace-{name}")
                answer = side.ask(contest.job(name, whole, round_.rows, beta=beta, epochs=EPOCHS, workspace=same))
                answers[name].append(answer)
                say(f"beta {beta}: {name} {answer['seconds']:.1f} s, {answer['reference_seconds']:.1f} s the reference")
        same_work({name: done[0] for name, done in answers.items()})
        row = {**contest.header(), "question": "dpo_sweep"}
        row["config"] |= {"betas": BETAS, "epochs": EPOCHS, "pairs": round_.amount, "best_of_seconds": probed}
        return {**row, **totals(answers, round_.amount * EPOCHS), "seconds": round(elapsed(contest), 1)}


def totals(answers: dict[str, list[dict[str, Any]]], amount: int) -> dict[str, Any]:
    """Of a sweep in which every answer trained on `amount` pairs, an epoch's pair counted once an epoch."""
    seconds = {name: sum(answer["seconds"] for answer in done) for name, done in answers.items()}
    rates = {name: short(amount * len(done) / seconds[name]) for name, done in answers.items()}
    peers = [name for name in answers if name != OURS]
    return {
        "ours": rates[OURS],
        "peers": {name: rates[name] for name in peers},
        "ratios": {name: short(seconds[name] / seconds[OURS]) for name in peers},
        "spread": {name: spread([amount / answer["seconds"] for answer in done]) for name, done in answers.items()},
        "last_loss": {name: short(done[-1]["last_loss"]) for name, done in answers.items()},
        "total_seconds": {name: short(value) for name, value in seconds.items()},
        "reference_seconds": {n: short(sum(a["reference_seconds"] for a in done)) for n, done in answers.items()},
        "peak_bytes": {name: max(answer["peak_bytes"] for answer in done) for name, done in answers.items()},
    }


if __name__ == "__main__":
    options = arguments(QUESTION, sweep=True)
    finish(sweep(options) if options.sweep else run(QUESTION, options), options)
