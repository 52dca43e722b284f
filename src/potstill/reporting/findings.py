"""What came out, in sentences: never more than the interval allows, and in the same words whichever way it went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from potstill.reporting.differences import Verdict, difference_of, in_seeds, verdict_of
from potstill.reporting.told import Form, told, told_difference

FULL_COVERAGE = 0.95
"""Below this the sentence says how much could be scored."""


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
    the last model on every suite, then the other neighbours in the order of the models on the first. Aspects speak
    only where nothing else was measured; their table is elsewhere.
    """
    silent = ("aspects", "template_effect")
    suites = {name: suite for name, suite in report["suites"].items() if suite["protocol"] not in silent}
    suites = suites or dict(report["suites"])
    order = sorted(suites, key=lambda name: suites[name]["protocol"] != "mt_bench")
    against = report.get("against")
    if against is not None:
        return [finding for name in order for finding in _against(name, suites[name], report["models"], against)]
    teacher = (report.get("footprint") or {}).get("teacher")  # of which is told elsewhere what each keeps
    students = [model for model in report["models"] if model != teacher]
    found = [finding for name in order for finding in _of_suite(name, suites[name], students, teacher)]
    last = [finding for finding in found if finding.later in (students[-1], "")]
    return last + [finding for finding in found if finding not in last and finding.suite == order[0]]


def noted(suite: Mapping[str, Any], name: str, notes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The suite with what its evaluation's facts say of it: whom it compares with, and what its regression knows."""
    own = notes.get(name.removesuffix("/length_controlled"), {})
    control = own.get("length_controlled", {}) if name.endswith("/length_controlled") else {}
    found = {"baseline": own.get("baseline"), "explained_by": control.get("explained_by")}
    return {**suite, **{key: value for key, value in found.items() if value is not None}}


def remark(suite: Mapping[str, Any]) -> str:
    """What has to be known to read a suite's numbers; mostly nothing."""
    said = [f"against {suite['baseline']}"] if "baseline" in suite else []
    if "explained_by" in suite:
        said.append(f"at equal length, as far as {suite['explained_by']} can explain preferences")
    return ", ".join(said)


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


def _of_suite(name: str, suite: Mapping[str, Any], models: Sequence[str], teacher: str | None) -> Iterator[Finding]:
    """Neighbours in the order of the models; in a suite with baselines, the last model with each of those instead."""
    rows = [row for row in suite["models"] if row != teacher]
    present = [model for model in models if model in rows]
    baselines = [row for row in rows if row not in models]
    pairs = [(present[-1], row) for row in baselines] if baselines and present else []
    pairs = pairs or [(later, earlier) for earlier, later in pairwise(present)][::-1]
    for later, earlier in pairs:
        finding = compare(name, suite, later, earlier)
        if finding is not None:
            yield finding
    if not pairs and present:
        whom = f", {remark(suite)}" if remark(suite) else ""
        yield Finding(name, "", "", "unclear", f"{present[-1]} on {name}{whom}", f"{_alone(suite, present[-1])}.")


def compare(name: str, suite: Mapping[str, Any], later: str, earlier: str) -> Finding | None:
    """What the paired difference of two rows says; None where nothing could be paired."""
    paired = difference_of(suite, later, earlier)
    if paired is None:
        return None
    verdict = verdict_of(paired, suite["higher_is_better"])
    opening = {
        "better": f"{later} does better than {earlier} on {name}",
        "worse": f"{later} does worse than {earlier} on {name}",
        "unclear": f"Whether {later} does better or worse than {earlier} on {name} cannot be told",
    }[verdict]
    return Finding(name, later, earlier, verdict, opening, _detail(suite, later, earlier, paired))


def _detail(suite: Mapping[str, Any], later: str, earlier: str, paired: Mapping[str, Any]) -> str:
    form = Form.of(suite)
    digits = max(form.digits, form.difference(paired).digits)
    ends = [told(suite["models"][row], replace(form, digits=digits)).brief for row in (later, earlier)]
    seeds = f", of this sign in {found}" if (found := in_seeds(paired)) else ""
    values = f"{ends[0]} against {ends[1]}{_scale(suite)}"
    difference = f"a difference of {told_difference(paired, form)}"
    if any(suite["models"][row]["n"] > paired["n"] for row in (later, earlier)):
        difference = f"each of what it has a value for; of what both have, {difference}"
    return f"{values}, {difference}{seeds}{corrected(paired)}.{_caution(suite, (later, earlier), paired)}"


def _alone(suite: Mapping[str, Any], row: str) -> str:
    return f"{told(suite['models'][row], Form.of(suite))}{_scale(suite)}"


def corrected(paired: Mapping[str, Any]) -> str:
    """For how many comparisons the verdict is corrected; nothing for one."""
    return f", corrected for {paired['comparisons']} comparisons (Holm)" if paired["comparisons"] > 1 else ""


def _scale(suite: Mapping[str, Any]) -> str:
    if suite["unit"] == "share won":
        return " won"
    if Form.of(suite).percent:
        return f" of {suite['unit'].removeprefix('share of ')}"
    high = suite["scale"][1]
    return f" {suite['unit']}" if high is None else f" out of {high:g}"


def _caution(suite: Mapping[str, Any], rows: Sequence[str], paired: Mapping[str, Any]) -> str:
    if paired.get("why"):
        return f" {paired['why'].capitalize()}."
    coverage = min(suite["models"][row]["coverage"] for row in rows)
    return "" if coverage >= FULL_COVERAGE else f" Only {coverage:.0%} could be scored."
