"""A user's own function as a stage: `kind: mine.py:shout`. Its parameters are the fields, by their annotations.

    def shout(data: Iterator[Chat], *, mark: str = "!") -> Iterator[Chat | Dropped]: ...

`Iterator[Chat]` (or of another kind of row) is a field that names rows; several are several fields. `Teacher` is a
field that names a model of the recipe, connected and journaled. `Work` is no field: the run's own seed and progress.
Every other parameter is a field of its annotated type. What the function returns are the rows that the stage makes, in
their order; a Dropped among them is counted, and kept beside them.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo

from potstill import own
from potstill.artifact import DROPPED_FILE, ROWS_FILE
from potstill.errors import DataError, RecipeError
from potstill.reading.found import ShapeError, check_record
from potstill.records import ROWS, Dropped, Record
from potstill.sources import Data, Function, Inputs, Spec
from potstill.stages.base import Facts, ModelName, Reference, Stage, StageConfig, Work
from potstill.teachers.base import Teacher, connect

KINDS = {row_type: tuple(kind for kind in ROWS if ROWS[kind] is row_type) for row_type in ROWS.values()}
STREAMS = {Iterator, Iterable}
RETURNED = {*STREAMS, Generator, list, tuple}
MAY_RETURN = "expected the rows that it makes, such as Iterator[Chat] or Iterator[Chat | Dropped]"
END = object()
"""Behind the last row."""


class _Checked(Spec):
    """Parameters of a user's function: their defaults are checked too, and that a manifest can hold what they are."""

    model_config = ConfigDict(validate_default=True)

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        self.model_dump(mode="json")  # a ValueError for an object of any kind
        for name, value in self.model_dump().items():
            try:
                json.dumps(value, allow_nan=False, default=str, skipkeys=True)
            except ValueError as error:
                raise ValueError(f"'{name}' holds a number that is not finite; expected one that is") from error
        return self


class OwnConfig(_Checked, StageConfig):
    """What the parameters of a user's function become."""


def own_stage(function: Function, kind: str) -> Stage:
    """The stage that a user's function is. RecipeError, naming its file, where its signature cannot be one."""
    signature = _Signature(function)
    fields: dict[str, Any] = {"kind": (Annotated[Literal[kind], Reference(("function",))], ...)}
    for name, annotation in signature.fields.items():
        default = signature.defaults.get(name, ...)
        fields[name] = (annotation, () if name in signature.rows and default is not ... else default)
    try:
        config = create_model(
            f"{function.path.stem}_{function.name}", __base__=OwnConfig, __doc__=signature.doc, **fields
        )
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError, NameError) as error:
        what = f"its parameters make no config: {str(error).splitlines()[0]}"
        raise signature.fault(what, "Annotate them with plain types, such as str, int, float or bool") from error
    for name in signature.defaults:
        if name not in signature.rows:
            signature.check_default(name)

    def run(config: StageConfig, inputs: Inputs, work: Work) -> Facts:
        return _run(signature, config, inputs, work)

    return Stage(config=config, produces=KINDS[signature.makes][0], run=run)


class _Signature:
    """What a function takes and makes, by its annotations."""

    def __init__(self, function: Function) -> None:
        self.function = function
        call = own.load(function)
        self.doc = inspect.getdoc(call) or f"{function.label}, a stage of the user's own."
        self._line = getattr(getattr(call, "__code__", None), "co_firstlineno", 0)
        hints = self._hints(call)
        self.fields: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.rows: dict[str, type[Record]] = {}
        self.teachers: list[str] = []
        self.work: list[str] = []
        for name, parameter in inspect.signature(call).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise self.fault(f"its parameter '{name}' has no name of its own", "Write each as 'name: type'")
            if name not in hints:
                raise self.fault(f"its parameter '{name}' has no annotation", "Write each as 'name: type'")
            if name.startswith("_") or hasattr(StageConfig, name) or name == "kind":
                raise self.fault(f"its parameter '{name}' bears a reserved name", "Rename it")
            self._add(name, hints[name], parameter.default)
        self.makes = self._made(hints.get("return"))

    def _add(self, name: str, hint: Any, default: Any) -> None:
        row_type = _rows_of(hint)
        if hint is Work:
            self.work.append(name)
            return
        if row_type is not None:
            self.rows[name] = row_type
            self.fields[name] = Annotated[str | tuple[str, ...], Reference(KINDS[row_type])]
        elif hint is Teacher:
            self.teachers.append(name)
            self.fields[name] = ModelName
        else:
            self.fields[name] = hint
        if default is not inspect.Parameter.empty:
            self.defaults[name] = default

    def _hints(self, call: Callable[..., Any]) -> dict[str, Any]:
        with own.blame(self.function, lambda: "reading its annotations"):
            return get_type_hints(call, include_extras=True)

    def _made(self, hint: Any) -> type[Record]:
        arguments = _arms(get_args(hint)[0]) if get_origin(hint) and get_args(hint) else ()
        made = [arm for arm in arguments if arm is not Dropped]
        if get_origin(hint) not in RETURNED or len(made) != 1 or made[0] not in KINDS:
            raise self.fault("its annotation does not say what it returns", f"{MAY_RETURN[0].upper()}{MAY_RETURN[1:]}")
        row_type: type[Record] = made[0]
        return row_type

    def check_default(self, name: str) -> None:
        """RecipeError where the default of a parameter is not what its annotation says, or no manifest can hold it."""
        default = self.defaults[name]
        if isinstance(default, FieldInfo) and default.is_required():
            return
        fields: dict[str, Any] = {name: (self.fields[name], default)}
        try:
            taken = create_model("Default", __base__=_Checked, **fields)()
            if isinstance(default, bool) and not isinstance(getattr(taken, name), bool):
                raise ValueError("input should be a number")
        except ValidationError as error:
            what = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            why = what[:1].lower() + what[1:]
        except Exception as error:  # of a validator of the user's own
            why = own.in_words(error)
        else:
            return
        raise self.fault(f"the default of its parameter '{name}' cannot be used: {why}", "Mend the default")

    def fault(self, what: str, remedy: str) -> RecipeError:
        """What is wrong with the function as a stage."""
        place = f"{self.function.path.name}:{self._line}" if self._line else self.function.path.name
        return RecipeError(place, f"'{self.function.name}' cannot be a stage: {what}", remedy)


def _arms(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _rows_of(hint: Any) -> type[Record] | None:
    """The kind of row in Iterator[Chat], or in Iterator[Chat] | None."""
    for arm in _arms(hint):
        if get_origin(arm) in STREAMS and get_args(arm)[0] in KINDS:
            row_type: type[Record] = get_args(arm)[0]
            return row_type
    return None


def _run(signature: _Signature, config: StageConfig, inputs: Inputs, work: Work) -> Facts:
    """Call the function, and keep what it returns as it comes. DataError where that is gone in the end."""
    call = own.Own(inputs.functions["kind"][0])
    facts = _called(call, signature, config, inputs, work)
    gone = [name for name in (ROWS_FILE, DROPPED_FILE) if not (work.path / name).is_file()]
    if gone:
        what = f"'{call.function.name}' takes away {gone[0]}, which its rows are written to"
        raise DataError(call.function.path.name, what, "Leave what lies in work.path")
    return facts


def _called(call: own.Own, signature: _Signature, config: StageConfig, inputs: Inputs, work: Work) -> Facts:
    """The rows that it returns, written; what was counted."""
    counts: Counter[str] = Counter()
    with ExitStack() as stack, work.harvest() as harvest:
        given: dict[str, Any] = {name: getattr(config, name) for name in signature.fields}
        for name, row_type in signature.rows.items():
            given[name] = _read(inputs.data[name], row_type, counts)
        for name in signature.teachers:
            given[name] = stack.enter_context(connect(inputs.model(name), work.account))
        given |= dict.fromkeys(signature.work, work)

        def kept() -> Iterator[Record]:
            for row in _returned(call, given, counts):
                if type(row) is Dropped:
                    harvest.drop(own.whole_row(row, Dropped, call.function))
                else:
                    yield _checked(row, signature)
                    work.progress(counts["read"], 0, "rows")

        count = harvest.keep_all(kept())
        if count == 0:
            why = harvest.why_nothing() if harvest.reasons else "it returned none"
            raise DataError(call.function.label, f"no row is left ({why})", "See to the function, or to what it reads")
        return {"rows": count, "read": counts["read"], "dropped": harvest.reasons}


def _read(sources: tuple[Data, ...], row_type: type[Record], counts: Counter[str]) -> Iterator[Record]:
    for data in sources:
        for row in data.rows(row_type):
            counts["read"] += 1
            yield row


def _returned(call: own.Own, given: dict[str, Any], counts: Counter[str]) -> Iterator[Any]:
    """What the function returns, one by one; an error in it says how far it had read."""

    def doing() -> str:
        return f"making rows, {counts['read']} read"

    with own.blame(call.function, doing):
        rows = _iterable(call("making rows", **given), call)
    while True:
        with own.blame(call.function, doing):
            row = next(rows, END)
        if row is END:
            return
        yield row


def _iterable(returned: Any, call: own.Own) -> Iterator[Any]:
    if isinstance(returned, str | bytes | Record) or not isinstance(returned, Iterable):
        what = f"'{call.function.name}' returned {type(returned).__name__}; {MAY_RETURN}"
        raise DataError(call.function.path.name, what, "Mend what it returns")
    return iter(returned)


def _checked(row: Any, signature: _Signature) -> Record:
    """DataError where a row is not of the kind that the function says it makes, or no stage could read it."""
    place, name = signature.function.path.name, signature.makes.__name__
    if type(row) is not signature.makes:
        what = f"'{signature.function.name}' returned {type(row).__name__} among its rows; expected {name} or Dropped"
        raise DataError(place, what, "Mend what it returns, or its annotation")
    whole: Record = own.whole_row(row, signature.makes, signature.function)
    try:
        check_record(whole)
    except ShapeError as error:
        what = f"'{signature.function.name}' made a row that cannot be used: {getattr(whole, 'id', '')}: {error}"
        raise DataError(place, what, "Mend what it returns") from error
    return whole
