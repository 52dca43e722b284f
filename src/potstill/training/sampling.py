"""What the model that is being trained answers now: prompts to answers, the tokens that were drawn and no others.

Answers are never text on the way. Tokens that are decoded and read again may be other tokens, which the model did not
draw and finds less likely.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.tokens.tokenization import Ids
from potstill.training.batch import Item
from potstill.training.decoding import Batch, Row
from potstill.training.models import stop_ids
from potstill.training.probe import bare, position_limit
from potstill.training.scoring import Scorer


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. None of it is part of a loss: what is learnt of an answer does not depend on how it came
    about, and a loss that has a temperature has one of its own."""

    sampling_temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0 is all."""
    max_tokens: int
    """Where an answer is cut that has not ended."""


@dataclass(frozen=True)
class Prompt:
    """What is to be answered."""

    row: str
    ids: Ids
    """Ends where the answer begins."""
    seed: int
    """All that its answer depends on besides the tokens and the model."""


@dataclass(frozen=True)
class Speaker:
    """A model under training, and what of its vocabulary it may use."""

    scorer: Scorer
    stop_ids: frozenset[int]
    vocabulary: int
    """Ids from here on fill up its head: no tokenizer knows them, and they are never drawn."""

    @classmethod
    def of(cls, scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> Self:
        """One that ends where the tokenizer or the model says, and says what the tokenizer knows."""
        ends = stop_ids(bare(scorer.model), tokenizer)
        return cls(scorer, frozenset(ends), 1 + max(tokenizer.get_vocab().values()))

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Item]:
        """One answer a prompt, in order, each token of it scored.

        Drawn from what the scorer scores: in the precision that training uses, adapters on, dropout off, logits in full
        precision. Everything is then as it was: attention, mode, and the generators that dropout and noise draw from.
        An answer that ended by itself has its end token, which is learnt as well; one that was cut at `max_tokens`, or
        where the model has no more positions, has none, so that nobody learns to end there.
        """
        rows = [self._row(prompt, sampling) for prompt in prompts]
        scorer, waiting = self.scorer, deque(rows)
        half = scorer.precision == torch.bfloat16
        # One region of autocast around all steps: weights are rounded once, not once a token.
        with scorer.lent() as model, scorer.products(), torch.autocast(scorer.device.type, scorer.precision, half):
            batch = Batch(model, sorted(self.stop_ids), head=self._head)
            while waiting or batch.rows:
                batch.step(waiting)
        return [answered(prompt, row.tokens) for prompt, row in zip(prompts, rows, strict=True)]

    def is_cut(self, item: Item) -> bool:
        """Whether its answer has not ended by itself."""
        ids_L, _ = item.answers[0]
        return int(ids_L[-1]) not in self.stop_ids

    def _head(self, hidden_RD: Tensor) -> Tensor:
        return self.scorer.head.logits(hidden_RD)[:, : self.vocabulary]

    def _row(self, prompt: Prompt, sampling: Sampling) -> Row:
        room = position_limit(self.scorer.model) - len(prompt.ids)
        assert len(prompt.ids), f"{prompt.row} asks nothing"
        assert room > 0, f"{prompt.row} leaves no room for an answer"
        return Row(
            prompt_ids=prompt.ids,
            limit=min(sampling.max_tokens, room),
            temperature=sampling.sampling_temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=prompt.seed,
        )


def answered(prompt: Prompt, tokens: Sequence[int] | Ids) -> Item:
    """The prompt with that answer, all of it scored."""
    ids_L = np.array(tokens, dtype=np.int32)
    return Item(prompt.row, prompt.ids, ((ids_L, np.ones(len(ids_L), dtype=np.bool_)),))


def openings(item: Item) -> list[Ids]:
    """What stands before each learnt turn of a conversation: the prompts that its answers answer."""
    found = []
    for ids_L, learn_L in item.answers:
        begins_L = learn_L & ~np.concatenate([[False], learn_L[:-1]])
        found += [np.concatenate([item.prompt_ids, ids_L[:place]]) for place in np.flatnonzero(begins_L)]
    return found


def longest_answered(items: Sequence[Item], max_tokens: int) -> Item:
    """A stand-in for the longest row that there can be when any of these is answered: for plans of memory."""
    prompts = ((item.row, max(openings(item), key=len)) for item in items)
    row, prompt_ids = max(prompts, key=lambda prompt: len(prompt[1]))
    return answered(Prompt(row, prompt_ids, 0), [0] * max_tokens)


def check_room(model: PreTrainedModel, items: Sequence[Item], max_tokens: int) -> None:
    """ModelError where a prompt of these and an answer of `max_tokens` need more positions than the model has."""
    limit, longest = position_limit(model), longest_answered(items, max_tokens)
    if longest.longest <= limit:
        return
    prompt = len(longest.prompt_ids)
    remedy = f"Set max_tokens: {limit - prompt}" if prompt < limit else f"Set max_length: {limit - max_tokens}"
    raise ModelError(
        f"row '{longest.row}'",
        f"its prompt of {prompt:,} tokens and an answer of max_tokens: {max_tokens:,} come to {longest.longest:,}, and "
        f"the model reads {limit:,} at most",
        remedy if limit > max_tokens else "Set a lower max_tokens",
    )
