"""A teacher that reads more than its student: the same answer tokens behind another prompt.

So a model can be its own teacher: what it says under a principle, or with a good answer before it, it learns to say
without (context distillation; Askell et al. 2021, section 2.1; Snell et al. 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from potstill.errors import DataError
from potstill.records import Message, told
from potstill.tokens.tokenization import Ids, Tools, encode_prompt
from potstill.training.batch import Item
from potstill.training.sampling import openings

ANSWER = "{answer}"
"""In a teacher's words: stands for what the row's own answers say, so that the teacher has seen them."""


@dataclass(frozen=True)
class Guide:
    """What one conversation begins with, up to its first learnt turn."""

    student_ids: Ids
    teacher_ids: Ids

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, item: Item, messages: Sequence[Message], words: str, tools: Tools = ()
    ) -> Self:
        """For a conversation, and the student's item of all of it. The teacher finds `words` in its system turn, below
        what stands there already; the tokenizer is the student's, whose tokens the teacher reads.
        DataError where it begins with an assistant."""
        if messages[0].role == "assistant":
            what = "the conversation begins with an assistant's turn, before which a teacher can be told nothing"
            raise DataError(f"row '{item.row}'", what, "Take the row out of the data")
        first = next(index for index, message in enumerate(messages) if is_learnt(message))
        answers = "\n\n".join(message.content for message in messages if is_learnt(message))
        begins = told(messages[:first], words.replace(ANSWER, answers))
        return cls(openings(item)[0], encode_prompt(tokenizer, begins, tools))

    def item(self, student: Item) -> Item:
        """What the teacher reads where the student reads that: the conversation itself, or an answer to any of its
        turns. The scored tokens are the student's, one for one; only what stands before the first turn is another."""
        ((ids_L, learn_L),) = student.answers
        cut = len(self.student_ids)
        whole_L = np.concatenate([student.prompt_ids, ids_L])
        scored_L = np.concatenate([np.zeros(len(student.prompt_ids), dtype=np.bool_), learn_L])
        assert np.array_equal(whole_L[:cut], self.student_ids), f"{student.row} does not begin as its conversation does"
        assert not scored_L[:cut].any(), f"{student.row} has tokens to score before its first turn"
        return replace(student, prompt_ids=self.teacher_ids, answers=((whole_L[cut:], scored_L[cut:]),), signals=())


def is_learnt(message: Message) -> bool:
    """Whether a student learns it."""
    return message.role == "assistant" and message.train
