"""What MT-Bench's judges are asked with: potstill's own words, or a copy of the benchmark's in FastChat's file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from potstill.errors import DataError
from potstill.evaluation import mt_bench
from potstill.evaluation.comparing import Form, agreed_share
from potstill.evaluation.fastchat import TIE, JudgePrompt
from potstill.evaluation.fastchat_scores import parse_verdict
from potstill.evaluation.sheets import Sheet, blank
from potstill.prompts import render_prompt
from potstill.records import Message, Prompt
from potstill.teachers.base import Reply, Request, request_seed

OURS = {"single": "potstill", "pairwise": "potstill-pair"}
"""What judgments asked in our own words are filed under, where FastChat names the prompt."""
NAMES = {
    ("single", False): "single-v1",
    ("single", True): "single-math-v1",
    ("pairwise", False): "pair-v2",
    ("pairwise", True): "pair-math-v1",
}
"""FastChat's prompts, without and with a reference. Those of turn two end in -multi-turn."""
MOST_TURNS = 2
_BLANK = re.compile(r"\{\{|\}\}|\{(\w+)\}")

Type = Literal["single", "pairwise"]


@dataclass(frozen=True)
class Examiner:
    """How a judge of MT-Bench is asked."""

    type: Type
    max_tokens: int
    seed: int
    prompts: Mapping[str, JudgePrompt] = field(default_factory=dict)
    """FastChat's, by name; none: our own words."""
    where: str = ""
    """The file that they are from."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """DataError where its words do for some question not."""
        for prompt in prompts if self.prompts else ():
            sheet = blank(prompt)
            for turn in range(len(sheet.turns)):
                self._messages([sheet] if self.type == "single" else [sheet, sheet], turn)

    def grade(self, sheet: Sheet, turn: int) -> Request:
        """The request that has a turn, counted from 0, graded."""
        if not self.prompts:
            return mt_bench.ask_judge(self.max_tokens, self.seed)(sheet, turn)
        return self._request(self._messages([sheet], turn), sheet, turn, "mt_bench")

    def compare(self, one: Sheet, other: Sheet, turn: int) -> Request:
        """The request that has a turn of two dialogues compared, in that order."""
        if self.prompts:
            messages = self._messages([one, other], turn)
        else:
            conversations = [(name, mt_bench.shown(sheet, turn)) for name, sheet in (("A", one), ("B", other))]
            messages = (
                Message(role="system", content=render_prompt("mt_bench_pair_system")),
                Message(role="user", content=render_prompt("mt_bench_pair_user", conversations=conversations)),
            )
        return self._request(messages, one, turn, "mt_bench_pairs")

    def form(self) -> Form:
        """Both sides of a comparison: a win only where both orders agree."""
        return Form(self.compare, _read_verdict, agreed_share)

    def filed_under(self, sheet: Sheet, turn: int) -> str:
        """The name of the prompt that a turn is asked with."""
        if not self.prompts:
            return OURS[self.type]
        return NAMES[self.type, any(mt_bench.references(sheet.prompt))] + ("-multi-turn" if turn else "")

    def _request(self, messages: tuple[Message, ...], sheet: Sheet, turn: int, what: str) -> Request:
        return Request(messages, self.max_tokens, seed=request_seed(self.seed, sheet.prompt.id, what, turn + 1))

    def _messages(self, sheets: Sequence[Sheet], turn: int) -> tuple[Message, ...]:
        """FastChat's words with its blanks filled."""
        name = self.filed_under(sheets[0], turn)
        prompt = self.prompts.get(name)
        if prompt is None:
            what = f"it holds no prompt '{name}', which turn {turn + 1} of '{sheets[0].prompt.id}' is asked with"
            raise DataError(self.where, what, "Use the benchmark's whole file, or leave judge_prompts out")
        if turn >= MOST_TURNS or len(sheets[0].prompt.messages) > 1:
            what = f"question '{sheets[0].prompt.id}' holds more than two user turns, or something before the first"
            raise DataError(self.where, f"{what}, for which the benchmark has no words", "Leave judge_prompts out")
        blanks = _blanks(sheets, turn)

        def fill(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0][0]
            if found[1] not in blanks:
                what = f"prompt '{name}' has a blank '{found[1]}'; expected one of: {', '.join(sorted(blanks))}"
                raise DataError(self.where, what, "Mend the file, or fetch it again")
            return blanks[found[1]]

        asked = _BLANK.sub(fill, prompt.prompt_template)
        return Message(role="system", content=prompt.system_prompt), Message(role="user", content=asked)


def _blanks(sheets: Sequence[Sheet], turn: int) -> dict[str, str]:
    """What FastChat's templates may ask for. Of several answers it speaks as a and b; of several turns as 1 and 2."""
    prompt, turns = sheets[0].prompt, range(1, turn + 2)
    questions = (prompt.messages[-1].content, *prompt.follow_ups)
    references = (*mt_bench.references(prompt), *[""] * len(questions))
    blanks = {f"ref_answer_{number}": references[number - 1] for number in turns}
    blanks |= {"question": questions[0]} | {f"question_{number}": questions[number - 1] for number in turns}
    for letter, sheet in zip("ab" if len(sheets) > 1 else ("",), sheets, strict=True):
        name = f"answer_{letter}" if letter else "answer"
        said = [sheet.turns[number - 1].assistant or "" for number in turns]
        blanks |= {name: said[0]} | {f"{name}_{number}": text for number, text in zip(turns, said, strict=True)}
    return blanks


def _read_verdict(one: Sheet, other: Sheet, turn: int, reply: Reply) -> tuple[float | None, str]:
    """The share of whoever was shown first, as A."""
    if reply.finish not in ("stop", "length"):
        return None, reply.reason or f"no judgment: {reply.finish}"
    shown = [part.assistant or "" for sheet in (one, other) for part in sheet.turns[: turn + 1]]
    verdict = parse_verdict(reply.text, [*shown, *(part.user for part in one.turns[: turn + 1])])
    if verdict is None:
        return None, "the judgment holds no one verdict of the form [[A]], [[B]] or [[C]]"
    return {"A": 1.0, "B": 0.0, TIE: 0.5}[verdict], ""
