"""Orderings that were named before the run: whether each holds, beside what was published of such models."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from potstill.evaluation.distributions import LEVEL, holm
from potstill.reporting.findings import (
    Finding,
    Verdict,
    difference_of,
    in_seeds,
    number,
    signed,
    signed_range,
)

Outcome = Literal["holds", "opposite", "cannot tell"]
WORDS: dict[Outcome, Verdict] = {"holds": "better", "opposite": "worse", "cannot tell": "unclear"}


def claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every claim with its outcome, as it stands in summary.json.

    An ordering holds, or its opposite does, where the two-sided p of the paired difference, corrected by Holm (1979)
    for the number of claims, is below 5%. Of families the difference is over other questions and other seeds.
    """
    told = [_told(claim, report) for claim in report.get("claims", ())]
    known = [one for one in told if one["difference"] is not None and one["difference"]["p"] is not None]
    for one, p in zip(known, holm([one["difference"]["p"] for one in known]), strict=True):
        one["p_adjusted"] = p
        one["outcome"] = _outcome(one, report["suites"][one["suite"]], p)
    return told


def _told(claim: Mapping[str, str], report: Mapping[str, Any]) -> dict[str, Any]:
    published = report.get("published") or {"source": "", "scores": {}}
    ends = [published["scores"].get(claim[end], {}).get(claim["suite"]) for end in ("better", "worse")]
    suite = report["suites"].get(claim["suite"])
    return {
        **claim,
        "outcome": "cannot tell",
        "p_adjusted": None,
        "difference": None if suite is None else difference_of(suite, claim["better"], claim["worse"]),
        "published": None if None in ends else {"better": ends[0], "worse": ends[1], "source": published["source"]},
    }


def _outcome(told: Mapping[str, Any], suite: Mapping[str, Any], p: float) -> Outcome:
    if p >= 1 - LEVEL:
        return "cannot tell"
    return "holds" if (told["difference"]["mean"] > 0) == suite["higher_is_better"] else "opposite"


def claim_findings(report: Mapping[str, Any]) -> list[Finding]:
    """How many hold, then each, in the order in which they were named."""
    told = claims(report)
    if not told:
        return []
    counts = {word: sum(one["outcome"] == word for one in told) for word in WORDS}
    opening = f"Of {len(told)} orderings that were looked for, {counts['holds']} hold"
    detail = f"of {counts['opposite']} the opposite holds, {counts['cannot tell']} cannot be told, corrected for all."
    return [Finding("", "", "", "unclear", opening, detail)] + [_finding(one, report) for one in told]


def _finding(told: Mapping[str, Any], report: Mapping[str, Any]) -> Finding:
    better, worse, name = told["better"], told["worse"], told["suite"]
    opening = {
        "holds": f"{better} does better than {worse} on {name}",
        "opposite": f"{better} does worse than {worse} on {name}, against what was looked for",
        "cannot tell": f"Whether {better} does better than {worse} on {name} cannot be told",
    }[told["outcome"]]
    difference = told["difference"]
    if difference is None or difference["mean"] is None:
        return Finding(name, better, worse, "unclear", opening, "nothing was measured of both.")
    suite = report["suites"][name]
    detail = f"{signed(difference, suite)} (95% interval {signed_range(difference, suite)})"
    detail += f", of this sign in {seeds}" if (seeds := in_seeds(difference)) else ""
    if told["published"] is not None:
        published = told["published"]
        detail += f"; {published['source']}: {shown(published['better'])} against {shown(published['worse'])}"
    return Finding(name, better, worse, WORDS[told["outcome"]], opening, f"{detail}.")


def shown(published: float | Sequence[float]) -> str:
    """A published score as its source writes it, with its standard error where there is one."""
    if isinstance(published, int | float):
        return f"{published:.2f}"
    return f"{published[0]:.2f} ({published[1]:.2f})"


def beside(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Published scores and those that came out, a row a model, as the page shows them."""
    published = report.get("published")
    if not published:
        return None
    suites = list(dict.fromkeys(suite for found in published["scores"].values() for suite in found))
    suites = [suite for suite in suites if suite in report["suites"]]
    rows = [
        {
            "name": model,
            "cells": [
                {
                    "published": shown(published["scores"][model][suite])
                    if suite in published["scores"].get(model, {})
                    else "",
                    **_here(report["suites"][suite], model),
                }
                for suite in suites
            ],
        }
        for model in report["models"]
        if any(model in report["suites"][suite]["models"] for suite in suites)
    ]
    return {"source": published["source"], "suites": suites, "rows": rows}


def _here(suite: Mapping[str, Any], model: str) -> dict[str, str]:
    estimate = suite["models"].get(model)
    if estimate is None:
        return {"mean": "", "range": ""}
    range_ = "no interval"
    if estimate["low"] is not None:
        range_ = f"{number(estimate['low'], suite)} to {number(estimate['high'], suite)}"
    return {"mean": number(estimate["mean"], suite), "range": range_}
