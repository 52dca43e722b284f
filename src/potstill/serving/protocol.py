"""What OpenAI's protocol asks for: the bodies of requests, read whole, and each refusal in the form clients know."""

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from potstill.reading.found import ShapeError
from potstill.reading.turns import read_messages, read_tools
from potstill.records import Message, whole_text
from potstill.teachers.base import Request
from potstill.validation import nearest

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest

MOST_BODY_BYTES = 16_000_000
MOST_CHOICES = 128
MOST_LISTED = 20
MOST_STOPS = 16
LONGEST_STOP = 1000
"""Characters."""
MOST_TOKENS = 2**31
DEFAULT_TEXT_TOKENS = 16
"""How long a plain completion is where nothing is said, as OpenAI has it; a chat may be as long as the context."""

Range = tuple[str, type | tuple[type, ...], float, float]
"""A field, what it is, and the bounds that it lies between."""

NUMBERS: tuple[Range, ...] = (
    ("temperature", (int, float), 0, 2),
    ("top_p", (int, float), 0, 1),
    ("top_k", int, -1, 2**31),
    ("n", int, 1, MOST_CHOICES),
    ("seed", int, -(2**63), 2**63 - 1),
    ("max_tokens", int, 1, MOST_TOKENS),
    ("max_completion_tokens", int, 1, MOST_TOKENS),
)
CHAT_NUMBERS: tuple[Range, ...] = (*NUMBERS, ("top_logprobs", int, 0, MOST_LISTED))
TEXT_NUMBERS: tuple[Range, ...] = (
    *NUMBERS,
    ("logprobs", int, 0, MOST_LISTED),
    ("prompt_logprobs", int, 0, MOST_LISTED),
)

_SHARED = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
)
_CHAT = (*_SHARED, "messages", "top_logprobs", "tools", "tool_choice")
_TEXT = (*_SHARED, "prompt", "echo", "prompt_logprobs")
_NOTED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Who asks, and what for: nothing of it changes an answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "skip_special_tokens": (True,),
    "ignore_eos": (False,),
    "add_special_tokens": (False,),
}
"""What is not done here, with the values that ask for nothing. Others are refused: nobody is answered as if it were."""


class BadRequest(ValueError):
    """A request that the protocol does not allow, in the words that the client gets."""

    def __init__(self, message: str, param: str | None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, "invalid_request_error", param, code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Asked:
    """A request for completions, read."""

    model: str
    is_chat: bool
    prompts: tuple[Request, ...]
    """One, or of plain text several, each with its own `n` choices."""
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    """Whether each token's log-probability is told, and `top_logprobs` of each prompt's request others in its place."""
    stream: bool = False
    with_usage: bool = False
    """Whether a stream ends with what was used."""
    echo: bool = False
    """Whether the prompt stands before each text."""
    prompt_logprobs: int | None = None
    """Of how many tokens in each place of the prompt the log-probabilities are told."""


async def read_body(request: "HttpRequest", most_bytes: int = MOST_BODY_BYTES) -> Any:
    """The value of a request's body; BadRequest where it is none, or too long to be read."""
    long = BadRequest(f"the body has more than {most_bytes:,} bytes; expected at most so many", None, 413)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise long
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body could not be read as JSON: {why}", None) from error


def check_numbers(body: Mapping[str, Any], ranges: Iterable[Range]) -> None:
    """BadRequest where a field is no number of its kind, or out of its bounds. Null is as good as absent."""
    for field, kind, low, high in ranges:
        value = body.get(field)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= cast(float, value) <= high:
            noun = "a whole number" if kind is int else "a number"
            raise BadRequest(f"'{field}' must be {noun} and lie between {low:g} and {high:g}", field)


def read_chat(body: Any, models: Iterable[str]) -> Asked:
    """The body of a chat completion. BadRequest where it is none, with what was expected."""
    model = _check(body, _CHAT, CHAT_NUMBERS, models)
    _check_kind(body, "logprobs", bool, "true or false")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise BadRequest("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    try:
        messages = read_messages(body.get("messages") or (), "'messages'")
        tools = read_tools(body)
    except ShapeError as error:
        raise BadRequest(str(error), "messages") from error
    if not messages:
        raise BadRequest("'messages' must be a list of at least one message", "messages")
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise BadRequest(
            "'tool_choice' must be 'auto' or 'none': nobody can hold a model here to a call", "tool_choice"
        )
    clean = tuple(message.model_copy(update={"content": whole_text(message.content)}) for message in messages)
    prompt = _request(body, MOST_TOKENS, messages=clean, tools=() if choice == "none" else tools)
    return _asked(body, model, (prompt,), is_chat=True, logprobs=bool(body.get("logprobs")))


def read_text(body: Any, models: Iterable[str]) -> Asked:
    """The body of a plain completion: texts or tokens to go on from. BadRequest where it is none."""
    model = _check(body, _TEXT, TEXT_NUMBERS, models)
    _check_kind(body, "echo", bool, "true or false")
    prompts = tuple(
        _request(
            body, DEFAULT_TEXT_TOKENS, **({"opening": whole_text(one)} if isinstance(one, str) else {"tokens": one})
        )
        for one in _prompts(body.get("prompt"))
    )
    asked = _asked(body, model, prompts, is_chat=False, logprobs=body.get("logprobs") is not None)
    if asked.stream and (asked.echo or asked.prompt_logprobs is not None):
        raise BadRequest("'stream' goes with neither 'echo' nor 'prompt_logprobs'", "stream")
    if len(prompts) * asked.n > MOST_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts, 'n' times each, are over {MOST_CHOICES} choices", "prompt")
    return asked


def _prompts(value: Any) -> list[str | tuple[int, ...]]:
    """A text, tokens, or a list of either."""
    listed = value if isinstance(value, list) and not _are_tokens(value) else [value]
    if not listed or not all(one and (isinstance(one, str) or _are_tokens(one)) for one in listed):
        raise BadRequest("'prompt' must be a text, a list of tokens, or a list of either, and none empty", "prompt")
    return [one if isinstance(one, str) else tuple(one) for one in listed]


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < MOST_TOKENS for one in value)


def _check(body: Any, fields: Iterable[str], numbers: Iterable[Range], models: Iterable[str]) -> str:
    """BadRequest where the body has anything that cannot be done; the model that it names."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", None)
    model, known = body.get("model"), {*fields, *_NOTED, *_NEUTRAL}
    if not isinstance(model, str):
        raise BadRequest("you must provide a model parameter, a text", "model")
    if model not in models:
        what = f"the model '{model[:100]}' does not exist{nearest(model[:100], models)}"
        raise BadRequest(f"{what}; expected one of: {', '.join(models)}", "model", 404, "model_not_found")
    for field in body:
        if field not in known:
            raise BadRequest(f"unknown field '{field[:100]}'{nearest(field[:100], known)}", field[:100])
    for field, neutral in _NEUTRAL.items():
        if body.get(field) is not None and body[field] not in neutral:
            raise BadRequest(f"'{field}' cannot be done here; leave it out", field, code="unsupported_value")
    check_numbers(body, numbers)
    _check_kind(body, "stream", bool, "true or false")
    _check_kind(body, "stream_options", dict, "an object")
    return model


def _check_kind(body: Mapping[str, Any], field: str, kind: type, noun: str) -> None:
    if not isinstance(body.get(field), kind | None):
        raise BadRequest(f"'{field}' must be {noun}", field)


def _request(body: Mapping[str, Any], most_tokens: int, **prompt: Any) -> Request:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or most_tokens
    seed = body.get("seed")
    listed = body.get("top_logprobs") or (0 if isinstance(body.get("logprobs"), bool) else body.get("logprobs") or 0)
    return Request(
        messages=cast("tuple[Message, ...]", prompt.pop("messages", ())),
        max_tokens=limit,
        temperature=_number(body, "temperature", 1.0),
        top_p=max(_number(body, "top_p", 1.0), 1e-9),  # 0 is the likeliest token alone
        top_k=max(0, body.get("top_k") or 0),  # -1 is all, as some write it
        seed=secrets.randbits(31) if seed is None else seed,
        top_logprobs=listed,
        **prompt,
    )


def _number(body: Mapping[str, Any], field: str, default: float) -> float:
    value = body.get(field)
    return default if value is None else float(value)


def _asked(
    body: Mapping[str, Any], model: str, prompts: tuple[Request, ...], *, is_chat: bool, logprobs: bool
) -> Asked:
    return Asked(
        model=model,
        is_chat=is_chat,
        prompts=prompts,
        n=body.get("n") or 1,
        stop=_stops(body.get("stop")),
        logprobs=logprobs,
        stream=bool(body.get("stream")),
        with_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        echo=bool(body.get("echo")),
        prompt_logprobs=body.get("prompt_logprobs"),
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(
        isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops
    ):
        raise BadRequest(f"'stop' must be a text or a list of texts of 1 to {LONGEST_STOP} characters", "stop")
    if len(stops) > MOST_STOPS:
        raise BadRequest(f"'stop' must hold at most {MOST_STOPS} texts", "stop")
    return tuple(stops)
