"""Near duplicates: MinHash finds candidates (Broder 1997), exact Jaccard similarity decides.

Of texts that are alike the first one stays. Similarity is that of the sets of runs of three words, in lower case.
"""

import hashlib
import re
from collections import defaultdict

import numpy as np
import numpy.typing as npt

HASHES = 128
RUN = 3
RECALL = 0.999
"""The least chance that two texts exactly at the threshold become candidates."""

Hashes = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")


def shingles(text: str) -> Hashes:
    """The sorted set of 64-bit hashes of the text's runs of words; of all its words where it is shorter than a run."""
    words = _WORD.findall(text.lower())
    runs = {" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}
    hashes = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs]
    return np.sort(np.array(hashes, dtype=np.uint64))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared part of two sets of shingles."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def rows_per_band(threshold: float) -> int:
    """The most hashes a band may have so that two texts at the threshold still meet in one with chance `RECALL`."""
    for rows in (32, 16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL:
            return rows
    return 1


class Deduplicator:
    """Texts that were kept so far. Threshold: the Jaccard similarity from which another is a duplicate."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = rows_per_band(threshold)
        chance = np.random.default_rng(0)  # which hash functions is no choice of the user's
        self._factors = chance.integers(1, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = chance.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._bands: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(HASHES // self._rows)]
        self._kept: list[tuple[str, Hashes]] = []

    def add(self, name: str, text: str) -> tuple[str, float] | None:
        """Keep a text; or, where a kept one is as near as the threshold, its name and the similarity."""
        found = shingles(text)
        bands = self._signature(found)
        candidates = {index for band, key in zip(self._bands, bands, strict=True) for index in band.get(key, ())}
        for index in sorted(candidates):
            other, kept = self._kept[index]
            similarity = jaccard(found, kept)
            if similarity >= self.threshold:
                return other, similarity
        for band, key in zip(self._bands, bands, strict=True):
            band[key].append(len(self._kept))
        self._kept.append((name, found))
        return None

    def _signature(self, found: Hashes) -> list[bytes]:
        """The least of each hash function over the set, cut into bands. Products wrap around at 64 bits on purpose."""
        low = np.full(HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(found), 1024):  # in pieces: a long text would need 128 numbers for each of its words
            piece = found[start : start + 1024]
            mixed = (piece[:, None] * self._factors[None, :] + self._offsets[None, :]) >> np.uint64(32)
            low = np.minimum(low, mixed.astype(np.uint32).min(axis=0))
        return [low[i : i + self._rows].tobytes() for i in range(0, HASHES, self._rows)]
