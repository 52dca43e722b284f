"""Runs inside the peers' environment: TRL's and Liger's divergences of given logits, and their gradients.

    python divergence_peer.py FOLDER

FOLDER holds `given.safetensors`, float64: `student_hidden` (N, D), `student_weight` (V, D), the teacher's two,
`wide_weight` (more than V, D), and `labels` (N,), -100 at some; and `cases.json`: by name, a case's `peer`, `dtype`,
`beta` and `temperature`. It writes `NAME.safetensors` for each case: "loss", and the gradients by "hidden" and
"weight".
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.gkd import GKDTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


def gkd(given, case, labels, **options):
    """Of two rows of N / 2 positions."""
    student = given["student_hidden"] @ given["student_weight"].t()
    teacher = given["teacher_hidden"] @ given["teacher_weight"].t()
    rows = (z.unflatten(0, (2, -1)) for z in (student, teacher))
    options |= {"beta": case["beta"], "temperature": case["temperature"]}
    return GKDTrainer.generalized_jsd_loss(*rows, labels=None if labels is None else labels.view(2, -1), **options)


def gkd_sum(given, case):
    return gkd(given, case, given["labels"], reduction="sum")


def gkd_batchmean(given, case):
    return gkd(given, case, given["labels"])


def gkd_unlabelled(given, case):
    return gkd(given, case, None)


def chunked(given, case):
    """Of each position, ignored or not."""
    heads = (
        given["student_hidden"],
        given["student_weight"],
        None,
        given["teacher_hidden"],
        given["teacher_weight"],
        None,
    )
    divergence, _ = ChunkedDivergenceFunction.apply(*heads, case["beta"], case["temperature"])
    return divergence.sum()


def liger(given, case, teacher_weight="teacher_weight"):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=case["beta"],
        temperature=case["temperature"],
        compiled=False,
        chunk_size=5,
    )
    heads = (given["student_hidden"], given["student_weight"], given["teacher_hidden"], given[teacher_weight])
    return loss(*heads, given["labels"])


def liger_wide(given, case):
    """The teacher has more tokens."""
    return liger(given, case, "wide_weight")


PEERS = {peer.__name__: peer for peer in (gkd_sum, gkd_batchmean, gkd_unlabelled, chunked, liger, liger_wide)}


def main():
    folder = Path(sys.argv[1])
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        given = load_file(folder / "given.safetensors")
        given = {key: z if key == "labels" else z.to(getattr(torch, case["dtype"])) for key, z in given.items()}
        hidden, weight = (given[key].requires_grad_() for key in ("student_hidden", "student_weight"))
        loss = PEERS[case["peer"]](given, case)
        loss.backward()
        save_file(
            {"loss": loss.detach().view(1), "hidden": hidden.grad, "weight": weight.grad},
            folder / f"{name}.safetensors",
        )


main()
