"""How many tokens a second does distillation train on, its teacher beside it, against TRL and Liger?

    python bench/distill.py [--quick] [--profile] [--record]

The generalized JSD with beta 0.5 at temperature 1, over a vocabulary of 128,256; student and teacher are small, so that
the head is most of what is computed, as it is in small models. The teacher reads along at every step, on every side.

`trl` is TRL's experimental GKD trainer as it comes, never on its own answers: float32 weights with bfloat16 products,
activation checkpointing, 8 rows a step padded to the longest, whole logits. `trl_best` has bfloat16 weights, no
checkpointing, and the fastest of three batch sizes. `trl_chunked` is TRL's DistillationTrainer as it comes, whose loss
never holds whole logits; where it would have the student write answers it gets those of the rows. `liger` is GKD's step
with Liger's fused JSD in place of its loss, compiled as it comes.
"""

from contest import Question, RowSet, arguments, finish, run
from cost import sft_flops
from rows import Lengths, body_tokens, chats

BEST = {"dtype": "bfloat16", "gradient_checkpointing": False}


def _alike(seed: int, count: int, vocabulary: int) -> list[dict]:
    return chats(seed, count, vocabulary, Lengths(160, 160, 0.0), exchanges=1)


QUESTION = Question(
    name="distill",
    kind="distill",
    unit="tokens",
    amount=body_tokens,
    flops=sft_flops,
    learning_rate=2e-5,
    sets=(
        # All alike: padding is no part of the question. 1,280 tokens a step, where GKD fills 12 GB.
        RowSet("alike", _alike, 8, 8, 1024, 3, 8, "conversations of 160 tokens, all alike, 80% learnt"),
    ),
    peers={
        "trl": {},
        "trl_chunked": {"trainer": "chunked"},
        "liger": {"trainer": "liger"},
        "trl_best": BEST,
    },
    candidates=[{"per_device_train_batch_size": size} for size in (1, 2, 4)],
    gpu_candidates=[{"per_device_train_batch_size": size} for size in (2, 4, 8)],
    quick_probe=8,
    beta=0.5,
    few_steps=True,
    model="56m-128k",
    teacher="90m-128k",
)


if __name__ == "__main__":
    options = arguments(QUESTION)
    finish(run(QUESTION, options), options)
