"""Stage `evolve`: prompts become harder and rarer ones (Evol-Instruct, Xu et al. 2023).

Generation by generation a teacher rewrites each prompt, by an operation that is drawn. What fails is left out by the
eliminator and its parent tried again in the next generation; what survives joins the pool and is rewritten in turn.
"""

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.curation.eliminator import copied_words, declines, read_equal, read_evolved, says_nothing
from potstill.errors import DataError
from potstill.records import Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.asking import Tally
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.stages.prompting import Prompting, Writer, sieve
from potstill.teachers.base import Reply, Request, connect, request_seed

Operation = Literal["constraints", "deepen", "concretise", "reasoning", "input", "broaden"]
ALL: tuple[Operation, ...] = ("constraints", "deepen", "concretise", "reasoning", "input", "broaden")
TOKENS_PER_STEP = 900  # for forecasts: a rewriting, a comparison and an answer


class Evolve(Prompting):
    """Have a teacher rewrite prompts into harder and rarer ones, and leave out what failed."""

    PROMPTS: ClassVar[tuple[str, ...]] = (
        "evolve", *(f"evolve_{operation}" for operation in ALL), "evolve_equal", "domain",
    )  # fmt: skip

    kind: Literal["evolve"]
    prompts: Annotated[str, Reference(("prompts",))]
    """What to begin with. Only prompts of one user turn are rewritten; the others stay as they are."""
    generations: int = Field(default=4, ge=1, le=100)
    """How often each prompt, or what became of it, is rewritten."""
    operations: tuple[Operation, ...] = Field(default=ALL, min_length=1)
    """How: with further constraints, deeper, more concrete, in more steps of reasoning, with complicated input, or as a
    new prompt of the same field (broaden). One is drawn for each prompt and generation; name one twice to draw it twice
    as often."""
    originals: bool = True
    """The prompts themselves are among the rows too."""
    judge: ModelName | None = None
    """Who says whether a rewritten prompt asks for anything new. Default: the teacher."""
    answer_check: bool = True
    """Have the teacher answer each rewritten prompt, and drop it where the answer declines or says nothing."""
    answer_max_tokens: int = Field(default=256, ge=1)
    """How much of that answer is asked for: enough to see how it begins."""
    novelty: float | None = Field(default=None, gt=0, le=1)
    """Drop a rewritten prompt whose ROUGE-L F against any other row is over this. Default: only those that are the
    same, since a prompt and what became of it share most of their words."""
    max_words: int = Field(default=300, ge=1)
    """Drop longer prompts."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        steps = rows["prompts"] * self.generations
        calls = steps * (3 if self.answer_check else 2)
        return Expected(steps + rows["prompts"] * self.originals, calls, steps * TOKENS_PER_STEP)


@dataclass(frozen=True)
class _Step:
    """What came of rewriting one prompt once."""

    operation: Operation
    row: Prompt | None
    fault: Dropped | None = None


@dataclass
class _Breeder:
    config: Evolve
    writer: Writer
    seed: int
    judgments: Tally = field(default_factory=Tally)
    answers: Tally = field(default_factory=Tally)

    def lineage(self, prompt: Prompt) -> Talk[tuple[Prompt, list[_Step]]]:
        """A prompt and what became of it, generation by generation."""
        steps: list[_Step] = []
        if [message.role for message in prompt.messages if message.role != "system"] != ["user"]:
            return prompt, steps
        parent = prompt
        for generation in range(1, self.config.generations + 1):
            chance = random.Random(request_seed(self.seed, prompt.id, "operation", generation))
            operation = chance.choice(self.config.operations)
            place = f"{prompt.id}/{generation}"
            text, reason, detail = yield from self._rewrite(parent.messages[-1].content, operation, place)
            name = f"{parent.id}+{operation}"
            if reason:
                fault = Dropped(id=f"{name}@{generation}", reason=reason, detail=detail)
                steps.append(_Step(operation, None, fault))
                continue
            messages = (*parent.messages[:-1], Message(role="user", content=text))
            parent = Prompt(id=name, messages=messages, category=prompt.category, persona=prompt.persona)
            steps.append(_Step(operation, parent))
        return prompt, steps

    def _rewrite(self, original: str, operation: Operation, place: str) -> Talk[tuple[str, str, str]]:
        """(new text, reason, detail); the last two are empty where it survived."""
        how = self.writer.prompts.render(f"evolve_{operation}", domain=self.writer.domain).strip()
        most = self.config.max_words
        request = self.writer.request(
            "evolve", place, operation, reads=read_evolved, how=how, text=original, most_words=most
        )
        reply = self.writer.heard((yield Ask("teacher", request)))
        if not self.config.is_whole(reply):
            return "", f"reply_{reply.finish}", reply.reason
        text = read_evolved(reply.text)
        if reason := self._fault(text, original):
            return text, reason, text
        request = self.writer.request(
            "evolve_equal", place, "equal", reads=_says_whether, greedy=True, first=original, second=text
        )
        reply = self.judgments.add((yield Ask("judge", request)))
        equal = read_equal(reply.text) if self.config.is_whole(reply) else None
        if equal is None:
            return text, "equality_unread", reply.reason or reply.text[:200]
        if equal:
            return text, "nothing_new", text
        if self.config.answer_check:
            reply = self.answers.add((yield Ask("teacher", self._answer_request(text, place))))
            if reason := _answer_fault(reply):
                return text, reason, reply.reason or reply.text[:200]
        return text, "", ""

    def _fault(self, text: str, original: str) -> str:
        """What can be seen without asking anybody."""
        if says_nothing(text):
            return "says_nothing"
        if copied_words(text, original):
            return "copied_words"
        if text.lower().split() == original.lower().split():
            return "unchanged"
        count = len(text.split())
        return "too_short" if count < self.config.min_words else "too_long" if count > self.config.max_words else ""

    def _answer_request(self, text: str, place: str) -> Request:
        return Request(
            messages=(Message(role="user", content=text),),
            max_tokens=self.config.answer_max_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=request_seed(self.seed, place, "answer"),
        )


def _says_whether(text: str) -> bool:
    return read_equal(text) is not None


def _answer_fault(reply: Reply) -> str:
    """Only its beginning is looked at, so one that was cut will do."""
    if reply.finish not in ("stop", "length"):
        return f"answer_{reply.finish}"
    if says_nothing(reply.text):
        return "answer_says_nothing"
    return "answer_declines" if declines(reply.text) else ""


def run(config: Evolve, inputs: Inputs, work: Work) -> Facts:
    """Every prompt's lineage side by side, written down in the order of the prompts."""
    data = inputs.one("prompts")
    total = sum(1 for _ in data.rows(Prompt))  # so that a bad row is found before anything is asked
    if not total:
        raise DataError(data.name, "there are no prompts", "Give it some")
    breeder = _Breeder(config, Writer(config, inputs, work.seed), work.seed)
    known, asked, kept, left = sieve(config), Counter[str](), Counter[str](), 0
    with ExitStack() as stack:
        teacher = stack.enter_context(connect(inputs.model("teacher"), work.account))
        judge = stack.enter_context(connect(inputs.model("judge"), work.account)) if config.judge else teacher
        harvest = stack.enter_context(work.harvest())
        lineages = convey(map(breeder.lineage, data.rows(Prompt)), {"teacher": teacher, "judge": judge})
        for done, (prompt, steps) in enumerate(lineages, start=1):
            left += not steps
            known.add(prompt.messages[-1].content)
            if config.originals:
                harvest.keep(prompt)
            for step in steps:
                asked[step.operation] += 1
                if step.fault:
                    harvest.drop(step.fault)
                elif step.row and known.take(harvest, step.row.id, step.row.messages[-1].content):
                    harvest.keep(step.row)
                    kept[step.operation] += 1
            work.progress(done, total, "prompts", evolved=kept.total())
    if left == total:
        what = "no prompt has one user turn alone, so none can be rewritten"
        raise DataError(data.name, what, "Give it prompts of one turn")
    if not kept:
        raise breeder.writer.nothing(inputs.model("teacher").name, harvest, "a prompt that was evolved")
    return {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "operations": {name: {"asked": asked[name], "kept": kept[name]} for name in sorted(asked)},
        "not_rewritten": left,
        "replies": breeder.writer.tally.facts(),
        "judgments": breeder.judgments.facts(),
        "answers": breeder.answers.facts(),
    }


STAGE = Stage(config=Evolve, produces="prompts", run=run)
