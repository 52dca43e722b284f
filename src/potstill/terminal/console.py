"""How a run looks: bars on a terminal, calm lines everywhere else, and a table of scores at the end."""

import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from functools import partial
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from potstill.artifact import Artifact
from potstill.members import families, read_member, spoken
from potstill.records import ROWS
from potstill.reporting.numbers import number as number
from potstill.reporting.tables import score_table, side_by_side_table
from potstill.runs.events import SECONDS_BETWEEN_SAID, Event, Events, Pace, json_line
from potstill.runs.pipeline import Listener
from potstill.runs.plan import Plan, Step
from potstill.runs.workspace import Workspace
from potstill.units import duration

FACTS_SHOWN = 4
TOOK_WIDTH = 12
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


LEAST_WIDTH = 80
"""Columns where the environment says that there are none."""


def screen() -> Console:
    """Standard output. rich heeds NO_COLOR, FORCE_COLOR, TERM and COLUMNS; CLICOLOR and CLICOLOR_FORCE are heeded here
    (bixense.com/clicolors). Who wants no colour is obeyed first."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("CLICOLOR") == "0"
    forced = os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    made = Console(highlight=False, no_color=plain or None, force_terminal=True if forced and not plain else None)
    if made.width < 1:  # COLUMNS=0
        made.width = LEAST_WIDTH
    return made


def listener(console: Console, log: str | None = None, *, quiet: bool = False) -> Listener:
    """The one that suits where the output goes, or the one that was asked for: "text" or "json".

    `quiet`: only warnings, errors and how it ended.
    """
    if log == "json":
        return Events(partial(_print_event, console.file, quiet), SECONDS_BETWEEN_SAID)
    moves = log is None and not quiet and console.file.isatty() and not console.is_dumb_terminal
    return Bars(console) if moves else Lines(console, quiet=quiet)


def _print_event(out: IO[str], quiet: bool, event: Event) -> None:
    if not quiet or event["level"] != "info" or event["event"] == "finished":
        print_line(out, json_line(event))


def progress_words(told: Mapping[str, Any]) -> dict[str, str]:
    """Count, rate, time left and figures of an event of progress, as text."""
    done, total, unit, rate, left = (told[name] for name in ("done", "total", "unit", "per_second", "seconds_left"))
    return {
        "count": f"{done:,}{f'/{total:,}' if total else ''} {unit}" if unit else "",
        "rate": "" if rate <= 0 else f"{rate:,.1f}/s" if rate >= 1 else f"{duration(1 / rate)} each",
        "left": f"{duration(left)} left" if left is not None else "",
        "figures": ", ".join(figure(name, value) for name, value in told["figures"].items()),
    }


def clean(text: str) -> str:
    """A text that others wrote, without the signs that command a terminal."""
    return CONTROL.sub("", text)


def figure(name: str, value: float) -> str:
    """loss 2.31; 1,400 tokens/s where the name is tokens_per_second."""
    what = name.removesuffix("_per_second")
    return (
        f"{name.replace('_', ' ')} {number(value)}" if what == name else f"{number(value)} {what.replace('_', ' ')}/s"
    )


def facts_line(artifact: Artifact) -> str:
    """What a stage counted, in a few words."""
    return facts_words(artifact.facts, artifact.produces)


def facts_words(counted: Mapping[str, Any], produces: str) -> str:
    """The same, of a stage's facts and of what it made."""
    facts, words = dict(counted), []
    rows, dropped = facts.pop("rows", None), facts.pop("dropped", None)
    if rows is not None:
        words.append(f"{rows:,} {produces if produces in ROWS else 'rows'}")
    if isinstance(dropped, dict) and sum(dropped.values()):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items(), key=_by_count))
        words.append(f"{sum(dropped.values()):,} left out ({reasons})")
    if own := facts.get("own_answers"):  # they are learnt from, and not the answers of the data
        words.append(f"{own['rows']:,} own answers, {own['tokens']:,} tokens, {own['cut']:,} cut at max_tokens")
        facts = {name: value for name, value in facts.items() if name not in ("tokens", "learnt_tokens")}
    if loss := facts.get("held_out_loss"):
        words.append(f"held-out loss {number(loss['first'])} to {number(loss['best'])}")
    # Of counts, 0 says that nothing happened; of what was measured, a coverage or a rate, 0 is what has to be seen.
    scalars = {
        name: value
        for name, value in facts.items()
        if isinstance(value, float) or (isinstance(value, int | str) and value)
    }
    for name, value in list(scalars.items())[:FACTS_SHOWN]:
        shown = value if isinstance(value, bool) else _in_one_line(value) if isinstance(value, str) else number(value)
        words.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def _in_one_line(text: str) -> str:
    """A text as it stands; what would break or command the line as JSON spells it."""
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)[1:-1]


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


class Bars:
    """For a terminal: what is done stands still, one bar moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._pace = Pace()
        self._width, self._began, self._does = 0, 0.0, ""
        self._whole: dict[str, str] = {}

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        sealed = {name: step.artifact is not None for name, step in plan.steps.items()}
        self._whole = {
            names[0]: f"{len(names)} members: {spoken(names)}" for names in families(sealed).values()
            if len(names) > 1 and all(sealed[name] for name in names)
        }  # fmt: skip
        self._width = max(len(name) for name in plan.steps)
        self._console.print(opening(plan, workspace), highlight=False)
        self._console.print()

    def found(self, step: Step, artifact: Artifact) -> None:
        if step.name in self._whole:  # all of a family: one line
            self._line("[dim]·[/]", step.entry.family, "[dim]sealed[/]", f"[dim]{self._whole[step.name]}[/]")
        elif not any(step.entry.family == read_member(first).family for first in self._whole):
            self._line("[dim]·[/]", step.name, "[dim]sealed[/]", f"[dim]{escape(facts_line(artifact))}[/]")

    def started(self, step: Step) -> None:
        self._pace, self._began, self._does = Pace(), time.monotonic(), ""
        self._live = Live(
            get_renderable=lambda: self._moving(step),
            console=self._console,
            refresh_per_second=6,
            transient=True,
        )
        self._live.start()

    def doing(self, step: Step, what: str) -> None:
        self._does = what

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        self._does = ""
        self._pace.update(done, total, unit, figures)

    def warned(self, step: Step, text: str) -> None:
        self._line("[yellow]![/]", step.name, "", f"[yellow]{escape(clean(text))}[/]")

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        self._stop()
        self._line("[green]✓[/]", step.name, duration(seconds), escape(facts_line(artifact)))

    def failed(self, step: Step, error: BaseException) -> None:
        self._stop()
        self._line("[red]✗[/]", step.name, "", "")

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        closing(self._console, plan, workspace, summary)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, mark: str, name: str, took: str, facts: str) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=1)
        grid.add_column(width=self._width)
        grid.add_column(width=TOOK_WIDTH, justify="right")
        grid.add_column(overflow="fold")
        grid.add_row(mark, Text(name), took, facts)
        self._console.print(grid, highlight=False)

    def _moving(self, step: Step) -> Text:
        """The line of the stage that runs, as long as the terminal is wide."""
        now, words = time.monotonic(), progress_words(self._pace.fields())
        line = Text.assemble(
            (SPINNER[int(now * 8) % len(SPINNER)], "cyan"),
            (f"  {step.name:<{self._width}}", "bold"),
            (f"  {duration(now - self._began):>{TOOK_WIDTH}}", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        if self._does:
            line.append(f"  {self._does}", "dim")
        elif self._pace.unit:
            rest = Text.assemble(
                f"  {words['count']}",
                (f"  {words['rate']:<10}", "dim"),
                f"  {words['left']:<12}",
                (f"  {words['figures']}", "magenta"),
            )
            if self._pace.total:
                room = self._console.width - line.cell_len - rest.cell_len - 2
                line.append_text(bar(self._pace.done / self._pace.total, max(8, min(30, room))))
            line.append_text(rest)
        return line


def bar(share: float, width: int) -> Text:
    """A bar of that many characters, after two blanks."""
    halves = round(2 * width * min(max(share, 0.0), 1.0))
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble("  ", (full, "cyan"), ("━" * (width - len(full)), "grey23"))


class Lines(Events):
    """For a file or a pipe: a line when a stage starts and ends, and now and then one between."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(self._print, SECONDS_BETWEEN_SAID)
        self._console, self._quiet = console, quiet

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        closing(self._console, plan, workspace, summary)

    def _print(self, event: Event) -> None:
        if not self._quiet or event["level"] != "info":
            # What ended a stage is said by whoever ends the run.
            print_line(self._console.file, said({**event, "error": ""}))


def said(event: Event) -> str:
    """An event in words, in one line."""
    name = event["event"]
    if name == "planned":
        return f"{event['recipe']} in {event['folder']}: {_count(event['stages'], len(event['to_run']))}"
    if name == "finished":
        return f"{event['recipe']} in {event['folder']}: all of it is sealed"
    facts = facts_words(event["facts"], event["produces"]) if "facts" in event else ""
    words = {
        "found": ["sealed before", facts],
        "started": ["starts"],
        "doing": [event.get("what", "")],
        "warned": [f"warning: {clean(event.get('text', ''))}"],
        "sealed": [f"sealed in {duration(event.get('seconds', 0.0))}", facts],
        "failed": ["did not finish" + (f": {clean(event['error'])}" if event.get("error") else "")],
    }
    told = list(progress_words(event).values()) if name == "progress" else words.get(name, [name])
    width = len(str(event["of"]))
    return f"[{event['place']:>{width}}/{event['of']}] {event['stage']}: {', '.join(word for word in told if word)}"


def print_line(out: IO[str], text: str) -> None:
    """One whole line at once, so that a pipe sees it now."""
    out.write(text + "\n")
    out.flush()


def opening(plan: Plan, workspace: Workspace) -> Text:
    """What is about to happen, in one line."""
    words = _count(len(plan.steps), len(plan.to_run))
    return Text.assemble((plan.recipe.name, "bold"), f" in {workspace.path}: {words}")


def _count(total: int, waiting: int) -> str:
    return f"{total} stages, all sealed" if not waiting else f"{waiting} of {total} stages to run"


def closing(console: Console, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
    """The scores, and what to do next."""
    if summary is not None:
        console.print()
        beside = "side_by_side" in summary
        table = side_by_side_table if beside else score_table
        console.print(table(summary, console.width))
        console.print()
        for finding in summary.get("headline", ()):
            console.print(Text(finding))
    models = [step.name for step in plan.steps.values() if step.entry.produces == "model"]
    rows = [("Talk to it", f"potstill chat {workspace.path} {shlex.quote(models[-1])}")] if models else []
    if summary is not None:
        rows.append(("Read it", str(workspace.path / "report.html")))
    else:
        scored = [step.name for step in plan.steps.values() if step.entry.produces == "scores"]
        rows += [("See scores", f"potstill show {workspace.path} {shlex.quote(name)}") for name in scored]
    if rows:
        rows.append(("See it all", f"potstill view {workspace.path}"))
        console.print()
    for label, command in rows:
        console.print(Text.assemble((f"{label:<12}", "dim"), command), soft_wrap=True, highlight=False)
