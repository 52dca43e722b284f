"""What came out, in sentences: never more than the interval allows, and in the same words whichever way it went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["better", "worse", "unclear"]
FULL_COVERAGE = 0.95
"""Below this the sentence says how much could be scored."""


@dataclass(frozen=True)
class Finding:
    """One comparison of two models on one suite."""

    suite: str
    later: str
    earlier: str
    verdict: Verdict
    text: str


def findings(report: Mapping[str, Any]) -> list[Finding]:
    """The comparisons that matter, the weightiest first: the last model with the one before it, on the first suite."""
    models = report["models"]
    suites = {name: suite for name, suite in report["suites"].items() if suite["protocol"] != "aspects"}
    suites = suites or dict(report["suites"])
    order = sorted(suites, key=lambda name: suites[name]["protocol"] != "mt_bench")
    found = [f for name in order for f in _of_suite(name, suites[name], models)]
    last = models[-1]
    return sorted(found, key=lambda finding: finding.later != last)


def _of_suite(name: str, suite: Mapping[str, Any], models: Sequence[str]) -> Iterator[Finding]:
    """Neighbours in the order of the models; in a suite with baselines, each model with each of those instead."""
    present = [model for model in models if model in suite["models"]]
    baselines = [row for row in suite["models"] if row not in models]
    for i in reversed(range(len(present))):
        for earlier in baselines or present[max(0, i - 1) : i]:
            finding = compare(name, suite, present[i], earlier)
            if finding is not None:
                yield finding


def compare(name: str, suite: Mapping[str, Any], later: str, earlier: str) -> Finding | None:
    """What the paired difference of two rows says; None where nothing could be paired."""
    paired = suite["paired"].get(f"{later}-{earlier}")
    if paired is None or paired["mean"] is None:
        return None
    verdict = verdict_of(paired, suite["higher_is_better"])
    return Finding(name, later, earlier, verdict, _sentence(name, suite, later, earlier, verdict))


def verdict_of(paired: Mapping[str, Any], higher_is_better: bool) -> Verdict:
    """Better or worse only where the whole interval lies on one side of zero."""
    low, high = paired["low"], paired["high"]
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def _sentence(name: str, suite: Mapping[str, Any], later: str, earlier: str, verdict: Verdict) -> str:
    paired = suite["paired"][f"{later}-{earlier}"]
    means = [suite["models"][row]["mean"] for row in (later, earlier)]
    values = f"{number(means[0], suite)} against {number(means[1], suite)}{_scale(suite)}"
    if paired["low"] is None:
        return f"{later} and {earlier} on {name}: {values}. One question is too few to say more."
    interval = f"95% interval {signed(paired['low'], suite)} to {signed(paired['high'], suite)}"
    difference = f"a difference of {signed(paired['mean'], suite)} ({interval})"
    opening = {
        "better": f"{later} does better than {earlier} on {name}",
        "worse": f"{later} does worse than {earlier} on {name}",
        "unclear": f"Whether {later} does better or worse than {earlier} on {name} cannot be told",
    }[verdict]
    return f"{opening}: {values}, {difference}.{_caution(suite, (later, earlier))}"


def _scale(suite: Mapping[str, Any]) -> str:
    if suite["protocol"] == "preference":
        return " of pairs"
    high = suite["scale"][1]
    return f" {suite['unit']}" if high is None else f" out of {high:g}"


def _caution(suite: Mapping[str, Any], rows: Sequence[str]) -> str:
    coverage = min(suite["models"][row]["coverage"] for row in rows)
    return "" if coverage >= FULL_COVERAGE else f" Only {coverage:.0%} could be scored."


def number(value: float | None, suite: Mapping[str, Any]) -> str:
    """A value of a suite as people read it: a share in percent, everything else with two digits."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if suite["protocol"] == "preference" else f"{value:.2f}"


def signed(value: float | None, suite: Mapping[str, Any]) -> str:
    """A difference, with its sign; shares in percentage points."""
    if value is None:
        return "–"
    if suite["protocol"] == "preference":
        return f"{100 * value:+.1f} points".replace("-", "−")
    return f"{value:+.2f}".replace("-", "−")
