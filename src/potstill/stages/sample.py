"""Stage `sample`: several models of a pool answer each prompt, so that a judge has something to compare."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from potstill.errors import DataError, RecipeError, TeacherError
from potstill.records import Answers, Candidate, Chat, Dropped, Prompt
from potstill.sources import Inputs, Model
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_ANSWER = 400  # for forecasts


class Sample(StageConfig):
    """Have several models answer each prompt."""

    kind: Literal["sample"]
    models: Annotated[str | tuple[str, ...], Reference(("model",))]
    """The models to draw from: the name of a pool, or a list of models."""
    prompts: Annotated[str, Reference(("prompts", "chats"))]
    """What to answer."""
    turn: Literal["first", "last"] = "first"
    """Which user turn of a chat is answered; the turns before the last stay as they are."""
    per_prompt: int = Field(default=4, ge=2)
    """How many different models answer each prompt, drawn by seed."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the answers."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer. One that is cut there counts as failed."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["prompts"] * self.per_prompt
        return Expected(rows["prompts"], calls, calls * TOKENS_PER_ANSWER)


def run(config: Sample, inputs: Inputs, work: Work) -> Facts:
    """Ask each model for its share of the answers, then put them together by prompt."""
    models = inputs.models["models"]
    if config.per_prompt > len(models):
        raise RecipeError(
            "models",
            f"per_prompt is {config.per_prompt}, but there are {len(models)} models to draw from",
            "Add models, or lower per_prompt",
        )
    prompts = list(_prompts(config, inputs))
    if not prompts:
        raise DataError(inputs.one("prompts").name, "there are no prompts", "Give it some")
    chosen = [draw_models(len(models), config.per_prompt, work.seed, prompt.id) for prompt in prompts]
    answers: dict[int, dict[int, Candidate]] = defaultdict(dict)
    failed: dict[int, Reply] = {}  # the first of a row
    done, total = 0, len(prompts) * config.per_prompt
    for place, model in enumerate(models):
        share = [row for row in range(len(prompts)) if place in chosen[row]]
        for row, reply in zip(share, _ask(config, model, [prompts[r] for r in share], work), strict=True):
            answers[row][place] = Candidate(
                model=model.name, text=reply.text.strip(), finish=reply.finish, reason=reply.reason
            )
            if reply.finish != "stop":
                failed.setdefault(row, reply)
            done += 1
            work.progress(done, total, "answers")
    rows = [
        Answers(id=prompt.id, prompt=prompt, candidates=tuple(answers[row][place] for place in chosen[row]))
        for row, prompt in enumerate(prompts)
    ]
    dropped = [fault for row in rows if (fault := _fault(row))]
    if len(dropped) == len(rows):
        what = f"no prompt got two usable answers ({dropped[0].detail})"
        raise TeacherError("models", what, remedy(failed[0], "See to the models of the pool", "max_tokens"))
    count = work.keep(row for row in rows if not _fault(row))
    work.drop(dropped)
    return {
        "rows": count,
        "dropped": dict(sorted(Counter(row.reason for row in dropped).items())),
        "answers": {model.name: _finishes(rows, model.name) for model in models},
    }


def draw_models(models: int, wanted: int, seed: int, row: str) -> list[int]:
    """Places of the models that answer a prompt, in order. By the row's name, so that rows may come and go."""
    return sorted(random.Random(request_seed(seed, row, "models")).sample(range(models), wanted))


def _prompts(config: Sample, inputs: Inputs) -> Iterator[Prompt]:
    data = inputs.one("prompts")
    if data.kind == "prompts" or (data.kind == "file" and config.turn == "first"):
        yield from data.rows(Prompt)
        return
    for chat in data.rows(Chat):
        answered = [i for i, message in enumerate(chat.messages) if message.role == "assistant"]
        end = answered[0 if config.turn == "first" else -1]
        yield Prompt(id=chat.id, messages=chat.messages[:end], category=chat.category)


def _ask(config: Sample, model: Model, prompts: list[Prompt], work: Work) -> Iterator[Reply]:
    if not prompts:
        return
    with connect(model, work.account) as teacher:
        requests = (
            Request(
                messages=prompt.messages,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=request_seed(work.seed, prompt.id, "answer", model.name),
            )
            for prompt in prompts
        )
        yield from teacher.complete(requests)


def _fault(row: Answers) -> Dropped | None:
    usable = sum(candidate.finish == "stop" for candidate in row.candidates)
    if usable >= 2:
        return None
    reasons = "; ".join(f"{c.model}: {c.reason}" for c in row.candidates if c.finish != "stop")
    return Dropped(id=row.id, reason="too_few_answers", detail=f"{usable} of {len(row.candidates)} usable. {reasons}")


def _finishes(rows: list[Answers], model: str) -> dict[str, int]:
    counts = Counter(c.finish for row in rows for c in row.candidates if c.model == model)
    return dict(sorted(counts.items()))


STAGE = Stage(config=Sample, produces="answers", run=run)
