"""A teacher whose weights are at hand: completes chats in one running batch, streams one, and scores given answers."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from potstill.artifact import digest
from potstill.money import Gauge, Meter
from potstill.records import Finish
from potstill.sources import Model
from potstill.teachers.base import Exchange, Reply, Request, request_seed
from potstill.teachers.spelling import Spelling
from potstill.teachers.spool import Spool, weights_identity
from potstill.teachers.tool_calls import with_tool_calls
from potstill.tokens.tokenization import encode_chats, encode_opening, encode_prompt
from potstill.training.batch import Item, collate, cut
from potstill.training.decoding import MOST_ROWS, Batch, Row
from potstill.training.models import choose_device, load_model, load_tokenizer, stop_ids, weights_files
from potstill.training.peak import PeakMemory
from potstill.training.probe import check_positions, position_limit
from potstill.training.scoring import Scorer, build_scorer

logger = logging.getLogger(__name__)

REORDER = 16384
"""Replies that may wait for one that was asked for before them and is still being written."""
SCORE_TOKENS = 4096
"""Tokens scored at once."""
SCORE_ROWS = 256
"""Answers that are tokens at once."""

THINK, THOUGHT = "<think>", "</think>"
"""What many models write around what they think before they answer."""


@dataclass
class _Asked:
    request: Request
    place: int
    attempt: int = 0

    @property
    def is_last(self) -> bool:
        """Whether its reply stands, whatever it is. A greedy answer would be the same again."""
        return self.request.temperature == 0 or self.attempt + 1 >= self.request.attempts


class LocalTeacher:
    """A transformers model in this process. Use it in a `with` block: its memory is given back at the end.

    It cannot be held to a schema: of a request's `schema` it knows what the prompt says.
    """

    def __init__(
        self, model: Model, meter: Meter | None = None, state: Path | None = None, gauge: Gauge | None = None
    ) -> None:
        """`state`: the folder of a stage where what this model works out is kept until the stage is sealed. Whoever
        does the same with such a folder again gets the same, and waits for what was not there alone. `gauge` is told
        what the model is and takes."""
        device = choose_device()
        self.name, self._memory, self._gauge = model.name, PeakMemory(device), gauge or Gauge()
        self._meter = meter or Meter()
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(
            model, self.tokenizer, device, torch.bfloat16 if device.type == "cuda" else torch.float32
        )
        self.model.eval()  # type: ignore[no-untyped-call]
        self.stops = stop_ids(self.model, self.tokenizer)
        self.context = position_limit(self.model)
        depends_on = [model.name, weights_identity(model.local.path), device.type, str(self.model.dtype)]
        self._spool = Spool(state, "local", depends_on)
        self._gauge.parameters = self.model.num_parameters()
        self._gauge.weights_bytes = sum(file.stat().st_size for file in weights_files(model.local)) or None
        self._gauge.device, self._gauge.memory_of = device.type, self._memory.of

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._spool.close()
        self._gauge.memory_bytes = max(self._gauge.memory_bytes, self._memory.bytes)
        del self.model

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order. Where an answer ends, the next request takes its place in the batch.

        Requests are read as places come free, so a million of them take no more memory than a thousand. The same
        requests give the same replies, and each by itself what it gives among others (`decoding.Batch` says how far).
        A greedy answer is asked for once, whatever `attempts` says: it would only be the same again.
        """
        source = enumerate(requests)
        batch = Batch(self.model, self.stops)
        if not batch.joins:
            logger.warning("%s: its cache cannot be joined, so batches last until their longest answer ends", self.name)
        asked: dict[Row, _Asked] = {}
        waiting: deque[Row] = deque()
        replies: dict[int, Reply] = {}
        following = 0  # the place of the next reply to hand out
        while True:
            room = min(MOST_ROWS - len(waiting), REORDER - len(replies))
            for place, request in islice(source, max(0, room)):
                row = self.row(request)
                if fault := self.fault(row):
                    replies[place] = fault
                else:
                    asked[row] = _Asked(request, place)
                    waiting.append(row)
            ended = self._step(batch, waiting) if asked else []
            self._spool.keep((_row_key(row), row.tokens) for row in ended if not (row.known or row.told))
            for row in ended:
                its = asked.pop(row)
                reply = with_tool_calls(self._reply(row, its.request), its.request)
                if its.is_last or its.request.accept(reply):
                    replies[its.place] = reply
                else:
                    its.attempt += 1
                    asked[anew := self.row(its.request, its.attempt)] = its
                    waiting.appendleft(anew)
            if not (asked or replies):
                return
            while following in replies:
                reply = replies.pop(following)
                self._meter.add(reply.prompt_tokens, reply.completion_tokens)
                yield reply
                following += 1

    def _step(self, batch: Batch, waiting: deque[Row]) -> list[Row]:
        """A step of the batch, timed where anything new is written in it."""
        began = time.perf_counter()
        ended = batch.step(waiting)
        written = sum(not row.known for row in (*batch.rows, *ended))
        if written:
            self._gauge.seconds += time.perf_counter() - began
            self._gauge.tokens += written
            self._memory.look()
        return ended

    def stream(self, request: Request) -> Iterator[str]:
        """The answer to one request, piece by piece as it is written: all of it, what was thought first as well."""
        return (piece for piece, _ in self.write(request) if piece)

    def write(self, request: Request) -> Iterator[tuple[str, int]]:
        """The same a token at a time: what can be told by it, perhaps nothing, and how many tokens there are."""
        row = self.row(request)
        if self.fault(row):
            return
        batch, waiting, spelling = Batch(self.model, self.stops), deque([row]), Spelling(self.tokenizer)
        while waiting or batch.rows:
            batch.step(waiting)
            ended = row.tokens[-1] in self.stops
            yield "" if ended else spelling.add(row.tokens[-1]), len(row.tokens)
        yield spelling.rest(), len(row.tokens)

    def length(self, request: Request) -> int:
        """Tokens of the prompt."""
        return len(self.row(request).prompt_ids)

    def score(self, exchanges: Iterable[Exchange]) -> Iterator[tuple[float, int]]:
        """The summed log-probability, in nats, of each answer's tokens and end given its prompt, and their number.

        In order, some at a time. ModelError where a row is longer than the model has positions for.
        """
        source = iter(exchanges)
        scorer = build_scorer(self.model).eval()
        try:
            while some := list(islice(source, SCORE_ROWS)):
                yield from self._score(scorer, some)
        finally:
            scorer.release()

    def _score(self, scorer: Scorer, exchanges: Sequence[Exchange]) -> list[tuple[float, int]]:
        silent = [[*(m.model_copy(update={"train": False}) for m in e.prompt), *e.answer] for e in exchanges]
        encoded = encode_chats(self.tokenizer, silent, tools=[e.tools for e in exchanges])
        remedy = "Take the row out of the data, or measure a model that reads more"
        for exchange, row in zip(exchanges, encoded, strict=True):
            check_positions(self.model, [Item.chat(exchange.row, row)], remedy)
        items = [Item.chat(str(index), row) for index, row in enumerate(encoded)]
        sums: dict[str, float] = {}
        with torch.no_grad():
            for group in cut(items, SCORE_TOKENS):
                key = _score_key(group)  # of all at once: sums round by what is scored together
                found = self._spool.take(key)
                if found is None:
                    batch = collate(group)
                    found = batch.by_answer(scorer(batch.to(scorer.device)).cpu()).tolist()
                    self._spool.keep([(key, found)])
                sums |= dict(zip((item.row for item in group), found, strict=True))
        return [(sums[item.row], item.scored) for item in items]

    def row(self, request: Request, attempt: int = 0) -> Row:
        """A request as the batch takes it. One of `tokens` alone is gone on from as it stands."""
        if request.tokens:
            prompt_ids = np.array(request.tokens, dtype=np.int32)
        elif request.opening:
            prompt_ids = encode_opening(self.tokenizer, request.opening)
        else:
            prompt_ids = encode_prompt(self.tokenizer, request.messages, request.tools)
        seed = request_seed(request.seed, "attempt", attempt) if attempt else request.seed
        row = Row(
            prompt_ids=prompt_ids,
            limit=min(request.max_tokens, self.context - len(prompt_ids)),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request_seed(seed, request.sample),
            told=1 if request.top_logprobs else 0,
            listed=request.top_logprobs,
        )
        row.known = () if row.told else self._spool.take(_row_key(row)) or ()
        return row

    def fault(self, row: Row) -> Reply | None:
        """The reply where nothing can be written: the prompt leaves no room for an answer, or is none."""
        length = len(row.prompt_ids)
        if not length:
            return Reply("", "error", "the prompt holds no token")
        if row.limit < 1:
            return Reply("", "error", f"the prompt has {length} tokens and the model reads {self.context}", length)
        return None

    def _reply(self, row: Row, request: Request) -> Reply:
        text, reasoning = self._text(row), ""
        if not request.opening:
            tail = str(self.tokenizer.decode(row.prompt_ids[-8:].tolist()))
            reasoning, text = split_reasoning(text, begun=tail.rstrip().endswith(THINK))
        finish: Finish = "stop"
        reason = ""
        if row.tokens[-1] not in self.stops:
            finish, reason = "length", f"not finished after {len(row.tokens)} tokens"
        elif not text.strip():
            finish, reason = "empty", "the answer is empty"
        listed = row.odds[0].likeliest if row.odds else ()
        likeliest = tuple((str(self.tokenizer.decode([token])), logp) for token, logp in listed)
        return Reply(text, finish, reason, len(row.prompt_ids), len(row.tokens), reasoning, likeliest=likeliest)

    def _text(self, row: Row) -> str:
        said = row.tokens[:-1] if row.tokens[-1:] and row.tokens[-1] in self.stops else row.tokens
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def _row_key(row: Row) -> str:
    """All that an answer depends on besides the model."""
    drawn = [row.limit, row.temperature, row.top_p, row.top_k, row.seed]
    return digest(["answer", row.prompt_ids.tolist(), *drawn])


def _score_key(items: Sequence[Item]) -> str:
    """All that the scores of rows that are scored together depend on besides the model."""
    rows = [
        [item.prompt_ids.tolist(), [[ids_L.tolist(), learn_L.tolist()] for ids_L, learn_L in item.answers]]
        for item in items
    ]
    return digest(["scores", rows])


def split_reasoning(text: str, *, begun: bool) -> tuple[str, str]:
    """What was thought and what was answered. Where `begun`, the prompt has opened the thought already.

    A thought without an end is all there is: no answer came. Text that begins with anything else is all answer.
    """
    if not begun:
        if not text.lstrip().startswith(THINK):
            return "", text
        text = text.lstrip().removeprefix(THINK)
    reasoning, _, answer = text.partition(THOUGHT)
    return reasoning.strip(), answer.lstrip()


def answer_logprobs(model: Model, exchanges: Iterable[Exchange], state: Path | None = None) -> list[tuple[float, int]]:
    """`LocalTeacher.score` of a model that is loaded for it; `state` as there."""
    with LocalTeacher(model, state=state) as teacher:
        return list(teacher.score(exchanges))
