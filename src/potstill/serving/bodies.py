"""The bodies of replies: whole ones, and the events of a stream, of chats and of plain text."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from potstill.records import ToolCall
from potstill.serving.answer import End, Piece, Said
from potstill.teachers.spelling import HALF

LEAST_LOGP = -9999.0
"""What never happens: JSON has no infinity."""
DONE = "data: [DONE]\n\n"


class Json(JSONResponse):
    """In ASCII, so that half a character that a client sent can be said back to it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


@dataclass
class Choice:
    """One answer as it adds up."""

    index: int
    prompt: int = 0
    """Which of the request's prompts it answers."""
    echoed: str = ""
    """What stands before it: the prompt of a plain completion that asks for it."""
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    end: End | None = None

    def add(self, piece: Piece) -> None:
        """What came of it in one step."""
        self.content.append(piece.content)
        self.reasoning.append(piece.reasoning)
        self.said += piece.said


@dataclass(frozen=True)
class Style:
    """Which of the two protocols is spoken, and what each reply of one request has in common."""

    model: str
    is_chat: bool
    logprobs: bool
    with_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The reply that is not streamed."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        listed = [self._chat_choice(one) if self.is_chat else self._text_choice(one) for one in choices]
        return {**self._head(kind), "choices": listed, "usage": usage(choices)}

    def opening(self, index: int) -> str:
        """The first event of a choice; plain text has none."""
        return self.event(index, {"role": "assistant", "content": ""}) if self.is_chat else ""

    def piece(self, index: int, piece: Piece, offset: int) -> str:
        """The event of a piece; `offset` is where its text begins in that of the answer."""
        if not self.is_chat:
            told = _text_logprobs(piece.said, offset) if self.logprobs else None
            return self.event(index, piece.content, logprobs=told)
        delta = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
        if piece.content or not piece.reasoning:
            delta["content"] = piece.content
        return self.event(index, delta, logprobs=_chat_logprobs(piece.said) if self.logprobs else None)

    def ending(self, index: int, end: End) -> str:
        """The last event of a choice, its calls before it."""
        if not self.is_chat:
            return self.event(index, "", end.finish)
        delta = {"tool_calls": [{"index": n, **call} for n, call in enumerate(_calls(end.calls))]} if end.calls else {}
        return self.event(index, delta, end.finish)

    def event(self, index: int, what: Any, finish: str | None = None, logprobs: Any = None) -> str:
        """One event: a delta of a chat, or some text."""
        choice = {"index": index, "delta" if self.is_chat else "text": what}
        choice |= {"logprobs": logprobs, "finish_reason": finish}
        nothing = {"usage": None} if self.with_usage else {}
        return sse({**self._head(self._chunk), "choices": [choice], **nothing})

    def closing(self, choices: Sequence[Choice]) -> str:
        """What was used, where it is asked for, and the end of the stream."""
        told = sse({**self._head(self._chunk), "choices": [], "usage": usage(choices)}) if self.with_usage else ""
        return told + DONE

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        name = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{name}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _chat_choice(self, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        content, reasoning = "".join(choice.content), "".join(choice.reasoning).strip()
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if choice.end.calls:
            message |= {"content": content.strip(), "tool_calls": list(_calls(choice.end.calls))}
        told = _chat_logprobs(choice.said) if self.logprobs else None
        return {"index": choice.index, "message": message, "logprobs": told, "finish_reason": choice.end.finish}

    def _text_choice(self, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        text = choice.echoed + "".join(choice.content)
        told = _text_logprobs(choice.said, len(choice.echoed)) if self.logprobs else None
        return {"index": choice.index, "text": text, "logprobs": told, "finish_reason": choice.end.finish}


def sse(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def usage(choices: Iterable[Choice]) -> dict[str, int]:
    """Tokens that were read and written. Choices of one prompt have read it once."""
    ended = [(choice.prompt, choice.end) for choice in choices if choice.end is not None]
    read = sum({prompt: end.prompt_tokens for prompt, end in ended}.values())
    written = sum(end.completion_tokens for _, end in ended)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _calls(calls: Iterable[ToolCall]) -> Iterable[dict[str, Any]]:
    for place, call in enumerate(calls):
        function = {"name": call.name, "arguments": call.arguments}
        yield {"id": call.id or f"call-{place}", "type": "function", "function": function}


def _one(text: str, logp: float) -> dict[str, Any]:
    known = None if HALF in text else list(text.encode())  # part of a character: which bytes, its text does not tell
    return {"token": text, "logprob": max(logp, LEAST_LOGP), "bytes": known}


def _chat_logprobs(said: Iterable[Said]) -> dict[str, Any]:
    content = []
    for one in said:
        listed = [_one(text, logp) for text, logp in one.likeliest]
        content.append({**_one(one.text, one.logp), "top_logprobs": listed})
    return {"content": content, "refusal": None}


def _text_logprobs(said: Sequence[Said], offset: int) -> dict[str, Any]:
    told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in said:
        told["tokens"].append(one.text)
        told["token_logprobs"].append(max(one.logp, LEAST_LOGP))
        likeliest = {text: max(logp, LEAST_LOGP) for text, logp in reversed(one.likeliest)}
        told["top_logprobs"].append(likeliest | {one.text: max(one.logp, LEAST_LOGP)})
        told["text_offset"].append(offset)
        offset += len(one.text)
    return told
