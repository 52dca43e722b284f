"""The rows that stages exchange. One class a kind of row; `ROWS` names them as recipes do."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "filter", "error"]


class Record(BaseModel):
    """Immutable, validated, and written as one line of JSON without its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_line(self) -> str:
        """One line of JSON, byte for byte the same for equal records."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str
    train: bool = True
    """False: an assistant turn that is read but not learnt."""


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


class Chat(Record):
    """A conversation that ends with the assistant."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""


class Rating(Record):
    """A judge's word on one aspect of one answer. No score: it said N/A or could not be read; the rationale tells."""

    aspect: str
    score: float | None = Field(allow_inf_nan=False)
    rationale: str = ""


class Candidate(Record):
    """One model's answer to a prompt, with its ratings once a judge has seen it."""

    model: str
    text: str
    finish: Finish = "stop"
    reason: str = ""
    """Why there is no usable answer, where finish is not "stop"."""
    ratings: tuple[Rating, ...] = ()


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
    chosen_score: float | None = None
    rejected_score: float | None = None
    category: str = ""


class Dropped(Record):
    """A row that was left out, and why. Kept beside the rows that stayed, so that nothing vanishes in silence."""

    id: str
    reason: str
    """A short name that counts can be made of, such as "hedge" or "tie"."""
    detail: str = ""


RowKind = Literal["texts", "prompts", "chats", "answers", "ratings", "pairs"]
ROWS: dict[str, type[Record]] = {
    "texts": Text,
    "prompts": Prompt,
    "chats": Chat,
    "answers": Answers,
    "ratings": Answers,
    "pairs": Pair,
}
