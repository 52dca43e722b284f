"""What `potstill score` prints: every mean with its interval, its count and its coverage on one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.scoring.score import ENOUGH, SHOWN
from potstill.terminal.console import clean

WIDE = 160
"""Columns that are written whatever the terminal's: a number is never cut off."""

TURNS = ("1", "2")
"""Those of MT-Bench, which have lines of their own."""

MOST = 8
"""Models whose turns and categories are shown."""

Found = Mapping[str, Any]


def view(console: Console, found: Found) -> None:
    """All results, then leaderboards, then what was looked at beside them."""
    console.width = max(console.width, WIDE)
    for one in found["results"]:
        _result(console, one)
    for board in found["leaderboards"]:
        _board(console, board)
    for name in ("weights", "difficulty"):
        if found[name]:
            _say(console, f"{name}: {found[name]}", "dim")
    if skipped := found["skipped"]:
        rest = "; ..." if len(skipped) > SHOWN else ""
        _say(console, f"{len(skipped)} skipped: {'; '.join(skipped[:SHOWN])}{rest}", "dim")


def _say(console: Console, words: str, style: str = "") -> None:
    console.print(Text(clean(words), style), soft_wrap=True)


def _result(console: Console, one: Found) -> None:
    judge = f", judge {one['judge']}" if one["judge"] else ""
    against = f", against {one['baseline']}" if one["baseline"] else ""
    console.print(
        Text.assemble((clean(one["suite"]), "bold"), clean(f"{judge}{against}"), (f"  {clean(one['file'])}", "dim")),
        soft_wrap=True,
    )
    console.print(_means(one))
    for name, model in one["models"].items():
        for words in _beside(model):
            _say(console, f"  {name}: {words}")
        for warning in model["warnings"]:
            console.print(Text.assemble(("! ", "yellow"), clean(f"{name}: {warning}")), soft_wrap=True)
    if len(one["models"]) > MOST:
        _say(console, f"  turns and categories of {len(one['models'])} models: with --json", "dim")
    elif parts := _parts(one):
        console.print(parts)
    if one["categories"] and one["categories_from"]:
        _say(console, f"  categories by {one['categories_from']}", "dim")
    console.print()


def _means(one: Found) -> Table:
    """One line a model."""
    table = _table("", [_title(one), "95% interval", "SE", "n", "failed", "coverage"])
    for name, model in one["models"].items():
        cells = [*_mean(one, model), _figure(one, model["standard_error"]), f"{model['n']:,}", f"{model['failed']:,}"]
        table.add_row(Text(clean(name)), *cells, _coverage(model))
    return table


def _parts(one: Found) -> Table | None:
    """One line a turn or category, and model; None where there is neither."""
    models, end = one["models"], f", against {one['baseline']}" if one["baseline"] else ""
    groups = {
        f"turn {turn}": {name: model["parts"].get(turn + end) for name, model in models.items()} for turn in TURNS
    }
    groups |= one["categories"]
    table = _table("", ["", _title(one), "95% interval", "n", "coverage"])
    for group, found in groups.items():
        rows = [(name, row) for name, row in found.items() if row]
        for at, (name, row) in enumerate(rows):
            cells = [*_mean(one, row), f"{row['n']:,}", _coverage(row)]
            table.add_row(Text("" if at else clean(group)), Text(clean(name), "dim"), *cells)
    return table if table.row_count else None


def _beside(model: Found) -> list[str]:
    """In sentences: what a leaderboard counts, what is published, and the rates at equal length."""
    said = []
    line, published = model["alpaca_eval"], model["published"]
    if line:
        counts = f"{line['n_wins']:,} won, {line['n_wins_base']:,} lost, {line['n_draws']:,} drawn"
        length = "" if line["avg_length"] is None else f", average length {line['avg_length']:,} characters"
        said.append(f"{counts}{length}")
    if line and published and line["win_rate"] is not None:
        less = line["win_rate"] - published["win_rate"]
        said.append(f"published {published['win_rate']:.2f}%, from which this differs by {less:+.1e}")
    return said + _at_equal_length(model["length_controlled"] or {})


def _at_equal_length(found: Found) -> list[str]:
    said = []
    if given := found.get("by_weights"):
        interval = _range(given["low"], given["high"])
        of = "of other instructions, the weights held fixed"
        said.append(f"at equal length {given['win_rate']:.2f}%{interval} by published weights ({of}; n {given['n']:,})")
    if fit := found.get("fit"):
        interval, less = _range(fit["low"], fit["high"]), found["fit_less_published"]
        how = f"with the gamed rows and a penalty of {fit['penalty']:.3g}" if fit["penalty"] else "without gamed rows"
        beside = "" if less is None else f", {less:+.2f} to the published"
        why = "" if fit["penalty"] or less is None else ": AlpacaEval's fit has them and a penalty"
        said.append(f"at equal length {fit['win_rate']:.2f}%{interval} fitted here {how} (n {fit['n']:,}){beside}{why}")
    return said


def _board(console: Console, board: Found) -> None:
    against = board["weights_against"]
    console.print(Text.assemble((board["annotator"], "bold"), (f"  {board['file']}", "dim")), soft_wrap=True)
    titles = ["win rate %", "95% interval", "n", "length"]
    table = _table(
        "", [*titles, "published at equal length", *(["by weights", "interval", "differs"] if against else [])]
    )
    for name, line in board["models"].items():
        cells = [_plain(line["win_rate"]), _range(line["low"], line["high"]).strip() or "none"]
        cells += [f"{line['n_total'] or '-'}", _plain(line["avg_length"], 0)]
        cells.append(_plain(line["length_controlled_winrate"]) + _range(line["lc_low"], line["lc_high"]))
        if against:
            found = line["length_controlled"] or {}
            less = found.get("difference")
            cells += [_plain(found.get("win_rate")), _range(found.get("low"), found.get("high")).strip() or "-"]
            cells.append("-" if less is None else f"{less:+.1e}")
        table.add_row(Text(clean(name)), *cells)
    console.print(table)
    if against:
        _say(console, f"by weights: at equal length against {against}; the interval is of other instructions alone")
    if board["weights_left_out"]:
        _say(console, f"! {board['weights_left_out']}")
    console.print()


def _table(title: str, titles: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(title), no_wrap=True)
    for name in titles:
        table.add_column(Text(name), justify="right" if name else "left", no_wrap=True)
    return table


def _title(one: Found) -> str:
    return "win rate %" if _is_percent(one) else clean(one["unit"] or "mean")


def _is_percent(one: Found) -> bool:
    return bool(one["unit"] == "share won")


def _mean(one: Found, found: Found) -> list[str | Text]:
    """The mean and its interval; of one without an interval it is said that there is none."""
    scale = 100 if _is_percent(one) else 1
    low, high = found["low"], found["high"]
    interval = "none" if low is None or high is None else _range(scale * low, scale * high).strip()
    return [_figure(one, found["mean"]), Text(interval, "dim")]


def _coverage(found: Found) -> Text:
    """Beside every mean; marked where the mean cannot stand for what was asked."""
    if found["coverage"] < ENOUGH:
        return Text(f"only {found['coverage']:.1%}", "yellow")
    return Text(f"{found['coverage']:.1%}")


def _figure(one: Found, value: float | None) -> str:
    return _plain(None if value is None else value * (100 if _is_percent(one) else 1))


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _plain(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
