"""What `plan` and `status` print."""

import contextlib
import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from potstill.artifact import find
from potstill.console import duration, facts_line
from potstill.plan import Plan, Step
from potstill.sources import EndpointModel, Price
from potstill.teachers.journal import JOURNAL, Journal
from potstill.workspace import Description, Workspace

ROOM_FOR_DATES = 110
"""Columns of a terminal from which on `status` says when each stage was sealed."""


def plan_view(console: Console, plan: Plan, folder: Path) -> None:
    """Each stage: sealed, or why it will run, and what that is expected to take."""
    table = _table("stage", "kind", "")
    for name in ("rows", "calls", "tokens"):
        table.add_column(name, justify="right")
    for step in plan.steps.values():
        runs, expected = step.artifact is None, step.expected
        state = Text.assemble(("will run", "cyan"), f"  {step.why}") if runs else Text("sealed", "green")
        table.add_row(
            Text(step.name, style="bold" if runs else "dim"),
            Text(str(step.head["kind"]), style="" if runs else "dim"),
            state,
            f"{'~' if runs else ''}{expected.rows:,}" if expected.rows else "",
            f"{expected.calls:,}" if runs and expected.calls else "",
            f"{expected.tokens:,}" if runs and expected.tokens else "",
        )
    console.print(table)
    console.print()
    console.print(_sum(plan, folder), soft_wrap=True)


def _sum(plan: Plan, folder: Path) -> str:
    waiting = plan.to_run
    if not waiting:
        return f"All {len(plan.steps)} stages are sealed in {folder}; nothing would run."
    calls = sum(step.expected.calls for step in waiting)
    cost = sum(_cost_usd(step) for step in waiting)
    words = f"{len(waiting)} of {len(plan.steps)} stages would run in {folder}"
    words += f"; about {calls:,} calls of teachers and judges" if calls else ""
    return words + (f", at most about ${cost:,.2f}" if cost else "") + "."


def _cost_usd(step: Step) -> float:
    """Every expected token at the dearest price that one of the stage's models asks."""
    specs = [model.spec for link in step.entry.links for model in link.models]
    prices = [spec.price for spec in specs if isinstance(spec, EndpointModel) and spec.price is not None]
    return step.expected.tokens * max((_dearest(price) for price in prices), default=0.0) / 1e6


def _dearest(price: Price) -> float:
    return max(price.input, price.output)


def status_view(console: Console, workspace: Workspace) -> None:
    """What the last run asked for, and how far it got."""
    described, times, holder, left = workspace.describe(), workspace.times(), workspace.holder(), []
    wide = console.width >= ROOM_FOR_DATES
    table = _table("stage", "kind", "", *(["sealed at"] if wide else []), "took")
    table.expand = True
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim", ratio=1)
    for name, asked in described.stages.items():
        artifact = find(workspace.artifacts / asked.folder)
        if artifact is None:
            left.append(name)
            state = Text("not yet", "dim")
            if (workspace.work / name).exists():
                state = Text("runs now", "cyan") if holder else Text("unsealed work", "yellow")
            table.add_row(name, asked.kind, state)
            continue
        took = times.get(artifact.key)
        when = [took.sealed_at if took else ""] if wide else []
        seconds = duration(took.seconds) if took else ""
        table.add_row(name, asked.kind, Text("sealed", "green"), *when, seconds, escape(facts_line(artifact)))
    console.print(table)
    console.print()
    if spent := _spent(described, workspace):
        console.print(spent, soft_wrap=True)
    if holder:
        console.print(f"Process {holder} works in {workspace.path}.", soft_wrap=True)
    elif left:
        console.print(f"{len(left)} of {len(described.stages)} stages are left. Go on with:", soft_wrap=True)
        console.print(f"  {_resume(described, workspace)}", soft_wrap=True)
    else:
        console.print(f"All {len(described.stages)} stages are sealed in {workspace.path}.", soft_wrap=True)


def _spent(described: Description, workspace: Workspace) -> str:
    """What replies have cost, and what of the budget is left."""
    path = workspace.path / JOURNAL
    if not path.exists():
        return ""
    with contextlib.closing(Journal(path, read_only=True)) as journal:
        totals = journal.totals()
    calls, usd = sum(total.calls for total in totals), sum(total.usd for total in totals)
    tokens = sum(total.prompt_tokens + total.completion_tokens for total in totals)
    words = f"{calls:,} replies with {tokens:,} tokens are kept"
    if usd or described.budget_usd is not None:
        words += f"; ${usd:,.2f} spent"
    if described.budget_usd is not None:
        words += f" of ${described.budget_usd:,.2f}, ${max(0.0, described.budget_usd - usd):,.2f} left"
    return f"{words}. What they are: potstill journal {shlex.quote(str(workspace.path))}"


def _resume(described: Description, workspace: Workspace) -> str:
    words = ["potstill", "run", described.source, *described.overrides]
    if workspace.path != Path("runs") / described.recipe:
        words += ["--out", str(workspace.path)]
    words += ["--until", described.until] if described.until else []
    words += ["--launch", shlex.join(described.launch)] if described.launch else []
    return shlex.join(words)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column in ("stage", "kind"))
    return table
