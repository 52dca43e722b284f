"""Orderings that were named before the run: whether each holds, beside what was published of such models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from potstill.evaluation.distributions import LEVEL, holm
from potstill.reporting.differences import Verdict, difference_of, in_seeds, is_above
from potstill.reporting.findings import Finding
from potstill.reporting.told import Form, Told, told, told_difference

Outcome = Literal["holds", "opposite", "cannot tell"]
WORDS: dict[Outcome, Verdict] = {"holds": "better", "opposite": "worse", "cannot tell": "unclear"}


def claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every claim with its outcome, as it stands in summary.json.

    An ordering holds, or its opposite does, where the two-sided p of the paired difference, corrected by Holm (1979)
    for the number of claims, is below 5%. Of families the difference is over other questions and other seeds.
    """
    found = [_outcome_of(claim, report) for claim in report.get("claims", ())]
    known = [one for one in found if one["difference"] is not None and one["difference"]["p"] is not None]
    for one, p in zip(known, holm([one["difference"]["p"] for one in known]), strict=True):
        one["p_adjusted"] = p
        one["outcome"] = _outcome(one, report["suites"][one["suite"]], p)
    return found


def _outcome_of(claim: Mapping[str, str], report: Mapping[str, Any]) -> dict[str, Any]:
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


def _outcome(one: Mapping[str, Any], suite: Mapping[str, Any], p: float) -> Outcome:
    if p >= 1 - LEVEL:
        return "cannot tell"
    return "holds" if is_above(one["difference"]) == suite["higher_is_better"] else "opposite"


def claim_findings(report: Mapping[str, Any]) -> list[Finding]:
    """How many hold, then each, in the order in which they were named."""
    found = claims(report)
    if not found:
        return []
    counts = {word: sum(one["outcome"] == word for one in found) for word in WORDS}
    opening = f"Of {len(found)} orderings that were looked for, {counts['holds']} hold"
    detail = f"of {counts['opposite']} the opposite holds, {counts['cannot tell']} cannot be told, corrected for all."
    return [Finding("", "", "", "unclear", opening, detail)] + [_finding(one, report) for one in found]


def _finding(claim: Mapping[str, Any], report: Mapping[str, Any]) -> Finding:
    better, worse, name = claim["better"], claim["worse"], claim["suite"]
    opening = {
        "holds": f"{better} does better than {worse} on {name}",
        "opposite": f"{better} does worse than {worse} on {name}, against what was looked for",
        "cannot tell": f"Whether {better} does better than {worse} on {name} cannot be told",
    }[claim["outcome"]]
    difference = claim["difference"]
    if difference is None:
        return Finding(name, better, worse, "unclear", opening, "nothing was measured of both.")
    detail = str(told_difference(difference, Form.of(report["suites"][name])))
    detail += f", of this sign in {seeds}" if (seeds := in_seeds(difference)) else ""
    detail += f"; {why}" if (why := difference.get("why")) else ""
    if claim["published"] is not None:
        published, suite = claim["published"], report["suites"][name]
        detail += f"; published: {shown(published['better'], suite)} against {shown(published['worse'], suite)}"
    return Finding(name, better, worse, WORDS[claim["outcome"]], opening, f"{detail}.")


def shown(published: float | Sequence[float], suite: Mapping[str, Any]) -> str:
    """A published score as its source writes it, with its standard error where there is one."""
    form = replace(Form.of(suite), digits=2)
    if isinstance(published, int | float):
        return form(published)
    return f"{form(published[0])} (standard error {form(published[1]).removesuffix('%')})"


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
                    "published": shown(published["scores"][model][suite], report["suites"][suite])
                    if suite in published["scores"].get(model, {})
                    else "",
                    "here": _here(report["suites"][suite], model),
                }
                for suite in suites
            ],
        }
        for model in report["models"]
        if any(model in report["suites"][suite]["models"] for suite in suites)
    ]
    return {"source": published["source"], "suites": suites, "rows": rows}


def _here(suite: Mapping[str, Any], model: str) -> Told | None:
    estimate = suite["models"].get(model)
    return None if estimate is None else told(estimate, Form.of(suite))
