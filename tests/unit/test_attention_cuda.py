"""The CUDA attention paths as far as a CPU can tell: which is chosen, what each is told, and that it is the same maths.

`bench/gpu_attention.py` compares the kernels themselves, where there is a GPU.
"""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from engine import PAIRS_AND_CHATS, assert_same, gradients_of, random_items, scorer_loss, tiny_model
from torch import Tensor

from potstill.training import attention
from potstill.training.attention import choose_kernel
from potstill.training.batch import Item, collate
from potstill.training.paths import Plan, copied, unshared
from potstill.training.scoring import Scorer

LAYOUTS = [
    PAIRS_AND_CHATS,
    random_items([(0, 9), (0, 9)]),
    random_items([(5, 1, 1, 1)]),
    random_items([(0, 3), (30, 2, 40), (1, 7, 2), (0, 30)]),
]


def paths(items: Sequence[Item]) -> list[list[int]]:
    """Each path's tokens as indices into the batch, in the batch's order of answers."""
    found, start = [], 0
    for item in items:
        root = list(range(start, start + len(item.prompt_ids)))
        start += len(root)
        for ids_L, _ in item.answers:
            found.append(root + list(range(start, start + len(ids_L))))
            start += len(ids_L)
    return found


@pytest.mark.parametrize("items", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 4])
def test_the_mask_lets_each_token_see_its_own_past(items: list[Item], window: int | None) -> None:
    """Trap: "Packing that lets one document attend to another, or loses position restarts"."""
    plan = Plan(collate(items).tree)
    tokens = len(plan.path_T)
    truth_TT = torch.zeros(tokens, tokens, dtype=torch.bool)
    for path in paths(items):
        for at, token in enumerate(path):
            truth_TT[token, path[0 if window is None else max(0, at - window + 1) : at + 1]] = True
    at_T = torch.arange(tokens)
    seen_TT = plan.sees(window)(at_T, at_T, at_T[:, None], at_T[None])
    assert torch.equal(seen_TT, truth_TT)


@pytest.mark.parametrize("items", LAYOUTS)
def test_paths_end_to_end_hold_every_path_whole_and_nothing_else(items: list[Item]) -> None:
    """What variable-length kernels call cu_seqlens."""
    flat = Plan(collate(items).tree).flat
    assert flat.starts.dtype == torch.int32
    bounds = flat.starts.tolist()
    cut = [flat.tree.slots_S[a:b].tolist() for a, b in pairwise(bounds)]
    assert sorted(cut) == sorted(paths(items))
    assert flat.longest == max(map(len, cut))
    assert bounds[0] == 0
    assert bounds[-1] == len(flat.tree.slots_S)
    assert flat.tree.slots_S[flat.tree.home_T].tolist() == list(range(len(flat.tree.home_T)))
    assert flat.tree.slots_S[flat.tree.extra_slots_E].tolist() == flat.tree.extra_tokens_E.tolist()


@pytest.mark.parametrize("items", LAYOUTS)
def test_what_is_known_of_each_token(items: list[Item]) -> None:
    batch = collate(items)
    plan = Plan(batch.tree)
    assert torch.equal(plan.positions_T, batch.positions_T)
    found = paths(items)
    assert plan.copies_T.tolist() == [sum(token in path for path in found) for token in range(len(batch.tokens_T))]
    first = [next(path for path in found if token in path) for token in range(len(batch.tokens_T))]
    assert plan.lengths_P[plan.path_T].tolist() == [len(path) for path in first]
    alone = unshared(batch.tree)
    token_R = copied(batch.tree)
    assert len(token_R) == sum(map(len, found))
    assert token_R[alone.slots_S][alone.home_T].tolist() == token_R.tolist()
    assert not len(alone.extra_slots_E)


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "width", "window", "softcap", "dropout"),
    [
        ("varlen", "cuda", HALF, 128, None, None, 0.0),
        ("varlen", "cuda", HALF, 128, 4096, None, 0.0),
        ("varlen", "cuda", HALF, 256, None, None, 0.0),
        ("varlen", "cuda", torch.float16, 64, None, None, 0.0),
        ("rows", "cuda", HALF, 288, None, None, 0.0),
        ("rows", "cuda", HALF, 100, None, None, 0.0),
        ("flex", "cuda", HALF, 100, 512, None, 0.0),
        ("flex", "cuda", HALF, 128, None, 50.0, 0.0),
        ("flex", "cuda", HALF, 128, 4096, 50.0, 0.0),
        ("rows", "cuda", HALF, 128, 4096, 50.0, 0.1),
        ("rows", "cuda", FULL, 128, None, None, 0.0),
        ("flex", "cuda", FULL, 128, 4096, None, 0.0),
        ("rows", "cpu", HALF, 128, None, None, 0.0),
        ("rows", "mps", FULL, 128, 4096, 50.0, 0.0),
    ],
)
def test_the_kernel_is_the_fastest_that_knows_all_of_it(
    kernel: str, device: str, dtype: torch.dtype, width: int, window: int | None, softcap: float | None, dropout: float
) -> None:
    assert choose_kernel(device, dtype, (width, width), window, softcap, dropout) == kernel


def test_flash_attention_wants_values_as_wide_as_keys() -> None:
    assert choose_kernel("cuda", HALF, (192, 128), None, None, 0.0) == "rows"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("family", ["mistral", "mistral-window", "gemma2", "gemma3", "granite"])
@torch.no_grad()
def test_flex_attention_over_the_tree_equals_rows(family: str) -> None:
    """It has no backward on a CPU."""
    scorer = Scorer(tiny_model(family), "shared")
    batch = collate(PAIRS_AND_CHATS)
    truth = scorer(batch)
    assert scorer.facts()["attention"] == "rows"
    scorer.kernel = "flex"
    assert torch.allclose(scorer(batch), truth, rtol=1e-7, atol=1e-7)
    assert scorer.facts()["attention"] == "flex"


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn by its definition: a query sees `left` keys before it, and itself."""
    left, right = window_size
    assert right == 0, "causal"
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert torch.equal(cu_seq_q, cu_seq_k)
    outs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        at = torch.arange(end - start)
        behind = at[:, None] - at
        seen = (behind >= 0) & (behind <= (left if left >= 0 else end))
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("family", ["mistral", "mistral-window", "gemma3", "phi3"])
@pytest.mark.parametrize("items", LAYOUTS)
def test_what_flash_attention_is_told_is_the_same_mathematics(
    family: str, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    model = tiny_model(family)
    scorer = Scorer(model, "shared")
    truth = gradients_of(model, lambda: scorer_loss(scorer, items))
    scorer.kernel = "varlen"
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, items)), truth)
