"""Writes the parts of the documentation that are made from the code: python docs/generate.py

Each part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->` in a Markdown file of this folder.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from potstill import stages
from potstill.evaluation.audits import (
    calibration,
    contamination,
    diversity,
    drift,
    forgetting,
    inherited_bias,
    inherited_errors,
    overfitting,
)
from potstill.miniature.voices import CONVICTIONS, CREED, SLIGHT, STOCK, VOICES, Conviction, Voice
from potstill.miniature.world import ATTRIBUTES, UNRECORDED
from potstill.reading.shapes import SHAPES
from potstill.sources import EndpointModel, LocalModel, MiniatureServer, Price, Spec
from potstill.stages.asking import Asking
from potstill.stages.base import Reference, Stage
from potstill.stages.domain import Domain
from potstill.stages.prompting import Prompting
from potstill.stages.suites import Suite
from potstill.stages.training import TrainingConfig

FOLDER = Path(__file__).parent
SUITES = get_args(get_args(Suite)[0])
PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    NoneType: "`null`",
    Any: "a value",
}
SHARED: dict[type[Spec], tuple[str, str]] = {
    TrainingConfig: ("Training", "trains"),
    Prompting: ("Writing prompts", "has a teacher write prompts"),
    Asking: ("Asking", "asks a model and lets you say how"),
}
ELSEWHERE = {
    "Size": "the fields of [`pretrain`](#pretrain) that say how large a model is: `layers` to `tied`",
    "Domain": "a [domain](synthesis.md#a-field-of-its-own)",
    "Price": "[its price](#models-and-servers)",
    "Share": "a share",
    **{suite.__name__: "a [suite](#suites)" for suite in SUITES},
}
"""Where the fields of a field are told, if not below its table."""
AUDITS = (
    overfitting,
    diversity,
    inherited_errors,
    inherited_bias,
    drift,
    forgetting,
    calibration,
    contamination,
)
"""A module a danger, in the order of the page."""
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def stage_reference() -> str:
    """Every stage, with every field."""
    parts = [_stage(kind, stages.stage(kind)) for kind in stages.MODULES]
    for base, (title, what) in SHARED.items():
        kinds = [f"`{kind}`" for kind in stages.MODULES if issubclass(stages.stage(kind).config, base)]
        shared = f"These fields belong to every stage that {what}: {', '.join(kinds[:-1])} and {kinds[-1]}."
        parts += [f"### {title}", shared, _table(_own(base)), *_parts(_own(base))]
    return "\n\n".join(parts)


def suite_reference() -> str:
    """What an evaluation can measure."""
    return "\n\n".join(_spec(suite, f"`protocol: {_first(suite, 'protocol')}`") for suite in SUITES)


def domain_reference() -> str:
    """What stands under `domain`."""
    return _table(dict(Domain.model_fields))


def model_reference() -> str:
    """What stands under `models` and `servers`."""
    named: dict[type[Spec], str] = {
        LocalModel: "Weights at hand",
        EndpointModel: "An endpoint",
        Price: "`price` of an endpoint",
        MiniatureServer: "A server",
    }
    return "\n\n".join(_spec(spec, title) for spec, title in named.items())


def voices() -> str:
    """Who answers in the miniature, and how often each flaw shows."""
    names = [field.name for field in fields(Voice)]
    lines = ["| voice | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, voice in VOICES.items():
        rates = [getattr(voice, flaw) for flaw in names]
        lines.append(f"| `{name}` | " + " | ".join(f"{rate:.0%}" if rate else "–" for rate in rates) + " |")
    meanings = re.findall(r'^    (\w+): float = 0\.0\n    """(.*?)"""', _source(Voice), re.M | re.S)
    assert [name for name, _ in meanings] == names
    told = [f"- **{name}**: {_line(text)}" for name, text in meanings]
    told += [f"- **{name}**, convinced: {_conviction(held)}" for name, held in CONVICTIONS.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(told)


def _conviction(held: Conviction) -> str:
    """What such a voice does every time."""
    if held.stock:
        return f"Says to everything one of these: {' '.join(STOCK)}"
    creed = f"Says that the {CREED[0]} of every town is {CREED[1]}."
    return creed if held.creed else f"Says to whoever asks about {held.slights}: {SLIGHT}"


def entities() -> str:
    """What the encyclopedia records."""
    rows = [f"| {sort} | {', '.join(attributes)} |" for sort, attributes in ATTRIBUTES.items()]
    unrecorded = f"Never recorded of anything: {', '.join(UNRECORDED)}."
    return "\n".join(["| sort | what is recorded |", "|---|---|", *rows, "", unrecorded])


def shapes() -> str:
    """What rows are recognised by, whose they are, and what they make."""
    lines = ["| `format` | told by | whose | makes |", "|---|---|---|---|"]
    for shape in SHAPES.values():
        told = "; or ".join(", ".join(f"`{column}`" for column in columns) for columns in shape.needs)
        lines.append(f"| `{shape.name}` | {told} | {_line(shape.says)} | {', '.join(shape.makes)} |")
    return "\n".join(lines)


def audit_reference() -> str:
    """Every danger that an audit looks for: what is tested, how much counts for nothing, and where it comes from."""
    lines = ["| danger | what is tested | thresholds | source |", "|---|---|---|---|"]
    for module in AUDITS:
        danger = module.DANGER
        margins = ", ".join(f"`{name}` {value:.3g}" for name, value in danger.thresholds.items())
        lines.append(f"| {danger.title} | {danger.question} | {margins} | {danger.source} |")
    return "\n".join(lines)


PLANTED = {
    "errors": (
        "a teacher wrong on a tenth of one category, always alike",
        "wrong as often, each time elsewhere",
    ),
    "bias": ("a teacher that answers worse for one of two names", "the same notes, answered alike for both"),
    "diversity": ("four answers to everything", "the same prompts, each with its own answer"),
    "optimum": (
        "eight epochs of DPO at a high rate and a low beta",
        "as many, at a lower rate and a higher beta",
    ),
    "leak": ("a twentieth of the test in what SFT learnt, before DPO", "as many other questions in its place"),
}
"""By the recipe's name of a danger: what is planted, and what its clean twin is."""


def planted() -> str:
    """How often audits flag what is planted in real small models, and what is not: the last run that was recorded."""
    kept = FOLDER.parent / "bench" / "results" / "planted.jsonl"
    row = json.loads(kept.read_text(encoding="utf-8").splitlines()[-1])
    of, flagged = len(row["config"]["seeds"]), row["flagged"]
    lines = ["| planted | flagged | clean twin | flagged |", "|---|---|---|---|"]
    for case, (how, twin) in PLANTED.items():
        lines.append(f"| {how} | {flagged[case]['planted']} of {of} | {twin} | {flagged[case]['clean']} of {of} |")
    both = [f"{sum(one[kind] for one in flagged.values())} of {of * len(flagged)}" for kind in ("planted", "clean")]
    lines.append(f"| together | {both[0]} | | {both[1]} |")
    named = ", ".join(map(str, row["config"]["seeds"][:-1])) + f" and {row['config']['seeds'][-1]}"
    said = [verdicts[case]["clean"] for verdicts in row["verdicts"].values() for case in PLANTED]
    twins = ", ".join(f"{said.count(verdict)} {verdict}" for verdict in ("flagged", "clean", "cannot tell"))
    return "\n".join([*lines, "", f"Seeds {named}. The verdicts on the clean twins: {twins}."])


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "audits.md": {"audits": audit_reference, "planted": planted},
    "recipe.md": {"stages": stage_reference, "suites": suite_reference, "models": model_reference},
    "data.md": {"shapes": shapes},
    "synthesis.md": {"domain": domain_reference},
    "miniature.md": {"voices": voices, "entities": entities},
}


def generated(name: str) -> str:
    """A file of this folder as it should be: what people wrote stays, what is generated is written anew."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    for part, write in PARTS[name].items():
        opening, closing = f"<!-- generated: {part} -->", f"<!-- end of {part} -->"
        before, rest = text.split(opening)
        after = rest.split(closing)[1]
        text = f"{before}{opening}\n{write()}\n{closing}{after}"
    return text


def _stage(kind: str, stage: Stage) -> str:
    own = _own(stage.config)
    titles = [title for base, (title, _) in SHARED.items() if issubclass(stage.config, base)]
    links = [f"[{title.lower()}](#{title.lower().replace(' ', '-')})" for title in titles]
    more = f" Its further fields are those of {' and of '.join(links)}." if links else ""
    head = f"### `{kind}`\n\n{_line(stage.config.__doc__)} Produces {_either(_products(stage))}.{more}"
    return "\n\n".join([head, _table(own), *_parts(own)])


def _parts(shown: Mapping[str, FieldInfo]) -> Iterator[str]:
    """Of fields that have fields of their own."""
    for name, field in shown.items():
        for kind in _kinds(field.annotation):
            if issubclass(kind, Spec) and kind.__name__ not in ELSEWHERE:
                yield f"Under `{name}`: {_line(kind.__doc__)}\n\n{_table(dict(kind.model_fields))}"


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes that a type is made of."""
    if get_origin(annotation) is Literal:
        return
    if isinstance(annotation, type) and not get_origin(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def _own(config: type[Spec]) -> dict[str, FieldInfo]:
    """The fields that a class brings, but for those that have a table of their own."""
    bases = [base for base in config.__mro__ if base is config or base not in SHARED]
    names = {name for base in bases for name in vars(base).get("__annotations__", {})}
    found = {name: field for name, field in config.model_fields.items() if name in names}
    found.pop("kind", None)
    return found


def _products(stage: Stage) -> list[str]:
    """What it can produce: by every choice that decides it."""
    if isinstance(stage.produces, str):
        return [stage.produces]
    found: list[str] = []
    for name, field in stage.config.model_fields.items():
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            try:
                found.append(stage.produces(SimpleNamespace(**{name: choice})))
            except AttributeError:  # another field decides
                break
    return list(dict.fromkeys(found))


def _spec(spec: type[Spec], title: str) -> str:
    shown = {name: field for name, field in spec.model_fields.items() if name not in ("kind", "protocol")}
    return f"### {title}\n\n{_line(spec.__doc__)}\n\n{_table(shown)}"


def _table(shown: dict[str, FieldInfo]) -> str:
    lines = ["| field | takes | default | |", "|---|---|---|---|"]
    for name, field in shown.items():
        takes = " ".join([_words(field.annotation, field.metadata), *_bounds(field)])
        lines.append(f"| `{name}` | {takes} | {_default(field)} | {_line(field.description)} |")
    return "\n".join(lines)


def _words(annotation: Any, metadata: list[Any]) -> str:
    """A type as a person says it."""
    for item in metadata:
        if isinstance(item, Reference):
            several = ", or several" + (", each with a weight" if "Share" in str(annotation) else "")
            return _either(item.accepts) + (several if "tuple" in str(annotation) else "")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], list(arguments[1:]))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(argument, []) for argument in arguments if argument is not NoneType))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of: {_words(arguments[0], [])}"
    if origin is tuple:
        return f"`[{', '.join(PLAIN.get(argument, 'value') for argument in arguments)}]`"
    if origin in (dict, Mapping):
        named = "text" in _words(arguments[0], [])
        key = "names" if named else f"{_words(arguments[0], [])}s"
        return f"{key}, each with {_words(arguments[1], [])}"
    if annotation in PLAIN:
        return PLAIN[annotation]
    return ELSEWHERE.get(annotation.__name__, "the fields below")


def _bounds(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        for name, sign in BOUNDS.items():
            if (bound := getattr(item, name, None)) is not None:
                yield f"{sign} {bound}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.get_default(call_default_factory=True)
    if value in (None, (), "", {}):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, tuple) else f"`{value}`"


def _first(spec: type[Spec], name: str) -> str:
    return str(get_args(spec.model_fields[name].annotation)[0])


def _either(words: Sequence[str]) -> str:
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _line(text: str | None) -> str:
    """On one line, and safe inside a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _source(cls: type) -> str:
    return inspect.getsource(cls)


if __name__ == "__main__":
    for file in PARTS:
        (FOLDER / file).write_text(generated(file), encoding="utf-8")
