"""What `potstill score` prints: every mean with its interval, its count and its coverage on one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.console import clean
from potstill.score import ENOUGH, SHOWN

WIDE = 160
"""Columns of what is no terminal."""

TURNS = ("1", "2")
"""Those of MT-Bench, which have columns of their own."""

Found = Mapping[str, Any]


def view(console: Console, found: Found) -> None:
    """All results, then leaderboards, then what was looked at beside them."""
    if not console.is_terminal:
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
    if one["categories"]:
        console.print(_categories(one))
        if one["categories_from"]:
            _say(console, f"  categories by {one['categories_from']}", "dim")
    console.print()


def _means(one: Found) -> Table:
    """One line a model. Of AlpacaEval also what its leaderboard counts."""
    models = one["models"]
    end = f", against {one['baseline']}" if one["baseline"] else ""
    turns = [turn for turn in TURNS if any(turn + end in model["parts"] for model in models.values())]
    counted = any(model["alpaca_eval"] for model in models.values())
    titles = [_title(one), "95% interval", "SE", "n", "failed", "coverage", *(f"turn {turn}" for turn in turns)]
    table = _table("", [*titles, *(["wins", "losses", "draws", "length"] if counted else [])])
    for name, model in models.items():
        cells = [*_mean(one, model), _figure(one, model["standard_error"]), f"{model['n']:,}", f"{model['failed']:,}"]
        cells += [
            _coverage(model),
            *(_figure(one, (model["parts"].get(turn + end) or {}).get("mean")) for turn in turns),
        ]
        if line := model["alpaca_eval"]:
            cells += [str(line[key]) for key in ("n_wins", "n_wins_base", "n_draws")]
            cells.append("-" if line["avg_length"] is None else f"{line['avg_length']:,}")
        table.add_row(Text(clean(name)), *cells)
    return table


def _categories(one: Found) -> Table:
    table = _table("category", ["", _title(one), "95% interval", "n", "coverage"])
    for category, models in one["categories"].items():
        for at, (name, found) in enumerate(models.items()):
            cells = [*_mean(one, found), f"{found['n']:,}", _coverage(found)]
            table.add_row(Text("" if at else clean(category)), Text(clean(name), "dim"), *cells)
    return table


def _beside(model: Found) -> list[str]:
    """In sentences: the rates that are published, and those at equal length."""
    said = []
    line, published = model["alpaca_eval"], model["published"]
    if line and line["discrete_win_rate"] is not None:
        said.append(f"discrete win rate {line['discrete_win_rate']:.2f}%")
    if line and published and line["win_rate"] is not None:
        less = line["win_rate"] - published["win_rate"]
        said.append(f"published {published['win_rate']:.2f}%, from which this differs by {less:+.1e}")
    return said + _at_equal_length(model["length_controlled"] or {})


def _at_equal_length(found: Found) -> list[str]:
    said = []
    if given := found.get("by_weights"):
        interval = _range(given["low"], given["high"])
        of = "of other instructions, the weights held fixed"
        said.append(f"at equal length {given['win_rate']:.2f}%{interval} by the given weights ({of}; n {given['n']:,})")
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
    by = f"at equal length against {against}" if against else "at equal length"
    titles = ["win rate %", "95% interval", "SE", "n", "length", "published at equal length"]
    table = _table("leaderboard", [*titles, *([by, "95% interval", "n", "differs by"] if against else [])])
    for name, line in board["models"].items():
        cells = [_plain(line["win_rate"]), _range(line["low"], line["high"]).strip() or "-"]
        cells += [_plain(line["standard_error"]), f"{line['n_total'] or '-'}", _plain(line["avg_length"], 0)]
        cells.append(_plain(line["length_controlled_winrate"]))
        if against:
            found = line["length_controlled"] or {}
            less = found.get("difference")
            cells += [_plain(found.get("win_rate")), _range(found.get("low"), found.get("high")).strip() or "-"]
            cells += [str(found.get("n", "-")), "-" if less is None else f"{less:+.1e}"]
        table.add_row(Text(clean(name)), *cells)
    console.print(table)
    if board["weights_left_out"]:
        _say(console, f"! {board['weights_left_out']}")
    console.print()


def _table(title: str, titles: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(title), no_wrap=True)
    for name in titles:
        table.add_column(Text(name), justify="right" if name else "left")
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
