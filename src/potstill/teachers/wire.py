"""What goes over the wire: the body of a request, what a reply's body says, and what a failure means."""

import email.utils
import errno
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from potstill.records import Finish, Message, ToolCall, whole_text
from potstill.sources import TOKEN_LIMITS, EndpointModel
from potstill.teachers.base import Reply, Request
from potstill.teachers.tool_calls import make_call

LONGEST_WORDS = 300
MOST_TOKENS = 10**9
"""A server that counts more than this in one reply counts nothing that can be believed."""

# Half of a character, as a server escapes it that cuts a reply between the two: no UTF-8 file can hold it.

# Names that servers use for "the model ended its answer"; some leave the field out altogether. No set: what a server
# writes there need not be hashable.
_STOPPED = (None, "stop", "eos", "eos_token", "stop_sequence", "end_turn")


NO_FILES = "this process may open no more connections"
"""Said where the operating system refuses a socket, which is no server's fault."""


def request_body(spec: EndpointModel, request: Request) -> dict[str, Any]:
    """The body of a completion, as it is sent and as the journal hashes it: of a chat, of the text to go on from, or
    of tokens to be scored."""
    body: dict[str, Any] = {"model": spec.name}
    if request.tokens:
        body |= {"prompt": list(request.tokens), "prompt_logprobs": request.listed}
    elif request.opening:
        body["prompt"] = request.opening
    else:
        body["messages"] = [_message(message) for message in request.messages]
    if request.tools:
        body["tools"] = [json.loads(tool) for tool in request.tools]
    if request.schema and spec.structured:
        form = {"name": "answer", "schema": json.loads(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    body |= {
        spec.token_limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    return {name: value for name, value in (body | spec.options).items() if value is not None}


def most_prompt_tokens(body: dict[str, Any]) -> int:
    """The most tokens that a request's prompt may have: no tokenizer makes more tokens than bytes."""
    if isinstance(body.get("prompt"), list):
        return len(body["prompt"])
    return len(json.dumps({name: body[name] for name in ("messages", "prompt", "tools") if name in body}))


def answer_limit(body: dict[str, Any]) -> int:
    """The longest answer that a body asks for, in tokens; 0 where it sets no bound."""
    return max(_count(body.get(name)) for name in TOKEN_LIMITS)


def used_tokens(body: dict[str, Any], reply: Reply) -> tuple[int, int]:
    """Tokens of the prompt and of the answer as the server counts them; where it does not, at most: by their bytes."""
    if reply.prompt_tokens or reply.completion_tokens:
        return reply.prompt_tokens, reply.completion_tokens
    limit = answer_limit(body)
    said = len((reply.text + reply.reasoning).encode()) + sum(len(call.arguments) for call in reply.tool_calls)
    return most_prompt_tokens(body), min(limit, said) if limit else said


def _message(message: Message) -> dict[str, Any]:
    """A turn in the protocol's columns."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id or f"call-{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id or "call-0"
    return turn


def read_reply(raw: str) -> Reply:
    """The reply that a body holds, and so the journal too; ValueError, in words, where it holds none."""
    try:
        return _reply(raw)
    except RecursionError as error:
        raise ValueError(f"the reply is nested too deep: {short(raw)!r}") from error


def _reply(raw: str) -> Reply:
    try:
        body = _load(raw)
    except ValueError as error:
        raise ValueError(f"the reply is not JSON: {short(raw)!r}") from error
    try:
        choice = body["choices"][0]
        message = choice.get("message") or {"content": choice["text"]}  # a chat, or a text that was gone on from
        text, refusal = message.get("content"), message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
        stopped = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the reply is not a chat completion: {short(raw)!r}") from error
    if not isinstance(text, str | None):
        raise ValueError(f"the reply's content is not text: {short(raw)!r}")
    text = whole_text(text or "")
    finish, reason = _finish(text, refusal, stopped, called=bool(calls))
    prompt_tokens, completion_tokens = _used(body)
    return Reply(
        text,
        finish,
        reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        reasoning=whole_text(reasoning) if isinstance(reasoning, str) else "",
        tool_calls=calls,
        likeliest=_likeliest(choice.get("logprobs")),
        body=raw if choice.get("prompt_logprobs") is not None else "",
        origin="journal",
    )


def _likeliest(said: Any) -> tuple[tuple[str, float], ...]:
    """The alternatives to the answer's first token. What cannot be read is not there: whoever needs it says so."""
    try:
        found = [(whole_text(str(one["token"])), float(one["logprob"])) for one in said["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return ()
    return tuple(sorted(((token, logp) for token, logp in found if logp <= 1e-3), key=lambda one: -one[1]))


def usage(raw: str) -> tuple[int, int]:
    """Tokens of the prompt and of the answer by a body's own count, whatever else it holds; (0, 0) without one."""
    try:
        return _used(_load(raw))
    except (ValueError, RecursionError):
        return 0, 0


def _load(raw: str) -> Any:
    """The value of a body. ValueError, RecursionError."""
    # Python refuses to read numbers of thousands of digits; one in a field that nobody reads must not cost the reply.
    return json.loads(raw.removeprefix("\ufeff"), parse_int=lambda digits: int(digits) if len(digits) < 100 else digits)


def _used(body: object) -> tuple[int, int]:
    used = body.get("usage") if isinstance(body, dict) else None
    used = used if isinstance(used, dict) else {}
    return _count(used.get("prompt_tokens")), _count(used.get("completion_tokens"))


def _tool_call(value: Any) -> ToolCall:
    function = value["function"]
    return make_call(function["name"], function.get("arguments") or "{}", json.dumps(function), value.get("id") or "")


def _finish(text: str, refusal: object, stopped: object, *, called: bool) -> tuple[Finish, str]:
    if stopped == "content_filter":
        return "filter", "the server's content filter stopped the answer"
    if refusal and not text:
        return "refusal", f"the model refused: {short(str(refusal))}"
    if stopped == "length":
        return "length", "the answer was cut at max_tokens"
    if called and stopped in (*_STOPPED, "tool_calls", "function_call"):
        return "stop", ""
    if stopped not in _STOPPED:
        return "error", f"the answer ended with finish_reason {short(repr(stopped))}"
    if not text.strip():
        return "empty", "the answer is empty"
    return "stop", ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= MOST_TOKENS else 0


def short(text: str) -> str:
    """Somebody's words in one line of bounded length. What is secret has to be out of them."""
    text = " ".join(whole_text(text).split())
    return text if len(text) <= LONGEST_WORDS else text[:LONGEST_WORDS] + "..."


@dataclass(frozen=True)
class Failure:
    """What a failed attempt means. `stop`: for the whole endpoint; `row`: for this request alone; the rest: try again.

    `wait` is overload, which says nothing about the request and uses up none of its attempts; `absent` is nobody
    listening; `retry` is everything else that may pass.
    """

    kind: Literal["stop", "row", "wait", "absent", "retry"]
    reason: str
    status: int = 0
    after: float | None = None
    """Seconds that the server asks to wait."""
    slow: bool = False
    """No reply came in time, which may be for too much being asked at once."""


def failures() -> tuple[type[Exception], ...]:
    """What an attempt may raise that is no bug of ours. The transport lets some of aiohttp's own errors through."""
    import aiohttp
    import openai

    return (openai.OpenAIError, aiohttp.ClientError, OSError, ValueError)


def failure(error: Exception, timeout_seconds: float, redact: Callable[[str], str]) -> Failure:
    """What an exception of the openai client, or a reply that cannot be read, means. `redact` takes secrets out."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, redact)
    if isinstance(error, ValueError):
        return Failure("retry", redact(str(error)))
    causes = list(_causes(error))
    if any(getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE) for cause in causes):
        return Failure("stop", NO_FILES)
    if any(_is_absent(cause) for cause in causes):
        return Failure("absent", short(redact(str(causes[-1]))))
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failure("retry", f"no reply came in {timeout_seconds:g} s", slow=True)
    return Failure("retry", f"the connection failed: {short(redact(str(causes[-1])) or type(causes[-1]).__name__)}")


def _status_failure(error: Any, redact: Callable[[str], str]) -> Failure:
    status, words = error.status_code, _server_words(error.body, error.response.text, redact)
    if 300 <= status < 400:
        words = f"it sends to {short(redact(error.response.headers.get('location', 'nowhere')))}"
    reason = f"HTTP {status}: {words}"
    after = _retry_after(error.response.headers.get("retry-after"))
    if status in (401, 402, 403, 404) or 300 <= status < 400 or (status == 429 and error.code == "insufficient_quota"):
        return Failure("stop", reason, status)
    if status == 429 or (status == 503 and after is not None):
        return Failure("wait", reason, status, after)
    if status in (408, 409, 425) or status >= 500:
        return Failure("retry", reason, status, after)
    return Failure("row", reason, status)


def _server_words(body: object, text: str, redact: Callable[[str], str]) -> str:
    """What the server says about it: `message` as the protocol has it, `detail` as some frameworks do, or the body."""
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if isinstance(body.get(name), str):
                return short(redact(body[name]))
    return short(redact(text)) or "no word from the server"


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_absent(error: BaseException) -> bool:
    """Nobody listens there, or the name leads nowhere. Either transport; aiohttp's own class survives as a cause."""
    import aiohttp
    import httpx2

    return isinstance(error, aiohttp.ClientConnectorError | httpx2.ConnectError | ConnectionRefusedError)
