"""lm-eval as a library: its tasks, prompts and scores over models of ours. Needs potstill[leaderboard].

Whatever lm-eval has a default for that moved between its versions is pinned here: whether a chat template is applied,
whether solved examples are turns of a dialogue, and every seed.
"""

import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import datasets  # type: ignore[import-untyped]
import huggingface_hub.constants
import lm_eval.api.task
import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from potstill.artifact import read_json, storage_errors, write_json
from potstill.errors import DataError, ModelError, RecipeError
from potstill.evaluation.leaderboard import SEED, V1
from potstill.evaluation.task_files import FORMATS, Splits, by_subject, read_task
from potstill.sources import Model
from potstill.training.models import choose_device, load_model, read_tokenizer

VERSION = version("lm_eval")
TASKS = Path(lm_eval.api.task.__file__).parents[1] / "tasks"
CPU_BATCH = 8
"""Questions scored at once without a GPU, where more gain nothing; with one, lm-eval finds how many fit."""
NOT_A_NUMBER = (math.nan, False)
"""The answer to what cannot be asked."""
SAME = 1e-9
"""A mean of shares is the same where it differs by less."""

Tick = Callable[[], None]
Ticker = Callable[[int, str], Tick]


@dataclass(frozen=True)
class Asked:
    """A task to ask, by lm-eval's name or `mmlu`."""

    name: str
    shots: int | None = None
    """None: as the leaderboard, or the task itself, has it."""
    files: Path | None = None
    """Its rows. None: lm-eval reads them from the Hub."""


@dataclass(frozen=True)
class Task:
    """A task whose questions are read."""

    name: str
    shots: int
    parts: Mapping[str, Any]
    """lm-eval's own, by name: 57 for MMLU, elsewhere one."""
    offline: bool


@dataclass(frozen=True)
class Scored:
    """What one model made of a task."""

    values: Mapping[str, list[float | None]]
    """By part, in the order of its questions. None: the question could not be scored."""
    metric: str
    means: Mapping[str, float]
    """By part, as lm-eval itself has them."""
    truncated: int
    """Prompts that were longer than what the model reads, and lost their beginning."""


class Reader(HFLM):  # type: ignore[misc]  # untyped there
    """A model of ours as lm-eval asks one, loaded as everywhere else here. Use it in a `with` block.

    A choice that has no token, or more than the model reads, is answered by NaN instead of an assertion.
    """

    def __init__(self, model: Model, batch_size: int | None = None) -> None:
        device = choose_device()
        came = read_tokenizer(model)
        _check_ends(model, came)
        self.has_template = bool(came.chat_template)
        self.name = model.name
        self.tick: Tick = lambda: None
        self.truncated: set[int] = set()
        precision = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = load_model(model, came, device, precision)
        automatic: int | str = "auto" if device.type == "cuda" else CPU_BATCH
        with _quiet():
            super().__init__(pretrained=weights, tokenizer=came, backend="causal", batch_size=batch_size or automatic)
        self.cache_hook = self  # lm-eval tells it each answer, as it would a cache

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del self._model

    def add_partial(self, method: str, request: Any, answer: Any) -> None:
        """One answer came."""
        self.tick()

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As there, without a bar of its own."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As there, without a bar of its own."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        fit = [bool(prompt) and 0 < len(choice) <= self.max_length for _, prompt, choice in requests]
        asked = [request for request, fits in zip(requests, fit, strict=True) if fits]
        for (prompt, _), before, after in asked:
            if len(before) + len(after) > self.max_length + 1:
                self.truncated.add(hash(prompt))
        answers = iter(super()._loglikelihood_tokens(asked, True, override_bs) if asked else ())
        return [next(answers) if fits else NOT_A_NUMBER for fits in fit]

    def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> Any:
        """As there, without printing."""
        if not self.batch_sizes:
            self.batch_sizes[0] = self._detect_batch_size(n_reordered_requests, pos)
        return self.batch_sizes[0]


def _check_ends(model: Model, tokenizer: Any) -> None:
    """ModelError where lm-eval could not tell a choice's tokens from its prompt's."""
    where = f"model {model.name}"
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        what = "its tokenizer has neither a first nor an end token, and lm-eval needs one"
        raise ModelError(where, what, "Set eos_token in its tokenizer_config.json")
    if tokenizer.encode("a")[-1] == tokenizer.eos_token_id:
        what = "its tokenizer puts the end token behind every text, which lm-eval would take for a choice's own"
        raise ModelError(where, what, "Set add_eos_token: false in its tokenizer_config.json")


def open_tasks(asked: Sequence[Asked]) -> list[Task]:
    """Read every task's questions. RecipeError for a name that is none, DataError for files or shots that fail."""
    with _quiet(), _seeded():
        manager = _manager(asked)
        return [_open(manager, one) for one in asked]


def score(
    reader: Reader, task: Task, template: bool, limit: int | None, ticker: Ticker, kept: Path | None = None
) -> Scored:
    """Every question of a task, or of each of its parts the first so many.

    `kept`: where it stands from a run that was killed later, or is kept for the next one.
    """
    if kept is not None and kept.is_file():
        return Scored(**read_json(kept))
    scored = _score(reader, task, template, limit, ticker)
    if kept is not None:
        with storage_errors(kept.parent):
            kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, asdict(scored))
    return scored


def _score(reader: Reader, task: Task, template: bool, limit: int | None, ticker: Ticker) -> Scored:
    for part in task.parts.values():
        part.set_fewshot_seed(SEED)
    reader.truncated.clear()
    with _quiet(), _seeded(), _offline(task.offline), _ticking(reader, task, limit, ticker):
        found = evaluate(
            lm=reader,
            task_dict={"tasks": dict(task.parts)},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    samples = {part: found["samples"][part] for part in task.parts}
    metric, kind = _metric(task, samples)
    values = {part: [_value(task, one, metric) for one in rows if one["filter"] == kind]
              for part, rows in samples.items()}  # fmt: skip
    means = {part: float(found["results"][part][f"{metric},{kind}"]) for part in task.parts}
    _check_means(task, values, means)
    return Scored(values, metric, means, len(reader.truncated))


def _manager(asked: Sequence[Asked]) -> Any:
    """lm-eval's index of its tasks: thirteen thousand files are read only where a task of the leaderboard's own
    folders is not enough."""
    folders = sorted({TASKS / setting.folder for setting in V1.values()})
    few = TaskManager(include_path=folders, include_defaults=False)
    known = {*few.all_subtasks, "mmlu"}
    return few if all(one.name in known for one in asked) else TaskManager()


def _open(manager: Any, asked: Asked) -> Task:
    subjects = {path.stem.removeprefix("mmlu_"): path.stem for path in sorted(TASKS.glob("mmlu/default/mmlu_*.yaml"))}
    known = [*manager.all_subtasks, "mmlu"]
    if asked.name not in known:
        raise _unknown(manager, asked.name)
    shots = V1[asked.name].shots if asked.shots is None and asked.name in V1 else asked.shots
    splits: Mapping[str, Splits | None]
    if asked.files is None:
        splits = dict.fromkeys(subjects.values() if asked.name == "mmlu" else (asked.name,))
    else:
        rows = read_task(asked.name, asked.files)
        splits = by_subject(rows, subjects, asked.files) if asked.name == "mmlu" else {asked.name: rows}
    configs = [_config(manager, asked, name, rows, shots) for name, rows in splits.items()]
    with _offline(asked.files is not None):
        parts = _load(manager, asked, configs)
    for part in parts.values():
        _check(asked, part)
    return Task(asked.name, next(iter(parts.values())).config.num_fewshot or 0, parts, asked.files is not None)


def _unknown(manager: Any, name: str) -> RecipeError:
    if name in manager.all_tasks:
        what = f"'{name}' is a group of lm-eval's tasks, and how its members are to be weighed is nobody's choice here"
        return RecipeError("tasks", what, "Name those of its tasks that you mean")
    close = get_close_matches(name, [*manager.all_subtasks, "mmlu"], n=1)
    near = f" (did you mean '{close[0]}'?)" if close else ""
    return RecipeError("tasks", f"lm-eval {VERSION} has no task '{name}'{near}", "Mend the name")


def _config(manager: Any, asked: Asked, name: str, rows: Splits | None, shots: int | None) -> dict[str, Any]:
    """What of lm-eval's own settings of a task is other here."""
    config: dict[str, Any] = {"task": name}
    if shots is not None:
        config["num_fewshot"] = shots
    if rows is None:
        return config
    form = FORMATS[asked.name]
    if form.scored not in rows:
        what = f"of '{name}' there are no rows of the split '{form.scored}'"
        raise DataError(str(asked.files), what, "Add them, or take its other rows out")
    own = manager.task_index[name].cfg
    for role in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if own.get(role) not in (None, *rows):
            config[role] = None
    tables = {split: datasets.Dataset.from_list(found) for split, found in rows.items()}
    config["custom_dataset"] = lambda **_: tables
    return config


def _load(manager: Any, asked: Asked, configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        loaded = manager.load([{"group": "potstill", "task": list(configs)}])["tasks"]
    except Exception as error:  # lm-eval and datasets raise dozens of kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if asked.files is not None:
            what = f"lm-eval {VERSION} can make no questions of {asked.name} from it: {first}"
            raise DataError(str(asked.files), what, "Compare its rows with those of the task's own data") from error
        what = f"its data cannot be read from the Hugging Face Hub: {first}"
        remedy = f"Check the network, or name local files under files: {{{asked.name}: FOLDER}}"
        raise DataError(f"task {asked.name}", what, remedy) from error
    return {config["task"]: loaded[config["task"]] for config in configs}


def _check(asked: Asked, part: Any) -> None:
    """That it can be asked here, and that there are examples enough to show."""
    if getattr(part, "UNSAFE_CODE", False) or getattr(part, "MULTIMODAL", False):
        what = f"'{asked.name}' needs pictures or sound" if getattr(part, "MULTIMODAL", False) else (
            f"'{asked.name}' runs code that models write, outside any sandbox")  # fmt: skip
        raise RecipeError("tasks", what, "Leave it out; code is checked by protocol exact")
    shots = part.config.num_fewshot or 0
    known = len(part.sampler.df) if shots and hasattr(part, "sampler") else shots
    # Examples from the split that is asked must not be the question itself, so that one more is drawn.
    needed = shots + (part.fewshot_cfg.split == part.config.test_split) if shots else 0
    if known < needed:
        where = f"task {asked.name}" if asked.files is None else str(asked.files)
        shown = FORMATS[asked.name].shots if asked.name in FORMATS else ""
        split = f" in its split '{shown}'" if shown else ""
        what = f"'{part.task_name}' shows {shots} solved examples, which takes {needed} rows{split}; there are {known}"
        if known and shown and shown not in part.dataset:
            known, what = 0, what.rpartition(";")[0] + "; there is no such file"
        raise DataError(where, what, f"Add rows, or set shots: {{{asked.name}: {max(0, known - needed + shots)}}}")


def _metric(task: Task, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, str]:
    """The metric and lm-eval's filter whose values count: the leaderboard's, else the task's first."""
    first = next(iter(samples.values()))[0]
    metric = V1[task.name].metric if task.name in V1 and V1[task.name].metric in first["metrics"] else ""
    return metric or first["metrics"][0], first["filter"]


def _value(task: Task, sample: Mapping[str, Any], metric: str) -> float | None:
    """A question's own value. DataError where it is no share."""
    answers = sample["filtered_resps"]
    if any(isinstance(one, (tuple, list)) and isinstance(one[0], float) and math.isnan(one[0]) for one in answers):
        return None
    value = sample[metric]
    number = float(value) if isinstance(value, (int, float, np.number, np.bool_)) else -1.0
    if math.isnan(number):  # every choice had a probability that rounds to nothing
        return None
    if not 0 <= number <= 1:
        what = f"its metric {metric} is no share between 0 and 1 for each question"
        raise DataError(f"task {task.name}", what, "Name a task of choices, or one that counts what is right")
    return number


def _check_means(task: Task, values: Mapping[str, Sequence[float | None]], means: Mapping[str, float]) -> None:
    """DataError where what lm-eval publishes of a task is another thing than the mean over its questions."""
    for part, found in values.items():
        scored = [one for one in found if one is not None]
        if len(scored) == len(found) and abs(math.fsum(scored) / len(scored) - means[part]) > SAME:
            what = f"lm-eval sums {part} up as {means[part]:.6f}, which is not the mean over its questions"
            raise DataError(f"task {task.name}", what, "Leave it out: its interval could not be told")


@contextmanager
def _ticking(reader: Reader, task: Task, limit: int | None, ticker: Ticker) -> Iterator[None]:
    """While inside, each answered request counts against all that the task will make, guessed from its first one."""
    total = 0
    for part in task.parts.values():
        docs = len(part.eval_docs) if limit is None else min(limit, len(part.eval_docs))
        first = part.doc_to_choice(part.eval_docs[0]) if part.OUTPUT_TYPE == "multiple_choice" else [""]
        total += docs * len(first)
    reader.tick = ticker(total, f"answers to {task.name}")
    try:
        yield
    finally:
        reader.tick = lambda: None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log and the bars of the libraries: what there is to say is said here."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with _changed(lm_eval.api.task, "tqdm", lambda rows, **_: rows):
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _seeded() -> Iterator[None]:
    """The seeds that lm-eval's command line sets, and afterwards those that were."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  # lm-eval draws from these
    random.seed(0)
    np.random.seed(SEED)  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002


OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@contextmanager
def _offline(really: bool) -> Iterator[None]:
    """While inside, no library asks the Hub: neither those that read the environment now nor those that have."""
    if not really:
        yield
        return
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    try:
        with (
            _changed(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            _changed(datasets.config, "HF_HUB_OFFLINE", True),
        ):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _changed(thing: Any, name: str, value: Any) -> Iterator[None]:
    """While inside, a library's attribute is another."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)
