"""How many bytes a token a teacher's signal takes on disk, and how much processor time packing and reading take.

    python bench/signals.py

The teachers are synthetic: at each position probabilities by Zipf's law with an exponent that gives the stated
entropy, over ids in random order, which is the worst case for packing ids.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from potstill.signals.bits import bit_length
from potstill.signals.files import Reader, Writer
from potstill.signals.packing import ENTROPY_BITS, low_bits
from potstill.signals.rows import Header, RowSignal
from potstill.signals.sparse import to_sparse

VOCABULARY = 128_256
ROW = 300
ROWS = 60


def zipf(entropy: float, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Probabilities p_r ~ r^-s of the given entropy in nats, by bisection of s."""
    low, high = 0.5, 8.0
    logs = np.log(np.arange(1, vocabulary + 1))
    for _ in range(60):
        middle = (low + high) / 2
        p = np.exp(-middle * logs)
        p /= p.sum()
        found = -(p * np.log(p)).sum()
        low, high = (middle, high) if found > entropy else (low, middle)
    return p


def drawn_row(
    p: np.ndarray, draws: int, entropy: float, rng: np.random.Generator, top: int = 0, systematic: bool = False
) -> RowSignal:
    """A row of draws; with `top`, also of the largest entries, which are then left out of the draws.

    Systematic draws are spaced evenly from one random start (Kitagawa 1996): each id comes as often on average, and
    never more than one off its share.
    """
    parts: dict[str, list[Any]] = {"ids": [], "counts": [], "sizes": []}
    listed = np.empty((ROW, top), dtype=np.int32)
    cumulative = np.cumsum(p[top:] / p[top:].sum())
    for position in range(ROW):
        places = (np.arange(draws) + rng.random()) / max(draws, 1) if systematic else rng.random(draws)
        ranks, counts = np.unique(np.searchsorted(cumulative, places * cumulative[-1]) + top, return_counts=True)
        order = rng.integers(VOCABULARY)
        ids = (np.concatenate([np.arange(top), ranks]) * 67_867 + order) % VOCABULARY  # odd factor, no common divisor
        listed[position] = ids[:top]
        if draws:
            parts["ids"].append(ids[top:])
            parts["counts"].append(counts)
            parts["sizes"].append(len(ranks))
    return RowSignal(
        top_ids=listed if top else None,
        top_logp=np.tile(np.log(p[:top]).astype(np.float32), (ROW, 1)) if top else None,
        rest_logp=np.full(ROW, np.log(max(p[top:].sum(), 1e-30)), dtype=np.float32) if top else None,
        drawn_ids=np.concatenate(parts["ids"]).astype(np.int32) if draws else None,
        drawn_counts=np.concatenate(parts["counts"]).astype(np.int32) if draws else None,
        drawn_sizes=np.array(parts["sizes"], dtype=np.int32) if draws else None,
        entropy=np.full(ROW, entropy, dtype=np.float32),
    )


def parts(rows: Sequence[RowSignal], header: Header, whole: float) -> dict[str, float]:
    """Bytes a token of each part, by the format's description; what is left of the whole is the index and header."""
    bits = {"entropy": float(ENTROPY_BITS)}
    tokens = sum(row.positions for row in rows)
    if header.top:
        k = int(low_bits(header.vocabulary, header.top)[-1])
        bits["listed codes"] = 8.0 * (header.top + 1)
        bits["listed ids"] = (k + 1) * header.top + sum(int((row.top_ids.max(1) >> k).sum()) for row in rows) / tokens
    if header.draws:
        k_C = low_bits(header.vocabulary, header.draws)
        sizes_C = np.concatenate([row.drawn_sizes for row in rows])
        ids_M = np.concatenate([row.drawn_ids for row in rows])
        last_C = np.maximum.reduceat(ids_M, np.cumsum(sizes_C) - sizes_C) >> k_C[sizes_C]
        counts_M = np.concatenate([row.drawn_counts for row in rows])
        bits["sizes"] = float(header.draws.bit_length())
        bits["drawn ids"] = float((sizes_C * (k_C[sizes_C] + 1) + last_C).sum() / tokens)
        bits["drawn counts"] = float((2 * bit_length(counts_M) - 1).sum() / tokens)
    found = {name: round(amount / 8, 2) for name, amount in bits.items()}
    return {**found, "index, checksums, header": round(whole - sum(bits.values()) / 8, 2)}


def squared_error(p: np.ndarray, draws: int, top: int, systematic: bool) -> float:
    """Of the estimated distribution, on average: of draws it is variance, which shrinks over many tokens; what a list
    leaves out is bias, which does not."""
    if not draws:
        return float((p[top:] ** 2).sum())
    rest = p[top:].sum()
    share = p[top:] / rest
    beyond = (draws * share) % 1
    one = (beyond * (1 - beyond)).sum() / draws**2 if systematic else (1 - (share**2).sum()) / draws
    return float(rest**2 * one)


def measure(entropy: float, draws: int, top: int, systematic: bool) -> dict[str, Any]:
    """Bytes and microseconds a token of one kind of cache."""
    rng = np.random.default_rng(0)
    p = zipf(entropy)
    header = Header(VOCABULARY, top, draws, 1.0, (), False, "teacher", "tokenizer", "data")
    rows = {
        (f"chats/{number:06d}", sha256(str(number).encode()).hexdigest()): drawn_row(
            p, draws, entropy, rng, top, systematic
        )
        for number in range(ROWS)
    }
    tokens = ROW * ROWS
    writing, reading, laying = [], [], []
    for _ in range(9):
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(Path(folder), header)
            start = time.process_time()
            writer.add(rows)
            writing.append(time.process_time() - start)
            reader = Reader(Path(folder))
            start = time.process_time()
            signals = reader.read(list(rows))
            reading.append(time.process_time() - start)
            start = time.process_time()
            to_sparse(signals, header)
            laying.append(time.process_time() - start)
            size = reader.bytes_per_token()
    distinct = [len(row.drawn_ids) / ROW for row in rows.values() if row.drawn_ids is not None]
    return {
        "nats": entropy,
        "top": top,
        "draws": draws,
        "systematic": systematic,
        "distinct": round(statistics.mean(distinct), 1) if distinct else 0,
        "bytes_per_token": round(size, 2),
        "squared_error": round(squared_error(p, draws, top, systematic), 5),
        "parts": parts(list(rows.values()), header, size),
        "write_cpu_us_per_token": round(1e6 * statistics.median(writing) / tokens, 2),
        "read_cpu_us_per_token": round(1e6 * statistics.median(reading) / tokens, 2),
        "to_sparse_cpu_us_per_token": round(1e6 * statistics.median(laying) / tokens, 2),
    }


if __name__ == "__main__":
    assert np.gcd(67_867, VOCABULARY) == 1
    for entropy in (1.5, 2.0, 2.5):
        for draws, top in ((32, 0), (50, 0), (64, 0), (80, 0), (16, 4), (0, 12), (0, 50)):
            for systematic in (False, True) if draws else (False,):
                print(json.dumps(measure(entropy, draws, top, systematic)), flush=True)  # noqa: T201
