"""What `plan` and `status` print."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from potstill.artifact import find
from potstill.members import families, spoken
from potstill.runs.extras import missing, what_is_missing
from potstill.runs.plan import Plan, Step
from potstill.runs.workspace import Description, Workspace
from potstill.sources import EndpointModel, Model, ModelSpec, Price
from potstill.stages.base import Expected, Part, Range
from potstill.teachers.journal import JOURNAL, Journal, Total
from potstill.terminal.console import facts_line
from potstill.units import duration

ROOM_FOR_DATES = 110
"""Columns of a terminal from which on `status` says when each stage was sealed, and families what they differ in."""


def plan_view(console: Console, plan: Plan, workspace: Workspace) -> None:
    """Each stage: sealed, or why it will run, and what that is expected to take."""
    table = _table("stage", "kind", "")
    table.columns[-1].min_width = len("will run")
    priced = any(_prices(step) for step in plan.to_run)
    for name in ("rows", "calls", "tokens", *(["USD"] if priced else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for family, names in families(plan.steps).items():
        steps = [plan.steps[name] for name in names]
        waiting = [step for step in steps if step.artifact is None]
        runs, expected = bool(waiting), _together([step.expected for step in waiting or steps])
        cost = [sum(_usd(step)[end] for step in waiting) for end in (0, 1)]
        usd = [_between(*cost) if any(_prices(step) for step in waiting) else ""] if priced else []
        table.add_row(
            _named(family, names, "bold" if runs else "dim", wide=console.width >= ROOM_FOR_DATES),
            Text(str(steps[0].head["kind"]), style="" if runs else "dim"),
            _state(steps, waiting),
            f"{'~' if runs else ''}{expected.rows:,}" if expected.rows else "",
            _ranged(expected.calls, expected.calls_range) if runs and expected.calls else "",
            _ranged(expected.tokens, expected.tokens_range) if runs and expected.tokens else "",
            *usd,
        )
        for row in _part_rows(waiting, priced):
            table.add_row(*row, style="dim")
    console.print(table)
    console.print()
    for step in plan.to_run:
        for remark in step.entry.config.remarks():
            console.print(Text(f"{step.name} {remark}."))
        for extra in missing(step.entry.config):
            what, remedy = what_is_missing(extra)
            console.print(Text(f"{step.name} needs {what}. {remedy} before it runs.", style="yellow"))
    console.print(_sum(plan, workspace), soft_wrap=True)


def teachers_usd(plan: Plan) -> tuple[float, float]:
    """What the calls of a plan cost, from the least to the most; of models without a price nothing is known."""
    low, high = (sum(_usd(step)[end] for step in plan.to_run if step.expected.calls) for end in (0, 1))
    return low, high


def _part_rows(waiting: Sequence[Step], priced: bool) -> list[list[str]]:
    """What these stages ask, by what for, where there is more than one such thing."""
    names = list(dict.fromkeys(part.name for step in waiting for part in step.expected.parts))
    rows = []
    for name in names if len(names) > 1 else ():
        asked = [(step, part) for step in waiting for part in step.expected.parts if part.name == name]
        told = all(step.expected.tokens_range for step, _ in asked)
        calls, tokens = sum(part.calls for _, part in asked), sum(part.tokens for _, part in asked)
        cost = [sum(_part_usd(step, part)[end] for step, part in asked) for end in (0, 1)]
        about = "" if told else "~"
        usd = [_between(*cost) if cost[1] else ""] if priced else []
        rows.append([f"  {name}", "", "", "", f"{about}{_compact(calls)}", f"{about}{_compact(tokens)}", *usd])
    return rows


def _named(family: str, names: Sequence[str], style: str, *, wide: bool) -> Text:
    """A stage, or a family with how many it has, or, where there is room, with what they differ in."""
    more = "" if [family] == names else f"  {spoken(names)}" if wide else f" ×{len(names)}"
    return Text.assemble((family, style), (more, "dim"))


def _state(steps: Sequence[Step], waiting: Sequence[Step]) -> Text:
    """Whether a stage, or a family's members, will run, and why."""
    if not waiting:
        return Text("sealed", "green")
    whys = list(dict.fromkeys(step.why for step in waiting))
    words = "will run" if len(waiting) == len(steps) else f"{len(waiting)} of {len(steps)} will run"
    return Text.assemble((words, "cyan"), f"  {whys[0]}{'; ...' if whys[1:] else ''}")


def _together(expected: Sequence[Expected]) -> Expected:
    """What is expected of all of them."""

    def ends(ranges: Sequence[Range | None]) -> Range | None:
        known = [found for found in ranges if found is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(ranges) else None

    return Expected(
        rows=sum(one.rows for one in expected),
        calls=sum(one.calls for one in expected),
        tokens=sum(one.tokens for one in expected),
        calls_range=ends([one.calls_range for one in expected]),
        tokens_range=ends([one.tokens_range for one in expected]),
    )


def _ranged(value: int, between: Range | None) -> str:
    """The interval that it lies in; a guess where there is none."""
    if between is None:
        return f"~{_compact(value)}"
    return f"{value:,}" if between[0] == between[1] else f"{_compact(between[0])}–{_compact(between[1])}"


def _compact(value: int) -> str:
    """Three figures that matter where there are many: 59.4k, 2.02M."""
    if value < 100_000:
        return f"{value:,}" if value < 10_000 else f"{value / 1e3:.1f}k"
    return f"{value / 1e3:.0f}k" if value < 1_000_000 else f"{value / 1e6:,.2f}M"


def _between(low: float, high: float) -> str:
    return f"{low:,.2f}" if f"{low:,.2f}" == f"{high:,.2f}" else f"{low:,.2f} to {high:,.2f}"


def _sum(plan: Plan, workspace: Workspace) -> str:
    waiting = plan.to_run
    if not waiting:
        return f"All {len(plan.steps)} stages are sealed in {workspace.path}; nothing would run."
    asking = [step for step in waiting if step.expected.calls]
    words = f"{len(waiting)} of {len(plan.steps)} stages would run in {workspace.path}"
    if asking:
        words += f"; about {sum(step.expected.calls for step in asking):,} calls of teachers and judges"
    low, high = teachers_usd(plan)
    words += f", ${_between(low, high)}" if high else ""
    words += _time(asking, workspace)
    totals = journal_totals(workspace)
    names = {step.entry.family for step in asking}
    if kept := sum(total.calls - total.pruned for total in totals if total.stage in names):
        words += f". {kept:,} replies that these stages asked for are kept already: where they ask the same, it is free"
    if plan.recipe.budget_usd is not None:
        left = plan.recipe.budget_usd - sum(total.usd for total in totals)
        words += f". Of the budget of ${plan.recipe.budget_usd:,.2f}, ${max(0.0, left):,.2f} are left"
        words += ": too little, so the run would stop on the way" if left < low else ""
    if unpriced := sorted({model.name for step in asking for model in _unpriced(step)} if high else ()):
        words += f". Without a price, and so not counted: {', '.join(unpriced)}"
    guessed = list(families(step.name for step in asking if step.expected.calls_range is None))
    if guessed:
        words += f". Guesses, marked ~: {', '.join(guessed)}; a trial tells better: potstill plan ... --trial 50"
    return f"{words}."


def _unpriced(step: Step) -> list[Model]:
    """The endpoints by URL that the stage asks and whose price nobody says."""
    models = [model for link in step.entry.links for model in link.models]
    return [m for m in models if isinstance(m.spec, EndpointModel) and m.spec.is_url and m.spec.price is None]


def _prices(step: Step) -> list[Price]:
    specs = [model.spec for link in step.entry.links for model in link.models]
    return [spec.price for spec in specs if isinstance(spec, EndpointModel) and spec.price is not None]


def _usd(step: Step) -> tuple[float, float]:
    """What its calls cost, from the least to the most: where models differ in price, the cheapest to the dearest."""
    expected, prices = step.expected, _prices(step)
    if not prices:
        return 0.0, 0.0
    if expected.parts:
        parts = [_part_usd(step, part) for part in expected.parts]
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    low, high = expected.tokens_range or (expected.tokens, expected.tokens)
    share = expected.prompt_share
    each = [(share * price.input + (1 - share) * price.output) / 1e6 for price in prices]
    each += [0.0] * bool(_unpriced(step))  # some of the calls, nobody knows how many, are not counted
    if expected.tokens_range is None:  # a guess: every token may be of the dearer kind
        each += [max(price.input, price.output) / 1e6 for price in prices]
    return low * min(each), high * max(each)


def _part_usd(step: Step, part: Part) -> tuple[float, float]:
    """What the calls for one purpose cost. Whoever is asked for it shares them evenly; local models take no money."""
    asked = _asked_for(step, part)
    likely = most = 0.0
    for spec in asked:
        if isinstance(spec, EndpointModel) and spec.price is not None:
            prompt, said = part.prompt_tokens / len(asked), part.completion_tokens / len(asked)
            likely += spec.price.usd(round(prompt), round(said), batch=spec.batch)
            dearest = max(spec.price.input, spec.price.output) * (prompt + said) / 1e6
            most += dearest * (spec.price.batch if spec.batch else 1)
    expected = step.expected
    if expected.tokens_range is None:  # a guess: every token may be of the dearer kind
        return likely, most
    low, high = (end / max(1, expected.tokens) for end in expected.tokens_range)
    return likely * low, likely * high


def _asked_for(step: Step, part: Part) -> list[ModelSpec | None]:
    """Who is asked for one purpose; None for a model that a stage makes, which is at hand."""
    if part.model:
        known = [model.spec for link in step.entry.links for model in link.models if model.name == part.model]
        return [*known[:1]]
    links = [link for link in step.entry.links if link.field == part.field]
    return [model.spec if model else None for link in links for model in link.models or (None,)]


def journal_totals(workspace: Workspace) -> list[Total]:
    """What the run's journal holds and has cost."""
    path = workspace.path / JOURNAL
    if not path.exists():
        return []
    with contextlib.closing(Journal(path, read_only=True)) as journal:
        return journal.totals()


def _time(asking: list[Step], workspace: Workspace) -> str:
    """How long the calls take, as far as these models have answered before in this folder."""
    totals = journal_totals(workspace)
    seconds = 0.0
    for step in asking:
        specs = [model.spec for link in step.entry.links for model in link.models]
        asked = [spec for spec in specs if isinstance(spec, EndpointModel)]
        known = [t for t in totals if t.model in {spec.name for spec in asked} and t.seconds]
        if known:
            each = sum(t.seconds * t.calls for t in known) / sum(t.calls for t in known)
            at_once = sum(spec.concurrency * len(spec.endpoints) for spec in asked) / len(asked)
            seconds += each * step.expected.calls / at_once
    return f", about {duration(seconds)} of waiting for them" if seconds else ""


def status_view(console: Console, workspace: Workspace) -> None:
    """What the last run asked for, and how far it got."""
    described, times, holder, left = workspace.describe(), workspace.times(), workspace.holder(), []
    wide = console.width >= ROOM_FOR_DATES
    table = _table("stage", "kind", "", *(["sealed at"] if wide else []), "took")
    table.expand = True
    table.add_column(overflow="fold", style="dim", ratio=1)
    for family, names in families(described.stages).items():
        kind, label = described.stages[names[0]].kind, _named(family, names, "", wide=wide)
        sealed = [one for name in names if (one := find(workspace.artifacts / described.stages[name].folder))]
        open_ = [name for name in names if find(workspace.artifacts / described.stages[name].folder) is None]
        left += open_
        took = [times[artifact.key] for artifact in sealed if artifact.key in times]
        seconds = duration(sum(one.seconds for one in took)) if took else ""
        when = [max((one.sealed_at for one in took), default="")] if wide else []
        if open_:
            state = Text(f"{len(sealed)} of {len(names)} sealed" if sealed else "not yet", "dim")
            if any((workspace.work / name).exists() for name in open_):
                state = Text("runs now", "cyan") if holder else Text("unsealed work", "yellow")
            table.add_row(label, kind, state, *([""] if wide else []), seconds)
            continue
        facts = facts_line(sealed[0]) if len(names) == 1 else ""
        table.add_row(label, kind, Text("sealed", "green"), *when, seconds, escape(facts))
    console.print(table)
    console.print()
    if spent := _spent(described, workspace):
        console.print(spent, soft_wrap=True)
    if holder:
        console.print(f"Process {holder} works in {workspace.path}.", soft_wrap=True)
    elif left:
        console.print(f"{len(left)} of {len(described.stages)} stages are left. Go on with:", soft_wrap=True)
        console.print(f"  {_resume(described, workspace, left)}", soft_wrap=True, markup=False)
    else:
        console.print(f"All {len(described.stages)} stages are sealed in {workspace.path}.", soft_wrap=True)


def _spent(described: Description, workspace: Workspace) -> str:
    """What replies have cost, and what of the budget is left."""
    totals = journal_totals(workspace)
    if not totals:
        return ""
    kept, usd = sum(total.calls - total.pruned for total in totals), sum(total.usd for total in totals)
    tokens = sum(total.prompt_tokens + total.completion_tokens for total in totals)
    words = f"{kept:,} replies are kept; {tokens:,} tokens in all"
    if usd or described.budget_usd is not None:
        words += f"; ${usd:,.2f} spent"
    if described.budget_usd is not None:
        words += f" of ${described.budget_usd:,.2f}, ${max(0.0, described.budget_usd - usd):,.2f} left"
    return f"{words}. What they are: potstill journal {shlex.quote(str(workspace.path))}"


def _resume(described: Description, workspace: Workspace, left: Sequence[str]) -> str:
    words = ["potstill", "run", described.source, *described.overrides]
    if workspace.path != Path("runs") / described.recipe:
        words += ["--out", str(workspace.path)]
    words += ["--until", described.until] if described.until and described.until in left else []
    words += ["--launch", shlex.join(described.launch)] if described.launch else []
    return shlex.join(words)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column in ("stage", "kind"))
    return table
