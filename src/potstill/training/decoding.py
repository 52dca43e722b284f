"""Answers from a local model, with continuous batching: one token a step for all rows; where rows end, others join.

transformers' own continuous batching has one stream of randomness for all rows, so what a row says would depend on what
else is asked; here each row draws from its own seed. A row's state is its tokens; the cache that saves
computing them again is padded on the left: all rows end in its last column.

Suffixes: R rows, T columns of the cache, P prompt length, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from potstill.errors import ModelError
from potstill.tokens.tokenization import Ids

MOST_ROWS = 256
"""Rows decoded together."""
CACHE_BYTES = 1 << 30
"""What the cache may hold on a CPU."""
GPU_SHARE = 4
"""On a GPU the cache may hold one of so many parts of its memory, whatever else lies there now: the same card always
decides alike."""
PREFILL_TOKENS = 8192
"""Prompt tokens read at once, padding among them. A longer prompt is read alone."""
HEADROOM = 128
"""A row joins where all rows may grow by so many tokens before the cache is full."""
REFILL = 8
"""Rows that had to wait join once one of so many parts of the batch has ended: prompts that are read together cost
less. Where nobody had to wait, whoever comes joins at once."""
CHUNK_LOGITS = 1 << 23
"""Logits that are drawn from at once."""


@dataclass(frozen=True)
class Odds:
    """How likely one token of an answer was, at temperature 1, in nats."""

    logp: float
    likeliest: tuple[tuple[int, float], ...]
    """What might have stood there instead, and the token itself where it is one of them: the likeliest first."""


@dataclass(eq=False)
class Row:
    """One prompt and what has been written after it."""

    prompt_ids: Ids
    limit: int
    """Tokens at most, at least 1."""
    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0 is all."""
    seed: int
    known: Sequence[int] = ()
    """Its whole answer, where an earlier run has written it: nothing is computed for it alone."""
    told: int = 0
    """Of how many first tokens of the answer it is kept how likely they were."""
    listed: int = 0
    """Of how many of the likeliest tokens, at each of these."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far; the last is a stop token where the model ended it."""
    odds: list[Odds] = field(default_factory=list)
    """Those of the tokens that are told of."""

    def __post_init__(self) -> None:
        self._randomness = torch.Generator().manual_seed(self.seed)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.tokens)

    @property
    def reach(self) -> int:
        """Its length when it has grown by as much as room is kept for."""
        return len(self) + min(HEADROOM, self.limit - len(self.tokens))

    @property
    def is_cut(self) -> bool:
        """Whether not every token may be drawn."""
        return self.top_p < 1 or self.top_k > 0

    def draw(self) -> float:
        """Its next number between 0 and 1."""
        return float(torch.rand((), generator=self._randomness))


class Batch:
    """The rows that are decoded together.

    Rows do not depend on each other: the same row gives the same tokens whatever else is in the batch, but for rounding
    (sums over other shapes round differently; in bfloat16 two tokens that are all but equally likely may change
    places). Where a model's cache is of a kind that cannot be joined, such as the states of linear attention, rows
    join only when all before them have ended.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Sequence[int],
        cache_tokens: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`cache_tokens` bounds rows times columns; where it is None, memory does. `head` makes logits of last hidden
        states in place of the model's own."""
        self.model, self.stops, self.head = model, frozenset(stop_ids), head
        self.joins, per_token = _kind_of_cache(model)
        """Whether rows join a batch that is under way."""
        # A mixture of experts trained with it would count its experts' load, over masks that do not fit.
        self.silent = {"output_router_logits": False} if hasattr(model.config, "output_router_logits") else {}
        self.budget = cache_tokens or max(1, _memory(model.device) // per_token)
        self.rows: list[Row] = []
        self.cache: Any = None  # a DynamicCache; what its layers hold is theirs. None: all rows are known
        self.columns = 0
        """Of the cache. A row's last token is not in it yet."""
        self.most = 0
        """How many rows there were when others joined last and did not all find room; 0: they did."""

    @torch.inference_mode()
    def step(self, waiting: deque[Row]) -> list[Row]:
        """One token more for every row, those that join from `waiting` among them; the rows that have ended by it."""
        self._make_room(waiting)
        joining = self._joining(waiting)
        ended = self._decode() if self.rows else []
        if joining:
            for group in _alike(joining):
                ended += self._prefill(group)
            self.most = len(self.rows) if waiting or len(self.rows) >= MOST_ROWS else 0
        return ended

    def leave(self, rows: Collection[Row]) -> None:
        """These rows are given up, wherever they stand; those that are not in the batch are passed over."""
        kept = [index for index, row in enumerate(self.rows) if row not in rows]
        if len(kept) < len(self.rows):
            self._keep(kept)

    def _make_room(self, waiting: deque[Row]) -> None:
        """Where the next step would take more cache than there may be, the row that joined last waits once more.

        What it has written is kept, and read again with its prompt. The first row always stays.
        """
        keep = max(1, self.budget // (self.columns + 1))
        if keep < len(self.rows):
            waiting.extendleft(reversed(self.rows[keep:]))
            self._keep(list(range(keep)))

    def _joining(self, waiting: deque[Row]) -> list[Row]:
        """Takes from `waiting`, in its order, what may join now."""
        hardly_ended = REFILL * len(self.rows) > (REFILL - 1) * self.most > 0
        if self.rows and (not self.joins or hardly_ended):
            return []
        width = max((row.reach for row in self.rows), default=0)
        joining: list[Row] = []
        while waiting and (count := len(self.rows) + len(joining)) < MOST_ROWS:
            width = max(width, waiting[0].reach)
            if count and width * (count + 1) > self.budget:
                break
            joining.append(waiting.popleft())
        if not self.joins:  # what cannot be joined is read at once
            joining, rest = _first_group(joining)
            waiting.extendleft(reversed(rest))
        return joining

    def _prefill(self, rows: list[Row]) -> list[Row]:
        """Reads prompts, with what was written after them before; their first tokens, and into the batch with them."""
        logits_RV = None
        if self.cache is not None or not _all_known(rows):
            if self.rows and self.cache is None:
                self._read_known()
            logits_RV = self._read(rows, 0)
        self.columns = max(self.columns, *map(len, rows))
        added, self.rows = len(self.rows), [*self.rows, *rows]
        return self._append(logits_RV, added)

    def _read(self, rows: Sequence[Row], but: int) -> Tensor:
        """The rows, but for their last tokens, at once and into the cache below the others; logits of what follows."""
        cache = DynamicCache(config=self.model.config)
        width = max(map(len, rows)) - but
        ids_RP = torch.zeros((len(rows), width), dtype=torch.int64)
        mask_RP = torch.zeros((len(rows), width), dtype=torch.int64)
        for index, row in enumerate(rows):
            first, said = width - (len(row) - but), [*row.prompt_ids.tolist(), *row.tokens]
            ids_RP[index, first:] = torch.tensor(said[: len(said) - but])
            mask_RP[index, first:] = 1
        logits_RV = self._forward(ids_RP, mask_RP, (mask_RP.cumsum(1) - 1).clamp_min(0), cache)
        if self.cache is None:
            self.cache = cache
        else:
            _join(self.cache, self.columns, cache, width)
        return logits_RV

    def _read_known(self) -> None:
        """The cache of a batch that had none because all its rows are known, now that another row joins."""
        rest, columns = self.rows, self.columns
        self.columns = 0
        while rest:
            group, rest = _first_group(rest)
            self._read(group, 1)
            self.columns = max(self.columns, max(map(len, group)) - 1)
        assert self.columns == columns, "rows that can be joined fill the columns"

    def _decode(self) -> list[Row]:
        self.columns += 1
        if self.cache is None:
            return self._append(None, 0)
        lengths_R = torch.tensor([len(row) for row in self.rows])
        mask_RT = torch.arange(self.columns) >= self.columns - lengths_R[:, None]
        last_R1 = torch.tensor([[row.tokens[-1]] for row in self.rows])
        logits_RV = self._forward(last_R1, mask_RT.long(), lengths_R[:, None] - 1, self.cache)
        return self._append(logits_RV, 0)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        device = self.model.device
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "position_ids": positions.to(device),
            "past_key_values": cache,
            "use_cache": True,
            **self.silent,
        }
        if self.head is not None:
            return self.head(self.model.base_model(**inputs).last_hidden_state[:, -1])
        logits_RV: Tensor = self.model(**inputs, logits_to_keep=1).logits[:, -1]
        return logits_RV

    def _append(self, logits_RV: Tensor | None, first: int) -> list[Row]:
        """A token for each row from `first` on; those that end by it leave the batch and are returned.

        Without logits where all of them are known.
        """
        rows = self.rows[first:]
        drawn = choose(logits_RV, rows) if logits_RV is not None else [0] * len(rows)
        for row, token in zip(rows, drawn, strict=True):
            row.tokens.append(row.known[len(row.tokens)] if row.known else token)
        if logits_RV is not None:
            _tell(logits_RV, rows)
        ended = [row for row in rows if row.tokens[-1] in self.stops or len(row.tokens) >= row.limit]
        if ended:
            left = set(ended)
            self._keep([index for index, row in enumerate(self.rows) if row not in left])
        return ended

    def _keep(self, indices: list[int]) -> None:
        """Keep these rows alone, and the columns that they need."""
        self.rows = [self.rows[index] for index in indices]
        if not indices:
            self.cache, self.columns = None, 0
            return
        if self.joins:
            self.columns = max(len(row) for row in self.rows) - 1
        if self.cache is None:
            return
        self.cache.reorder_cache(torch.tensor(indices))
        for layer in self.cache.layers if self.joins else ():
            _set(layer, self.columns, layer.keys, layer.values)


def _kind_of_cache(model: PreTrainedModel) -> tuple[bool, int]:
    """Whether rows can join a batch that is under way, and the bytes that a token takes; found out by one token."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(
            input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device), past_key_values=cache, use_cache=True
        )
    held = [tensor for layer in cache.layers for tensor in _held(layer)]
    if not held:
        raise ModelError(
            str(model.name_or_path),
            "it keeps what it has read in another way than transformers' DynamicCache",
            "Serve it (transformers serve, vLLM, SGLang, llama.cpp) and name it as an endpoint",
        )
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in cache.layers)
    config = model.config.get_text_config()
    chunked = getattr(config, "attention_chunk_size", None) is not None  # masked by the chunk a column falls into
    return known and not chunked, sum(tensor.nbytes for tensor in held)


def _held(layer: Any) -> list[Tensor]:
    """The tensors of one layer of a cache."""
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [
        part for part in (getattr(layer, "keys", None), getattr(layer, "values", None), *states) if part is not None
    ]


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // GPU_SHARE
    return CACHE_BYTES


def _join(cache: Any, columns: int, other: Any, width: int) -> None:
    """Puts the rows of `other`, `width` columns, below those of `cache`; the shorter of both is padded on the left."""
    both = max(columns, width)
    for layer, more in zip(cache.layers, other.layers, strict=True):
        if layer.keys is not None:  # otherwise it reads another layer's
            keys, values = _stacked(layer.keys, more.keys), _stacked(layer.values, more.values)
            _set(layer, both, keys, values)


def _stacked(*parts: Tensor) -> Tensor:
    width = max(part.shape[-2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])


def _set(layer: Any, columns: int, keys: Tensor | None, values: Tensor | None) -> None:
    """A layer's last columns, as many as a cache of `columns` holds: of a window, one less than the window."""
    if keys is None or values is None:
        return
    held = columns
    if isinstance(layer, DynamicSlidingWindowLayer):
        held, layer.cumulative_length = min(columns, layer.sliding_window - 1), columns
    first = keys.shape[-2] - held
    layer.keys, layer.values = keys[..., first:, :], values[..., first:, :]


def _all_known(rows: Sequence[Row]) -> bool:
    return all(row.known for row in rows)


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of like length to read at once."""
    groups, rest = [], sorted(rows, key=len)
    while rest:
        group, rest = _first_group(rest)
        groups.append(group)
    return groups


def _first_group(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """As many of the first rows as may be read at once, and the others."""
    width, count = 0, 0
    for row in rows:
        width = max(width, len(row))
        if count and width * (count + 1) > PREFILL_TOKENS:
            break
        count += 1
    return rows[:count], rows[count:]


def _tell(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    """Keep how likely the last token of each row was, and others in its place, where that is asked for."""
    for index, row in enumerate(rows):
        if len(row.tokens) <= row.told:
            logp_V = logits_RV[index].float().log_softmax(-1)
            logp_K, ids_K = logp_V.topk(min(row.listed, len(logp_V)))
            likeliest = tuple(zip(ids_K.tolist(), logp_K.tolist(), strict=True))
            row.odds.append(Odds(float(logp_V[row.tokens[-1]]), likeliest))


def choose(logits_RV: Tensor, rows: Sequence[Row]) -> list[int]:
    """Each row's next token: greedy where its temperature is 0, else drawn."""
    tokens_R = logits_RV.argmax(-1)
    most = max(1, CHUNK_LOGITS // logits_RV.shape[1])
    for cut in (False, True):
        drawn = [index for index, row in enumerate(rows) if row.temperature > 0 and row.is_cut == cut]
        for first in range(0, len(drawn), most):
            part = drawn[first : first + most]
            tokens_R[part] = _draw(logits_RV[part], [rows[index] for index in part], cut=cut)
    return [int(token) for token in tokens_R.tolist()]


def _draw(logits_RV: Tensor, rows: Sequence[Row], *, cut: bool) -> Tensor:
    """Inverts each row's distribution at a number drawn from the row's seed.

    Where it is `cut` to top-k and top-p, tokens are ordered by their probability first, which takes far longer than all
    the rest.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_RV.device)[:, None]

    temperature_R1 = column([row.temperature for row in rows]).float().clamp_min(1e-6)
    p_RV = (logits_RV.float() / temperature_R1).softmax(-1).double()
    draws_R1 = column([row.draw() for row in rows])
    if not cut:
        mass_RV = p_RV.cumsum(-1)
        place_R1 = torch.searchsorted(mass_RV, draws_R1 * mass_RV[:, -1:], right=True)
        return place_R1[:, 0].clamp_max(p_RV.shape[1] - 1)
    p_RV, order_RV = p_RV.sort(descending=True, stable=True)
    before_RV = p_RV.cumsum(-1) - p_RV
    rank_V = torch.arange(p_RV.shape[1], device=p_RV.device)
    kept_RV = before_RV < column([row.top_p for row in rows])
    kept_RV &= rank_V < column([row.top_k if row.top_k > 0 else math.inf for row in rows])
    kept_RV[:, 0] = True
    mass_RV = (p_RV * kept_RV).cumsum(-1)
    place_R1 = torch.searchsorted(mass_RV, draws_R1 * mass_RV[:, -1:], right=True)
    place_R1 = torch.minimum(place_R1, kept_RV.sum(-1, keepdim=True) - 1)
    return order_RV.gather(1, place_R1)[:, 0]
