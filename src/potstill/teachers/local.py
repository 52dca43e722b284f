"""A teacher whose weights are at hand: completes chats in batches, streams one, and scores given answers."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import torch

from potstill.records import Message
from potstill.sources import Model
from potstill.teachers.base import Reply, Request, request_seed
from potstill.teachers.decoding import Sampling, decode
from potstill.tokenization import encode_chats, encode_prompt
from potstill.training.batch import Item, micro_batches
from potstill.training.models import choose_device, load_model, load_tokenizer, stop_ids
from potstill.training.scoring import build_scorer

BATCH_TOKENS = 16384
"""Prompt and answer tokens of the rows decoded together."""
SCORE_TOKENS = 4096
"""Tokens scored at once."""

Conversation = tuple[Sequence[Message], Sequence[Message]]
"""A prompt, and the answer to it."""


class LocalTeacher:
    """A transformers model in this process. Use it in a `with` block: its memory is given back at the end."""

    def __init__(self, model: Model) -> None:
        device = choose_device()
        self.name = model.name
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(
            model, self.tokenizer, device, torch.bfloat16 if device.type == "cuda" else torch.float32
        )
        self.model.eval()  # type: ignore[no-untyped-call]
        self.stops = stop_ids(self.model, self.tokenizer)
        self.context = self.model.config.get_text_config().max_position_embeddings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del self.model

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order. Requests of like length are decoded together; the same requests give the
        same replies."""
        asked = list(requests)
        rows = [self._row(request) for request in asked]
        replies: dict[int, Reply] = {}
        for index, row in enumerate(rows):
            if row.limit < 1:
                reason = f"the prompt has {len(row.prompt_ids)} tokens and the model reads {self.context}"
                replies[index] = Reply("", "error", reason, len(row.prompt_ids), 0)
        for group in _groups(rows, [index for index in range(len(rows)) if index not in replies]):
            steps = list(decode(self.model, [rows[index] for index in group], self.stops))
            for place, index in enumerate(group):
                tokens = [step[place] for step in steps if step[place] >= 0]
                replies[index] = self._reply(rows[index], tokens)
        for index in range(len(rows)):
            yield replies[index]

    def stream(self, request: Request) -> Iterator[str]:
        """The answer to one request, piece by piece as it is written."""
        row = self._row(request)
        tokens: list[int] = []
        given = ""
        if row.limit < 1:
            return
        for (token,) in decode(self.model, [row], self.stops):
            if token not in self.stops:
                tokens.append(token)
            text = self._text(tokens)
            if len(text) > len(given) and not text.endswith("\ufffd"):  # half a character waits for its other half
                yield text[len(given) :]
                given = text
        rest = self._text(tokens)[len(given) :]
        if rest:
            yield rest

    def score(self, conversations: Sequence[Conversation]) -> list[tuple[float, int]]:
        """The summed log-probability, in nats, of each answer's tokens and end given its prompt, and their number."""
        silent = [
            [*(m.model_copy(update={"train": False}) for m in prompt), *answer] for prompt, answer in conversations
        ]
        encoded = encode_chats(self.tokenizer, silent)
        items = [Item.chat(str(index), row) for index, row in enumerate(encoded)]
        scorer = build_scorer(self.model).eval()
        sums: dict[str, float] = {}
        try:
            with torch.no_grad():
                for batch in micro_batches(items, SCORE_TOKENS):
                    found = batch.by_answer(scorer(batch.to(scorer.device)).cpu()).tolist()
                    sums |= dict(zip(batch.row_ids, found, strict=True))
        finally:
            scorer.release()
        return [(sums[item.row], item.scored) for item in items]

    def _row(self, request: Request) -> Sampling:
        prompt_ids = encode_prompt(self.tokenizer, request.messages)
        return Sampling(
            prompt_ids=prompt_ids,
            limit=min(request.max_tokens, self.context - len(prompt_ids)),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request_seed(request.seed, request.sample),
        )

    def _reply(self, row: Sampling, tokens: list[int]) -> Reply:
        stopped = tokens[-1] in self.stops
        text = self._text(tokens[:-1] if stopped else tokens)
        if stopped:
            return Reply(text, "stop", "", len(row.prompt_ids), len(tokens))
        return Reply(text, "length", f"not finished after {len(tokens)} tokens", len(row.prompt_ids), len(tokens))

    def _text(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def _groups(rows: Sequence[Sampling], indices: Sequence[int]) -> Iterator[list[int]]:
    """Rows to decode together: longest first, as many as the budget of tokens allows."""
    group: list[int] = []
    width = 0
    for index in sorted(indices, key=lambda i: (-len(rows[i].prompt_ids), -rows[i].limit, i)):
        wide = max(width, len(rows[index].prompt_ids) + rows[index].limit)
        if group and wide * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group, wide = [], len(rows[index].prompt_ids) + rows[index].limit
        group.append(index)
        width = wide
    if group:
        yield group


def answer_logprobs(model: Model, conversations: Sequence[Conversation]) -> list[tuple[float, int]]:
    """`LocalTeacher.score` of a model that is loaded for it."""
    with LocalTeacher(model) as teacher:
        return teacher.score(conversations)
