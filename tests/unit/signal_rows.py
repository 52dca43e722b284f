"""Rows of signals for tests: drawn from a seed, and compared part by part."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from potstill.signals.files import Key, Writer
from potstill.signals.rows import Header, Hidden, HiddenLayer, RowSignal

VOCABULARY = 128_256


def make_header(**changed: Any) -> Header:
    fields: dict[str, Any] = {
        "vocabulary": VOCABULARY, "top": 0, "draws": 20, "temperature": 1.0, "hidden": (), "target_logp": False,
        "teacher": "a" * 64, "tokenizer": "b" * 64, "data": "c" * 64,
    }  # fmt: skip
    return Header(**fields | changed)


EVERYTHING = make_header(top=3, hidden=(HiddenLayer(2, 5), HiddenLayer(4, 3)), target_logp=True)


def make_row(header: Header, positions: int, rng: np.random.Generator) -> RowSignal:
    """Any signal that fits the header: distributions of all shapes, ids from the whole vocabulary, in no order."""
    parts: dict[str, Any] = {"hidden": {}}
    listed = np.zeros((positions, header.top), dtype=np.int32)
    for position in range(positions):
        listed[position] = rng.choice(header.vocabulary, header.top, replace=False)
    if header.top:
        p_CV = rng.dirichlet(np.full(header.top + 1, 0.3), positions).astype(np.float32) + 1e-30
        parts["top_ids"], parts["top_logp"] = listed, -np.sort(-np.log(np.minimum(p_CV[:, :-1], 1)), axis=1)
        parts["rest_logp"] = np.log(np.minimum(p_CV[:, -1], 1))
    if header.draws:
        lines = [make_draws(header, listed[position], rng) for position in range(positions)]
        parts["drawn_sizes"] = np.array([len(ids) for ids, _ in lines], dtype=np.int32)
        parts["drawn_ids"] = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in lines)]).astype(np.int32)
        parts["drawn_counts"] = np.concatenate([np.zeros(0, np.int32), *(n for _, n in lines)]).astype(np.int32)
    if header.distribution:
        parts["entropy"] = (rng.random(positions) * np.log(header.vocabulary)).astype(np.float32)
    if header.target_logp:
        parts["target_logp"] = -rng.exponential(3, positions).astype(np.float32)
    for layer in header.hidden:
        codes = rng.integers(-127, 128, (positions, layer.width)).astype(np.int8)
        parts["hidden"][layer.layer] = Hidden(codes, rng.random(positions).astype(np.float16))
    return RowSignal(**parts)


def make_draws(header: Header, listed: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids of one position, none of the listed ones, and how often each was drawn."""
    size = int(rng.integers(1, min(header.draws, header.vocabulary) + 1))
    ids = rng.choice(header.vocabulary, size, replace=False)
    ids = ids[~np.isin(ids, listed)]
    if not len(ids):
        return ids, ids
    return ids, rng.multinomial(header.draws - len(ids), rng.dirichlet(np.full(len(ids), 0.3))) + 1


def make_rows(header: Header, sizes: list[int], seed: int = 0) -> dict[Key, RowSignal]:
    rng = np.random.default_rng(seed)
    return {key(f"rows/{seed}/{place}"): make_row(header, size, rng) for place, size in enumerate(sizes)}


def key(row: str) -> Key:
    return row, sha256(row.encode()).hexdigest()


def flat(row: RowSignal, header: Header) -> dict[str, Any]:
    """All that must come back as it was, in one order whatever order it was given in."""
    found: dict[str, Any] = {"target_logp": row.target_logp, "positions": row.positions}
    for number, kept in row.hidden.items():
        found |= {f"codes {number}": kept.codes_CH, f"scale {number}": kept.scale_C}
    if header.top:
        found["top_ids"] = np.sort(row.top_ids, axis=1)
    if header.draws:
        position_M = np.repeat(np.arange(row.positions), row.drawn_sizes)
        order_M = np.lexsort([row.drawn_ids, position_M])
        found |= {"sizes": row.drawn_sizes, "ids": row.drawn_ids[order_M], "counts": row.drawn_counts[order_M]}
    return found


def assert_same(one: RowSignal, two: RowSignal, header: Header) -> None:
    first, second = flat(one, header), flat(two, header)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def equal(one: RowSignal, two: RowSignal) -> bool:
    """To the last bit, as two readings of one row must be."""
    return all(
        np.array_equal(getattr(one, part), getattr(two, part))
        for part in (
            "top_ids",
            "top_logp",
            "rest_logp",
            "drawn_ids",
            "drawn_counts",
            "drawn_sizes",
            "entropy",
            "target_logp",
        )
        if getattr(one, part) is not None or getattr(two, part) is not None
    ) and all(np.array_equal(one.hidden[n].codes_CH, two.hidden[n].codes_CH) for n in one.hidden)


def capture(folder: Path, shards: int) -> None:
    """What a stage does: shard by shard, leaving out what is there. `python signal_rows.py FOLDER SHARDS`."""
    writer = Writer(folder, EVERYTHING)
    for shard in range(shards):
        rows = make_rows(EVERYTHING, [7, 3, 12], shard)
        writer.add({name: row for name, row in rows.items() if name not in writer.done()})
        sys.stdout.write(".")
        sys.stdout.flush()


if __name__ == "__main__":
    capture(Path(sys.argv[1]), int(sys.argv[2]))
