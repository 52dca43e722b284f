"""Duplicates by meaning: texts whose embeddings by a local model point the same way, found block by block.

An embedding is the mean of the model's last hidden states over a text's tokens, of length 1 (mean pooling, Reimers and
Gurevych 2019, "Sentence-BERT"); a text is a duplicate if its cosine with an earlier one that stays is at least the
threshold, and of the first such text. Vectors of what stays lie in a file and are read in blocks, so memory does not
grow with the texts; the number of comparisons does, with its square.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from potstill.curation.deduplicate import Duplicate
from potstill.errors import ModelError
from potstill.sources import Model

BLOCK = 512
"""Texts that are compared at once."""
KEPT_BLOCK = 8192
"""Vectors that they are compared with at once."""
BATCH = 16
"""Texts that the model reads at once."""

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


def same_meaning(texts: Iterable[tuple[int, str]], embed: Embed, threshold: float, folder: Path) -> Iterator[Duplicate]:
    """Of numbered texts those to leave out, in order; vectors are of length 1. Its file in `folder` goes at the end."""
    path = folder / "vectors"
    rows: list[npt.NDArray[np.int64]] = []
    waiting = iter(texts)
    try:
        with path.open("w+b") as kept:
            count = 0
            while block := list(islice(waiting, BLOCK)):
                numbers = np.array([number for number, _ in block])
                vectors_BE = embed([text for _, text in block])
                stays, found = _compare(vectors_BE, _blocks(kept.fileno(), count, vectors_BE.shape[1]), threshold)
                known = np.concatenate([*rows, numbers]) if found else numbers
                for place, (other, cosine) in sorted(found.items()):
                    yield Duplicate(int(numbers[place]), int(known[other]), cosine)
                kept.seek(0, 2)
                vectors_BE[stays].tofile(kept)
                kept.flush()
                rows.append(numbers[stays])
                count += len(rows[-1])
    finally:
        path.unlink(missing_ok=True)


def _blocks(file: int, count: int, width: int) -> Iterator[Vectors]:
    """The vectors in a file, some at a time."""
    for start in range(0, count, KEPT_BLOCK):
        size = min(KEPT_BLOCK, count - start)
        raw = os.pread(file, 4 * size * width, 4 * start * width)
        yield np.frombuffer(raw, dtype="<f4").reshape(size, width)


def _compare(
    vectors_BE: Vectors, kept: Iterator[Vectors], threshold: float
) -> tuple[npt.NDArray[np.bool_], dict[int, tuple[int, float]]]:
    """Which of a block stay, and for each of the others: its first match and their cosine.

    A match is numbered among what was kept before the block; behind that, by its place in the block.
    """
    found: dict[int, tuple[int, float]] = {}
    begin = 0
    for block_KE in kept:
        cosines_BK = vectors_BE @ block_KE.T
        first_B = (cosines_BK >= threshold).argmax(axis=1)
        for place, first in enumerate(first_B.tolist()):
            if place not in found and cosines_BK[place, first] >= threshold:
                found[place] = begin + first, float(cosines_BK[place, first])
        begin += len(block_KE)
    cosines_BB = vectors_BE @ vectors_BE.T
    stays = np.ones(len(vectors_BE), dtype=bool)
    for place in range(len(vectors_BE)):
        if place not in found:
            near = np.flatnonzero((cosines_BB[place, :place] >= threshold) & stays[:place])
            if len(near):
                found[place] = begin + int(near[0]), float(cosines_BB[place, near[0]])
        stays[place] = place not in found
    return stays, found


class Embedder:
    """A local encoder or causal model, asked what texts mean. ModelError where it cannot be loaded."""

    def __init__(self, model: Model, max_tokens: int) -> None:
        import torch
        from transformers import AutoModel

        from potstill.training.models import choose_device, load_tokenizer

        spec = model.local
        self._max_tokens = max_tokens
        self._tokenizer = load_tokenizer(model)
        self._device = choose_device()
        try:
            loaded = AutoModel.from_pretrained(
                spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            what = f"no encoder or language model can be loaded from it: {str(error).splitlines()[0]}"
            raise ModelError(model.name, what, "Name a model in Hugging Face layout") from error
        self._model = loaded.eval().to(self._device)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Their embeddings, [B, E], of length 1. A text without a token has zeros."""
        import torch

        found = []
        for start in range(0, len(texts), BATCH):
            ids = [
                self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
                for text in texts[start : start + BATCH]
            ]
            longest = max(1, max(map(len, ids)))
            ids_BT = torch.zeros((len(ids), longest), dtype=torch.long, device=self._device)
            mask_BT = torch.zeros_like(ids_BT)
            for row, tokens in enumerate(ids):
                ids_BT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
                mask_BT[row, : len(tokens)] = 1
            with torch.no_grad():
                hidden_BTE = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            sums_BE = (hidden_BTE * mask_BT[..., None]).sum(dim=1)
            found.append(torch.nn.functional.normalize(sums_BE, dim=-1).cpu().numpy())
        return np.concatenate(found)
