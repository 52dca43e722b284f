"""Judgments that could not be read: how many there are, and the first of them with the judge's words and the reason."""

from collections.abc import Iterable, Mapping
from typing import Any

SHOWN = 5
LONGEST = 200
"""Characters of a judgment."""


def failed_judgments(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`asked` and `failed` judgments of an answers.jsonl, `counts` by suite and model, and the first `examples`.

    An answer that never came was not judged, and one to which nothing applies was understood; neither is a failure.
    """
    asked, counts, examples = 0, dict[str, dict[str, int]](), list[dict[str, Any]]()
    for line in lines:
        for number, turn in enumerate(line["turns"], start=1):
            asked += bool(turn["assistant"] or turn["judgment"])
            if turn["score"] is not None or not turn.get("reason") or not (turn["assistant"] or turn["judgment"]):
                continue
            found = counts.setdefault(line["suite"], {})
            found[line["model"]] = found.get(line["model"], 0) + 1
            if len(examples) < SHOWN:
                said = {"suite": line["suite"], "model": line["model"], "id": line["id"], "turn": number}
                examples.append({**said, "reason": turn["reason"], "judgment": turn["judgment"][:LONGEST]})
    failed = sum(sum(found.values()) for found in counts.values())
    return {"asked": asked, "failed": failed, "counts": counts, "examples": examples}


def told_failures(found: Mapping[str, Any]) -> str:
    """In one sentence."""
    where = [f"{model} on {suite}: {count:,}" for suite, of in found["counts"].items() for model, count in of.items()]
    are, have = ("judgment", "has") if found["failed"] == 1 else ("judgments", "have")
    return (
        f"{found['failed']:,} {are} of {found['asked']:,} could not be read and {have} no part in any mean "
        f"({'; '.join(where)})"
    )
