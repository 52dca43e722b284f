"""A signal's bytes: numbers of any width, codes of probabilities, whole rows, and the sparse signal of them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signal_rows import EVERYTHING, VOCABULARY, assert_same, equal, make_header, make_row, make_rows

from potstill.errors import DataError
from potstill.signals import packing
from potstill.signals.bits import PADDING, Runs, Walk, bit_length, pack, unpack
from potstill.signals.packing import (
    decode,
    encode,
    entropy_codes,
    entropy_of,
    logp_codes,
    logp_of,
)
from potstill.signals.rows import Header, HiddenLayer, RowSignal
from potstill.signals.sparse import NO_ENTRY, to_sparse

numbers = st.integers(0, 32).flatmap(lambda width: st.tuples(st.just(width), st.integers(0, (1 << width) - 1)))


def padded(stream: np.ndarray) -> np.ndarray:
    return np.concatenate([stream, np.zeros(PADDING, dtype=np.uint8)])


@given(st.lists(st.lists(numbers, max_size=40), min_size=1, max_size=5), st.data())
def test_numbers_of_any_width_come_back_and_stand_where_plain_arithmetic_puts_them(rows: Any, data: Any) -> None:
    counts_R = np.array([len(row) for row in rows])
    widths = np.array([width for row in rows for width, _ in row], dtype=np.int64)
    values = np.array([value for row in rows for _, value in row], dtype=np.int64)
    gaps = [data.draw(st.integers(0, 9)) for _ in rows]
    starts, total, whole = [], 0, 0
    for row, gap in zip(rows, gaps, strict=True):
        total += gap
        starts.append(total)
        for width, value in row:
            whole |= value << total
            total += width
    walk = Walk(np.array(starts))
    offsets = walk.section(counts_R, widths)
    size = -(-total // 8)
    stream = pack([values], [offsets], size)
    assert stream.tobytes() == whole.to_bytes(size, "little")
    assert unpack(padded(stream), offsets, widths).tolist() == values.tolist()
    assert walk.bits_R[-1] == total


@given(st.lists(st.lists(st.integers(0, 70), max_size=30), min_size=1, max_size=5), st.integers(0, 3))
def test_unary_numbers_come_back_section_by_section(rows: list[list[int]], cut: int) -> None:
    """Each row's begin behind some number that has ones of its own, and end before another."""
    text, starts, ends = "", [], []
    for row in rows:
        text += "101"
        starts.append(len(text))
        text += "".join("0" * value + "1" for value in row)
        ends.append(len(text))
    bits = np.array([int(bit) for bit in text + "011"], dtype=np.uint8)
    runs = Runs(padded(np.packbits(bits, bitorder="little")), np.array(starts))
    early_R = np.array([min(cut, len(row)) for row in rows])
    late_R = np.array([len(row) for row in rows]) - early_R
    assert runs.section(early_R).tolist() == [value for row in rows for value in row[:cut]]
    assert runs.section(late_R).tolist() == [value for row in rows for value in row[cut:]]
    assert runs.ends_R.tolist() == ends


def test_bit_lengths_are_pythons() -> None:
    values = np.array([0, 1, 2, 3, 4, 7, 8, 255, 256, (1 << 31) - 1, 1 << 31])
    assert bit_length(values).tolist() == [int(value).bit_length() for value in values]


def test_the_code_of_a_probability_errs_as_little_as_it_says() -> None:
    logp = np.linspace(packing.FLOOR, 0, 400_001)
    found = logp_of(logp_codes(logp.astype(np.float32))).astype(np.float64)
    relative = np.abs(np.expm1(found - logp))
    assert relative.max() < 0.082
    assert relative[logp > np.log(0.001)].max() < 0.05
    assert relative[logp > -1].max() < 0.018
    assert relative[logp > np.log(0.8)].max() < 0.009
    assert relative[logp > -0.0002].max() < 0.0005
    assert logp_of(logp_codes(np.array([0.0, 1e-7, -1e9], dtype=np.float32))).tolist() == [0.0, 0.0, packing.FLOOR]
    codes = np.arange(256)
    assert logp_codes(logp_of(codes)).tolist() == codes.tolist()


@pytest.mark.parametrize("vocabulary", [1, 2, 32_000, VOCABULARY])
def test_the_code_of_an_entropy_errs_as_little_as_it_says(vocabulary: int) -> None:
    entropy = np.linspace(0, np.log(vocabulary), 100_001)
    error = np.abs(entropy_of(entropy_codes(entropy, vocabulary), vocabulary) - entropy)
    assert error.max() < 0.003
    assert error[entropy <= 2].max() < 0.00125
    assert entropy_of(entropy_codes(np.array([-1e-7, 0.0]), vocabulary), vocabulary).tolist() == [0, 0]


headers = st.builds(
    make_header,
    vocabulary=st.sampled_from([7, 50, 61, 151_936, 300_000]),
    top=st.sampled_from([0, 1, 4, 7]),
    draws=st.sampled_from([0, 1, 5, 50, 64]),
    target_logp=st.booleans(),
    hidden=st.sampled_from([(), (HiddenLayer(0, 3),), (HiddenLayer(1, 1), HiddenLayer(30, 8))]),
).filter(lambda header: bool(header.distribution or header.target_logp or header.hidden))


@settings(max_examples=150)
@given(headers, st.lists(st.integers(0, 9), max_size=6), st.integers(0, 1000))
def test_what_is_packed_is_read_again(header: Header, sizes: list[int], seed: int) -> None:
    rows = list(make_rows(header, sizes, seed).values())
    blobs = encode(rows, [str(place) for place in range(len(rows))], header)
    again = decode(blobs, sizes, header)
    for row, found in zip(rows, again, strict=True):
        assert_same(row, found, header)
        if row.entropy is not None:
            assert found.entropy == pytest.approx(row.entropy, abs=0.003)
    for blob, size, found in zip(blobs, sizes, again, strict=True):  # a row's bytes do not depend on its neighbours
        assert equal(decode([blob], [size], header)[0], found)


def test_many_positions_are_packed_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(make_rows(EVERYTHING, [4, 0, 3, 9, 1, 6]).values())
    names = [str(place) for place in range(len(rows))]
    whole = encode(rows, names, EVERYTHING)
    monkeypatch.setattr(packing, "CHUNK", 5)
    assert encode(rows, names, EVERYTHING) == whole
    assert all(map(equal, decode(whole, [4, 0, 3, 9, 1, 6], EVERYTHING), rows_read(whole)))


def rows_read(blobs: list[bytes]) -> list[RowSignal]:
    return [decode([blob], [size], EVERYTHING)[0] for blob, size in zip(blobs, [4, 0, 3, 9, 1, 6], strict=True)]


@pytest.mark.parametrize("vocabulary", [65_536, 65_537, 131_072, 131_073, 300_000, 2**31 - 1])
def test_the_last_ids_of_a_vocabulary_of_any_size_are_kept(vocabulary: int) -> None:
    """Trap: "Token ids stored in 16 or 17 bits with a larger vocabulary (Megatron-LM 5019)"."""
    header = make_header(vocabulary=vocabulary, top=2, draws=3)
    top_ids = np.array([[vocabulary - 1, 0], [1, vocabulary - 3]], dtype=np.int32)
    drawn_ids = np.array([vocabulary - 2, 1, vocabulary - 1, vocabulary - 2, 40_000], dtype=np.int32)
    row = RowSignal(
        top_ids=top_ids,
        top_logp=np.log(np.array([[0.5, 0.25], [0.9, 0.01]], dtype=np.float32)),
        rest_logp=np.log(np.array([0.25, 0.09], dtype=np.float32)),
        drawn_ids=drawn_ids,
        drawn_counts=np.array([1, 2, 1, 1, 1], dtype=np.int32),
        drawn_sizes=np.array([2, 3], dtype=np.int32),
        entropy=np.array([1, 2], dtype=np.float32),
    )
    found = decode(encode([row], ["a"], header), [2], header)[0]
    assert found.top_ids is not None
    assert found.top_ids.tolist() == top_ids.tolist()
    assert_same(row, found, header)


def test_a_list_is_read_from_the_likeliest_on_and_never_holds_more_than_everything() -> None:
    header = make_header(top=5, draws=0)
    rng = np.random.default_rng(0)
    p_CK = rng.dirichlet(np.full(5, 0.5), 2000)  # the list is all there is: rounded, half of them sum above 1
    row = RowSignal(
        top_ids=np.tile(np.array([9, 7, 5, 3, 1], dtype=np.int32), (2000, 1)),
        top_logp=np.log(np.maximum(-np.sort(-p_CK, axis=1), 1e-8)).astype(np.float32),
        rest_logp=np.full(2000, -60, dtype=np.float32),
        entropy=np.zeros(2000, dtype=np.float32),
    )
    found = decode(encode([row], ["a"], header), [2000], header)[0]
    assert found.top_logp is not None
    assert (np.diff(found.top_logp, axis=1) <= 0).all()
    total_C = np.exp(found.top_logp.astype(np.float64)).sum(axis=1)
    assert total_C.max() < 1 + 1e-6
    assert total_C.min() > 0.95
    assert (total_C > 1 - 1e-6).mean() > 0.3


def row_of(header: Header, **changed: Any) -> RowSignal:
    return replace(make_row(header, 2, np.random.default_rng(0)), **changed)


@pytest.mark.parametrize(
    ("header", "changed", "what"),
    [
        (make_header(vocabulary=10), {"drawn_ids": [3, 10], "drawn_counts": [20, 20], "drawn_sizes": [1, 1]}, "id 10 "),
        (make_header(), {"drawn_ids": [-1, 5], "drawn_counts": [20, 20], "drawn_sizes": [1, 1]}, "id -1 "),
        (make_header(), {"drawn_ids": [3, 5], "drawn_counts": [20, 19], "drawn_sizes": [1, 1]}, "19 draws, not 20"),
        (make_header(), {"drawn_ids": [3], "drawn_counts": [20], "drawn_sizes": [1, 0]}, "0 draws, not 20"),
        (make_header(), {"drawn_ids": [3, 4, 5], "drawn_counts": [20, 20, 0], "drawn_sizes": [1, 2]}, "below 1"),
        (make_header(), {"drawn_ids": [3, 4, 4], "drawn_counts": [20, 10, 10], "drawn_sizes": [1, 2]}, "stands twice"),
        (make_header(), {"entropy": [1.0, np.nan]}, "not finite"),
        (make_header(draws=0, target_logp=True), {"target_logp": [-np.inf, 0]}, "not finite"),
        (make_header(top=2, draws=0), {"top_ids": [[1, 2], [3, 3]]}, "listed twice"),
        (make_header(top=2, draws=0), {"top_ids": [[1, 2], [3, VOCABULARY]]}, "id 128256 "),
        (make_header(top=1, draws=4), {"top_ids": [[1], [2]], "drawn_ids": [5, 2], "drawn_counts": [4, 4],
                                       "drawn_sizes": [1, 1]}, "listed too"),
    ],
)  # fmt: skip
def test_a_signal_that_cannot_be_is_refused_and_its_row_named(header: Header, changed: Any, what: str) -> None:
    wrong = row_of(header, **{name: np.array(value) for name, value in changed.items()})
    with pytest.raises(DataError, match=what) as error:
        encode([row_of(header), wrong, row_of(header)], ["one", "chats/2", "three"], header)
    assert error.value.where == "signal of row chats/2"


def test_listed_entries_keep_their_probability_and_the_rest_is_what_they_leave() -> None:
    """Trap: "Top-k cached logits renormalised on both sides: no gradient on the student's mass outside the top k"."""
    header = make_header(top=2, draws=0)
    row = RowSignal(
        top_ids=np.array([[4, 9], [5, 1]], dtype=np.int32),
        top_logp=np.log(np.array([[0.5, 0.25], [0.75, 0.25]], dtype=np.float32)),
        rest_logp=np.array([math.log(0.25), -18], dtype=np.float32),
        entropy=np.array([1.5, 0.6], dtype=np.float32),
    )
    found = to_sparse([row, row], header)
    assert found.ids_CK.tolist() == [[4, 9], [5, 1]] * 2
    assert found.mass_CK == pytest.approx(np.array([[0.5, 0.25], [0.75, 0.25]] * 2))
    assert found.rest_C == pytest.approx(np.array([0.25, math.exp(-18)] * 2), rel=1e-6)
    assert found.entropy_C == pytest.approx(np.array([1.5, 0.6] * 2))
    assert (found.drawn, found.ids_CK.dtype, found.mass_CK.dtype) == (False, np.int64, np.float32)


def test_draws_share_what_is_not_listed() -> None:
    drawn: dict[str, Any] = {
        "drawn_ids": np.array([7, 3, 8], dtype=np.int32),
        "drawn_counts": np.array([3, 1, 4], dtype=np.int32),
        "drawn_sizes": np.array([2, 1], dtype=np.int32),
        "entropy": np.array([1, 2], dtype=np.float32),
    }
    alone = to_sparse([RowSignal(**drawn)], make_header(draws=4))
    assert alone.ids_CK.tolist() == [[7, 3], [8, NO_ENTRY]]
    assert alone.mass_CK.tolist() == [[0.75, 0.25], [1, 0]]
    assert (alone.rest_C.tolist(), alone.drawn) == ([0, 0], True)
    top = np.array([[5], [6]], dtype=np.int32)
    listed = {"top_logp": np.log(np.array([[0.5], [0.75]], dtype=np.float32)), "rest_logp": np.log([0.5, 0.25])}
    both = RowSignal(top_ids=top, **listed, **drawn)
    found = to_sparse([both], make_header(draws=4, top=1))
    assert found.ids_CK.tolist() == [[5, 7, 3], [6, 8, NO_ENTRY]]
    assert found.mass_CK == pytest.approx(np.array([[0.5, 0.375, 0.125], [0.75, 0.25, 0]]))
    assert (found.rest_C.tolist(), found.drawn) == ([0, 0], True)


@settings(max_examples=60)
@given(headers.filter(lambda header: header.distribution), st.lists(st.integers(0, 9), max_size=5), st.integers(0, 99))
def test_everything_adds_up_to_one(header: Header, sizes: list[int], seed: int) -> None:
    rows = list(make_rows(header, sizes, seed).values())
    if not rows:
        return
    found = to_sparse(decode(encode(rows, [""] * len(rows), header), sizes, header), header)
    total_C = found.mass_CK.astype(np.float64).sum(axis=1) + found.rest_C
    assert total_C == pytest.approx(np.ones(sum(sizes)), abs=1e-6)
    assert (found.mass_CK >= 0).all()
    assert (found.rest_C >= 0).all()
    assert ((found.ids_CK == NO_ENTRY) <= (found.mass_CK == 0)).all()
    assert ((found.ids_CK >= NO_ENTRY) & (found.ids_CK < header.vocabulary)).all()
    for ids_K in found.ids_CK:
        named = ids_K[ids_K != NO_ENTRY]
        assert len(set(named.tolist())) == len(named)
