"""MinHash of many texts at once (Broder 1997): sets of runs of three words, the least of each hash function, bands.

Words are hashed once each and remembered; a run's hash is mixed from those of its words, and a signature is a product
and a minimum over a whole batch for each hash function. D texts, S runs of all of them, K hash functions, B bands.
"""

import hashlib
import re
from collections.abc import Sequence
from math import ceil, log

import numpy as np
import numpy.typing as npt

MOST_HASHES = 128
RUN = 3
RECALL = 0.999
"""The least chance that two texts exactly at the threshold become candidates."""
LEAST_ROWS, MOST_ROWS = 2, 16
MOST_WORDS = 200_000
"""Words whose hashes are remembered."""

Hashes = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_chance = np.random.default_rng(0)  # which hash functions is no choice of the user's
_FACTORS_K = _chance.integers(0, 2**31, MOST_HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_PLACES = _chance.integers(0, 2**63, MOST_ROWS + RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class _Words(dict[str, int]):
    """The hash of a word, computed when it is first met."""

    def __missing__(self, word: str) -> int:
        found = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = found
        return found


_words = _Words()


def rows_per_band(threshold: float) -> int:
    """The most hashes a band may have so that all bands together stay within `MOST_HASHES`; at least `LEAST_ROWS`.

    More make fewer false candidates; so many that texts at the threshold meet too seldom would need too many bands.
    """
    for rows in range(MOST_ROWS, LEAST_ROWS, -1):
        if rows * _bands_needed(threshold, rows) <= MOST_HASHES:
            return rows
    return LEAST_ROWS


def bands(threshold: float) -> int:
    """How many bands there are: enough for `RECALL`, as far as `MOST_HASHES` allow."""
    rows = rows_per_band(threshold)
    return min(_bands_needed(threshold, rows), MOST_HASHES // rows)


def _bands_needed(threshold: float, rows: int) -> int:
    """1 - (1 - t^rows)^bands >= RECALL, solved for the bands."""
    meet: float = threshold**rows
    return 1 if meet >= RECALL else ceil(log(1 - RECALL) / log(1 - meet))


def shingles(text: str) -> Hashes:
    """The sorted set of 64-bit hashes of the text's runs of words; of all its words where it is shorter than a run."""
    return np.unique(_runs([text])[0])


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared part of two sets of shingles."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def band_keys(texts: Sequence[str], threshold: float) -> Hashes:
    """For each text and band a number that alike texts are likely to share, [D, B]. No two bands share one."""
    rows, count = rows_per_band(threshold), bands(threshold)
    if not texts:
        return np.empty((0, count), np.uint64)
    runs_S, starts_D = _runs(texts)
    low_KD = _signatures(runs_S, starts_D, rows * count).reshape(count, rows, len(texts))
    keys = np.zeros((count, len(texts)), np.uint64)
    for row in range(rows):
        keys += low_KD[:, row].astype(np.uint64) * _PLACES[RUN + row]
        keys ^= keys >> np.uint64(29)
    keys += np.arange(count, dtype=np.uint64)[:, None] * _PLACES[0]
    return np.ascontiguousarray(_mixed(keys).T)


def _runs(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The hashes of all runs of all texts, with repetitions, and where each text's begin."""
    if len(_words) > MOST_WORDS:
        _words.clear()
    hashes: list[int] = []
    lengths = []
    for text in texts:
        found = _WORD.findall(text.lower())
        hashes.extend(map(_words.__getitem__, found))
        if len(found) < RUN:
            hashes.extend([0] * (RUN - len(found)))
        lengths.append(max(RUN, len(found)))
    words = np.array(hashes, dtype=np.uint64)
    ends = np.cumsum(lengths)
    mixed = words[: len(words) - RUN + 1] * _PLACES[0]
    for place in range(1, RUN):
        mixed += words[place : len(words) - RUN + 1 + place] * _PLACES[place]
        mixed ^= mixed >> np.uint64(31)
    whole = np.ones(len(mixed), dtype=bool)
    for place in range(1, RUN):  # a run that would go on into the next text
        whole[ends[:-1] - place] = False
    return _mixed(mixed[whole]), np.concatenate([[0], np.cumsum(np.asarray(lengths) - RUN + 1)[:-1]])


def _signatures(runs_S: Hashes, starts_D: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint32]:
    """The least of each hash function over each text's runs, [K, D]: multiply-shift by odd factors, modulo 2^32."""
    high_S = (runs_S >> np.uint64(32)).astype(np.uint32)
    product_S = np.empty_like(high_S)
    low_KD = np.empty((count, len(starts_D)), np.uint32)
    for k in range(count):
        np.multiply(high_S, _FACTORS_K[k], out=product_S)
        np.minimum.reduceat(product_S, starts_D, out=low_KD[k])
    return low_KD


def _mixed(values: Hashes) -> Hashes:
    """Every bit made to depend on every other (splitmix64's finalizer, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
