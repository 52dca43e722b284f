"""A user's own functions, named in a recipe as `mine.py:name`: checked, hashed, loaded, and blamed for what they raise.

A stage that takes one declares a field of the type `OwnFunction` (or a tuple, a dict, an optional one), and finds what
it names in `inputs.functions["field"]`. The file's hash is part of the stage's key, together with those of the modules
beside it that it imports; nothing else is: not the data that it opens, nor a module that it imports by a computed name.

    filters: tuple[OwnFunction, ...] = ()                        # in a config
    filters = own_filters(inputs.functions["filters"])           # in run()
    for keep in filters:
        if fault := keep.fault(row):                             # (reason, detail) of a row to drop
            dropped.append(Dropped(id=row.id, reason=fault[0], detail=fault[1]))

    call = Own(inputs.functions["check"][0])                     # anything else than a filter
    score = call(f"checking row {row.id}", row.text, limit=3)    # its errors say file, line and what was being done

A field that takes a word of potstill's own as well is an `OwnOrWord`: a text for which `is_own` is false makes no entry
in `inputs.functions`, and the config's validator says which words there are. A `Function` can be pickled; each process
that calls it makes its own `Own` or `OwnFilter` of it.
"""

import ast
import contextlib
import hashlib
import os
import re
import symtable
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

from pydantic import ValidationError
from pydantic_core import to_json

from potstill.artifact import digest, hash_file
from potstill.errors import DataError, PotstillError, RecipeError, reason
from potstill.records import Dropped, Record
from potstill.sources import Function
from potstill.stages.base import Reference

R = TypeVar("R", bound=Record)

OwnFunction = Annotated[str, Reference(("function",))]
"""The type of a field that names a function of the user's own: `mine.py:name`, the file beside the recipe."""

OwnOrWord = Annotated[str, Reference(("function", "word"))]
"""Such a function, or a word that the stage's config knows."""

_WRITTEN = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
_siblings: set[str] = set()
"""The modules beside users' files that were imported: the next load takes them anew."""


def is_own(text: str) -> bool:
    """Whether a text is meant as `mine.py:name`, and not as a name of potstill's own."""
    return ".py:" in text or text.endswith(".py")


def written(text: str, place: str) -> tuple[str, str]:
    """The path and the name in `mine.py:name`. RecipeError where it is not written so."""
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise RecipeError(place, f"'{text}' names no function", "Write the file and the function, such as mine.py:keep")
    return found["path"], found["name"]


def check(function: Function) -> None:
    """RecipeError, with file and line, where the file is no Python or holds nothing of that name. Runs none of it."""
    source = _source(function.path)
    tree = _tree(source, function.path)
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        return  # only running it tells
    symbols = symtable.symtable(source, function.path.name, "exec").get_symbols()
    names = [s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()]
    if function.name not in names:
        raise _absent(function, names)


def files(path: Path) -> dict[str, Path]:
    """The user's file and what it imports from its own folder, and those in turn: by name below the folder.

    A file that cannot be read as Python stands there too; who loads it says what is wrong.
    """
    folder, found, waiting = path.parent, {path.name: path}, [path]
    while waiting:
        for head in _imported(waiting.pop()):
            package = folder / head
            near = sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
            for file in near:
                name = file.relative_to(folder).as_posix()
                if name not in found and file.is_file():
                    found[name] = file
                    waiting.append(file)
    return dict(sorted(found.items()))


def fingerprint(path: Path, hash_one: Callable[[Path], str] = hash_file) -> str:
    """One SHA-256 of a user's file and of what it imports beside it."""
    return digest({name: hash_one(file) for name, file in files(path).items()})


def load(function: Function) -> Callable[..., Any]:
    """The function itself; its file runs, as it stands now, in a module of its own.

    RecipeError, with file and line, where it cannot be imported or holds no such function.
    """
    source = _source(function.path)
    tree = _tree(source, function.path)
    name = f"potstill_own_{hashlib.sha256(str(function.path).encode()).hexdigest()[:12]}_{function.path.stem}"
    module = ModuleType(name)
    module.__file__ = str(function.path)
    sys.modules[name] = module  # dataclasses and annotations look there
    with _beside(function.path):
        try:
            with _staying(function):
                exec(compile(tree, str(function.path), "exec"), module.__dict__)
        except (PotstillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            remedy = f"Mend the file; its function '{function.name}' is named in the recipe"
            raise RecipeError(_where(error, function), f"{in_words(error)} (while importing it)", remedy) from error
    found = getattr(module, function.name, None)
    if found is None:
        raise _absent(function, [word for word in vars(module) if not word.startswith("_")])
    if not callable(found):
        what = f"'{function.name}' is {type(found).__name__}, not a function"
        raise RecipeError(function.path.name, what, "Name a function of the file")
    return found  # type: ignore[no-any-return]


@contextmanager
def blame(function: Function, doing: Callable[[], str]) -> Iterator[None]:
    """Turn whatever the user's code raises into a DataError that says its file and line, and what was being done."""
    try:
        with _staying(function):
            yield
    except (PotstillError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and GeneratorExit too: user code ends no run in silence
        what = f"{in_words(error)} (while {doing()})"
        raise DataError(_where(error, function), what, f"Mend '{function.name}', or the row") from error


@contextmanager
def _staying(function: Function) -> Iterator[None]:
    """DataError where the user's code leaves the working directory, which the run's paths may stand on."""
    here = Path.cwd()
    try:
        yield
    finally:
        moved = Path.cwd() != here
        if moved:
            os.chdir(here)
    if moved:
        what = f"'{function.name}' changes the working directory; expected it to stay where the run was started"
        raise DataError(function.path.name, what, "Use whole paths in it, without os.chdir")


def whole_row(row: Record, row_type: type[R], function: Function) -> R:
    """A row that the user's code made, as it will be read again. DataError where it cannot be written, or not be read.

    Nothing else holds what was made without validation, as by `model_copy` and `model_construct`.
    """
    try:
        if stray := next(_strays(row), ""):
            raise TypeError(f"there is no field {stray}")
        text = to_json(row.model_dump(warnings=False), inf_nan_mode="strings")  # which are no numbers
        return row_type.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except Exception as error:  # whatever was put into it
        why = in_words(error)
    what = f"'{function.name}' made a row that cannot be used: {_shown(getattr(row, 'id', ''))}: {_shown(why)}"
    raise DataError(function.path.name, what, "Mend what it returns")


def _strays(value: Any) -> Iterator[str]:
    """What `model_copy` put into a row, or into a part of it, under a name that no field has: it would be lost."""
    if isinstance(value, Record):
        fields = type(value).model_fields
        yield from (f"'{name}' in a {type(value).__name__}" for name in vars(value) if name not in fields)
        value = tuple(vars(value).values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _strays(item)


class Own:
    """A user's function, loaded."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._call = load(function)

    def __call__(self, doing: str, *arguments: Any, **named: Any) -> Any:
        """Call it. DataError with file and line where it raises, "(while `doing`)"."""
        with blame(self.function, lambda: doing):
            return self._call(*arguments, **named)


class OwnFilter(Own):
    """A user's function that says of a row whether it stays: `def keep(row: Chat) -> bool`.

    It returns True (or None) to keep the row; False to drop it, by the function's name; words to drop it by the
    function's name with the words as detail; or a Dropped, whose reason and detail are taken.
    """

    def fault(self, row: Record) -> tuple[str, str] | None:
        """(reason, detail) of a row to drop.

        DataError where the function raises, returns something else, or changes the row.
        """
        name, before = str(getattr(row, "id", "")), row.to_line()
        with blame(self.function, lambda: f"filtering row {name}"):
            dropped = self._verdict(self._call(row), name)
            changed = row.model_dump_json(exclude_defaults=True, warnings=False) + "\n" != before
        if changed:
            what = f"'{self.function.name}' changes row {name}; expected it to say no more than whether the row stays"
            raise DataError(self.function.path.name, what, "Change rows in a stage of your own")
        if dropped is None:
            return None
        dropped = whole_row(dropped, Dropped, self.function)
        return dropped.reason, dropped.detail

    def _verdict(self, said: Any, name: str) -> Dropped | None:
        """What the function returned, as the record of a row to drop; None for one to keep."""
        if said is None or (is_bool := _bool(said)) is True:
            return None
        if is_bool is False:
            return Dropped(id=name, reason=self.function.name)
        if isinstance(said, str):
            return Dropped.model_construct(id=name, reason=self.function.name, detail=said)
        if isinstance(said, Dropped):
            return Dropped.model_construct(id=name, reason=said.reason, detail=said.detail)
        what = f"'{self.function.name}' returned {type(said).__name__} for row {name}"
        expected = "expected True or None to keep it; False, words or a Dropped to drop it"
        raise DataError(self.function.path.name, f"{what}; {expected}", "Mend what it returns")


def own_filters(functions: Iterable[Function]) -> tuple[OwnFilter, ...]:
    """The filters that a field names, loaded, in their order."""
    return tuple(OwnFilter(function) for function in functions)


def _bool(value: Any) -> bool | None:
    """True or false, numpy's too, which no annotation tells from Python's; None for all else."""
    if isinstance(value, bool) or (str(getattr(value, "dtype", "")) == "bool" and getattr(value, "ndim", 1) == 0):
        return bool(value)
    return None


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(str(path), f"it cannot be read: {reason(error)}", "Mend its permissions") from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), "it is no text in UTF-8", "Save it as UTF-8") from error


def _tree(source: str, path: Path) -> ast.Module:
    try:
        return ast.parse(source, path.name)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path.name}:{line}" if line else path.name
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError(where, f"this is not valid Python: {what}", "Mend the file") from error


def _imported(path: Path) -> Iterator[str]:
    """The first word of every module that a file imports by its whole name."""
    with contextlib.suppress(RecipeError):
        for node in ast.walk(_tree(_source(path), path)):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """While a user's file runs: modules in its folder are found first, as for a script, and are read anew.

    Nothing is written beside it, and what Python compiled of an earlier text is no use to anybody here.
    """
    for name in _siblings:
        sys.modules.pop(name, None)
    before, wrote = set(sys.modules), sys.dont_write_bytecode
    own = {str(file) for file in files(path).values()}
    sys.path.insert(0, str(path.parent))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        _siblings.update(name for name, module in new.items() if getattr(module, "__file__", None) in own)


def _where(error: BaseException, function: Function) -> str:
    """The last line of the user's own files that the error went through."""
    own = {str(path): name for name, path in files(function.path).items()}
    if isinstance(error, SyntaxError) and str(error.filename) in own:
        return f"{own[str(error.filename)]}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{own[frames[-1].filename]}:{frames[-1].lineno}" if frames else function.path.name


def in_words(error: BaseException) -> str:
    """An error as Python ends a traceback, on one line."""
    words = " ".join(f"{type(error).__name__}: {_shown(error)}".split()).rstrip(": ")
    return words if len(words) <= 300 else words[:297] + "..."


def _shown(value: object) -> str:
    """Whatever the user's code made, for a message: halves of characters spelt out."""
    try:
        return str(value).encode(errors="backslashreplace").decode()
    except Exception:  # of a class of the user's own
        return ""


def _absent(function: Function, names: Iterable[str]) -> RecipeError:
    near = ", ".join(sorted(names)) or "nothing"
    what = f"there is no function '{function.name}' in it; it holds {near}"
    return RecipeError(function.path.name, what, "Mend the name in the recipe")
