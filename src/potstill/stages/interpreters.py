"""Teachers of other vocabularies in a stage of distillation: their tokens are matched to the student's by bytes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from potstill.artifact import storage_errors
from potstill.errors import DataError
from potstill.objectives.cross_tokenizer import Shared
from potstill.records import Chat, Dropped
from potstill.stages.classroom import PresentTeacher, set_template
from potstill.stages.kept import ALIGNMENT_FILE
from potstill.stages.session import Session
from potstill.stages.training import named_rows, sources
from potstill.tokens.alignment import align, explain_alignment, shared_tokens
from potstill.tokens.learnt import Turn, learnt_turns
from potstill.tokens.tokenization import Encoded
from potstill.training.across import AcrossName, Interpreter, Read, SpanAims, span_lessons
from potstill.training.batch import Item
from potstill.training.data import Split
from potstill.training.preflight import vocabulary_of
from potstill.training.probe import position_limit
from potstill.training.scoring import Scorer
from potstill.training.tasks import Teach, untaught

if TYPE_CHECKING:
    from potstill.stages.distill import DistillConfig

Turns = tuple[Turn, ...]


class Interpreters:
    """Teachers of other vocabularies, as `Classroom`: their tokens are matched to the student's by bytes."""

    def __init__(self, config: "DistillConfig", session: Session) -> None:
        self.config, self.session = config, session
        self.teachers = [PresentTeacher(model, session) for model in session.inputs.models.get("teacher", ())]
        for data in session.inputs.data.get("teacher", ()):
            what = f"it was captured, and {config.divergence} asks a teacher about other tokens than the student's"
            raise DataError(data.name, what, "Name the teacher's model itself")
        self._reads: list[dict[str, Read]] = []
        self._lessons: Teach = untaught
        self._facts: dict[str, Any] = {}
        self._shown = ""

    def agree(self) -> None:
        """Each side keeps its own template, unless another is asked for."""
        set_template(self.config, self.session.tokenizer, self.teachers[0].tokenizer)

    def admit(self, split: Split) -> Split:
        """The rows that teachers can read whole, aligned. DataError where templates make other words of one."""
        items = {item.row: item for item in (*split.train, *split.held_out)}
        chats = {row: chat for row, chat in named_rows(self.session.inputs, Chat) if row in items}
        ours = self._turns(self.session.tokenizer, chats)
        long: dict[str, Dropped] = {}
        for teacher in self.teachers:
            reads, limit = {}, position_limit(teacher.scorer.model)
            for row, (encoded, turns) in self._turns(teacher.tokenizer, chats).items():
                if len(encoded) > limit:
                    detail = f"{len(encoded)} tokens of {teacher.name}, which reads {limit}"
                    long.setdefault(row, Dropped(id=row, reason="too_long", detail=detail))
                    continue
                spans = align(ours[row][1], turns, f"row '{row}'")
                reads[row] = Read.of(items[row], Item.chat(row, encoded), spans)
                if not self._shown:
                    names = self.session.inputs.model("model").name, teacher.name
                    self._shown = explain_alignment(ours[row][1], turns, spans, names)
            self._reads.append(reads)
            self._count(teacher.name, reads.values())
        left = split.without(long)
        if not left.train or (split.held_out and not left.held_out):
            what = (
                f"no row is left to {'measure' if left.train else 'train'} on: {len(long)} are too long for a teacher"
            )
            remedy = "Give shorter rows, hold more of them out, or choose a teacher that reads more"
            raise DataError(sources(self.session.inputs), what, remedy)
        return left

    @staticmethod
    def _turns(tokenizer: PreTrainedTokenizerBase, chats: Mapping[str, Chat]) -> "dict[str, tuple[Encoded, Turns]]":
        found = learnt_turns(tokenizer, [chat.messages for chat in chats.values()], [c.tools for c in chats.values()])
        return dict(zip(chats, found, strict=True))

    def _count(self, name: str, reads: Iterable[Read]) -> None:
        """How much of the student's tokens stands in spans."""
        spans = [read.spans for read in reads]
        covered = sum(int((s.student_ends_S - s.student_starts_S).sum()) for s in spans)
        self._facts[name] = {"signal": "its distributions, across tokenizers", "spans": sum(map(len, spans)),
                             "aligned_tokens": covered}  # fmt: skip

    def fit(self, student: Scorer) -> None:
        """Who tells batches, once the student's shape is known."""
        config, tokenizer = self.config, self.session.tokenizer
        vocabulary = vocabulary_of(student.model, tokenizer, "the student")
        tellers = []
        for teacher, reads in zip(self.teachers, self._reads, strict=True):
            theirs = vocabulary_of(teacher.scorer.model, teacher.tokenizer, f"teacher {teacher.name}")
            shared = None
            if config.divergence == "gold":
                ours_K, theirs_K = map(torch.from_numpy, shared_tokens(tokenizer, teacher.tokenizer))
                shared = Shared.of(ours_K.to(student.device), theirs_K.to(student.device), vocabulary, theirs)
                self._facts[teacher.name]["shared_tokens"] = len(shared.student_K)
            weight = config.weights[teacher.name]
            tellers.append(Interpreter(teacher.scorer, theirs, reads, shared, weight))
        aims = SpanAims(
            cast(AcrossName, config.divergence),
            vocabulary,
            config.softness,
            0.5 if config.mix is None else config.mix,
            config.divergence_weight,
            config.likelihood_weight,
        )
        self._lessons = span_lessons(aims, tellers)

    def check_answers(self, items: Sequence[Item], max_tokens: int) -> None:
        """There are none: own answers are refused beside these divergences."""

    def lessons(self) -> Teach:
        """For the task."""
        return self._lessons

    followed = ("divergence", "nll")

    def facts(self) -> dict[str, Any]:
        """Who taught, for the manifest; how the first row is aligned stands beside it, for people."""
        with storage_errors(self.session.work.path):
            (self.session.work.path / ALIGNMENT_FILE).write_text(self._shown + "\n", encoding="utf-8")
        return {"teachers": self._facts}
