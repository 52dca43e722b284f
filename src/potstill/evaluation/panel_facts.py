"""What a panel of judges did, counted as it happens: coverage, agreement, the effect of places, and mean scores."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.evaluation.agreement import Coincidences, PairedMean
from potstill.records import Answers, Rating
from potstill.teachers.base import Reply
from potstill.teachers.ratings import INCONSISTENT, is_not_applicable

COUNTS = ("asked", "read", "not_applicable", "unread")


class PanelFacts:
    """The facts of a `judge` stage, in memory that does not grow with the rows."""

    def __init__(self, judges: Sequence[str], orders: int) -> None:
        self._judges, self._orders = judges, orders
        self._counts: list[Counter[str]] = [Counter() for _ in judges]
        self._finishes: Counter[str] = Counter()
        self._agreement: dict[str, Coincidences] = {}
        self._by_place: dict[str, dict[int, list[float]]] = defaultdict(dict)
        self._turned: dict[str, PairedMean] = defaultdict(PairedMean)
        self._earlier: dict[str, list[float]] = defaultdict(list)
        self._before: Sequence[float | None] = ()
        self._means: dict[str, dict[str, list[float]]] = defaultdict(dict)
        self.first_bad: list[Reply | None] = [None] * len(judges)

    def heard(self, judge: int, ratings: Sequence[Rating], reply: Reply, contradicted: int) -> None:
        """Count one reply of a judge."""
        counts = self._counts[judge]
        self._finishes[reply.finish] += 1
        counts["inconsistent"] += contradicted
        for rating in ratings:
            counts["asked"] += 1
            if rating.score is not None:
                counts["read"] += 1
            elif is_not_applicable(rating):
                counts["not_applicable"] += 1
            else:
                counts["unread"] += not rating.rationale.startswith(INCONSISTENT)
                counts["left"] += 1
                self.first_bad[judge] = self.first_bad[judge] or reply

    def turned(self, judge: int, scores: Sequence[float | None]) -> None:
        """Count a comparison whose winner changed with the order."""
        self._counts[judge]["inconsistent"] += {0.0, 1.0} <= set(scores)

    def placed(self, subject: str, turn: int, scores: Sequence[float | None]) -> None:
        """The scores of texts in the order in which they were shown."""
        if len(scores) < 2:
            return
        for place, score in enumerate(scores, start=1):
            if score is not None:
                sums = self._by_place[subject].setdefault(place, [0.0, 0])
                sums[0] += score
                sums[1] += 1
        if turn % 2:  # the order before, reversed: the same texts have changed places
            size = len(scores)
            for place, score in enumerate(scores):
                other, elsewhere = self._before[size - 1 - place], size - 1 - place
                if score is not None and other is not None and place < elsewhere:
                    self._earlier[subject].append(score - other)
                if score is not None and other is not None and place > elsewhere:
                    self._earlier[subject].append(other - score)
        self._before = scores

    def row_done(self) -> None:
        """Close what belongs to one row and judge: they are a cluster."""
        for subject, values in self._earlier.items():
            self._turned[subject].add(values)
            values.clear()

    def compared(self, subject: str, scores: Sequence[float]) -> None:
        """What several judges gave to one text, or one comparison."""
        self._agreement.setdefault(subject, Coincidences()).add(scores)

    def rated(self, row: Answers, given: Mapping[int, Sequence[Rating]]) -> None:
        """The ratings that answers end with."""
        for place, ratings in given.items():
            model = row.candidates[place].model
            for rating in ratings:
                if rating.judge:
                    continue
                sums = self._means[rating.aspect].setdefault(model, [0.0, 0, 0, 0])
                sums[0] += rating.score or 0.0
                sums[1] += rating.score is not None
                sums[2] += is_not_applicable(rating)
                sums[3] += 1

    def coverages(self) -> list[float]:
        """Of each judge: the share of the ratings asked for that can be used, N/A included."""
        return [1 - counts["left"] / counts["asked"] if counts["asked"] else 0.0 for counts in self._counts]

    def asked(self, judge: int) -> int:
        """How many ratings a judge was asked for."""
        return self._counts[judge]["asked"]

    def to_json(self) -> dict[str, Any]:
        """The facts, of which those of one judge alone say nothing of agreement."""
        total = sum(self._counts, Counter[str]())
        facts: dict[str, Any] = {
            "ratings": {name: total[name] for name in COUNTS} | {"inconsistent": total["inconsistent"]},
            "coverage": round(1 - total["left"] / total["asked"], 6) if total["asked"] else 0.0,
            "replies": dict(sorted(self._finishes.items())),
            "mean_scores": {
                aspect: {model: _figures(sums) for model, sums in sorted(models.items())}
                for aspect, models in self._means.items()
            },
        }
        if self._by_place:
            facts["position"] = {subject: self._position(subject) for subject in self._by_place}
        if len(self._judges) > 1:
            coverages = (round(coverage, 6) for coverage in self.coverages())
            facts["judges"] = dict(zip(self._judges, coverages, strict=True))
            facts["agreement"] = {
                subject: {
                    "units": found.units,
                    "alpha_ordinal": _rounded(found.alpha("ordinal")),
                    "alpha_interval": _rounded(found.alpha("interval")),
                }
                for subject, found in self._agreement.items()
            }
        return facts

    def _position(self, subject: str) -> dict[str, Any]:
        """Means by the place shown; where orders were reversed, what a text gains where it stands earlier."""
        places = sorted(self._by_place[subject].items())
        told: dict[str, Any] = {"mean_by_place": {str(place): round(sums[0] / sums[1], 6) for place, sums in places}}
        if self._orders > 1:
            gain = self._turned[subject].estimate()
            told["gain_of_standing_earlier"] = {name: _rounded(value) for name, value in gain.items()}
        return told


def _figures(sums: Sequence[float]) -> dict[str, float | int | None]:
    """A mean with what it rests on: its n, and the share of the ratings that could be used, N/A included."""
    total, n, without, asked = sums
    mean = round(total / n, 6) if n else None
    return {"mean": mean, "n": int(n), "coverage": round((n + without) / asked, 6)}


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 6) if isinstance(value, float) else value
