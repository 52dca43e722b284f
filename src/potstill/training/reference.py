"""The reference model is a column: its log-probability of every scored token, computed once and kept on disk.

A row's values depend on the reference's weights and the row's tokens alone, so they are kept under a hash of both and
serve every epoch, every beta and every loss. They are written shard by shard: a crash loses one shard at most.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.artifact import storage_errors, sync
from potstill.training.batch import Item, Signal
from potstill.training.team import Team

SHARD_TOKENS = 1 << 18
"""Tokens of a shard: some minutes of a CPU, some seconds of a GPU."""


def with_reference(
    items: Sequence[Item], team: Team, cache: "Cache", budget: int, tell: Callable[[int, int], None]
) -> list[Item]:
    """The items, each with the log-probabilities by the team's scorer, in nats, as its signals.

    What the cache holds is taken from it; what is missing is computed without gradients, dropout off, and added.
    `tell` hears (tokens done, tokens to do).
    """
    known = team.first(cache.read)
    hashes = [content_hash(item) for item in items]
    missing = {key: item for key, item in zip(hashes, items, strict=True) if key not in known}
    total, done = sum(item.tokens for item in missing.values()), 0
    for shard in _shards(missing):
        values = column(team, [missing[key] for key in shard], budget)
        fresh = dict(zip(shard, values, strict=True))
        known |= fresh
        if team.rank == 0:
            cache.add(fresh)
        done += sum(missing[key].tokens for key in shard)
        tell(done, total)
    team.wait()
    return [replace(item, signals=by_answer(known[key], item)) for key, item in zip(hashes, items, strict=True)]


def _shards(missing: dict[str, Item]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for key, item in missing.items():
        shard.append(key)
        size += item.tokens
        if size >= SHARD_TOKENS:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


@torch.no_grad()
def column(team: Team, items: Sequence[Item], budget: int) -> list[Signal]:
    """The scorer's log-probabilities of every item, its answers' end to end, in nats; the same on all of the team."""
    scorer = team.scorer
    scorer.eval()
    place = {item.row: number for number, item in enumerate(items)}
    assert len(place) == len(items), "two rows have one name"
    ends = np.cumsum([item.scored for item in items])
    values_N = torch.zeros(int(ends[-1]), dtype=torch.float32)
    with scorer.products():
        for batch, share, _ in team.rounds(items, budget):
            logp_N = team.score(batch).float().cpu()
            start = 0
            for row in batch.row_ids if share else ():
                number = place[row]
                size = items[number].scored
                values_N[ends[number] - size : ends[number]] = logp_N[start : start + size]
                start += size
    found_N = team.total(values_N.to(scorer.device)).cpu().numpy()
    return np.split(found_N, ends[:-1])


def by_answer(values_N: Signal, item: Item) -> tuple[Signal, ...]:
    """An item's values by its answers."""
    sizes = [int(learn_L.sum()) for _, learn_L in item.answers]
    return tuple(np.split(values_N, np.cumsum(sizes)[:-1]))


def content_hash(item: Item) -> str:
    """Of an item's tokens and of which are scored, whatever its row is called."""
    whole = hashlib.sha256()
    for part in (item.prompt_ids, *(part for answer in item.answers for part in answer)):
        whole.update(np.int64(len(part)).tobytes())
        whole.update(np.ascontiguousarray(part).tobytes())
    return whole.hexdigest()


def weights_hash(model: nn.Module, precision: torch.dtype) -> str:
    """Of every weight and of what the products are computed in."""
    whole = hashlib.sha256(str(precision).encode())
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


class Cache:
    """A folder of shards, each whole or absent: .npz files from hash to values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, Signal]:
        """All that was kept. A shard that cannot be read is left out, and so computed again."""
        found: dict[str, Signal] = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with (
                    path.open("rb") as file,
                    np.load(file) as shard,
                ):  # numpy leaves a torn one open that it opens itself
                    ends, values_N = np.cumsum(shard["sizes"]), shard["values"]
                    keys = shard["keys"].tolist()
            except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
                continue
            found |= dict(zip(keys, np.split(values_N, ends[:-1]), strict=True))
        return found

    def add(self, values: dict[str, Signal]) -> None:
        """Keep these, durably."""
        buffer = io.BytesIO()
        sizes = np.array([len(part) for part in values.values()], dtype=np.int64)
        np.savez(buffer, keys=np.array(list(values)), sizes=sizes, values=np.concatenate(list(values.values())))
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self.folder.glob("*.npz")))
            aside = self.folder / f".{number:06d}.{os.getpid()}"
            aside.write_bytes(buffer.getvalue())
            sync(aside)
            aside.rename(self.folder / f"{number:06d}.npz")
            sync(self.folder)
