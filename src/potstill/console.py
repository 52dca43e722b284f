"""How a run looks: bars on a terminal, calm lines everywhere else, and a table of scores at the end."""

import json
import re
import shlex
import time
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from potstill.artifact import Artifact
from potstill.members import families, read_member, spoken
from potstill.pipeline import Listener
from potstill.plan import Plan, Step
from potstill.records import ROWS
from potstill.reporting.tables import score_table, side_by_side_table
from potstill.units import duration
from potstill.workspace import Workspace

SECONDS_BETWEEN_LINES = 10.0
FACTS_SHOWN = 4
TOOK_WIDTH = 12
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def listener(console: Console) -> Listener:
    """The one that suits where the output goes."""
    return Bars(console) if console.is_terminal else Lines(console)


class Pace:
    """How fast a stage goes, since it last changed what it counts."""

    def __init__(self) -> None:
        self.unit, self.done, self.total = "", 0, 0
        self.figures: Mapping[str, float] = {}
        self._began, self._first = time.monotonic(), 0

    def update(self, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """Take in a report of progress."""
        if unit != self.unit or done < self.done:
            self._began, self._first = time.monotonic(), done
        self.unit, self.done, self.total, self.figures = unit, done, total, figures

    @property
    def rate(self) -> float:
        """Units a second; 0 while that is unknown."""
        seconds = time.monotonic() - self._began
        return (self.done - self._first) / seconds if seconds > 0.5 else 0.0

    def words(self) -> dict[str, str]:
        """Count, rate, time left and figures, as text."""
        rate, left = self.rate, ""
        if rate > 0 and self.total > self.done:
            left = f"{duration((self.total - self.done) / rate)} left"
        return {
            "count": f"{self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}" if self.unit else "",
            "rate": "" if rate <= 0 else f"{rate:,.1f}/s" if rate >= 1 else f"{1 / rate:,.1f} s each",
            "left": left,
            "figures": ", ".join(figure(name, value) for name, value in self.figures.items()),
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


def number(value: float) -> str:
    """Whole numbers with commas, others with three figures that matter."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def facts_line(artifact: Artifact) -> str:
    """What a stage counted, in a few words."""
    facts, words = dict(artifact.facts), []
    rows, dropped = facts.pop("rows", None), facts.pop("dropped", None)
    if rows is not None:
        words.append(f"{rows:,} {artifact.produces if artifact.produces in ROWS else 'rows'}")
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
        self._width, self._began = 0, 0.0
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
        self._pace, self._began = Pace(), time.monotonic()
        self._live = Live(
            get_renderable=lambda: self._moving(step),
            console=self._console,
            refresh_per_second=6,
            transient=True,
        )
        self._live.start()

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        self._pace.update(done, total, unit, figures)

    def warned(self, step: Step, text: str) -> None:
        self._line("[yellow]![/]", step.name, "", f"[yellow]{escape(clean(text))}[/]")

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        self._stop()
        self._line("[green]✓[/]", step.name, duration(seconds), escape(facts_line(artifact)))

    def failed(self, step: Step) -> None:
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
        now, words = time.monotonic(), self._pace.words()
        line = Text.assemble(
            (SPINNER[int(now * 8) % len(SPINNER)], "cyan"),
            (f"  {step.name:<{self._width}}", "bold"),
            (f"  {duration(now - self._began):>{TOOK_WIDTH}}", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        if self._pace.unit:
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


class Lines:
    """For a file or a pipe: a line when a stage starts and ends, and now and then one between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._places: dict[str, str] = {}
        self._pace = Pace()
        self._last = 0.0

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        count = len(plan.steps)
        self._places = {name: f"[{place:>{len(str(count))}}/{count}]" for place, name in enumerate(plan.steps, 1)}
        self._print(opening(plan, workspace).plain)

    def found(self, step: Step, artifact: Artifact) -> None:
        self._say(step, "sealed before", facts_line(artifact))

    def started(self, step: Step) -> None:
        self._pace, self._last = Pace(), time.monotonic()
        self._say(step, "starts")

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        self._pace.update(done, total, unit, figures)
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._say(step, *self._pace.words().values())

    def warned(self, step: Step, text: str) -> None:
        self._say(step, f"warning: {clean(text)}")

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        self._say(step, f"sealed in {duration(seconds)}", facts_line(artifact))

    def failed(self, step: Step) -> None:
        self._say(step, "did not finish")

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        closing(self._console, plan, workspace, summary)

    def _say(self, step: Step, *words: str) -> None:
        self._print(f"{self._places[step.name]} {step.name}: {', '.join(word for word in words if word)}")

    def _print(self, text: str) -> None:
        print_line(self._console.file, text)


def print_line(out: IO[str], text: str) -> None:
    """One whole line at once, so that a pipe sees it now."""
    out.write(text + "\n")
    out.flush()


def opening(plan: Plan, workspace: Workspace) -> Text:
    """What is about to happen, in one line."""
    total, waiting = len(plan.steps), len(plan.to_run)
    words = f"{total} stages, all sealed" if not waiting else f"{waiting} of {total} stages to run"
    return Text.assemble((plan.recipe.name, "bold"), f" in {workspace.path}: {words}")


def closing(console: Console, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
    """The scores, and what to do next."""
    if summary is not None:
        console.print()
        beside = "side_by_side" in summary
        table = side_by_side_table if beside else score_table
        console.print(table(summary, console.width))
        console.print()
        for finding in summary.get("headline", ()):
            console.print(Text(finding), soft_wrap=True)
    models = [step.name for step in plan.steps.values() if step.entry.produces == "model"]
    rows = [("Talk to it", f"potstill chat {workspace.path} {shlex.quote(models[-1])}")] if models else []
    if summary is not None:
        rows.append(("Read it", str(workspace.path / "report.html")))
    else:
        scored = [step.name for step in plan.steps.values() if step.entry.produces == "scores"]
        rows += [("See scores", f"potstill show {workspace.path} {shlex.quote(name)}") for name in scored]
    if rows:
        console.print()
    for label, command in rows:
        console.print(Text.assemble((f"{label:<12}", "dim"), command), soft_wrap=True, highlight=False)
