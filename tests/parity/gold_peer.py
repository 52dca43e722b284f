"""Runs inside the peers' environment: TRL's own GOLD computes losses across vocabularies, and their gradients.

    python gold_peer.py FOLDER

FOLDER holds `given.safetensors` (`student` and `teacher`: logits of which row k predicts token k of `student_ids` and
`teacher_ids`, whose bytes are `student_offsets` and `teacher_offsets`) and `given.json`: both vocabularies and TRL's
settings. It writes `said.safetensors`: for each of "uld", "gold" and "merged" the loss and its gradient.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.gold.gold_trainer import ULDLoss


class Vocabulary:
    def __init__(self, ids):
        self.ids = ids

    def get_vocab(self):
        return self.ids


def build(settings, vocabularies, **more):
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=1.0,
        uld_teacher_temperature=1.0, uld_skip_student_eos=False, uld_skip_teacher_eos=False, **settings, **more,
    )  # fmt: skip
    student, teacher = (Vocabulary(vocabularies[side]) for side in ("student", "teacher"))
    return ULDLoss(config, student_tokenizer=student, teacher_tokenizer=teacher, device=torch.device("cpu"))


def whole(loss, given, student, teacher, tokens):
    """Through its front door: one row behind a prompt of one token. The last row of logits predicts nothing."""
    sides = {"student": student, "teacher": teacher}
    logits = {side: torch.cat([rows, rows[-1:]])[None] for side, rows in sides.items()}
    ids = {side: torch.cat([torch.zeros(1).long(), given[f"{side}_ids"][:tokens]])[None] for side in sides}
    labels = {side: rows.clone() for side, rows in ids.items()}
    offsets = {}
    for side in sides:
        labels[side][:, 0] = -100
        offsets[side] = torch.cat([torch.zeros(1, 2).long(), given[f"{side}_offsets"][:tokens]])[None]
    return loss(
        logits["student"], logits["teacher"], labels["student"], labels["teacher"], ids["student"], ids["teacher"],
        offsets["student"], offsets["teacher"],
    )  # fmt: skip


def main(folder):
    given, document = load_file(folder / "given.safetensors"), json.loads((folder / "given.json").read_text())
    settings, vocabularies = document["settings"], document["vocabularies"]
    student, teacher = given["student"].requires_grad_(), given["teacher"]
    tokens = document["single"]  # so many spans at the beginning have one token on both sides
    losses = {}
    plain = build({**settings, "uld_use_hybrid_loss": False}, vocabularies, use_extended_uld=False,
                  uld_token_merge_strategy="bayesian")  # fmt: skip
    losses["uld"] = whole(plain, given, student[:tokens], teacher[:tokens], tokens)
    hybrid = build(settings, vocabularies, use_extended_uld=True, uld_token_merge_strategy="bayesian")
    losses["gold"] = whole(hybrid, given, student[:tokens], teacher[:tokens], tokens)
    # Its default's way to merge, of distributions that are where they belong.
    observed = build(settings, vocabularies, use_extended_uld=True, uld_token_merge_strategy="observed")
    groups = observed._align_by_byte_offsets(given["student_offsets"].tolist(), given["teacher_offsets"].tolist())
    sides = (
        observed._merge_probabilities_with_alignment_groups(rows.softmax(1), side, given[ids].tolist())
        for rows, side, ids in zip((student, teacher), groups, ("student_ids", "teacher_ids"), strict=True)
    )
    losses["merged"] = observed._compute_hybrid_uld_loss(*sides)
    said = {}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        said |= {f"{name}/loss": loss.detach().reshape(()).clone(), f"{name}/gradient": gradient}
    save_file(said, folder / "said.safetensors")


main(Path(sys.argv[1]))
