"""What stages that make prompts have in common: how they ask for lists, read them, and what they leave out."""

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated

from pydantic import Field, model_validator

from potstill.curation.novelty import Novelty
from potstill.errors import TeacherError
from potstill.records import Dropped, Message
from potstill.sources import Inputs
from potstill.stages.asking import Asking, Prompts, Tally
from potstill.stages.base import Harvest, ModelName
from potstill.stages.domain import Domain, domain_text
from potstill.teachers.base import Reply, Request, remedy, request_seed

TOKENS_PER_PROMPT = 40  # for forecasts
Words = Annotated[str, Field(min_length=1)]
Reader = Callable[[str], list[str]]
Drop = Callable[[Dropped], None]


class Prompting(Asking):
    """A stage that has a teacher write prompts."""

    teacher: ModelName
    """Who writes them."""
    domain: Domain | None = None
    """What they are to be about. Default: the recipe's."""
    novelty: float | None = Field(default=0.7, gt=0, le=1)
    """Drop a prompt whose ROUGE-L F against any that was kept is over this; null: only those that are the same."""
    min_words: int = Field(default=4, ge=1)
    """Drop shorter prompts."""
    max_words: int = Field(default=150, ge=1)
    """Drop longer prompts."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the teacher's sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the teacher's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest reply. Of a list that was cut there, the whole items count; the cut one does where `truncated` is
    "keep"."""

    @model_validator(mode="after")
    def _words_in_order(self) -> "Prompting":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words} and max_words {self.max_words}: nothing would be kept")
        return self


def sieve(config: Prompting) -> "Sieve":
    """For the prompts of a stage."""
    return Sieve(config.novelty, config.min_words, config.max_words)


class Sieve:
    """What is wrong with a prompt by itself, and against those that were kept."""

    def __init__(self, novelty: float | None, min_words: int, max_words: int, forbidden: tuple[str, ...] = ()) -> None:
        self._min_words, self._max_words = min_words, max_words
        self._forbidden = [(word, re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)) for word in forbidden]
        self._known = Novelty(novelty) if novelty is not None else None
        self._seen: set[bytes] = set()

    def add(self, text: str) -> None:
        """Hold later ones against this one."""
        self._seen.add(_fingerprint(text))
        if self._known is not None:
            self._known.add(text)

    def fault(self, text: str) -> tuple[str, str]:
        """(reason, detail) of the first thing that is wrong; two empty texts where nothing is."""
        count = len(text.split())
        if count < self._min_words:
            return "too_short", text
        if count > self._max_words:
            return "too_long", f"{count} words"
        found = next((word for word, pattern in self._forbidden if pattern.search(text)), None)
        if found is not None:
            return "forbidden_word", found
        if _fingerprint(text) in self._seen:
            return "duplicate", text
        if self._known is not None and self._known.nearest(text) is not None:
            return "not_novel", text
        return "", ""

    def take(self, harvest: Harvest, name: str, text: str) -> bool:
        """Whether it is kept: later ones are then held against it. Otherwise it is dropped with its reason."""
        reason, detail = self.fault(text)
        if reason:
            harvest.drop(Dropped(id=name, reason=reason, detail=detail))
            return False
        self.add(text)
        return True


def _fingerprint(text: str) -> bytes:
    """The same for texts that differ in capitals, punctuation and blanks only. 16 bytes."""
    return blake2b(" ".join(re.findall(r"\w+", text.lower())).encode(), digest_size=16).digest()


class Writer:
    """Asks for what a stage's prompts ask for, and reads lists from the replies."""

    def __init__(self, config: Prompting, inputs: Inputs, seed: int) -> None:
        self.config, self.prompts, self.seed = config, Prompts(inputs), seed
        self.domain = domain_text(self.prompts, config.domain)
        self.tally = Tally()
        self.first: Reply | None = None
        """The first reply, to be quoted where none was of use."""

    def request(
        self, name: str, *place: str | int, reads: Callable[[str], object], greedy: bool = False, **blanks: object
    ) -> Request:
        """The prompt `name` as a request. Its seed is made of `place`, which tells it from the stage's others; `reads`
        tells a reply of use."""
        config = self.config
        text = self.prompts.render(name, domain=self.domain, **blanks).strip()
        return Request(
            messages=(Message(role="user", content=text),),
            max_tokens=config.max_tokens,
            temperature=0.0 if greedy else config.temperature,
            top_p=config.top_p,
            seed=request_seed(self.seed, *place),
            attempts=config.ask_again + 1,
            accept=config.accepting(reads),
        )

    def heard(self, reply: Reply) -> Reply:
        """Count a reply; gives it back."""
        self.first = self.first or reply
        return self.tally.add(reply)

    def items(self, drop: Drop, name: str, reply: Reply, read: Reader | None = None) -> list[str]:
        """The items of a list that was asked for, without the one that was cut. What cannot be used is dropped."""
        self.heard(reply)
        if reply.finish not in ("stop", "length"):
            drop(Dropped(id=name, reason=f"reply_{reply.finish}", detail=reply.reason))
            return []
        items = (read or read_list)(reply.text)
        if not items:
            drop(Dropped(id=name, reason="unread", detail=reply.text[:200]))
        elif not self.config.is_whole(reply):
            drop(Dropped(id=f"{name}-{len(items) - 1}", reason="cut_off", detail=items.pop()))
        return items

    def nothing(self, model: str, harvest: Harvest, thing: str) -> TeacherError:
        """What to say where not one row came of all replies."""
        asked = self.tally.finishes.total()
        why = f"none of {asked} replies held {thing} to keep ({harvest.why_nothing()}"
        assert self.first
        why += f"; the first: {self.first.reason})" if self.first.reason else ")"
        return TeacherError(model, why, remedy(self.first, "Use another teacher", "max_tokens"))


_ITEM = re.compile(r"^[ \t]*(?:\*\*)?(?:(\d{1,3})[.):]|[-*•])(?:\*\*)?[ \t]+", re.MULTILINE)


def read_list(text: str) -> list[str]:
    """The items of a numbered list, or of a bulleted one where nothing is numbered, each on one line.

    What stands before the list, and behind a blank line in it, is talk. Bullets inside a numbered list belong to its
    items and are left out.
    """
    heads = list(_ITEM.finditer(text))
    numbered = any(head[1] for head in heads)
    ends = [*(head.start() for head in heads), len(text)][1:]
    items = []
    for head, end in zip(heads, ends, strict=True):
        if bool(head[1]) == numbered:
            body = text[head.end() : end].split("\n\n")[0]
            items.append(one_line(body).removeprefix("**").removesuffix("**").strip())
    return [item for item in items if item]


def one_line(text: str) -> str:
    """Without line breaks and double blanks."""
    return " ".join(text.split())
