"""How many tokens a second does SFT train on, against TRL? Padding never counts as a token.

    python bench/sft.py [--quick] [--profile] [--record]

`trl_padded` is TRL as it comes: float32 weights with bfloat16 products, activation checkpointing, 8 rows a step padded
to the longest. `trl_packed` packs them into rows of 2,048 tokens. `trl_best` has bfloat16 weights, no checkpointing,
and the fastest of three settings. All learn what assistants say; nobody cuts a row.
"""

from contest import Question, RowSet, arguments, finish, run
from cost import sft_flops
from rows import Lengths, body_tokens, chats

BEST = {"dtype": "bfloat16", "gradient_checkpointing": False}
PACKED = {"packing": True}


def _like_ultrachat(seed: int, count: int, vocabulary: int) -> list[dict]:
    return chats(seed, count, vocabulary, Lengths(1375, 2048, 0.4), exchanges=3)


def _short(seed: int, count: int, vocabulary: int) -> list[dict]:
    return chats(seed, count, vocabulary, Lengths(128, 128, 0.0), exchanges=1)


QUESTION = Question(
    name="sft",
    kind="sft",
    unit="tokens",
    amount=body_tokens,
    flops=sft_flops,
    learning_rate=2e-5,
    sets=(
        RowSet("short", _short, 32, 32, 2048, 2, 8, "conversations of 128 tokens, all alike"),
        RowSet("ultrachat", _like_ultrachat, 8, 8, 2048, 2, 8, "log-normal, mean 1,375 tokens, 80% learnt"),
    ),
    peers={"trl_packed": PACKED, "trl_padded": {}, "trl_best": BEST},
    candidates=[
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 1, **PACKED},
        {"per_device_train_batch_size": 2},
    ],
    gpu_candidates=[
        {"per_device_train_batch_size": 2},
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, **PACKED},
    ],
    quick_probe=2,
)


if __name__ == "__main__":
    options = arguments(QUESTION)
    finish(run(QUESTION, options), options)
