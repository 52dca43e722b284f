"""Rows as everybody's libraries take them: one column a part, in the names that TRL and the Hub use.

A layout is told as plain values: "string", "float64" and "bool", [item] for a list, {name: ...} for a part with parts
of its own. From it come Arrow's schema and the features of a dataset card.
"""

import json
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from potstill.records import Answers, Chat, Feedback, Message, Pair, Prompt, Record, Text

Layout = Any
"""What a value looks like; see above."""

TOOL_CALL = {"id": "string", "type": "string", "function": {"name": "string", "arguments": "string"}}
TURN: Layout = {
    "role": "string",
    "content": "string",
    "tool_calls": [TOOL_CALL],
    "tool_call_id": "string",
    "name": "string",
    "train": "bool",
}
NAMES: dict[type[Record], dict[str, str]] = {
    Text: {},
    Prompt: {"messages": "prompt"},
    Chat: {},
    Answers: {},
    Pair: {"chosen_score": "score_chosen", "rejected_score": "score_rejected"},
    Feedback: {"answer": "completion", "desirable": "label"},
}
"""What of a record has another name in its column."""


def layout_of(row_type: type[Record]) -> dict[str, Layout]:
    """Every column that rows of this type may have."""
    names = NAMES[row_type]
    native = row_type is Answers  # its parts are records, and stay so
    return {
        names.get(name, name): "string" if name == "tools" else _layout(field.annotation, native)
        for name, field in row_type.model_fields.items()
    }


def _layout(annotation: Any, native: bool) -> Layout:
    arms = [arm for arm in get_args(annotation) if arm is not NoneType]
    if annotation is Message and not native:
        return TURN
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return {name: _layout(field.annotation, native) for name, field in annotation.model_fields.items()}
    if get_origin(annotation) is tuple:
        return [_layout(arms[0], native)]
    if get_origin(annotation) is Literal or annotation is str:
        return "string"
    if annotation in (bool, float, int):
        return {bool: "bool", float: "float64", int: "int64"}[annotation]
    return _layout(arms[0], native)  # of what may be None, or is annotated


def columns_of(record: Record) -> dict[str, Any]:
    """A record as a row of columns; what says nothing is None, "" or []."""
    names, values = NAMES[type(record)], record.model_dump(mode="json")
    row = {names.get(name, name): value for name, value in values.items()}
    if "tools" in row:
        row["tools"] = f"[{', '.join(row['tools'])}]" if row["tools"] else ""
    if isinstance(record, Answers):
        return row
    return {name: _turns(value) for name, value in row.items()}


def _turns(value: Any) -> Any:
    """Messages in OpenAI's form; anything else as it is."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and "role" in item for item in value):
        return value
    return [
        {
            **turn,
            "tool_calls": [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in turn["tool_calls"]
            ],
            "train": None if turn["train"] else False,
        }
        for turn in value
    ]


class Used:
    """Which parts of a layout any row says something in: the others need no column."""

    def __init__(self, layout: dict[str, Layout]) -> None:
        self._layout = layout
        self._said: set[tuple[str, ...]] = set()

    def look(self, row: Mapping[str, Any]) -> None:
        """Take notice of a row."""
        self._look(row, ())

    def _look(self, value: Any, way: tuple[str, ...]) -> None:
        if value is None or value == "" or value == []:
            return
        self._said.add(way)
        if isinstance(value, Mapping):
            for name, item in value.items():
                self._look(item, (*way, name))
        elif isinstance(value, list):
            for item in value:
                self._look(item, way)

    def layout(self) -> dict[str, Layout]:
        """Without what no row says anything in."""
        cut: dict[str, Layout] = self._cut(self._layout, ())
        return cut

    def _cut(self, layout: Layout, way: tuple[str, ...]) -> Layout:
        if isinstance(layout, list):
            return [self._cut(layout[0], way)]
        if isinstance(layout, dict):
            return {n: self._cut(item, (*way, n)) for n, item in layout.items() if (*way, n) in self._said or n == "id"}
        return layout


def fit(value: Any, layout: Layout) -> Any:
    """The value with the parts of the layout, and none besides."""
    if isinstance(layout, dict):
        return {name: fit(value.get(name), item) for name, item in layout.items()} if value is not None else None
    if isinstance(layout, list):
        return [fit(item, layout[0]) for item in value or ()]
    return value


def features(layout: dict[str, Layout]) -> list[dict[str, Any]]:
    """The columns as a dataset card's `dataset_info` names them."""
    return [{"name": name, **_feature(item)} for name, item in layout.items()]


def _feature(layout: Layout) -> dict[str, Any]:
    if isinstance(layout, dict):
        return {"struct": features(layout)}
    if isinstance(layout, list):
        return {"list": features(layout[0]) if isinstance(layout[0], dict) else layout[0]}
    return {"dtype": layout}


def arrow_schema(layout: dict[str, Layout], pyarrow: Any) -> Any:
    """The columns as Arrow's schema."""
    simple: dict[str, Callable[[], Any]] = {
        "string": pyarrow.string,
        "float64": pyarrow.float64,
        "int64": pyarrow.int64,
        "bool": pyarrow.bool_,
    }

    def kind(item: Layout) -> Any:
        if isinstance(item, dict):
            return pyarrow.struct([(name, kind(inner)) for name, inner in item.items()])
        return pyarrow.list_(kind(item[0])) if isinstance(item, list) else simple[item]()

    return pyarrow.schema([(name, kind(item)) for name, item in layout.items()])


def to_line(row: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"
