"""Stage `curate`: dialogues become fewer and better ones; every one that is left out is kept aside with its reason.

In this order, each step seeing what the one before left: truecase, then drop what is empty, too long, repeats itself,
hedges or refuses, then what overlaps with evaluation prompts, then near duplicates of dialogues that were kept.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from potstill.curation.decontaminate import Decontaminator, keeping_out
from potstill.curation.deduplicate import Deduplicator
from potstill.curation.filters import find_hedge, find_refusal, repetition, strip_hedges
from potstill.curation.truecase import Truecaser
from potstill.errors import DataError
from potstill.records import Chat, Dropped, Message
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work


class Curate(StageConfig):
    """Mend and filter dialogues."""

    kind: Literal["curate"]
    data: Annotated[str, Reference(("chats",))]
    """The dialogues."""
    truecase: bool = False
    """Give broken capitals back, as the rest of the dialogues teach them."""
    hedges: Literal["drop", "strip", "keep"] = "drop"
    """Dialogues whose assistant talks of being a machine without opinions or feelings: drop them, as Zephyr does;
    strip takes away only the sentences that do."""
    refusals: Literal["drop", "keep"] = "drop"
    """Dialogues in which the assistant declines to answer."""
    max_repetition: float = Field(default=0.3, ge=0, le=1)
    """Drop a dialogue with an answer that says more than this share of its runs of four words again. 1 drops none."""
    max_characters: int | None = Field(default=None, ge=1)
    """Drop longer dialogues."""
    decontaminate: Annotated[str | tuple[str, ...], Reference(("prompts", "chats", "pairs"))] = ()
    """Evaluation prompts that no user turn may repeat."""
    overlap_words: int = Field(default=13, ge=5)
    """How many words in a row, shared with an evaluation prompt, count as repeating it."""
    deduplicate: float | None = Field(default=None, gt=0, le=1)
    """Drop dialogues whose words are this much alike to a kept one's: Jaccard similarity of runs of three words."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        return Expected(rows=rows["data"])


@dataclass
class _Curator:
    """The steps with what they learnt, and what they counted."""

    config: Curate
    truecaser: Truecaser | None
    decontaminator: Decontaminator
    deduplicator: Deduplicator | None
    dropped: list[Dropped] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def keep(self, chat: Chat) -> Chat | None:
        """The chat, mended, or None with its reason noted."""
        chat = self._mend(chat)
        fault = self._fault(chat)
        if fault is None:
            return chat
        self.dropped.append(Dropped(id=chat.id, reason=fault[0], detail=fault[1]))
        return None

    def _mend(self, chat: Chat) -> Chat:
        messages = chat.messages
        if self.truecaser is not None:
            restored = [self.truecaser.restore(message.content) for message in messages]
            changed = sum(count for _, count in restored)
            self.counts["truecased_words"] += changed
            self.counts["truecased_dialogues"] += changed > 0
            messages = tuple(
                message.model_copy(update={"content": text})
                for message, (text, _) in zip(messages, restored, strict=True)
            )
        if self.config.hedges == "strip" and find_hedge(messages):
            messages = tuple(_without_hedges(message) for message in messages)
            self.counts["stripped_dialogues"] += 1
        return chat.model_copy(update={"messages": messages})

    def _fault(self, chat: Chat) -> tuple[str, str] | None:
        """(reason, detail) of the first thing that is wrong."""
        messages = chat.messages
        answers = [message.content for message in messages if message.role == "assistant"]
        if any(not answer.strip() for answer in answers):
            return "empty", "an assistant turn says nothing"
        length = sum(len(message.content) for message in messages)
        if self.config.max_characters is not None and length > self.config.max_characters:
            return "too_long", f"{length} characters"
        if (share := max(map(repetition, answers))) > self.config.max_repetition:
            return "repetition", f"{share:.0%} of an answer's runs of words are repeated"
        if self.config.hedges == "drop" and (found := find_hedge(messages)):
            return "hedge", found
        if self.config.refusals == "drop" and (found := find_refusal(messages)):
            return "refusal", found
        if overlap := self.decontaminator.find(messages):
            return "contaminated", f"{overlap[0]}: {overlap[1]}"
        if self.deduplicator is None:
            return None
        near = self.deduplicator.add(chat.id, "\n".join(message.content for message in messages))
        return None if near is None else ("near_duplicate", f"{near[0]}: {near[1]:.3f}")


def run(config: Curate, inputs: Inputs, work: Work) -> Facts:
    """Learn capitals and evaluation prompts, then send each dialogue through the steps."""
    data = inputs.one("data")
    curator = _Curator(
        config,
        Truecaser.learn(m.content for chat in data.rows(Chat) for m in chat.messages) if config.truecase else None,
        keeping_out(config.overlap_words, inputs.data.get("decontaminate", ())),
        Deduplicator(config.deduplicate) if config.deduplicate is not None else None,
    )

    def kept() -> Iterator[Chat]:
        for done, chat in enumerate(data.rows(Chat), start=1):
            curator.counts["read"] += 1
            curated = curator.keep(chat)
            work.progress(done, 0, "dialogues")
            if curated is not None:
                yield curated

    count = work.keep(kept())
    work.drop(curator.dropped)
    reasons = dict(sorted(Counter(row.reason for row in curator.dropped).items()))
    if count == 0:
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "there were none"
        raise DataError(data.name, f"no dialogue is left ({why})", "Loosen the filter that dropped them")
    return {
        "rows": count,
        "read": curator.counts["read"],
        "dropped": reasons,
        "truecased_dialogues": curator.counts["truecased_dialogues"],
        "truecased_words": curator.counts["truecased_words"],
        "stripped_dialogues": curator.counts["stripped_dialogues"],
    }


def _without_hedges(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return message.model_copy(update={"content": strip_hedges(message.content)})


STAGE = Stage(config=Curate, produces="chats", run=run)
