"""Stage `self_instruct`: a few seed tasks become many prompts, or dialogues (Self-Instruct, Wang et al. 2023).

In rounds of a fixed number of requests: each shows the teacher a few tasks, most from the seeds and some that it made
before, and asks for more. What comes back is taken in order, through the filters, until there are enough. Then, if
asked for, each task gets its instances: what it is done on, and what comes of it.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from potstill.curation.instances import instance_faults, read_choosing, read_instances
from potstill.errors import DataError
from potstill.records import Chat, Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Harvest, Reference, Stage, Trial, Work
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.stages.forecast import BEYOND, REPEATS, Loop
from potstill.stages.prompting import TOKENS_PER_PROMPT, Prompting, Sieve, Writer, one_line
from potstill.teachers.base import Reply, Request, Teacher, connect, request_seed

TOKENS_PER_INSTANCE = 250  # for forecasts
OF_TASKS = ("too_short", "too_long", "forbidden_word", *REPEATS, BEYOND)
"""Why tasks are left out, and not replies or instances."""

# Tasks about these cannot be answered in words alone.
FORBIDDEN = (
    "image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "plot", "plots", "chart", "charts",
    "diagram", "diagrams", "flowchart", "draw", "file", "files", "attachment", "video", "videos", "audio", "screenshot",
)  # fmt: skip


class SelfInstruct(Prompting):
    """Have a teacher continue a list of tasks, keep what is new, and work it out if wished."""

    PROMPTS: ClassVar[tuple[str, ...]] = (
        "self_instruct",
        "self_instruct_kind",
        "self_instruct_input_first",
        "self_instruct_label_first",
        "domain",
    )

    WHOLE: ClassVar[frozenset[str]] = frozenset({"seeds"})

    kind: Literal["self_instruct"]
    seeds: Annotated[str, Reference(("prompts",))]
    """Tasks that people wrote, shown as examples. They are not among the rows."""
    count: int = Field(ge=1)
    """How many tasks to make."""
    instances: Literal["none", "by_kind", "input_first", "label_first"] = "none"
    """What the teacher does with each task that is kept. none: nothing, the rows are prompts. Otherwise it makes
    examples of the task being done, and the rows are dialogues of one turn each: the input before the output, the label
    before the input, or by_kind, as the teacher finds the task open or one of choosing."""
    instances_per_task: int = Field(default=1, ge=1)
    """Examples to ask for of each open task."""
    labels_per_task: int = Field(default=4, ge=1)
    """Labels to ask for at most of each task of choosing, an example each."""
    from_seeds: int = Field(default=6, ge=1)
    """Examples shown from the seeds."""
    from_generated: int = Field(default=2, ge=0)
    """Examples shown from what was kept in earlier rounds; from the seeds while there is too little."""
    tasks_per_request: int = Field(default=8, ge=1)
    """New tasks asked for at once."""
    round_size: int = Field(default=16, ge=1)
    """Requests in a round; later rounds draw examples from what earlier ones kept."""
    max_requests: int | None = Field(default=None, ge=1)
    """Stop after this many requests for tasks, even if that leaves fewer. Default: ten times as many as could do."""
    forbidden: tuple[str, ...] = FORBIDDEN
    """Drop tasks that hold one of these words."""

    @property
    def most_requests(self) -> int:
        """What `max_requests` comes to."""
        return self.max_requests or 10 * ceil(self.count / self.tasks_per_request)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = self.round_size * ceil(self.count / (self.tasks_per_request * self.round_size))
        shown = self.from_seeds + self.from_generated
        tokens = calls * TOKENS_PER_PROMPT * (shown + self.tasks_per_request)
        if self.instances == "none":
            return Expected(self.count, calls, tokens)
        more = self.count * (2 if self.instances == "by_kind" else 1)
        made = self.count * self.instances_per_task
        return Expected(made, calls + more, tokens + more * TOKENS_PER_PROMPT + made * TOKENS_PER_INSTANCE)

    def for_trial(self, rows: int) -> Self:
        """Fewer tasks. A round is paid for whole, so all that comes of one is of use, unless it is to be worked out."""
        few = rows if self.instances != "none" else max(rows, self.round_size * self.tasks_per_request)
        return self.model_copy(update={"count": min(self.count, few)})

    def extrapolate(self, rows: Mapping[str, int], trial: Trial) -> Expected:
        """By how many tasks were new in the trial, and how often what was kept could be worked out."""
        requests = int(trial.facts["requests"])
        tasks = int(trial.facts.get("tasks", trial.rows))
        dropped = {reason: n for reason, n in trial.facts["dropped"].items() if reason in OF_TASKS}
        loop = Loop(requests, tasks, dropped, rows.get("seeds", 0))
        likely, (low, high) = loop.requests_for(self.count, self.round_size, self.most_requests)
        each = self.count / max(1, tasks)
        more = round((trial.calls - requests) * each)
        return trial.spread(round(trial.rows * each), likely + more, (low + more, high + more))


@dataclass
class _Tasks:
    """What was kept so far."""

    config: SelfInstruct
    sieve: Sieve
    kept: list[str] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.kept) >= self.config.count

    def offer(self, harvest: Harvest, name: str, task: str) -> None:
        """Keep a task, or its reason to be dropped."""
        if self.full:
            harvest.drop(Dropped(id=name, reason="beyond_count", detail=task))
        elif self.sieve.take(harvest, name, task):
            self.kept.append(task)
            if self.config.instances == "none":
                messages = (Message(role="user", content=task),)
                harvest.keep(Prompt(id=f"task-{len(self.kept) - 1}", messages=messages))


def run(config: SelfInstruct, inputs: Inputs, work: Work) -> Facts:
    """Ask round after round until there are enough, or requests have been spent; then for the instances."""
    seeds = [one_line(row.messages[-1].content) for row in inputs.one("seeds").rows(Prompt)]
    if len(seeds) < config.from_seeds:
        raise DataError(
            inputs.one("seeds").name,
            f"{len(seeds)} seed tasks; expected at least {config.from_seeds}",
            "Give more, or lower from_seeds",
        )
    tasks = _Tasks(config, Sieve(config.novelty, config.min_words, config.max_words, config.forbidden))
    for seed in seeds:
        tasks.sieve.add(seed)
    writer, kinds = Writer(config, inputs, work.seed), Counter[str]()
    model = inputs.model("teacher").name
    with connect(inputs.model("teacher"), work.account) as teacher, work.harvest() as harvest:
        requests = _collect(writer, teacher, seeds, tasks, harvest, work)
        if not tasks.kept:
            raise writer.nothing(model, harvest, "a task")
        if config.instances != "none":
            kinds = _work_out(writer, teacher, tasks.kept, harvest, work)
            if not harvest.rows:
                raise writer.nothing(model, harvest, "an instance")
    facts: Facts = {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "requests": requests,
        "replies": writer.tally.facts(),
        "short_by": config.count - len(tasks.kept),
    }
    return facts | ({"tasks": len(tasks.kept), "orders": dict(sorted(kinds.items()))} if kinds else {})


def _collect(writer: Writer, teacher: Teacher, seeds: list[str], tasks: _Tasks, harvest: Harvest, work: Work) -> int:
    """Fill `tasks`; returns how many requests that took."""
    config, asked = tasks.config, 0
    first = config.from_seeds + config.from_generated + 1
    while not tasks.full and asked < config.most_requests:
        size = min(config.round_size, config.most_requests - asked)
        requests = [_request(writer, config, seeds, tasks.kept, asked + i) for i in range(size)]
        for number, reply in enumerate(teacher.complete(requests), start=asked):
            found = writer.items(harvest.drop, f"reply-{number}", reply, lambda text: parse_tasks(text, first))
            for place, task in enumerate(found):
                tasks.offer(harvest, f"reply-{number}-{place}", task)
            work.progress(len(tasks.kept), config.count, "prompts")
        asked += size
    return asked


def _request(writer: Writer, config: SelfInstruct, seeds: list[str], kept: list[str], number: int) -> Request:
    chance = random.Random(request_seed(writer.seed, "examples", number))
    own = chance.sample(kept, min(config.from_generated, len(kept)))
    wished = config.from_seeds + config.from_generated - len(own)
    examples = chance.sample(seeds, min(wished, len(seeds))) + own
    chance.shuffle(examples)
    first = len(examples) + 1

    def reads(text: str) -> list[str]:
        return parse_tasks(text, first)

    wanted = config.tasks_per_request
    return writer.request("self_instruct", "tasks", number, reads=reads, wanted=wanted, examples=examples)


_HEAD = re.compile(r"^(?:[^\S\n]|[*#-])*+Task\s++(\d{1,9}+)[\s*]*+[:.)][\s*]*+", re.IGNORECASE | re.MULTILINE)


def parse_tasks(text: str, first: int) -> list[str]:
    """The tasks in a reply that continues "Task `first`:". Its own first words count only where they are that task."""
    heads = list(_HEAD.finditer(text))
    if not heads:
        return []
    tasks = []
    opening = _without_rules(text[: heads[0].start()]).strip()
    if opening and int(heads[0][1]) == first + 1:
        tasks.append(opening)
    for i, head in enumerate(heads):
        last = i + 1 == len(heads)
        said = text[head.end() :] if last else _without_rules(text[head.end() : heads[i + 1].start()])
        tasks.append(said.split("\n\n")[0])  # what follows a blank line is talk about the list
    return [line for task in tasks if (line := one_line(task))]


def _without_rules(text: str) -> str:
    """Without the lines of nothing but signs that end it, such as rules drawn between tasks."""
    lines = text.split("\n")
    while len(lines) > 1 and not lines[-1].strip("*#- \t\r"):
        lines.pop()
    return "\n".join(lines) if len(lines) > 1 or lines[0].strip("*#- \t\r") else ""


Worked = tuple[str, list[Chat], list[Dropped]]
"""The order in which a task was worked out, its dialogues, and what was left out."""


def _work_out(writer: Writer, teacher: Teacher, tasks: list[str], harvest: Harvest, work: Work) -> Counter[str]:
    """The instances of every task; returns how many tasks went which way."""
    orders = Counter[str]()
    talks = (_instances(writer, f"task-{number}", task) for number, task in enumerate(tasks))
    for done, (order, chats, dropped) in enumerate(convey(talks, {"teacher": teacher}), start=1):
        orders[order] += 1
        for each in dropped:
            harvest.drop(each)
        for chat in chats:
            harvest.keep(chat)
        work.progress(done, len(tasks), "tasks worked out", dialogues=harvest.rows)
    return orders


def _instances(writer: Writer, name: str, task: str) -> Talk[Worked]:
    config = writer.config
    assert isinstance(config, SelfInstruct)
    order: str = config.instances
    if order == "by_kind":
        request = writer.request("self_instruct_kind", name, "kind", reads=_says_kind, greedy=True, task=task)
        reply = writer.heard((yield Ask("teacher", request)))
        choosing = read_choosing(reply.text) if config.is_whole(reply) else None
        if choosing is None:
            return "unread", [], [_unusable(name, "kind", reply)]
        order = "label_first" if choosing else "input_first"
    label_first = order == "label_first"
    wanted = config.labels_per_task if label_first else config.instances_per_task

    def reads(text: str) -> object:
        return read_instances(text, label_first=label_first)

    request = writer.request(f"self_instruct_{order}", name, order, reads=reads, task=task, wanted=wanted)
    reply = writer.heard((yield Ask("teacher", request)))
    return order, *_chats(config, name, task, reply, label_first=label_first)


def _says_kind(text: str) -> bool:
    return read_choosing(text) is not None


def _chats(
    config: SelfInstruct, name: str, task: str, reply: Reply, *, label_first: bool
) -> tuple[list[Chat], list[Dropped]]:
    """The dialogues of one task, and the instances that are left out: of a reply that was cut, the last one."""
    found = read_instances(reply.text, label_first=label_first) if reply.finish in ("stop", "length") else []
    if not found:
        return [], [_unusable(name, "instances", reply)]
    dropped = []
    if not config.is_whole(reply):
        dropped.append(Dropped(id=f"{name}-{len(found) - 1}", reason="cut_off", detail=found.pop().output[-200:]))
    chats = []
    for place, (instance, fault) in enumerate(zip(found, instance_faults(found, label_first=label_first), strict=True)):
        if fault:
            detail = f"{instance.input} → {instance.output}"[:200]
            dropped.append(Dropped(id=f"{name}-{place}", reason=f"instance_{fault}", detail=detail))
            continue
        asked = f"{task}\n\n{instance.input}" if instance.input else task
        turns = (Message(role="user", content=asked), Message(role="assistant", content=instance.output))
        chats.append(Chat(id=f"{name}-{place}", messages=turns))
    return chats, dropped


def _unusable(name: str, what: str, reply: Reply) -> Dropped:
    reason = "unread" if reply.finish in ("stop", "length") else reply.finish
    return Dropped(id=name, reason=f"{what}_{reason}", detail=reply.reason or reply.text[:200])


STAGE = Stage(
    config=SelfInstruct,
    produces=lambda config: "prompts" if config.instances == "none" else "chats",
    run=run,
    version=2,
)
