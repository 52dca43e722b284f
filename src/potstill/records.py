"""The rows that stages exchange. One class a kind of row; `ROWS` names them as recipes do."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "refusal", "filter", "empty", "error"]
"""How an answer ended: as it should, cut at its limit, declined, stopped by a filter, saying nothing, or not at all."""


def whole_text(text: str) -> str:
    """The text with each half of a character, which JSON can spell and no file can hold, made into U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _object_text(value: Any) -> Any:
    """An object as JSON text, its keys in their order; a text is checked to be one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError("not JSON; expected an object") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return whole_text(json.dumps(value, ensure_ascii=False))


JsonObject = Annotated[str, BeforeValidator(_object_text)]
"""A JSON object as text: records can be hashed, and a table of them needs no column for every key."""


class Record(BaseModel):
    """Immutable, validated, and written as one line of JSON without its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_line(self) -> str:
        """One line of JSON, byte for byte the same for equal records."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


class ToolCall(Record):
    """An assistant's wish to have a tool run."""

    name: str
    arguments: JsonObject = "{}"
    id: str = ""


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str
    """What is said; empty only where tools are called instead."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant calls, behind what it says."""
    tool_call_id: str = ""
    """Of a tool's turn: the call that it answers."""
    name: str = ""
    """Of a tool's turn: the tool."""
    train: bool = True
    """False: an assistant turn that is read but not learnt."""


def told(messages: Sequence[Message], words: str) -> tuple[Message, ...]:
    """The messages with the words in their system turn, below what stands there already."""
    if not words:
        return tuple(messages)
    if messages and messages[0].role == "system":
        words = f"{messages[0].content}\n\n{words}"
        messages = messages[1:]
    return (Message(role="system", content=words), *messages)


class Text(Record):
    """A plain document, for pretraining and tokenizers."""

    id: str
    text: str


class Prompt(Record):
    """What a model is to answer: messages that end with the user, and what the user will say next."""

    id: str
    messages: tuple[Message, ...]
    follow_ups: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Reference answers, one a turn, for judges of questions that have one right answer."""
    category: str = ""
    persona: str = ""
    """Who asks, for whoever plays the user of a dialogue that begins with it."""
    counterpart: str = ""
    """The same question with one attribute of its people changed, where rows come in pairs for an audit of bias."""


class Chat(Record):
    """A conversation that ends with the assistant."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    """The tools that the assistant may call, each as the JSON Schema that chat templates take."""
    category: str = ""


class Rating(Record):
    """A judge's word on one aspect of one answer. No score: it said N/A or could not be read; the rationale tells."""

    aspect: str
    score: float | None = Field(allow_inf_nan=False)
    rationale: str = ""
    verdict: Literal["", "poor", "fair", "good", "excellent"] = ""
    """What the judge called the answer in one word, where it was asked for one beside the score."""
    judge: str = ""
    """Who said it, where several were asked. Empty: the only judge, or all of them together."""


class Candidate(Record):
    """One model's answer to a prompt, with its ratings once a judge has seen it."""

    model: str
    text: str
    finish: Finish = "stop"
    reason: str = ""
    """Why there is no usable answer, where finish is not "stop"."""
    principle: str = ""
    """What the model was told to mind in a system turn that the prompt does not hold (Cui et al. 2023, section 3)."""
    ratings: tuple[Rating, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it may be rated and learnt from: it ended by itself, or was cut and kept as it is."""
        return self.finish == "stop" or (self.finish == "length" and not self.reason and bool(self.text))


class Answers(Record):
    """A prompt and what each of several models said to it."""

    id: str
    prompt: Prompt
    candidates: tuple[Candidate, ...]


class Pair(Record):
    """A prompt, an answer to prefer and one to avoid. `prompt` ends with the user; both answers with the assistant."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    """The tools that both answers may call."""
    chosen_score: float | None = None
    rejected_score: float | None = None
    category: str = ""


class Feedback(Record):
    """One answer to a prompt, and whether it is as it should be (Ethayarajh et al. 2024, KTO)."""

    id: str
    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    desirable: bool
    tools: tuple[JsonObject, ...] = ()
    category: str = ""


class Dropped(Record):
    """A row that was left out, and why. Kept beside the rows that stayed, so that nothing vanishes in silence."""

    id: str
    reason: str
    """A short name that counts can be made of, such as "hedge" or "tie"."""
    detail: str = ""
    chat: Chat | None = None
    """The dialogue itself, as it was judged, where dialogues are filtered."""


RowKind = Literal["texts", "prompts", "chats", "answers", "ratings", "pairs", "feedback"]
ROWS: dict[str, type[Record]] = {
    "texts": Text,
    "prompts": Prompt,
    "chats": Chat,
    "answers": Answers,
    "ratings": Answers,
    "pairs": Pair,
    "feedback": Feedback,
}
