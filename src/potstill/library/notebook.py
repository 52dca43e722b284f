"""How things look in a notebook: what the terminal prints, as HTML; and a run's progress, as one table that changes."""

import io
import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any

from rich.console import Console

from potstill.runs.events import Event
from potstill.terminal.console import facts_words, progress_words
from potstill.units import duration

WIDTH = 110
"""Columns of what is drawn in a notebook."""
_MARKS = {"found": "·", "started": "⋯", "doing": "⋯", "progress": "⋯", "warned": "⋯", "sealed": "✓", "failed": "✗"}


def in_notebook() -> bool:
    """Whether somebody sees HTML: a Jupyter kernel runs this."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def plain(draw: Callable[[Console], None]) -> str:
    """What is drawn, as text, as wide as the terminal is."""
    out = io.StringIO()
    draw(Console(file=out, highlight=False, force_jupyter=False))
    return out.getvalue().rstrip("\n")


def drawn(draw: Callable[[Console], None]) -> str:
    """What is drawn, as HTML without a script."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, highlight=False, force_jupyter=False)
    draw(console)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>')


class Table:
    """Hears a run's events and shows them: a line a stage, in place."""

    def __init__(self) -> None:
        self._head = ""
        self._lines: dict[str, list[str]] = {}
        self._warnings: list[str] = []
        self._began = 0.0
        self._shown: Any = None

    def __call__(self, event: Event) -> None:
        self._note(event)
        from IPython.display import HTML, display

        html = HTML(self.html())
        if self._shown is None:
            self._shown = display(html, display_id=True)
        else:
            self._shown.update(html)

    def html(self) -> str:
        """The table as it stands."""
        rows = "".join(
            f'<tr><td>{mark}</td><td><b>{name}</b></td><td style="text-align:right">{took}</td>'
            f'<td style="text-align:left">{words}</td></tr>'
            for name, (mark, took, words) in ((escape(name), map(escape, line)) for name, line in self._lines.items())
        )
        warnings = "".join(f"<div>! {escape(text)}</div>" for text in self._warnings)
        return f"<div>{escape(self._head)}</div><table>{rows}</table>{warnings}"

    def _note(self, event: Event) -> None:
        what, stage = event["event"], event["stage"]
        if what == "planned":
            self._head = f"{event['recipe']} in {event['folder']}: {len(event['to_run'])} of {event['stages']} to run"
        elif what == "finished":
            self._head = f"{event['recipe']} in {event['folder']}: all of it is sealed"
        elif what == "warned":
            self._warnings.append(f"{stage}: {event['text']}")
        else:
            if what == "started":
                self._began = time.monotonic()
            took = event.get("seconds", time.monotonic() - self._began if what != "found" else None)
            self._lines[stage] = [_MARKS[what], "" if took is None else duration(took), _words(event)]


def _words(event: Event) -> str:
    if event["event"] == "progress":
        return ", ".join(word for word in progress_words(event).values() if word)
    if "facts" in event:
        return facts_words(event["facts"], event["produces"])
    return str(event.get("what") or event.get("error") or "starts")
