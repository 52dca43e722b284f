"""What every teacher is: something that completes chats, in order, and says why where it could not."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from potstill.records import Finish, Message, ToolCall
from potstill.sources import Account, EndpointModel, Model

REPLIES_ARE_KEPT = "Its replies are kept: give a model that was mended under its old name a revision of its own"
"""What whoever finds a teacher's replies useless has to know: the same request is not asked a second time."""


def is_whole(reply: "Reply") -> bool:
    """It ended by itself and says something."""
    return reply.finish == "stop"


@dataclass(frozen=True)
class Request:
    """One completion to ask for."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is all. Sent to no endpoint: the protocol has no such field."""
    seed: int = 0
    sample: int = 0
    """Tells several completions of the same request apart."""
    tools: tuple[str, ...] = ()
    """What the model may call: JSON Schemas as chat templates take them, each as text."""
    schema: str = ""
    """A JSON Schema, as text, that the answer is to keep to. Sent where the model is declared `structured`."""
    opening: str = ""
    """Text to go on from as it stands, without a chat template; `messages` are then empty (Magpie)."""
    tokens: tuple[int, ...] = ()
    """Token ids to be scored as they stand; `messages` are then empty. See `logprobs`."""
    listed: int = 0
    """Of how many of the likeliest tokens the log-probabilities are asked for, at each of these."""
    top_logprobs: int = 0
    """Of how many of the likeliest first tokens of the answer the log-probabilities are asked for."""
    attempts: int = 1
    """How often to ask, each time with another seed, until `accept` takes the reply; the last one stands."""
    accept: "Callable[[Reply], bool]" = is_whole
    """Whether a reply is of use. Called from another thread."""


@dataclass(frozen=True)
class Reply:
    """What came back. Where finish is not "stop", `reason` says why, and `text` holds what there is."""

    text: str
    finish: Finish = "stop"
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    """What the model thought before it answered, where the server tells it apart from the answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    likeliest: tuple[tuple[str, float], ...] = ()
    """What the answer might have begun with: tokens as text, each with its log-probability in nats, the likeliest
    first. Empty where they were not asked for, or not given."""
    body: str = ""
    """The server's whole reply, where it speaks of the prompt's tokens: it is large, and read when it is needed."""
    origin: Literal["model", "journal", "nobody"] = "model"
    """Who gave it: a model at hand; a server, in which case the journal holds it; or nobody, as no answer came."""


@dataclass(frozen=True)
class Exchange:
    """A given answer and what it answers: a local model says how likely it is."""

    row: str
    """The row that they come from, by its id."""
    prompt: Sequence[Message]
    answer: Sequence[Message]
    tools: tuple[str, ...] = ()
    """What the model may call, as in a Request."""


def remedy(reply: Reply, advice: str, limit: str = "") -> str:
    """What to do where nothing came of all that was asked, by the first reply that was of no use.

    `advice` is for whose answers are useless; `limit` names the field to raise where they were cut.
    """
    if reply.origin == "nobody":
        return "See to the server and to what it is asked for, and run again; replies that came are kept"
    if reply.finish == "length" and limit:
        advice += f", or raise {limit}"
    return f"{advice}. {REPLIES_ARE_KEPT}" if reply.origin == "journal" else advice


class Teacher(Protocol):
    """Completes chats."""

    name: str

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in the order of the requests, whatever order they were served in.

        A request that cannot be served is a reply with its reason. A teacher that cannot be reached at all, or
        refuses the key, raises TeacherError.
        """
        ...


@runtime_checkable
class Asynchronous(Protocol):
    """A teacher that can be asked one thing while it works on others."""

    def submit(self, request: Request) -> "Future[Reply]":
        """Ask, and go on: the future has the reply once it is there."""
        ...


def connect(model: Model, account: Account) -> AbstractContextManager[Teacher]:
    """The teacher behind a model of the recipe. Replies that were paid for are kept in the journal; what a local model
    said, with the stage until that is sealed."""
    if isinstance(model.spec, EndpointModel):
        if model.spec.batch:
            from potstill.teachers.batches import BatchEndpoint

            return BatchEndpoint(model, account)
        from potstill.teachers.client import Endpoint

        return Endpoint(model, account)
    from potstill.teachers.local import LocalTeacher  # imports torch

    return LocalTeacher(model, account.meter, account.state, account.gauge)


def request_seed(seed: int, *parts: str | int) -> int:
    """A seed of 31 bits for one request of a stage, from the stage's seed and what names the request."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
