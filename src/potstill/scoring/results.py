"""Results of anyone's making as observations: potstill's evaluations, AlpacaEval's annotations, FastChat's judgments.

What a file holds is told by its rows, never by its name. A folder is a run, a sealed evaluation, or holds such files.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.artifact import MANIFEST, check_bytes
from potstill.errors import DataError
from potstill.evaluation import alpaca_eval, fastchat, fastchat_scores, scores
from potstill.evaluation.alpaca_eval import Annotation
from potstill.evaluation.fastchat import Judgment, PairJudgment, Question
from potstill.evaluation.scores import OBSERVATIONS_FILE, SCORES_FILE, SuiteResult
from potstill.evaluation.stored import unlike
from potstill.evaluation.terms import ANSWERS_FILE, Terms, annotated_terms, judged_terms, sealed_terms
from potstill.reading.files import Line, read_lines
from potstill.runs.workspace import Workspace

QUESTIONS = "question.jsonl"
TEXTS = (".json", ".jsonl", ".ndjson", ".csv")
"""What results are stored in, plain or compressed."""
KNOWN = (
    "annotations of AlpacaEval (instruction, generator_1, generator_2, preference), judgments of FastChat "
    "(question_id, model, judge, turn, score; or model_1, model_2, g1_winner, g2_winner), or an evaluation of potstill"
)

Stored = Annotation | Judgment | PairJudgment


@dataclass(frozen=True)
class Results:
    """One suite of one file: of one judge, against one baseline."""

    path: Path
    suite: str
    result: SuiteResult
    judge: str = ""
    baseline: str | None = None
    rows: Mapping[str, Sequence[Stored]] = field(default_factory=dict)
    """By model, as they are stored; none for potstill's own evaluations."""
    questions: Path | None = None
    """Where the categories are from, where a file beside the judgments tells them."""
    terms: Terms = field(default_factory=Terms)
    """Under which it came about."""


def read_suites(path: Path) -> dict[str, list[Results]]:
    """What a file, an evaluation or a run holds, by suite. DataError where that is nothing.

    A suite is called mt_bench, mt_bench_pairs or alpaca_eval, or as the recipe calls it. Where several judges or
    baselines would share a name, they stand behind it: alpaca_eval@JUDGE@BASELINE. Several files, or several stages of
    a run, may hold models of one suite.
    """
    found: dict[tuple[str, str, str | None], list[Results]] = {}
    for one in read_all(path):
        found.setdefault((one.suite, one.judge, one.baseline), []).append(one)
    if not found:
        _refuse_unsealed(path)
        raise DataError(str(path), f"nothing here was scored; expected {KNOWN}", "Name another file or folder")
    alike = Counter(suite for suite, _, _ in found)
    return {
        suite if alike[suite] == 1 else "@".join([suite, judge, *([baseline] if baseline else [])]): results
        for (suite, judge, baseline), results in found.items()
    }


def _refuse_unsealed(path: Path) -> None:
    """DataError where a run is to score models and has not come to it since its recipe changed."""
    workspace = Workspace(path)
    if not workspace.has_run():
        return
    if scored := [name for name, stage in workspace.describe().stages.items() if stage.produces == "scores"]:
        what = f"nothing is scored yet of what this run was last asked for; not sealed: {', '.join(scored)}"
        raise DataError(str(path), what, f"Run it to its end; see: potstill status {path}")


def read_all(path: Path) -> list[Results]:
    """Every suite of every file that a path means, in a fixed order."""
    return [one for place in places(path) for one in read_place(place, strict=place == path)]


def places(path: Path) -> list[Path]:
    """What a path means: the folders of evaluations, and files of rows. A file is itself, whatever it holds."""
    if path.name in (SCORES_FILE, OBSERVATIONS_FILE) and (path.parent / SCORES_FILE).is_file():
        return [path.parent]
    return list(_below(path)) if path.is_dir() else [path]


def _below(folder: Path) -> Iterator[Path]:
    """The evaluations and files in a folder, those of runs as they are sealed now."""
    workspace = Workspace(folder)
    if (folder / SCORES_FILE).is_file():
        yield folder
    elif workspace.has_run():
        scored = [name for name, stage in workspace.describe().stages.items() if stage.produces == "scores"]
        sealed = workspace.sealed()
        yield from (artifact.path for name in scored if (artifact := sealed[name]) is not None)
    else:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_file() and is_text(path):
                yield path
            elif path.is_dir() and not path.is_symlink():
                yield from _below(path)


def is_text(path: Path) -> bool:
    """Whether a file may hold results, by its name."""
    return any(suffix in TEXTS for suffix in path.suffixes[-2:])


def read_place(place: Path, *, strict: bool) -> list[Results]:
    """The suites of an evaluation's folder or of a file; a file that holds no results has none, or is refused.

    StorageError where it was sealed, and its bytes are others now.
    """
    _check_sealed(place)
    return list(_evaluation(place)) if place.is_dir() else read_file(place, strict=strict)


def first_row(path: Path) -> Line:
    """By which a file is told."""
    return next(read_lines(path))


def read_file(path: Path, *, strict: bool = True) -> list[Results]:
    """The suites of one file. DataError where it holds none; not `strict`: then none are returned."""
    lines = read_lines(path)
    try:
        first = next(lines)
    except DataError:
        if strict:
            raise
        return []
    kind = next((kind for is_kind, kind in _KINDS if is_kind(first.value)), None)
    if kind is not None:
        return list(kind(path, chain([first], lines)))
    if not strict:
        return []
    place = f"{path}:{first.number}"
    if first.error:
        raise DataError(place, first.error, "Fetch or write the file again")
    raise DataError(place, f"{why_none(first.value)}; expected {KNOWN}", "Name another file or folder")


def why_none(row: Any) -> str:
    """Why a file that begins with this row holds no results."""
    return unlike(row, _COLUMNS, "result")


def _annotations(path: Path, lines: Iterable[Line]) -> Iterator[Results]:
    rows = alpaca_eval.read_annotations(lines, str(path))
    for (judge, baseline), models in alpaca_eval.by_comparison(rows).items():
        observations = {model: alpaca_eval.observations(found) for model, found in models.items()}
        result = SuiteResult(alpaca_eval.WIN_RATE, observations)
        terms = annotated_terms(judge, baseline, chain.from_iterable(models.values()))
        yield Results(path, alpaca_eval.WIN_RATE.protocol, result, judge, baseline, models, terms=terms)


def _judgments(path: Path, lines: Iterable[Line]) -> Iterator[Results]:
    by_judge: dict[str, list[Judgment]] = {}
    for row in fastchat.read_judgments(lines, str(path)):
        by_judge.setdefault(row.judge, []).append(row)
    questions, category = _categories(path)
    for judge, rows in by_judge.items():
        observations = fastchat_scores.observations(rows, category)
        models = {model: [row for row in rows if row.model == model] for model in observations}
        result = SuiteResult(fastchat_scores.GRADE, observations)
        terms = judged_terms(judge, None, rows, _questions(questions))
        yield Results(path, fastchat_scores.GRADE.protocol, result, judge, None, models, questions, terms)


def _pair_judgments(path: Path, lines: Iterable[Line]) -> Iterator[Results]:
    by_judge: dict[str, list[PairJudgment]] = {}
    for row in fastchat.read_pair_judgments(lines, str(path)):
        by_judge.setdefault(row.judge, []).append(row)
    questions, category = _categories(path)
    for judge, rows in by_judge.items():
        baseline = fastchat_scores.baseline_of(rows)
        observations = fastchat_scores.pair_observations(rows, category, baseline)
        models = {model: [row for row in rows if model in (row.model_1, row.model_2)] for model in observations}
        result = SuiteResult(fastchat_scores.WON, observations)
        terms = judged_terms(judge, baseline, rows, _questions(questions))
        yield Results(path, fastchat_scores.WON.protocol, result, judge, baseline, models, questions, terms)


_KINDS = (
    (alpaca_eval.is_annotation, _annotations),
    (fastchat.is_single, _judgments),
    (fastchat.is_pair, _pair_judgments),
)


_COLUMNS = {
    "annotations of AlpacaEval": alpaca_eval.ANNOTATED,
    "outputs of AlpacaEval": alpaca_eval.PUT_OUT,
    "a leaderboard of AlpacaEval": alpaca_eval.PUBLISHED,
    "judgments of FastChat": fastchat.GRADED,
    "judgments of pairs of FastChat": fastchat.PAIRED,
}


def _categories(path: Path) -> tuple[Path | None, dict[str, str]]:
    """The questions' categories: of the question file where FastChat keeps it, else by MT-Bench's own numbers."""
    file = path.parent.parent / QUESTIONS
    if not file.is_file():
        return None, fastchat_scores.categories()
    return file, fastchat_scores.categories(_questions(file)())


def _questions(file: Path | None) -> Callable[[], list[Question]]:
    """What stands in a file of questions, for whoever asks."""
    return lambda: [] if file is None else fastchat.read_questions(read_lines(file), str(file))


def _check_sealed(place: Path) -> None:
    """Every byte that is read of a sealed evaluation, the files of others in it too. A run checks their sizes alone."""
    place = place.absolute()
    if place.is_dir():
        check_bytes(place, (SCORES_FILE, OBSERVATIONS_FILE, ANSWERS_FILE))
    elif above := next((one for one in place.parents if (one / SCORES_FILE).is_file()), None):
        check_bytes(above, [place.relative_to(above).as_posix()])


def _evaluation(folder: Path) -> Iterator[Results]:
    """The suites of an evaluation."""
    found = scores.read_results(folder)
    try:
        terms = sealed_terms(folder, found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = "this is not a manifest as potstill writes them"
        raise DataError(str(folder / MANIFEST), what, "Run the evaluation again, which seals it anew") from error
    for name, result in found.items():
        yield Results(folder, name, result, terms=terms[name])
