"""What a plan knows of evaluations before they run: whom they will score, and on what."""

from collections.abc import Sequence

from potstill.stages.base import Source, StageConfig


class Scores(StageConfig):
    """The config of a stage that scores models."""

    def results(self) -> tuple[str, ...]:
        """The names that its suites may have in the scores, the parts of a suite among them."""
        raise NotImplementedError

    def recorded_rows(self) -> tuple[str, ...]:
        """Models that are known by their answers alone."""
        raise NotImplementedError


def results_of(evaluations: Sequence[Source]) -> list[tuple[str, str]]:
    """The evaluation and the suite of every result that there may be."""
    scoring = [(one.name, one.config) for one in evaluations if isinstance(one.config, Scores)]
    return [(name, suite) for name, config in scoring for suite in config.results()]


def scored_by(evaluations: Sequence[Source]) -> dict[str, None]:
    """Everybody who will have scores, in order."""
    names: dict[str, None] = {}
    for one in evaluations:
        if isinstance(one.config, Scores):
            names |= dict.fromkeys((*one.config.recorded_rows(), *one.reads.get("models", ())))
    return names
