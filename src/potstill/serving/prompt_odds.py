"""How likely the tokens of a prompt are: for `echo` with logprobs, and for `prompt_logprobs` as vLLM has it.

Suffixes: T tokens of a prompt, C of them at once, V vocabulary.
"""

from typing import Any

import torch

from potstill.serving.answer import Said
from potstill.serving.bodies import LEAST_LOGP
from potstill.teachers.local import LocalTeacher
from potstill.tokens.tokenization import Ids

CHUNK_TOKENS = 512
"""Distributions that are made at once."""


@torch.inference_mode()
def prompt_odds(teacher: LocalTeacher, ids_T: Ids, listed: int) -> list[dict[int, tuple[float, int]]]:
    """For each token but the first: the `listed` likeliest in its place and itself, each with log-probability, in nats,
    and rank, 1 the likeliest."""
    tokens_T = torch.from_numpy(ids_T.astype("int64")).to(teacher.model.device)
    logits_TV = teacher.model(input_ids=tokens_T[None], use_cache=False).logits[0, :-1]
    found: list[dict[int, tuple[float, int]]] = []
    for first in range(0, len(logits_TV), CHUNK_TOKENS):
        logp_CV = logits_TV[first : first + CHUNK_TOKENS].float().log_softmax(-1)
        own_C = tokens_T[first + 1 : first + 1 + len(logp_CV)]
        own_logp_C1 = logp_CV.gather(1, own_C[:, None])
        rank_C = (logp_CV > own_logp_C1).sum(1) + 1
        logp_CK, ids_CK = logp_CV.topk(min(listed, logp_CV.shape[1]))
        for own, its_logp, its_rank, ids, logps in zip(
            own_C.tolist(), own_logp_C1[:, 0].tolist(), rank_C.tolist(), ids_CK.tolist(), logp_CK.tolist(), strict=True
        ):
            place = {token: (logp, rank) for rank, (token, logp) in enumerate(zip(ids, logps, strict=True), start=1)}
            found.append(place if own in place else place | {own: (its_logp, its_rank)})
    return found


def as_vllm_has_it(teacher: LocalTeacher, odds: list[dict[int, tuple[float, int]]]) -> list[Any]:
    """One entry a token, none for the first: ids with their log-probabilities, ranks and texts."""

    def one(token: int, logp: float, rank: int) -> dict[str, Any]:
        return {"logprob": max(logp, LEAST_LOGP), "rank": rank, "decoded_token": _spell(teacher, token)}

    return [None, *({str(token): one(token, *its) for token, its in place.items()} for place in odds)]


def as_said(teacher: LocalTeacher, ids_T: Ids, odds: list[dict[int, tuple[float, int]]], listed: int) -> list[Said]:
    """The prompt's tokens as those of an answer are told of. Nothing is known of the first."""
    said = [Said(_spell(teacher, int(ids_T[0])), 0.0)]
    for token, place in zip(ids_T[1:].tolist(), odds, strict=True):
        ranked = sorted(place.items(), key=lambda its: its[1][1])
        likeliest = tuple((_spell(teacher, other), logp) for other, (logp, rank) in ranked if rank <= listed)
        said.append(Said(_spell(teacher, token), place[token][0], likeliest))
    return said


def _spell(teacher: LocalTeacher, token: int) -> str:
    return str(teacher.tokenizer.decode([token]))
