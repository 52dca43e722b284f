"""Stage `sample`: several models of a pool answer each prompt, so that a judge has something to compare.

A model may be told a principle to mind, drawn for each answer (UltraFeedback, Cui et al. 2023, section 3). Endpoints
are asked side by side and a bounded way ahead. Models whose weights are at hand answer one after another, each
into a file of its own, so that one is in memory at a time. Which way it was leaves no trace in the rows.
"""

import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from potstill.artifact import storage_errors
from potstill.errors import DataError, RecipeError, TeacherError
from potstill.records import Answers, Candidate, Chat, Dropped, Prompt, told
from potstill.sources import EndpointModel, Inputs, Model
from potstill.stages.asking import Asking, Prompts
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_ANSWER = 400  # for forecasts

PRINCIPLES = ("helpfulness", "truthfulness", "honesty", "verbalized_calibration")
ULTRAFEEDBACK = {"helpfulness": 0.6, "truthfulness": 0.2, "honesty": 0.18, "verbalized_calibration": 0.02}
"""The weights that UltraFeedback's published code draws by for prompts of ShareGPT and UltraChat."""


class Sample(Asking):
    """Have several models answer each prompt."""

    PROMPTS = tuple(f"principle_{name}" for name in PRINCIPLES)

    kind: Literal["sample"]
    models: Annotated[str | tuple[str, ...], Reference(("model",), pool=True)]
    """The models to draw from: the name of a pool, or a list of models."""
    prompts: Annotated[str, Reference(("prompts", "chats"))]
    """What to answer."""
    turn: Literal["first", "last"] = "first"
    """Which user turn of a chat is answered; the turns before the last stay as they are."""
    per_prompt: int = Field(default=4, ge=1)
    """How many different models answer each prompt, drawn by seed."""
    samples_per_model: int = Field(default=1, ge=1, le=64)
    """How many answers each of them gives. With per_prompt it has to come to two or more."""
    principles: Literal["none", "ultrafeedback"] | dict[str, Annotated[float, Field(ge=0)]] = "none"
    """What each answer is told to mind, in a system turn that the prompt does not keep: nothing; a principle with
    UltraFeedback's weights (helpfulness 0.6, truthfulness 0.2, honesty 0.18, verbalized_calibration 0.02); or weights
    of your own by name, where none stands for nothing. The words are prompt files, a wording a paragraph."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the answers."""
    temperatures: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """Of models by name, in place of `temperature`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the answers."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer."""

    @field_validator("principles")
    @classmethod
    def _known_principles(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(value, dict):
            for name in value:
                if name not in (*PRINCIPLES, "none"):
                    raise ValueError(f"there is no principle '{name}'; expected of: {', '.join(PRINCIPLES)}, none")
            if not sum(value.values()):
                raise ValueError("the principles' weights come to nothing; give one a weight above 0")
        return value

    @model_validator(mode="after")
    def _two_answers(self) -> "Sample":
        if self.per_prompt * self.samples_per_model < 2:
            raise ValueError("a judge needs two answers to a prompt; raise per_prompt or samples_per_model")
        return self

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the principles."""
        if isinstance(self.principles, str):
            return ULTRAFEEDBACK if self.principles == "ultrafeedback" else {}
        return self.principles

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["prompts"] * self.per_prompt * self.samples_per_model
        return Expected(rows["prompts"], calls, calls * TOKENS_PER_ANSWER)

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        names = [model.name for model in models["models"]]
        if self.per_prompt > len(names):
            what = f"per_prompt is {self.per_prompt}, but there are {len(names)} models to draw from"
            raise RecipeError("models", what, "Add models, or lower per_prompt")
        for name in self.temperatures.keys() - set(names):
            what = f"no model is named '{name}'; there are {', '.join(names)}"
            raise RecipeError("temperatures", what, "Mend the name")


def run(config: Sample, inputs: Inputs, work: Work) -> Facts:
    """Ask the models that were drawn for each prompt, and put their answers together."""
    return _Pool(config, inputs, work).run()


def draw_models(models: int, wanted: int, seed: int, row: str) -> list[int]:
    """Places of the models that answer a prompt, in order. By the row's name, so that rows may come and go."""
    return sorted(random.Random(request_seed(seed, row, "models")).sample(range(models), wanted))


class Principles:
    """Which principle an answer is told to mind, and in which words."""

    def __init__(self, weights: Mapping[str, float], prompts: Prompts, seed: int) -> None:
        self._seed, self._names = seed, [name for name, weight in weights.items() if weight]
        self._up_to = list(accumulate(weights[name] for name in self._names))
        self._wordings: dict[str, list[str]] = {"none": [""]}
        for name in self._names:
            if name != "none":
                text = prompts.render(f"principle_{name}")
                self._wordings[name] = [part.strip() for part in text.split("\n\n") if part.strip()]
                if not self._wordings[name]:
                    raise DataError(f"principle_{name}", "the prompt file has no words", "Write a paragraph or more")

    def draw(self, row: str, model: str, sample: int) -> tuple[str, str]:
        """The principle's name and words, both by seed; nothing twice where none is wished."""
        if not self._names:
            return "", ""
        chance = random.Random(request_seed(self._seed, row, model, sample, "principle"))
        (name,) = chance.choices(self._names, cum_weights=self._up_to)
        return "" if name == "none" else name, chance.choice(self._wordings[name])


@dataclass
class _Counts:
    """What the models said, over the whole stage."""

    finishes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    usable: Counter[str] = field(default_factory=Counter)
    principles: Counter[str] = field(default_factory=Counter)
    repeated_rows: int = 0
    repeated: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    first_bad: Reply | None = None

    def add(self, row: Answers) -> None:
        """Count a row's answers, those that were left out with it too."""
        for candidate in row.candidates:
            self.finishes[candidate.model][candidate.finish] += 1
            self.usable[candidate.model] += candidate.usable
            self.principles[candidate.principle or "none"] += 1
        texts = [candidate.text for candidate in row.candidates if candidate.usable]
        self.repeated += len(texts) - len(set(texts))
        self.repeated_rows += len(texts) > len(set(texts))


class _Pool:
    """One run of the stage."""

    def __init__(self, config: Sample, inputs: Inputs, work: Work) -> None:
        self._config, self._inputs, self._work = config, inputs, work
        self._models = inputs.models["models"]
        self._principles = Principles(config.weights, Prompts(inputs), work.seed)
        self._counts, self._done = _Counts(), 0
        self._total = sum(1 for _ in self._prompts()) * config.per_prompt * config.samples_per_model

    def run(self) -> Facts:
        if not self._total:
            raise DataError(self._inputs.one("prompts").name, "there are no prompts", "Give it some")
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self._work.path, prefix=".answers-"))
            replies = [self._replies(model, place, Path(folder), stack) for place, model in enumerate(self._models)]
            count = self._work.keep(self._kept(replies))
        dropped = self._counts.dropped
        if not count:
            what = f"no prompt got two usable answers ({dropped[0].detail})"
            bad = self._counts.first_bad or Reply("")
            raise TeacherError("models", what, remedy(bad, "See to the models of the pool", "max_tokens"))
        self._work.drop(dropped)
        return self._facts(count)

    def _facts(self, count: int) -> Facts:
        counts = self._counts
        useless = [name for name in sorted(counts.finishes) if not counts.usable[name]]
        if useless:
            self._work.warn(f"nothing that {', '.join(useless)} said can be used")
        return {
            "rows": count,
            "dropped": dict(sorted(Counter(row.reason for row in counts.dropped).items())),
            "answers": {model.name: dict(sorted(counts.finishes[model.name].items())) for model in self._models},
            "useless_models": useless,
            "repeated": {"answers": counts.repeated, "rows": counts.repeated_rows},
            "principles": dict(sorted(counts.principles.items())),
        }

    def _prompts(self) -> Iterator[Prompt]:
        data = self._inputs.one("prompts")
        if data.kind == "prompts" or (data.kind == "file" and self._config.turn == "first"):
            yield from data.rows(Prompt)
            return
        for chat in data.rows(Chat):
            answered = [i for i, message in enumerate(chat.messages) if message.role == "assistant"]
            end = answered[0 if self._config.turn == "first" else -1]
            yield Prompt(id=chat.id, messages=chat.messages[:end], category=chat.category)

    def _drawn(self, prompt: Prompt) -> list[int]:
        return draw_models(len(self._models), self._config.per_prompt, self._work.seed, prompt.id)

    def _requests(self, place: int) -> Iterator[Request]:
        """A model's share of the requests, in the order of the prompts."""
        config, model = self._config, self._models[place]
        for prompt in self._prompts():
            for sample in range(config.samples_per_model if place in self._drawn(prompt) else 0):
                _, words = self._principles.draw(prompt.id, model.name, sample)
                more: tuple[str | int, ...] = (sample,) if sample else ()
                yield Request(
                    messages=told(prompt.messages, words),
                    max_tokens=config.max_tokens,
                    temperature=config.temperatures.get(model.name, config.temperature),
                    top_p=config.top_p,
                    seed=request_seed(self._work.seed, prompt.id, "answer", model.name, *more),
                    sample=sample,
                    attempts=1 + config.ask_again,
                    accept=config.is_whole,
                )

    def _replies(self, model: Model, place: int, folder: Path, stack: ExitStack) -> Iterator[Reply]:
        """A model's replies, in the order of its requests."""
        if isinstance(model.spec, EndpointModel):
            return self._counted(
                stack.enter_context(connect(model, self._work.account)).complete(self._requests(place))
            )
        file = folder / str(place)
        with storage_errors(file), file.open("w", encoding="utf-8") as spool, connect(model, self._work.account) as one:
            for reply in self._counted(one.complete(self._requests(place))):
                spool.write(_to_line(reply))
        return _from_lines(file)

    def _counted(self, replies: Iterator[Reply]) -> Iterator[Reply]:
        for reply in replies:
            self._done += 1
            self._work.progress(self._done, self._total, "answers")
            yield reply

    def _kept(self, replies: Sequence[Iterator[Reply]]) -> Iterator[Answers]:
        """Rows with two usable answers or more."""
        for prompt in self._prompts():
            candidates = []
            for place in self._drawn(prompt):
                for sample in range(self._config.samples_per_model):
                    reply, model = next(replies[place]), self._models[place].name
                    principle, _ = self._principles.draw(prompt.id, model, sample)
                    candidates.append(self._candidate(model, principle, reply))
            row = Answers(id=prompt.id, prompt=prompt, candidates=tuple(candidates))
            self._counts.add(row)
            fault = _fault(row)
            if fault is None:
                yield row
            else:
                self._counts.dropped.append(fault)

    def _candidate(self, model: str, principle: str, reply: Reply) -> Candidate:
        whole = self._config.is_whole(reply)
        if not whole:
            self._counts.first_bad = self._counts.first_bad or reply
        reason = "" if whole else reply.reason
        return Candidate(model=model, text=reply.text.strip(), finish=reply.finish, reason=reason, principle=principle)


def _to_line(reply: Reply) -> str:
    """What the rows need of a reply, as a line of JSON."""
    return json.dumps({name: asdict(reply)[name] for name in ("text", "finish", "reason", "origin")}) + "\n"


def _from_lines(file: Path) -> Iterator[Reply]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            value: dict[str, Any] = json.loads(line)
            yield Reply(**value)


def _fault(row: Answers) -> Dropped | None:
    usable = sum(candidate.usable for candidate in row.candidates)
    if usable >= 2:
        return None
    reasons = "; ".join(f"{c.model}: {c.reason}" for c in row.candidates if not c.usable)
    return Dropped(id=row.id, reason="too_few_answers", detail=f"{usable} of {len(row.candidates)} usable. {reasons}")


STAGE = Stage(config=Sample, produces="answers", run=run, version=2)
