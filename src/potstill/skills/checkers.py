"""Checkers: whether an answer is right, by a reference; each says right, wrong, or that no final answer can be read."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from potstill.errors import DataError
from potstill.own import Own, is_own
from potstill.skills.numbers import answer_lines, boxed, final_number
from potstill.skills.python_tests import Limits, find_code, passes
from potstill.sources import Function
from potstill.teachers.aspects import parse_aspect_reply
from potstill.teachers.ratings import NOT_APPLICABLE, is_not_applicable

Verdict = Literal["right", "wrong", "unread"]
Final = Callable[[str], Any]
"""The final answer that a text gives; None where it gives none, or several."""

CheckerName = Literal["number", "exact", "choice", "json", "rating", "python_tests"]
CHECKERS: tuple[CheckerName, ...] = get_args(CheckerName)

_LETTER = re.compile(r"[\s*_(\[]*([A-Za-z])[\s*_]*(?:[).:\]].*)?", re.DOTALL)
_SAID = re.compile(r"\banswer\s+is\s*:?\s*[*_(\[]*([A-Za-z])[*_)\]]*(?=[\s.,;:]|$)", re.IGNORECASE)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Checker:
    """One way to tell right from wrong."""

    name: str
    check: Callable[[str, str], Verdict]
    """(answer, reference): its verdict."""
    final: Callable[[str], str]
    """The final answer alone, as text: what stays of an answer whose derivation is taken away."""
    needs_reference: bool = True


def built_in(name: str, limits: Limits | None = None) -> Checker:
    """One of `CHECKERS`; `limits` are those of code that is run."""
    if name == "python_tests":
        bounds = limits or Limits()
        return Checker(name, lambda answer, tests: _run_tests(answer, tests, bounds), _final_code)
    final, same = _KINDS[name]
    return Checker(name, _compare(final, same), lambda text: _shown(name, text))


def check_name(name: str) -> str:
    """The name as it is; ValueError where it is neither a checker of potstill's nor mine.py:function."""
    if name not in CHECKERS and not is_own(name):
        raise ValueError(f"there is no checker '{name}'; expected one of {', '.join(CHECKERS)}, or mine.py:function")
    return name


def find_checker(name: str, functions: Sequence[Function], limits: Limits | None = None) -> Checker:
    """The checker that a config names: one of potstill's, or the user's own function, which `functions` then holds."""
    return _own(functions[0]) if functions else built_in(name, limits)


def _own(function: Function) -> Checker:
    """`def check(answer: str, reference: str) -> bool`."""
    call = Own(function)

    def check(answer: str, reference: str) -> Verdict:
        said = call("checking an answer", answer, reference)
        if not isinstance(said, bool):
            what = f"'{function.name}' returned {type(said).__name__}; expected True or False"
            raise DataError(function.path.name, what, "Mend what it returns")
        return "right" if said else "wrong"

    return Checker(function.name, check, final_text, needs_reference=False)


def _compare(final: Final, same: Callable[[Any, Any], bool]) -> Callable[[str, str], Verdict]:
    def check(answer: str, reference: str) -> Verdict:
        truth, said = final(reference), final(answer)
        if said is None or truth is None:
            return "unread"
        return "right" if same(said, truth) else "wrong"

    return check


def can_read(checker: Checker, reference: str) -> bool:
    """Whether the reference itself has a final answer: one that has none can confirm nothing."""
    if checker.name in _KINDS:
        return _KINDS[checker.name][0](reference) is not None
    return bool(reference.strip()) or not checker.needs_reference


def final_text(text: str) -> str:
    """What stands behind "Answer:", or all of it."""
    lines = answer_lines(text)
    return lines[-1] if lines else text.strip()


def _words(text: str) -> str | None:
    lines = {" ".join(line.split()) for line in answer_lines(text)}
    if len(lines) > 1:
        return None
    said = lines.pop() if lines else " ".join(text.split())
    return said or None


def _choice(text: str) -> str | None:
    lines = answer_lines(text)
    inner = boxed(text)
    part = "\n".join(set(lines)) if lines else inner if inner is not None else text
    if found := _LETTER.fullmatch(part.strip()):
        return found[1].upper()
    said = {letter.upper() for letter in _SAID.findall(text)}
    return said.pop() if len(said) == 1 else None


def _json(text: str) -> str | None:
    """In one spelling; numbers by their value, so that 1 and 1.0 are the same and true is neither."""
    part = final_text(text)
    fenced = _FENCE.match(part)
    try:
        value = json.loads(fenced[1] if fenced else part, parse_constant=_refuse)
        return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError, OverflowError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _ratings(text: str) -> tuple[float | str, ...] | None:
    """The ratings of all texts, in order; None unless every one is clear."""
    texts = max((int(n) for n in re.findall(r"^\W*text\s+(\d{1,2})\W*$", text, re.I | re.M)), default=1)
    ratings = parse_aspect_reply("", text, texts)
    if any(rating.score is None and not is_not_applicable(rating) for rating in ratings):
        return None
    return tuple(NOT_APPLICABLE if rating.score is None else rating.score for rating in ratings)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)


_KINDS: dict[str, tuple[Final, Callable[[Any, Any], bool]]] = {
    "number": (final_number, lambda one, other: bool(one.same(other))),
    "exact": (_words, _same),
    "choice": (_choice, _same),
    "json": (_json, _same),
    "rating": (_ratings, _same),
}


def _shown(name: str, text: str) -> str:
    if name == "number":
        number = final_number(text)
        return "" if number is None else f"{number.value}{'%' if number.percent else ''}"
    if name == "choice":
        return _choice(text) or ""
    return _json(text) or "" if name == "json" else final_text(text)


def _final_code(text: str) -> str:
    code = find_code(text)
    return "" if code is None else f"```python\n{code}\n```"


def _run_tests(answer: str, tests: str, limits: Limits) -> Verdict:
    code = find_code(answer)
    if code is None:
        return "unread"
    return "right" if passes(code, tests, limits) else "wrong"
