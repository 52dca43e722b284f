"""What may be claimed of a paired difference as it stands in scores.json. Says nothing in words."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Literal

from potstill.evaluation.distributions import holm

Verdict = Literal["better", "worse", "unclear"]
LEVEL = 0.05


def verdict_of(paired: Mapping[str, Any], higher_is_better: bool) -> Verdict:
    """Better or worse only where the p-value, corrected for all comparisons that were made, is below 5%."""
    p = paired.get("p_adjusted")  # scores of earlier versions have none
    if p is None or p >= LEVEL or not paired["mean"]:
        return "unclear"
    return "better" if is_above(paired) == higher_is_better else "worse"


def is_above(paired: Mapping[str, Any]) -> bool:
    """Which side of zero it lies on."""
    return bool(paired["mean"] > 0)


def difference_of(suite: Mapping[str, Any], later: str, earlier: str) -> dict[str, Any] | None:
    """The paired difference of two rows, whichever stands first; None where nothing of them could be paired."""
    paired: Mapping[str, Any] | None = suite["paired"].get(f"{later}-{earlier}")
    if paired is None:
        paired = suite["paired"].get(f"{earlier}-{later}")
        paired = None if paired is None else _turned(paired)
    return None if paired is None or paired["mean"] is None else dict(paired)


def _turned(paired: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round."""
    turned = {**paired, "mean": _minus(paired["mean"])} | _ends(paired)
    if "questions" in paired:
        turned["questions"] = _ends(paired["questions"])
    if "members" in paired:
        turned["members"] = {seed: _minus(one) for seed, one in paired["members"].items()}
    return turned


def _ends(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"low": _minus(found["high"]), "high": _minus(found["low"])}


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def in_seeds(paired: Mapping[str, Any]) -> str:
    """In how many seeds a difference has the sign that it has on the whole; nothing where there are not two."""
    found = [one for one in paired.get("members", {}).values() if one is not None]
    if len(found) < 2 or not paired["mean"]:
        return ""
    return f"{sum(one * paired['mean'] > 0 for one in found)} of {len(found)} seeds"


def only_against(suite: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The suite where only the comparisons with one row were asked for: each p is corrected for those alone (Holm)."""
    return _asked_for(suite, [(one, name) for one in suite["models"] if one != name])


def without(suite: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The suite where nobody asked for a comparison with that row: the others are corrected for their own number."""
    return _asked_for(suite, combinations([one for one in suite["models"] if one != name], 2))


def _asked_for(suite: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    named = [key for one, other in pairs for key in (f"{one}-{other}", f"{other}-{one}") if key in suite["paired"]]
    keys = [key for key in named if suite["paired"][key]["p"] is not None]
    adjusted = holm([suite["paired"][key]["p"] for key in keys])
    paired = {
        key: {**suite["paired"][key], "p_adjusted": p, "comparisons": len(keys)}
        for key, p in zip(keys, adjusted, strict=True)
    }
    return {**suite, "paired": {**suite["paired"], **paired}}
