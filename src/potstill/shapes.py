"""The shapes of row that people publish: each is recognised by its columns, and says what stands where in them.

From there the way to a record is the same for all; see `found`. A row that cannot be read is a ShapeError in words.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from potstill.found import Found, ShapeError, make_record
from potstill.records import Candidate, Message, Prompt, Rating, Record, Role, ToolCall

R = TypeVar("R", bound=Record)
Columns = Mapping[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Shape:
    """One way of laying out a row."""

    name: str
    fits: Callable[[Columns], bool]
    find: Callable[[Columns], Found]

    def read(self, row: Any, row_type: type[R], default_id: str) -> R:
        """The row as a record; ShapeError, in words, where it cannot be one."""
        if not isinstance(row, Mapping):
            raise ShapeError(f"the row is {_kind(row)}; expected an object with columns")
        if not self.fits(row):
            raise ShapeError(f"the columns are {', '.join(sorted(row))}; expected those of {self.name!r} rows")
        found = self.find(row)
        own = row.get("id", row.get("question_id"))
        name = str(own) if isinstance(own, str | int) and own != "" else default_id
        category = row.get("category", row.get("class"))
        category = category.strip() if isinstance(category, str) else ""
        return make_record(found, row_type, name, category)


def recognise(row: Any) -> Shape | None:
    """The shape whose columns the row has."""
    if not isinstance(row, Mapping):
        return None
    return next((shape for shape in SHAPES.values() if shape.fits(row)), None)


def _string(row: Columns, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ShapeError(f"{column!r} is {_kind(value)}; expected text")
    return value


def _kind(value: object) -> str:
    names = {type(None): "missing", list: "a list", dict: "an object", bool: "true or false", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else "text")


def _message(value: Any, what: str) -> Message:
    """A turn in OpenAI's columns (role, content) or ShareGPT's (from, value)."""
    if not isinstance(value, Mapping):
        raise ShapeError(f"{what} is {_kind(value)}; expected an object with role and content")
    role_column, content_column = ("role", "content") if "role" in value else ("from", "value")
    role, content = value.get(role_column), value.get(content_column)
    if not isinstance(role, str) or role not in ROLES:
        raise ShapeError(f"the role of {what} is {role!r}; expected system, user, assistant or tool")
    calls = tuple(_tool_calls(value, what))
    if role == "function_call" and isinstance(content, str) and not calls:
        calls = _written_call(content)
        content = None if calls else content
    if calls and content is None:
        content = ""
    if not isinstance(content, str):
        raise ShapeError(f"the content of {what} is {_kind(content)}; expected text")
    if calls and ROLES[role] != "assistant":
        raise ShapeError(f"{what} is {role!r} and calls a tool; expected that of an assistant only")
    return Message(
        role=ROLES[role],
        content=content,
        tool_calls=calls,
        tool_call_id=_word(value, "tool_call_id"),
        name=_word(value, "name") if ROLES[role] == "tool" else "",
        train=_train(value, what),
    )


def _train(value: Columns, what: str) -> bool:
    train = value.get("train")
    if not isinstance(train, bool | None):
        raise ShapeError(f"'train' of {what} is {train!r}; expected true or false")
    return train is not False


def _word(value: Columns, column: str) -> str:
    word = value.get(column)
    return word if isinstance(word, str) else ""


def _tool_calls(message: Columns, what: str) -> Iterator[ToolCall]:
    """OpenAI's columns: `tool_calls`, or the older `function_call`."""
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list | tuple):
        raise ShapeError(f"the tool_calls of {what} are {_kind(listed)}; expected a list")
    for call in [*listed, *filter(None, [message.get("function_call")])]:
        found = _call(call)
        if found is None:
            raise ShapeError(f"a tool call of {what} cannot be read; expected a name and arguments, a JSON object")
        yield found


def _call(value: Any) -> ToolCall | None:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    try:
        return ToolCall(name=function["name"], arguments=function.get("arguments") or {}, id=_word(value, "id"))
    except ValueError:
        return None


def _written_call(content: str) -> tuple[ToolCall, ...]:
    """ShareGPT's turn that is a call, or a list of them, in JSON; nothing where it is plain words."""
    value = _json(content)
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(call for call in calls if call) if all(calls) else ()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _tools(row: Columns) -> tuple[str, ...]:
    """What a row offers its assistant: schemas, or JSON of them; bare functions are wrapped as templates expect."""
    value = row.get("tools") or []
    if isinstance(value, str):
        value = _json(value) if value.strip() else []
    if not isinstance(value, list | tuple):
        raise ShapeError("'tools' cannot be read; expected a list of JSON Schemas")
    tools = []
    for item in value:
        tool = _json(item) if isinstance(item, str) else item
        if not isinstance(tool, Mapping) or not ("name" in tool or isinstance(tool.get("function"), Mapping)):
            raise ShapeError("one of the 'tools' cannot be read; expected the JSON Schema of a function with a name")
        whole = tool if "function" in tool else {"type": "function", "function": tool}
        tools.append(json.dumps(whole, ensure_ascii=False))
    return tuple(tools)


def _label(row: Columns) -> bool | None:
    return row["label"] if isinstance(row.get("label"), bool) else None


def _messages(value: Any, what: str) -> tuple[Message, ...]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ShapeError(f"{what} is {_kind(value)}; expected a list of messages")
    return tuple(_message(item, f"turn {number} of {what}") for number, item in enumerate(value, start=1))


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def _assistant(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


def _instruction(row: Columns) -> tuple[Message, ...]:
    """Alpaca's instruction, with its input below it."""
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise ShapeError(f"'input' is {_kind(given)}; expected text")
    text = _string(row, "instruction")
    return _user(f"{text}\n\n{given}" if given.strip() else text)


def _strings(value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ShapeError(f"{what} is {_kind(value)}; expected a list of texts")
    return tuple(value)


def _find_messages(row: Columns) -> Found:
    messages = _messages(row["messages"], "'messages'")
    return Found(
        prompt=messages,
        follow_ups=_strings(row.get("follow_ups") or (), "'follow_ups'"),
        references=_strings(row.get("references") or (), "'references'"),
        tools=_tools(row),
        desirable=_label(row),
    )


def _find_sharegpt(row: Columns) -> Found:
    return Found(prompt=_messages(row["conversations"], "'conversations'"), tools=_tools(row), desirable=_label(row))


def _find_pair(row: Columns) -> Found:
    chosen, rejected = (_side(row, column) for column in ("chosen", "rejected"))
    if "conversations" in row:
        prompt = _messages(row["conversations"], "'conversations'")
    elif "instruction" in row:
        prompt = _instruction(row)
    elif isinstance(row.get("prompt"), str):
        prompt = _user(row["prompt"])
    elif "prompt" in row:
        prompt = _messages(row["prompt"], "'prompt'")
    else:
        prompt = ()
    if len(chosen) > 1 or len(rejected) > 1:  # whole conversations: what they share is the prompt
        shared = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return Found(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=_tools(row),
        chosen_score=_score(row, "chosen_score", "score_chosen"),
        rejected_score=_score(row, "rejected_score", "score_rejected"),
    )


def _side(row: Columns, column: str) -> tuple[Message, ...]:
    value = row[column]
    if not isinstance(value, str):
        return _messages(value, f"{column!r}")
    return _dialogue(value, column) if value.lstrip().startswith("Human:") else _assistant(value)


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns two conversations share, up to the assistant's first of their own."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    return min(shared, len(chosen) - 1, len(rejected) - 1)


def _dialogue(text: str, column: str) -> tuple[Message, ...]:
    r"""HH's conversation in one string, its turns marked by "\n\nHuman:" and "\n\nAssistant:"."""
    messages: list[Message] = []
    for part in ("\n\n" + text.lstrip()).split("\n\nHuman:")[1:]:
        said, *answers = part.split("\n\nAssistant:")
        messages.append(Message(role="user", content=said.strip()))
        messages += [Message(role="assistant", content=answer.strip()) for answer in answers]
    return tuple(messages)


def _score(row: Columns, *columns: str) -> float | None:
    for column in columns:
        if isinstance(row.get(column), int | float):
            try:
                return float(row[column])
            except OverflowError as error:
                raise ShapeError(f"{column!r} is a number too large for a score; expected a smaller one") from error
    return None


def _find_ultrafeedback(row: Columns) -> Found:
    if not isinstance(row["completions"], list):
        raise ShapeError(f"'completions' is {_kind(row['completions'])}; expected a list")
    return Found(prompt=_instruction(row), candidates=tuple(_completion(value) for value in row["completions"]))


def _completion(value: Any) -> Candidate:
    if not isinstance(value, Mapping):
        raise ShapeError(f"a completion is {_kind(value)}; expected an object with model and response")
    ratings = []
    annotations = value.get("annotations") or {}
    for aspect, word in sorted(annotations.items() if isinstance(annotations, Mapping) else ()):
        told = word if isinstance(word, Mapping) else {}
        score = str(told.get("Rating", "")).strip()
        rationale = told.get("Rationale")
        number = float(score) if score in ("1", "2", "3", "4", "5") else None
        ratings.append(
            Rating(
                aspect=aspect,
                score=number,
                rationale=rationale if isinstance(rationale, str) else "" if number else f"N/A: {score}",
            )
        )
    return Candidate(model=_string(value, "model"), text=_string(value, "response"), ratings=tuple(ratings))


def _find_answers(row: Columns) -> Found:
    """potstill's own answers."""
    try:
        prompt = Prompt.model_validate(row["prompt"])
        candidates = tuple(Candidate.model_validate(value) for value in row["candidates"])
    except (ValueError, TypeError) as error:
        raise ShapeError(f"'prompt' or 'candidates' cannot be read ({error}); expected potstill's answers") from error
    return Found(
        prompt=prompt.messages, follow_ups=prompt.follow_ups, references=prompt.references, candidates=candidates
    )


def _find_alpaca(row: Columns) -> Found:
    column = next((name for name in ("output", "response") if name in row), "")
    return Found(prompt=_instruction(row) + (_assistant(_string(row, column)) if column else ()))


def _find_seed_task(row: Columns) -> Found:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise ShapeError("'instances' holds no example; expected a list of objects with input and output")
    example = {"instruction": row["instruction"], **instances[0]}
    return _find_alpaca(example)


def _find_problem(row: Columns) -> Found:
    question, answer = _string(row, "question"), _string(row, "answer")
    return Found(prompt=_user(question) + _assistant(answer), references=(answer,), text=f"{question}\n{answer}")


def _find_question(row: Columns) -> Found:
    turns = _strings(row["turns"], "'turns'")
    if not turns:
        raise ShapeError("'turns' is empty; expected the user's turns")
    references = _strings(row.get("reference") or (), "'reference'")
    return Found(prompt=_user(turns[0]), follow_ups=turns[1:], references=references)


def _find_ultrachat(row: Columns) -> Found:
    turns = _strings(row["data"], "'data'")
    roles: tuple[Role, Role] = ("user", "assistant")
    return Found(prompt=tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns)))


def _find_prompt(row: Columns) -> Found:
    prompt = _user(row["prompt"]) if isinstance(row["prompt"], str) else _messages(row["prompt"], "'prompt'")
    column = next((name for name in ("completion", "response") if name in row), "")
    if not column:
        return Found(prompt=prompt, tools=_tools(row))
    answer = row[column]
    said = _assistant(answer) if isinstance(answer, str) else _messages(answer, f"{column!r}")
    return Found(prompt=prompt + said, tools=_tools(row), desirable=_label(row))


def _find_feedback(row: Columns) -> Found:
    """potstill's own feedback."""
    if not isinstance(row["desirable"], bool):
        raise ShapeError(f"'desirable' is {_kind(row['desirable'])}; expected true or false")
    said = _messages(row["prompt"], "'prompt'") + _messages(row["answer"], "'answer'")
    return Found(prompt=said, tools=_tools(row), desirable=row["desirable"])


def _has(*columns: str) -> Callable[[Columns], bool]:
    return lambda row: all(column in row for column in columns)


# The first whose columns are there is taken, so what asks for more stands first.
SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("answers", _has("prompt", "candidates"), _find_answers),
        Shape("pairs", _has("chosen", "rejected"), _find_pair),
        Shape("ultrafeedback", _has("instruction", "completions"), _find_ultrafeedback),
        Shape("messages", _has("messages"), _find_messages),
        Shape("sharegpt", _has("conversations"), _find_sharegpt),
        Shape("seed_tasks", _has("instruction", "instances"), _find_seed_task),
        Shape("alpaca", _has("instruction"), _find_alpaca),
        Shape("mt_bench", _has("question_id", "turns"), _find_question),
        Shape("problems", _has("question", "answer"), _find_problem),
        Shape("feedback", _has("prompt", "answer", "desirable"), _find_feedback),
        Shape("prompts", _has("prompt"), _find_prompt),
        Shape("ultrachat", _has("data"), _find_ultrachat),
        Shape("texts", _has("text"), lambda row: Found(text=_string(row, "text"))),
    )
}
