"""What came out, in sentences: never more than the interval allows, and in the same words whichever way it went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Verdict = Literal["better", "worse", "unclear"]
FULL_COVERAGE = 0.95
"""Below this the sentence says how much could be scored."""
MOST_DIGITS = 6
SHARES = ("preference", "exact", "leaderboard", "template_effect")
"""Protocols whose values are shares, which people read in percent."""


@dataclass(frozen=True)
class Finding:
    """One comparison of two models on one suite."""

    suite: str
    later: str
    earlier: str
    verdict: Verdict
    opening: str
    """What is claimed."""
    detail: str
    """The numbers that it rests on."""

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.opening}: {self.detail}"


def findings(report: Mapping[str, Any]) -> list[Finding]:
    """The comparisons that matter, the weightiest first: the last model with the one before it, on the first suite.

    Where the report sets all against one: each with that one, behind how many do better and worse. Otherwise those of
    the last model on every suite, then the other neighbours in the order of the models. Aspects speak only
    where nothing else was measured; their table is elsewhere.
    """
    silent = ("aspects", "template_effect")
    suites = {name: suite for name, suite in report["suites"].items() if suite["protocol"] not in silent}
    suites = suites or dict(report["suites"])
    order = sorted(suites, key=lambda name: suites[name]["protocol"] != "mt_bench")
    against = report.get("against")
    if against is not None:
        return [finding for name in order for finding in _against(name, suites[name], report["models"], against)]
    found = [finding for name in order for finding in _of_suite(name, suites[name], report["models"])]
    return sorted(found, key=lambda finding: finding.later != report["models"][-1])


def reservations(report: Mapping[str, Any]) -> list[str]:
    """Judges that were used although they do not clear the bar of their evaluation, a sentence each."""
    return list(
        dict.fromkeys(
            f"Judge {judge} did not clear the bar of {name}: {'; '.join(held['short'])}. "
            "It was used because the recipe says trust."
            for name, bar in report.get("bars", {}).items()
            for judge, held in bar["judges"].items()
            if held["trusted"]
        )
    )


def _against(name: str, suite: Mapping[str, Any], models: Sequence[str], against: str) -> Iterator[Finding]:
    """How many do better and worse than one model, so that none is picked from many; then each of them."""
    others = [model for model in models if model in suite["models"] and model != against]
    found = [one for other in others if (one := compare(name, suite, other, against)) is not None]
    if not found:
        return
    groups = {word: [one.later for one in found if one.verdict == word] for word in ("better", "worse", "unclear")}
    counts = [f"{len(groups[word])} {does}" for word, does in (("better", "better"), ("worse", "worse"))]
    opening = f"Of {len(found)} set against {against} on {name}, {' and '.join(counts)}"
    words = [f"{word}: {', '.join(groups[word])}" for word in ("better", "worse") if groups[word]]
    words += [f"cannot be told: {', '.join(groups['unclear'])}"] if groups["unclear"] else []
    yield Finding(name, "", against, "unclear", opening, f"{'; '.join(words)}.")
    yield from found


def _of_suite(name: str, suite: Mapping[str, Any], models: Sequence[str]) -> Iterator[Finding]:
    """Neighbours in the order of the models; in a suite with baselines, the last model with each of those instead."""
    present = [model for model in models if model in suite["models"]]
    baselines = [row for row in suite["models"] if row not in models]
    pairs = [(present[-1], row) for row in baselines] if baselines and present else []
    pairs = pairs or [(later, earlier) for earlier, later in pairwise(present)][::-1]
    for later, earlier in pairs:
        finding = compare(name, suite, later, earlier)
        if finding is not None:
            yield finding


def compare(name: str, suite: Mapping[str, Any], later: str, earlier: str) -> Finding | None:
    """What the paired difference of two rows says; None where nothing could be paired."""
    paired = difference_of(suite, later, earlier)
    if paired is None or paired["mean"] is None:
        return None
    verdict = verdict_of(paired, suite["higher_is_better"])
    opening = {
        "better": f"{later} does better than {earlier} on {name}",
        "worse": f"{later} does worse than {earlier} on {name}",
        "unclear": f"Whether {later} does better or worse than {earlier} on {name} cannot be told",
    }[verdict]
    if paired["low"] == paired["high"] == 0:
        opening = f"{later} does no better and no worse than {earlier} on {name}, on any question"
    return Finding(name, later, earlier, verdict, opening, _detail(suite, later, earlier))


def difference_of(suite: Mapping[str, Any], later: str, earlier: str) -> dict[str, Any] | None:
    """The paired difference of two rows, whichever stands first; None where there is none."""
    paired: Mapping[str, Any] | None = suite["paired"].get(f"{later}-{earlier}")
    if paired is not None:
        return dict(paired)
    paired = suite["paired"].get(f"{earlier}-{later}")
    if paired is None:
        return None
    mean, low, high = (None if paired[part] is None else -paired[part] for part in ("mean", "high", "low"))
    turned = {**paired, "mean": mean, "low": low, "high": high}
    if "members" in paired:
        turned["members"] = {seed: None if one is None else -one for seed, one in paired["members"].items()}
    return turned


def in_seeds(paired: Mapping[str, Any]) -> str:
    """In how many seeds a difference has the sign that it has on the whole; nothing where there are none."""
    found = [one for one in paired.get("members", {}).values() if one is not None]
    if not found or not paired["mean"]:
        return ""
    return f"{sum(one * paired['mean'] > 0 for one in found)} of {len(found)} seeds"


def verdict_of(paired: Mapping[str, Any], higher_is_better: bool) -> Verdict:
    """Better or worse only where the whole interval lies on one side of zero."""
    low, high = paired["low"], paired["high"]
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def _detail(suite: Mapping[str, Any], later: str, earlier: str) -> str:
    paired = difference_of(suite, later, earlier)
    assert paired is not None
    digits = digits_of(paired, suite)
    means = [number(suite["models"][row]["mean"], suite, digits) for row in (later, earlier)]
    values = f"{means[0]} against {means[1]}{_scale(suite)}"
    if paired["low"] is None:
        return f"{values}. One question is too few to say more."
    difference = f"{signed(paired, suite)}{_points(suite)} (95% interval {signed_range(paired, suite)})"
    difference += f", of this sign in {seeds}" if (seeds := in_seeds(paired)) else ""
    return f"{values}, a difference of {difference}.{_caution(suite, (later, earlier))}"


def _scale(suite: Mapping[str, Any]) -> str:
    if suite["protocol"] in SHARES:
        return f" of {suite['unit'].removeprefix('share of ')}"
    high = suite["scale"][1]
    return f" {suite['unit']}" if high is None else f" out of {high:g}"


def _caution(suite: Mapping[str, Any], rows: Sequence[str]) -> str:
    coverage = min(suite["models"][row]["coverage"] for row in rows)
    return "" if coverage >= FULL_COVERAGE else f" Only {coverage:.0%} could be scored."


def number(value: float | None, suite: Mapping[str, Any], digits: int | None = None) -> str:
    """A value of a suite as people read it: a share in percent, everything else with two digits."""
    if value is None:
        return "–"
    digits = _usual_digits(suite) if digits is None else digits
    return f"{100 * value:.{digits}f}%" if suite["protocol"] in SHARES else f"{value:.{digits}f}"


def signed(difference: Mapping[str, Any], suite: Mapping[str, Any], part: str = "mean") -> str:
    """A part of a paired difference, with its sign; shares in percentage points."""
    if difference[part] is None:
        return "–"
    return f"{_unit(suite) * difference[part]:+.{digits_of(difference, suite)}f}".replace("-", "−")


def signed_range(difference: Mapping[str, Any], suite: Mapping[str, Any]) -> str:
    """The interval of a difference."""
    if difference["low"] is None:
        return "no interval"
    return f"{signed(difference, suite, 'low')} to {signed(difference, suite, 'high')}{_points(suite)}"


def digits_of(difference: Mapping[str, Any], suite: Mapping[str, Any]) -> int:
    """As many digits as it takes for what is not zero not to look like it: a verdict must be seen in its numbers."""
    ends = [abs(_unit(suite) * difference[part]) for part in ("mean", "low", "high") if difference[part]]
    digits = _usual_digits(suite)
    while digits < MOST_DIGITS and any(round(end, digits) == 0 for end in ends):
        digits += 1
    return digits


def _usual_digits(suite: Mapping[str, Any]) -> int:
    return 1 if suite["protocol"] in SHARES else 2


def _unit(suite: Mapping[str, Any]) -> float:
    return 100.0 if suite["protocol"] in SHARES else 1.0


def _points(suite: Mapping[str, Any]) -> str:
    return " points" if suite["protocol"] in SHARES else ""
