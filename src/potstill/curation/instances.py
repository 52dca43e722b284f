"""Instances of a task, an input and an output each: read from a model's reply, and what is wrong with them.

Self-Instruct (Wang et al. 2023, section 2.2 and appendix A): input first for open tasks, label first for those of
choosing, so that no label is left without an example.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_HEAD = re.compile(
    r"^(?:[^\S\n]|[*#])*+Example[^\S\n]++\d++(?:[^\S\n]|\*)*+(?:[:.)](?:[^\S\n]|\*)*+)?$", re.IGNORECASE | re.MULTILINE
)
_PART = re.compile(r"^[ \t*#]*(Input|Output|Label)[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_NOTHING = re.compile(r"\W*+(?:none|n/?a|no input(?: needed)?|nothing|empty)?\W*+", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(?:Choosing\W+)?(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    """What a task is done on, and what comes of it."""

    input: str
    """Empty where the task needs nothing."""
    output: str


def read_choosing(text: str) -> bool | None:
    """Whether a task was called one of choosing; None where the reply does not say."""
    found = _YES_NO.match(text)
    return found[1].lower() == "yes" if found else None


def read_instances(text: str, *, label_first: bool) -> list[Instance]:
    """The instances in a reply; those without both parts are none. Parts may go over several lines."""
    heads = list(_HEAD.finditer(text))
    starts = [head.end() for head in heads] or [0]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    wanted = "label" if label_first else "output"
    found = []
    for start, end in zip(starts, ends, strict=True):
        parts = _parts(text[start:end])
        if parts is not None and set(parts) == {"input", wanted}:
            given = "" if _NOTHING.fullmatch(parts["input"]) else parts["input"]
            found.append(Instance(given, parts[wanted]))
    return found


def _parts(body: str) -> dict[str, str] | None:
    """What stands behind each name; None where one stands twice."""
    names = list(_PART.finditer(body))
    ends = [*(name.start() for name in names), len(body)][1:]
    parts: dict[str, str] = {}
    for name, end in zip(names, ends, strict=True):
        if name[1].lower() in parts:
            return None
        parts[name[1].lower()] = body[name.end() : end].strip()
    return parts


def instance_faults(instances: Sequence[Instance], *, label_first: bool) -> list[str]:
    """For each instance why it is left out, or nothing.

    "empty": it says nothing, or nothing to find the label for; "copy": the output is the input; "conflict": the same
    input has two different outputs, and nobody knows which is right; "repeated": it was there before.
    """
    outputs: dict[str, set[str]] = {}
    for instance in instances:
        outputs.setdefault(_plain(instance.input), set()).add(_plain(instance.output))
    seen: Counter[tuple[str, str]] = Counter()
    faults = []
    for instance in instances:
        given, output = _plain(instance.input), _plain(instance.output)
        seen[given, output] += 1
        if not output or (label_first and not given):
            faults.append("empty")
        elif given == output:
            faults.append("copy")
        elif given and len(outputs[given]) > 1:
            faults.append("conflict")
        else:
            faults.append("repeated" if seen[given, output] > 1 else "")
    return faults


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
