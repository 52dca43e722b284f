"""What `compare` prints for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from potstill.evaluation.gate import TOO_NEAR
from potstill.reporting.told import Form, told, told_difference

STYLES = {"holds": "green", "better": "green", "regression": "red", "worse": "red"}


def compare_view(console: Console, found: Mapping[str, Any]) -> None:
    """For people."""
    console.print(Text.assemble(("before  ", "dim"), found["before"]), soft_wrap=True)
    console.print(Text.assemble(("after   ", "dim"), found["after"]), soft_wrap=True)
    console.print()
    console.print(_requirements(found) if found["requirements"] else _differences(found))
    for side in ("before", "after"):
        if found[f"only_{side}"]:
            line = f"Only {side} was scored on: {', '.join(found[f'only_{side}'])}."
            console.print(Text(line, "dim"), soft_wrap=True)
    for name, suite in found["suites"].items():
        for side, other in (("before", "after"), ("after", "before")):
            if count := suite["difference"][f"only_{side}"]:
                line = f"{name}: {count:,} of the questions asked {side} were not asked {other}."
                console.print(Text(line, "yellow"), soft_wrap=True)
    for name, why in found["not_compared"].items():
        console.print(Text(f"{name} is left out: {why}.", "dim"), soft_wrap=True)
    for note in found["notes"]:
        console.print(Text(f"Note: {note}.", "yellow"), soft_wrap=True)


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _differences(found: Mapping[str, Any]) -> RenderableType:
    table = _table("suite", "before", "after", "after − before", "")
    for name, suite in found["suites"].items():
        form = Form.of(suite)
        ends = [Text.assemble(*told(suite[side], form).marked("\n")) for side in ("before", "after")]
        word = suite["verdict"]
        verdict = Text("cannot tell" if word == "unclear" else word, STYLES.get(word, ""))
        why = Text(f"\n{suite['difference']['why']}" if word == "unclear" else "", "dim")
        lower = Text("" if suite["higher_is_better"] else "\nlower is better", "dim")
        table.add_row(Text(name) + lower, *ends, _difference(suite["difference"], form), verdict + why)
    count = max(suite["difference"]["comparisons"] for suite in found["suites"].values())
    note = f" Verdicts are corrected for {count} comparisons (Holm)." if count > 1 else ""
    return Group(table, Text(f"Intervals are of 95%, clustered by question.{note}", "dim"))


def _difference(found: Mapping[str, Any], form: Form) -> Text:
    """With the number of questions, of which there are fewer than values where each has several turns or seeds."""
    parts = told_difference(found, form).marked("\n")
    if 1 < found["questions"] < found["n"]:
        parts.append((f"\nof {found['questions']:,} questions", "dim"))
    return Text.assemble(*parts)


def _requirements(found: Mapping[str, Any]) -> RenderableType:
    table = _table("required", "after − before, better above 0", "")
    for one in found["requirements"]:
        suite = found["suites"][one["suite"]]
        word = Text(one["verdict"], f"bold {STYLES.get(one['verdict'], 'yellow')}")
        table.add_row(
            Text(one["requirement"]), _difference(one, Form.of(suite)), Group(word, Text(reason(one, suite), "dim"))
        )
    note = f"Each end of an interval is a one-sided bound of {1 - found['level']:.1%}, clustered by question."
    count = len(found["requirements"])
    note += f" Regressions are corrected for {count} requirements (Holm)." if count > 1 else ""
    return Group(table, Text(note, "dim"))


def reason(one: Mapping[str, Any], suite: Mapping[str, Any]) -> str:
    """Why a requirement cannot be told, and what would tell it."""
    if one["verdict"] != "cannot tell":
        return ""
    needed = one["questions_needed"]
    if needed is not None:
        about = f"about {float(f'{needed:.2g}'):,.0f} questions like these would decide"
        return f"{one['why']}; {about}, were the difference as observed"
    if one["why"] == TOO_NEAR:
        return f"{TOO_NEAR}: no number of questions that could be asked would tell"
    return str(one["why"])
