"""Stage `reason`: a teacher solves problems with its reasoning written out; what a checker confirms is kept.

Rejection sampling of reasoning (STaR, Zelikman et al. 2022; RFT, Yuan et al. 2023): several samples a problem, the
distinct traces among those whose final answer fits the reference. A right answer can follow from wrong steps; the
checker sees the answer alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from potstill.errors import DataError, TeacherError
from potstill.own import OwnOrWord
from potstill.records import Chat, Dropped, Message, Prompt
from potstill.skills.checkers import Checker, can_read, check_name, find_checker
from potstill.skills.python_tests import Limits
from potstill.skills.traces import Thought, Trace, same_trace, take_apart, written
from potstill.sources import Inputs
from potstill.stages.asking import Asking, Prompts, Tally
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_SAMPLE = 500  # for forecasts
REPLY_SHOWN = 400


class Reason(Asking):
    """Have a teacher solve problems, and keep the reasoning that led to answers that a checker confirms."""

    PROMPTS: ClassVar[tuple[str, ...]] = ("reason", "reason_code")

    kind: Literal["reason"]
    teacher: ModelName
    """Who solves."""
    data: Annotated[str, Reference(("prompts",))]
    """Problems with reference answers. The first reference of each is the one that counts."""
    checker: OwnOrWord = "number"
    """How an answer is held against the reference: number (the last number, \\boxed{} or #### x, compared exactly),
    exact (the same words), choice (the same letter), json (the same value), rating (the same ratings), python_tests
    (the reference's asserts run on the answer's code: this executes what the model wrote), or mine.py:check, your own
    function of (answer, reference) that returns True or False."""
    samples: int = Field(default=4, ge=1, le=1000)
    """How often each problem is asked."""
    keep: int = Field(default=1, ge=1)
    """The most distinct traces that are kept of one problem."""
    trace: Trace = "keep"
    """keep: what was thought stands in <think> tags before the answer. strip: the answer, with what it says itself of
    its steps. only-answer: the final answer alone."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the samples. At 0 all would be the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the samples."""
    max_tokens: int = Field(default=2048, ge=1)
    """The longest reply, its thoughts included."""
    code_seconds: float = Field(default=10.0, gt=0)
    """How long one run of python_tests may take."""
    code_memory_mb: int = Field(default=512, ge=64)
    """How much memory it may use."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str) -> str:
        return check_name(checker)

    @model_validator(mode="after")
    def _differ(self) -> "Reason":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples need a temperature above 0, or they are all the same one")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["data"] * self.samples
        return Expected(rows["data"], calls, calls * TOKENS_PER_SAMPLE)


@dataclass
class _Bench:
    """What came of all samples."""

    config: Reason
    checker: Checker
    finishes: Tally = field(default_factory=Tally)
    samples: Counter[str] = field(default_factory=Counter)
    """By what came of them: kept, surplus, duplicate, wrong, unread, and how they ended where that was no answer."""
    problems: Counter[str] = field(default_factory=Counter)
    """asked, solved."""
    dropped: list[Dropped] = field(default_factory=list)
    first_bad: Reply | None = None

    def refuse(self, row: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(id=row, reason=reason, detail=detail))


def run(config: Reason, inputs: Inputs, work: Work) -> Facts:
    """Ask for every sample, check it, keep the distinct traces that are right."""
    limits = Limits(config.code_seconds, config.code_memory_mb)
    checker = find_checker(config.checker, inputs.functions.get("checker", ()), limits)
    bench, model, prompts = _Bench(config, checker), inputs.model("teacher"), Prompts(inputs)
    total = sum(1 for _ in _problems(inputs, checker))
    _drop_unreferenced(inputs, bench)
    if not total:
        what = f"no problem has a reference that the checker '{config.checker}' can read"
        raise DataError(inputs.one("data").name, what, "Give problems with references, or another checker")
    with connect(model, work.account) as teacher:
        asked = (r for row in _problems(inputs, checker) for r in _requests(config, prompts, row, work.seed))
        count = work.keep(_solved(inputs, teacher.complete(asked), bench, work, total))
    work.drop(bench.dropped)
    if not count:
        bad = bench.first_bad or Reply("")
        said = bad.reason or " ".join(bad.text.split())[-REPLY_SHOWN:]
        what = f"none of {bench.samples.total()} answers was confirmed; the end of the first: {said!r}"
        raise TeacherError(
            model.name,
            what,
            remedy(bad, "See whether the checker fits the answers, or use another teacher", "max_tokens"),
        )
    right = sum(bench.samples[what] for what in ("kept", "surplus", "duplicate"))
    return {
        "rows": count,
        "dropped": dict(sorted(Counter(row.reason for row in bench.dropped).items())),
        "problems": {"asked": total, "solved": bench.problems["solved"]},
        "samples": dict(sorted(bench.samples.items())),
        "finishes": bench.finishes.facts(),
        "pass_rate": round(right / (total * config.samples), 6),
        "coverage": round(bench.problems["solved"] / total, 6),
    }


def _problems(inputs: Inputs, checker: Checker) -> Iterator[Prompt]:
    for row in inputs.one("data").rows(Prompt):
        if can_read(checker, _reference(row)):
            yield row


def _drop_unreferenced(inputs: Inputs, bench: _Bench) -> None:
    for row in inputs.one("data").rows(Prompt):
        if not can_read(bench.checker, _reference(row)):
            bench.refuse(row.id, "no_reference", _reference(row)[:REPLY_SHOWN])


def _reference(row: Prompt) -> str:
    return row.references[0] if row.references else ""


def _requests(config: Reason, prompts: Prompts, row: Prompt, seed: int) -> Iterator[Request]:
    name = "reason_code" if config.checker == "python_tests" else "reason"
    asked = prompts.render(name, problem=row.messages[-1].content).strip()
    for sample in range(config.samples):
        yield Request(
            messages=(*row.messages[:-1], Message(role="user", content=asked)),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=request_seed(seed, row.id, "sample", sample),
            attempts=1 + config.ask_again,
            accept=lambda reply: config.is_whole(reply) and take_apart(reply) is not None,
        )


def _solved(inputs: Inputs, replies: Iterator[Reply], bench: _Bench, work: Work, total: int) -> Iterator[Chat]:
    config = bench.config
    for done, row in enumerate(_problems(inputs, bench.checker), start=1):
        kept: dict[str, Thought] = {}
        solved = False
        for sample in range(config.samples):
            reply = bench.finishes.add(next(replies))
            fate, thought = _fate(bench, row, reply, kept)
            bench.samples[fate] += 1
            solved = solved or fate in ("kept", "surplus", "duplicate")
            if fate == "kept":
                assert thought is not None
                kept[same_trace(thought)] = thought
            else:
                bench.refuse(f"{row.id}/{sample}", fate, reply.reason or reply.text[-REPLY_SHOWN:])
                bench.first_bad = bench.first_bad or (None if solved else reply)
        bench.problems["solved"] += solved
        if not solved:
            bench.refuse(row.id, "unsolved")
        for number, thought in enumerate(kept.values()):
            yield _chat(bench, row, thought, f"{row.id}-{number}" if config.keep > 1 else row.id)
        work.progress(done, total, "problems", solved=bench.problems["solved"] / done)


def _fate(bench: _Bench, row: Prompt, reply: Reply, kept: Mapping[str, Thought]) -> tuple[str, Thought | None]:
    """What becomes of a sample, and its parts where it has them."""
    if not bench.config.is_whole(reply):
        return reply.finish, None
    thought = take_apart(reply)
    if thought is None:
        return "unread", None
    verdict = bench.checker.check(thought.answer, _reference(row))
    if verdict != "right":
        return verdict, thought
    if same_trace(thought) in kept:
        return "duplicate", thought
    return "kept" if len(kept) < bench.config.keep else "surplus", thought


def _chat(bench: _Bench, row: Prompt, thought: Thought, name: str) -> Chat:
    text = written(thought, bench.config.trace, bench.checker.final(thought.answer))
    return Chat(id=name, messages=(*row.messages, Message(role="assistant", content=text)), category=row.category)


STAGE = Stage(config=Reason, produces="chats", run=run, version=2)
