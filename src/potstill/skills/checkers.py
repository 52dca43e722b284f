"""Checkers: whether an answer is right, by a reference; each says right, wrong, or that no final answer can be read."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from potstill.errors import DataError
from potstill.own import Own, is_own
from potstill.records import whole_text
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

_LETTER = re.compile(r"[\s*_(\[]*([A-Za-z])[\s*_]*(?:[).:\]](.*))?", re.DOTALL)
_SAID = re.compile(
    r"\banswer\s++is\s*+(?::\s*+)?(?!(?:a|i)\s++(?!because|since|as\b)\w)[*_(\[]*+([A-Za-z])[*_)\]]*+(?=[\s.,;:]|$)",
    re.IGNORECASE,
)
# Another option beside the one that was read. The article of "B) A river" is none, nor are initials.
_OPTION = re.compile(
    r"(?<![\w'’.])(?:([B-H])|(A)(?!\s+[a-z])|(A)(?=\s+(?:is|was|or|and)\b)|\(?([a-h])\))(?![\w'’]|\.\w)"
)
_LOWER = re.compile(r"\b(?:or|wait,?|actually,?|rather|perhaps|maybe)\s+[*_(\[]*([a-h])\b(?![\w'’])", re.IGNORECASE)
_FENCE = re.compile(r"\A\s*+```(?:json)?[^\S\n]*+\n(.*?)```\s*\Z", re.DOTALL | re.IGNORECASE)
_TEXTS = re.compile(r"^[^\w\n]*+text[^\S\n]++(\d{1,2})[^\w\n]*+$", re.IGNORECASE | re.MULTILINE)


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
        if type(said) is not bool:
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
    """The one letter that a text chooses, if it names no other beside or after it."""
    lines, inner = answer_lines(text), boxed(text)
    parts = lines or ([text] if inner is None else [inner])
    found = {_letter(part) for part in parts}
    after = text[text.rindex(parts[-1]) + len(parts[-1]) :]
    if None in found:
        said = list(_SAID.finditer(text))
        if not said:
            return None
        found = {match[1].upper() for match in said}
        first = _LETTER.match(text.strip())
        if first and first[2] is not None:
            found.add(first[1].upper())
        after = text[said[0].end() :]
    if len(found) != 1 or _options(after) - found:
        return None
    return found.pop()


def _letter(part: str) -> str | None:
    """The letter that a part is, or begins with as the mark of an option, if no other option stands in it."""
    found = _LETTER.fullmatch(part.strip())
    if found is None or _options(found[2] or "") - {found[1].upper()}:
        return None
    return found[1].upper()


def _options(text: str) -> set[str]:
    """The letters in a text that may be options."""
    named = {letter.upper() for found in _OPTION.findall(text) for letter in found if letter}
    return named | {letter.upper() for letter in _LOWER.findall(text)}


def _json(text: str) -> str | None:
    """In one spelling; numbers by their value, so that 1 and 1.0 are the same and true is neither."""
    if len(set(answer_lines(text))) > 1:
        return None
    part = final_text(text)
    fenced = _FENCE.match(part)
    try:
        value = json.loads(fenced[1] if fenced else part, parse_constant=_refuse)
        return whole_text(json.dumps(_plain(value), sort_keys=True, ensure_ascii=False))
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
    texts = max((int(n) for n in _TEXTS.findall(text)), default=1)
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
