"""Stage `self_instruct`: a few seed tasks become many prompts (Self-Instruct, Wang et al. 2023).

In rounds of a fixed number of requests: each shows the teacher a few tasks, most from the seeds and some that it made
before, and asks for more. What comes back is taken in order, through the filters, until there are enough.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from potstill.curation.novelty import Novelty
from potstill.errors import DataError, TeacherError
from potstill.prompts import render_prompt
from potstill.records import Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, StageConfig, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_TASK = 40  # for forecasts

# Tasks about these cannot be answered in words alone.
FORBIDDEN = (
    "image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "plot", "plots", "chart", "charts",
    "diagram", "diagrams", "flowchart", "draw", "file", "files", "attachment", "video", "videos", "audio", "screenshot",
)  # fmt: skip


class SelfInstruct(StageConfig):
    """Have a teacher continue a list of tasks, and keep what is new."""

    kind: Literal["self_instruct"]
    teacher: ModelName
    """Who writes the tasks."""
    seeds: Annotated[str, Reference(("prompts",))]
    """Tasks that people wrote, shown as examples. They are not among the rows."""
    count: int = Field(ge=1)
    """How many prompts to make."""
    novelty: float = Field(default=0.7, gt=0, le=1)
    """Drop a task whose ROUGE-L F against any seed or kept task is over this."""
    from_seeds: int = Field(default=6, ge=1)
    """Examples shown from the seeds."""
    from_generated: int = Field(default=2, ge=0)
    """Examples shown from what was kept in earlier rounds; from the seeds while there is too little."""
    tasks_per_request: int = Field(default=8, ge=1)
    """New tasks asked for at once."""
    round_size: int = Field(default=16, ge=1)
    """Requests in a round; later rounds draw examples from what earlier ones kept."""
    max_requests: int | None = Field(default=None, ge=1)
    """Stop after this many requests, even if that leaves fewer prompts. Default: ten times as many as could do."""
    min_words: int = Field(default=4, ge=1)
    """Drop shorter tasks."""
    max_words: int = Field(default=150, ge=1)
    """Drop longer tasks."""
    forbidden: tuple[str, ...] = FORBIDDEN
    """Drop tasks that hold one of these words."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the teacher's sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the teacher's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest reply."""

    @property
    def most_requests(self) -> int:
        """What `max_requests` comes to."""
        return self.max_requests or 10 * ceil(self.count / self.tasks_per_request)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = self.round_size * ceil(self.count / (self.tasks_per_request * self.round_size))
        shown = self.from_seeds + self.from_generated
        return Expected(self.count, calls, calls * TOKENS_PER_TASK * (shown + self.tasks_per_request))


@dataclass
class _Harvest:
    """What was kept and what was dropped so far."""

    config: SelfInstruct
    known: Novelty
    kept: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def full(self) -> bool:
        return len(self.kept) >= self.config.count

    def offer(self, name: str, task: str) -> None:
        """Keep a task, or its reason to be dropped."""
        reason, detail = self._fault(task)
        if reason:
            self.dropped.append(Dropped(id=name, reason=reason, detail=detail))
            return
        self.seen.add(_normal(task))
        self.known.add(task)
        self.kept.append(task)

    def _fault(self, task: str) -> tuple[str, str]:
        count = len(task.split())
        if count < self.config.min_words:
            return "too_short", task
        if count > self.config.max_words:
            return "too_long", f"{count} words"
        found = next((word for word in self.config.forbidden if re.search(rf"\b{re.escape(word)}\b", task, re.I)), None)
        if found is not None:
            return "forbidden_word", found
        if _normal(task) in self.seen:
            return "duplicate", task
        if self.known.nearest(task) is not None:
            return "not_novel", task
        return "", ""


def run(config: SelfInstruct, inputs: Inputs, work: Work) -> Facts:
    """Ask round after round until there are enough, or requests have been spent."""
    seeds = [_one_line(row.messages[-1].content) for row in inputs.one("seeds").rows(Prompt)]
    if len(seeds) < config.from_seeds:
        raise DataError(
            inputs.one("seeds").name,
            f"{len(seeds)} seed tasks; expected at least {config.from_seeds}",
            "Give more, or lower from_seeds",
        )
    harvest = _Harvest(config, Novelty(config.novelty))
    for seed in seeds:
        harvest.known.add(seed)
        harvest.seen.add(_normal(seed))
    model, requests, failed = inputs.model("teacher"), 0, Counter[str]()
    first: Reply | None = None
    with connect(model, work.account) as teacher:
        while not harvest.full and requests < config.most_requests:
            size = min(config.round_size, config.most_requests - requests)
            asked = [_request(config, seeds, harvest.kept, work.seed, requests + i) for i in range(size)]
            for number, reply in enumerate(teacher.complete(asked), start=requests):
                first = first or reply
                _harvest_reply(config, harvest, failed, number, reply)
                work.progress(len(harvest.kept), config.count, "prompts")
            requests += size
    if first and not harvest.kept:
        why = ", ".join(f"{n} {reason}" for reason, n in _reasons(harvest.dropped).items()) or "nothing could be read"
        why += f"; the first: {first.reason}" if first.reason else ""
        what = f"none of {requests} replies held a task to keep ({why})"
        raise TeacherError(model.name, what, remedy(first, "Use another teacher", "max_tokens"))
    count = work.keep(_prompts(harvest.kept))
    work.drop(harvest.dropped)
    return {
        "rows": count,
        "dropped": _reasons(harvest.dropped),
        "requests": requests,
        "failed_requests": dict(sorted(failed.items())),
        "short_by": config.count - count,
    }


def _request(config: SelfInstruct, seeds: list[str], kept: list[str], seed: int, number: int) -> Request:
    chance = random.Random(request_seed(seed, "examples", number))
    own = chance.sample(kept, min(config.from_generated, len(kept)))
    wished = config.from_seeds + config.from_generated - len(own)
    examples = chance.sample(seeds, min(wished, len(seeds))) + own
    chance.shuffle(examples)
    text = render_prompt("self_instruct", wanted=config.tasks_per_request, examples=examples).strip()
    return Request(
        messages=(Message(role="user", content=text),),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=request_seed(seed, "tasks", number),
    )


def _harvest_reply(config: SelfInstruct, harvest: _Harvest, failed: Counter[str], number: int, reply: Reply) -> None:
    name = f"reply-{number}"
    if reply.finish not in ("stop", "length"):
        failed[reply.finish] += 1
        harvest.dropped.append(Dropped(id=name, reason=f"reply_{reply.finish}", detail=reply.reason))
        return
    tasks = parse_tasks(reply.text, config.from_seeds + config.from_generated + 1)
    if not tasks:
        failed["unread"] += 1
        harvest.dropped.append(Dropped(id=name, reason="unread", detail=reply.text[:200]))
    if reply.finish == "length" and tasks:
        harvest.dropped.append(Dropped(id=f"{name}-{len(tasks) - 1}", reason="cut_off", detail=tasks.pop()))
    for place, task in enumerate(tasks):
        if harvest.full:
            harvest.dropped.append(Dropped(id=f"{name}-{place}", reason="beyond_count", detail=task))
        else:
            harvest.offer(f"{name}-{place}", task)


_HEAD = re.compile(r"^[\s*#-]*Task\s+(\d+)[\s*]*[:.)][\s*]*", re.IGNORECASE | re.MULTILINE)


def parse_tasks(text: str, first: int) -> list[str]:
    """The tasks in a reply that continues "Task `first`:". Its own first words count only where they are that task."""
    heads = list(_HEAD.finditer(text))
    if not heads:
        return []
    tasks = []
    opening = text[: heads[0].start()].strip()
    if opening and int(heads[0][1]) == first + 1:
        tasks.append(opening)
    for i, head in enumerate(heads):
        end = heads[i + 1].start() if i + 1 < len(heads) else len(text)
        tasks.append(text[head.end() : end].split("\n\n")[0])  # what follows a blank line is talk about the list
    return [line for task in tasks if (line := _one_line(task))]


def _prompts(tasks: list[str]) -> Iterator[Prompt]:
    for number, task in enumerate(tasks):
        yield Prompt(id=f"task-{number}", messages=(Message(role="user", content=task),))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _normal(task: str) -> str:
    return " ".join(re.findall(r"\w+", task.lower()))


def _reasons(dropped: list[Dropped]) -> dict[str, int]:
    return dict(sorted(Counter(row.reason for row in dropped).items()))


STAGE = Stage(config=SelfInstruct, produces="prompts", run=run)
