"""What is taken of a teacher's logits: the list, the sample, their masses, against brute force in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.divergence import Divergence, DivergenceName, compare
from potstill.objectives.signal import NO_ENTRY, Sparse
from potstill.signals.draws import BLOCK, Taken, take, uniforms
from potstill.signals.files import Reader, Writer
from potstill.signals.rows import Header, RowSignal
from potstill.signals.sparse import to_sparse
from potstill.training.capture import Asked, _named

SIZES = [1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000, 5 * BLOCK + 17]
"""Vocabularies: less than a block, whole blocks, and a part of one."""


def logits(positions: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def distribution(logits_CV: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits_CV.double() / temperature).softmax(-1)


def brute_list(row_V: Tensor, top: int) -> list[int]:
    """The largest first, of equal ones the lower id, none that can never come."""
    order = sorted(range(len(row_V)), key=lambda i: (-float(row_V[i]), i))
    return [i for i in order if row_V[i] > -torch.inf][:top]


def listed(taken: Taken) -> tuple[Tensor, Tensor]:
    assert taken.listed_ids_CK is not None
    assert taken.listed_logp_CK is not None
    return taken.listed_ids_CK, taken.listed_logp_CK


def drawn(taken: Taken) -> tuple[Tensor, Tensor, Tensor]:
    assert taken.drawn_ids_M is not None
    assert taken.counts_M is not None
    assert taken.sizes_C is not None
    return taken.drawn_ids_M, taken.counts_M, taken.sizes_C


def scored(taken: Taken) -> Tensor:
    assert taken.logp_C is not None
    return taken.logp_C


def estimate(taken: Taken, vocabulary: int, draws: int) -> Tensor:
    """Listed entries as they are, all others as they were drawn, in float64."""
    ids_M, counts_M, sizes_C = drawn(taken)
    estimate_CV = torch.zeros(len(sizes_C), vocabulary, dtype=torch.float64)
    position_M = torch.arange(len(sizes_C)).repeat_interleave(sizes_C)
    estimate_CV[position_M, ids_M] = counts_M / draws * taken.rest_C[position_M]
    if taken.listed_ids_CK is not None:
        ids_CK, logp_CK = listed(taken)
        row_L, column_L = (ids_CK != NO_ENTRY).nonzero(as_tuple=True)
        estimate_CV[row_L, ids_CK[row_L, column_L]] = logp_CK[row_L, column_L].double().exp()
    return estimate_CV


def drawn_rows(taken: Taken) -> list[list[tuple[int, int]]]:
    """(id, count) of each position."""
    ids_M, counts_M, sizes_C = drawn(taken)
    pairs = iter(zip(ids_M.tolist(), counts_M.tolist(), strict=True))
    rows = [[next(pairs) for _ in range(size)] for size in sizes_C.tolist()]
    assert next(pairs, None) is None
    return rows


def grid(row_V: Tensor, steps: int, **asked: int | float) -> Taken:
    """One position's distribution under `steps` uniform numbers at equal distances, one a row: sums over all of u."""
    uniforms_C = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return take(row_V.expand(steps, -1).contiguous(), uniforms_C=uniforms_C, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("top", [1, 7, 50, 2000])
def test_the_list_is_that_of_brute_force(vocabulary: int, top: int) -> None:
    logits_CV = logits(5, vocabulary)
    taken = take(logits_CV, top=top)
    ids_CK, all_logp_CK = listed(taken)
    assert ids_CK.shape == (5, top)
    logp_CV = distribution(logits_CV).log()
    for row, (ids_K, logp_K) in enumerate(zip(ids_CK, all_logp_CK, strict=True)):
        expected = brute_list(logits_CV[row], top)
        assert ids_K.tolist() == expected + [NO_ENTRY] * (top - len(expected))
        assert torch.allclose(logp_K[: len(expected)].double(), logp_CV[row, expected], atol=2e-6)
        assert (logp_K[len(expected) :] == -torch.inf).all()
        left_V = distribution(logits_CV)[row]
        left_V[expected] = 0
        assert torch.allclose(taken.rest_C[row], left_V.sum(), rtol=1e-5, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3 * BLOCK),
    st.integers(1, 12),
    st.lists(st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 1.0, 2.0]), min_size=3, max_size=40),
)
def test_of_equal_logits_the_lower_id_is_listed(vocabulary: int, top: int, some: list[float]) -> None:
    """Ties within a block, across blocks, and at the list's end."""
    row_V = torch.tensor(some).repeat(-(-vocabulary // len(some)))[:vocabulary]
    row_V[vocabulary // 2] = 0.0  # some entry is finite
    taken = take(row_V[None], top=top)
    assert [i for i in listed(taken)[0][0].tolist() if i != NO_ENTRY] == brute_list(row_V, top)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_entropy_and_targets_are_those_of_float64(vocabulary: int, temperature: float) -> None:
    """Trap: "the sampling temperature used in the loss": targets are scored at 1 whatever the signal's temperature."""
    logits_CV = logits(9, vocabulary)
    targets_C = torch.arange(9) % vocabulary
    taken = take(logits_CV, temperature=temperature, targets_C=targets_C)
    expected_C = distribution(logits_CV).log().gather(1, targets_C[:, None])[:, 0]
    assert torch.allclose(scored(taken).double(), expected_C, atol=3e-6)
    p_CV = distribution(logits_CV, temperature)
    rounding = 2.0**-22 * float(logits_CV.abs().max()) / temperature
    assert torch.allclose(taken.entropy_C.double(), torch.special.entr(p_CV).sum(-1), atol=rounding)
    assert torch.allclose(taken.rest_C, torch.ones(9, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("top", [0, 1, 6])
@pytest.mark.parametrize("vocabulary", [2, 9, BLOCK + 1, 5 * BLOCK + 17])
def test_the_sample_is_unbiased_for_every_entry(vocabulary: int, top: int, temperature: float) -> None:
    """An entry's count steps by 1 as u moves: the mean over 4,096 u is within a step of its probability's."""
    row_V = logits(1, vocabulary, seed=vocabulary)[0]
    steps, draws = 4096, 11
    taken = grid(row_V, steps, top=top, draws=draws, temperature=temperature)
    error_V = estimate(taken, vocabulary, draws).mean(0) - distribution(row_V, temperature)
    assert error_V.abs().max() < 1.01 * max(1e-6, float(taken.rest_C[0])) / steps / draws + 1e-6


def test_the_mean_over_all_u_is_the_distribution_to_1e_6() -> None:
    """Here the probabilities are multiples of what the grid resolves: nothing but rounding is left."""
    weights_V = torch.tensor([8.0, 1.0, 0.0, 3.0, 4.0]).repeat(40)
    steps, draws = 640, 16
    error_V = estimate(grid(weights_V.log(), steps, draws=draws), 200, draws).mean(0) - weights_V.double() / 640
    assert error_V.abs().max() < 1e-6


@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize("draws", [1, 7, 50])
def test_counts_are_the_whole_numbers_beside_draws_times_p(draws: int, top: int) -> None:
    logits_CV = logits(64, 700)
    taken = take(logits_CV, draws=draws, top=top, uniforms_C=torch.rand(64, dtype=torch.float64))
    p_CV = distribution(logits_CV)
    if top:
        p_CV.scatter_(1, listed(taken)[0], 0.0)
    expected_CV = draws * p_CV / p_CV.sum(-1, keepdim=True)
    for row, pairs in enumerate(drawn_rows(taken)):
        counts_V = torch.zeros(700, dtype=torch.float64)
        for entry, count in pairs:
            counts_V[entry] = count
        assert counts_V.sum() == draws
        assert all(count > 0 for _, count in pairs)
        assert [entry for entry, _ in pairs] == sorted({entry for entry, _ in pairs})
        assert ((counts_V - expected_CV[row]).abs() < 1 + 1e-3).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4 * BLOCK),
    st.integers(1, 60),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5, 1 - 2.0**-53]),
    st.integers(0, 99),
)
def test_what_cannot_come_is_never_drawn(vocabulary: int, draws: int, top: int, u: float, seed: int) -> None:
    """-inf logits, those so low that they round to 0, and listed ones, at either end of u."""
    chance = torch.Generator().manual_seed(seed)
    logits_CV = logits(3, vocabulary, seed)
    logits_CV[torch.rand(3, vocabulary, generator=chance) < 0.7] = -torch.inf
    logits_CV[torch.rand(3, vocabulary, generator=chance) < 0.2] = -1e4
    logits_CV[:, seed % vocabulary] = 0.0
    before_CV = logits_CV.clone()
    taken = take(logits_CV, draws=draws, top=top, uniforms_C=torch.full((3,), u, dtype=torch.float64))
    assert torch.equal(logits_CV, before_CV)
    for row, pairs in enumerate(drawn_rows(taken)):
        known = set(listed(taken)[0][row].tolist()) if top else set()
        assert all(logits_CV[row, entry] > -1e4 and entry not in known for entry, _ in pairs)
        left = taken.rest_C[row] > 0
        assert sum(count for _, count in pairs) == (draws if left else 0)


def test_a_vocabulary_of_one_entry_and_a_list_of_everything() -> None:
    """Nothing is left to draw where all is listed, and a certain entry is drawn each time."""
    half_C = torch.full((2,), 0.5, dtype=torch.float64)
    taken = take(torch.zeros(2, 1), draws=4, uniforms_C=half_C, targets_C=torch.zeros(2, dtype=torch.int64))
    assert drawn_rows(taken) == [[(0, 4)], [(0, 4)]]
    assert taken.entropy_C.tolist() == scored(taken).tolist() == [0.0, 0.0]
    taken = take(logits(2, 30), draws=4, top=30, uniforms_C=half_C)
    assert drawn_rows(taken) == [[], []]
    assert taken.rest_C.tolist() == [0.0, 0.0]


def test_a_small_rest_keeps_its_digits() -> None:
    """1 less the listed would be 0 in float32."""
    row_V = torch.full((500,), -30.0)
    row_V[77] = 0.0
    taken = take(row_V[None], top=1)
    expected = distribution(row_V)[torch.arange(500) != 77].sum()
    assert torch.allclose(taken.rest_C, expected, rtol=1e-5, atol=0)


def test_of_a_rest_too_small_for_float32_nothing_is_drawn() -> None:
    """From e^-60 to e^-110 below the one that is listed."""
    for gap in range(60, 111):
        row_V = torch.full((200,), -float(gap))
        row_V[3] = 0.0
        taken = take(row_V[None], top=1, draws=5, uniforms_C=torch.tensor([0.999]))
        drawn_of_it = sum(count for _, count in drawn_rows(taken)[0])
        assert drawn_of_it == (5 if gap < 65 else 0) or 65 <= gap <= 75


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [300, 4 * BLOCK])
def test_a_position_alone_gives_what_it_gives_in_a_chunk(vocabulary: int, threads: int) -> None:
    logits_CV, uniforms_C = logits(40, vocabulary), torch.rand(40, dtype=torch.float64)
    targets_C = torch.arange(40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = take(logits_CV, top=5, draws=20, temperature=1.5, uniforms_C=uniforms_C, targets_C=targets_C)
        rows = drawn_rows(whole)
        for row in range(0, 40, 7):
            one = slice(row, row + 1)
            alone = take(
                logits_CV[one],
                top=5,
                draws=20,
                temperature=1.5,
                uniforms_C=uniforms_C[one],
                targets_C=targets_C[one],
            )
            assert drawn_rows(alone) == rows[one]
            for name in ("entropy_C", "logp_C", "listed_ids_CK", "listed_logp_CK", "rest_C"):
                assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), name
    finally:
        torch.set_num_threads(before)


def test_slices_do_not_change_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_CV, uniforms_C = logits(23, 300), torch.rand(23, dtype=torch.float64)
    whole = take(logits_CV, top=3, draws=9, uniforms_C=uniforms_C)
    monkeypatch.setattr("potstill.signals.draws.SLICE_LOGITS", 1)
    sliced = take(logits_CV, top=3, draws=9, uniforms_C=uniforms_C)
    assert drawn_rows(sliced) == drawn_rows(whole)
    assert torch.equal(sliced.entropy_C, whole.entropy_C)
    assert torch.equal(listed(sliced)[0], listed(whole)[0])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_without_a_distribution_are_refused(wrong: float) -> None:
    logits_CV = logits(3, 400)
    logits_CV[1, 399] = wrong
    with pytest.raises(ModelError, match="there is no distribution"):
        take(logits_CV, top=2)
    with pytest.raises(ModelError, match="there is no distribution"):
        take(torch.full((1, 20), -torch.inf), top=2)


def test_no_positions_give_nothing() -> None:
    none = torch.empty(0)
    taken = take(torch.empty(0, 70), top=3, draws=5, uniforms_C=none, targets_C=torch.empty(0, dtype=torch.int64))
    assert drawn_rows(taken) == []
    assert taken.entropy_C.tolist() == []
    assert listed(taken)[0].shape == (0, 3)


@pytest.mark.parametrize("top", [0, 4])
def test_the_slope_of_forward_kl_is_the_dense_one_on_average(top: int) -> None:
    """Trap: "Top-k cached logits renormalised on both sides: no gradient on the student's mass outside the top k.
    Compare gradients with the dense loss." The mean over u of (student - estimate) is the dense slope everywhere."""
    row_V, steps, draws = logits(1, 300, seed=5)[0], 2048, 16
    student_V = distribution(logits(1, 300, seed=6)[0])
    slope_CV = student_V - estimate(grid(row_V, steps, top=top, draws=draws), 300, draws)
    dense_V = student_V - distribution(row_V)
    assert (slope_CV.mean(0) - dense_V).abs().max() < 1.01 / steps / draws + 1e-6
    assert (slope_CV - dense_V).abs().max() > 1e-3  # a single draw is not


def test_uniform_numbers_come_of_seed_row_and_place_alone() -> None:
    first = uniforms(7, "ab12", 1000)
    assert first.dtype == np.float64
    assert ((first >= 0) & (first < 1)).all()
    assert np.array_equal(uniforms(7, "ab12", 10), first[:10])  # the same, whatever comes after
    assert abs(first.mean() - 0.5) < 0.05
    assert len(set(first.tolist())) == 1000
    for other in (uniforms(8, "ab12", 1000), uniforms(7, "ab13", 1000)):
        assert not np.isin(other, first).any()
    assert first[:2].tolist() == [0.5830936439546234, 0.0611323055901456]


def test_what_is_kept_of_a_list_and_draws_has_the_mass_that_was_taken(tmp_path: Path) -> None:
    """Through the files and back: the drawn entries share what the list leaves, up to the list's codes."""
    torch.manual_seed(0)
    logits_CV = torch.randn(64, 500) * torch.linspace(1, 12, 64)[:, None]
    taken = take(logits_CV, top=8, draws=20, uniforms_C=torch.rand(64, dtype=torch.float64))
    columns = _named(taken, Asked(500, top=8, draws=20))
    row = RowSignal(**{name: column.numpy() for name, column in columns.items()})
    header = Header(500, 8, 20, 1.0, (), False, "teacher", "tokenizer", "data")
    Writer(tmp_path, header).add({("row", "00"): row})
    found = to_sparse(Reader(tmp_path).read([("row", "00")]), header)
    np.testing.assert_allclose(found.mass_CK.sum(1) + found.rest_C, 1, atol=1e-6)
    listed_CK = np.isin(np.arange(found.ids_CK.shape[1]), np.arange(8))
    drawn_C = found.mass_CK[:, ~listed_CK].sum(1)
    some_C = taken.sizes_C.numpy() > 0
    assert 40 < some_C.sum() <= 64
    np.testing.assert_allclose(drawn_C[some_C], taken.rest_C.numpy()[some_C], atol=0.02)
    assert (drawn_C[~some_C] == 0).all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "adaptive_kl"])
@pytest.mark.parametrize("top", [1, 5, 20])
def test_a_sure_teacher_s_list_teaches_as_its_distribution_does(tmp_path: Path, name: DivergenceName, top: int) -> None:
    """What is not listed never has probability 0 for being rounded: the student's mass there would cost 1e30."""
    torch.manual_seed(0)
    logits_CV, student_CV = 6 * torch.randn(400, 1000), 6 * torch.randn(400, 1000)
    taken = take(logits_CV, top=top)
    row = RowSignal(**{name: column.numpy() for name, column in _named(taken, Asked(1000, top=top)).items()})
    header = Header(1000, top, 0, 1.0, (), False, "teacher", "tokenizer", "data")
    Writer(tmp_path, header).add({("row", "00"): row})
    found = to_sparse(Reader(tmp_path).read([("row", "00")]), header)
    assert (found.rest_C >= 2e-9).all()
    arrays = (found.ids_CK, found.mass_CK, found.rest_C, found.entropy_C)
    read = Sparse(*map(torch.from_numpy, arrays), found.drawn)
    exact = Sparse(taken.listed_ids_CK, taken.listed_logp_CK.exp(), taken.rest_C.float(), taken.entropy_C, False)
    ours, theirs = (compare(Divergence(name), said, student_CV.clone()) for said in (read, exact))
    torch.testing.assert_close(ours.value_C, theirs.value_C, rtol=0.05, atol=0.05)
    torch.testing.assert_close(ours.slope_CV, theirs.slope_CV, rtol=0.1, atol=0.05)
