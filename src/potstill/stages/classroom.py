"""Who teaches in a stage of distillation: models and captured signals, checked before they are asked anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.artifact import find
from potstill.errors import DataError, ModelError, StorageError
from potstill.objectives.divergence import Divergence, DivergenceName
from potstill.records import Chat
from potstill.signals.files import Reader
from potstill.signals.rows import HiddenLayer
from potstill.signals.states import sketch
from potstill.sources import Data, LocalModel, Model
from potstill.stages.kept import SIGNALS_FOLDER, TOKENIZER_FOLDER, Kept
from potstill.stages.session import Session
from potstill.stages.training import named_rows
from potstill.training.batch import Item
from potstill.training.data import Split
from potstill.training.guidance import Guide
from potstill.training.layers import Pairs, Projections, captured_map, decoder_layers, depth_map
from potstill.training.lesson import Aims
from potstill.training.models import load_model, load_tokenizer
from potstill.training.preflight import (
    first_template_difference,
    first_token_difference,
    tokenizer_hash,
    vocabulary,
)
from potstill.training.probe import bare, check_positions
from potstill.training.sampling import longest_answered
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tasks import Teach
from potstill.training.tellers import Captured, Present, Teller, View, key_of, lessons, same

if TYPE_CHECKING:
    from potstill.stages.distill import DistillConfig

Layers = Mapping[int, int] | int
"""Which of the student's layers is to be like which of the teacher's, or how many are."""


@dataclass(frozen=True)
class Seat:
    """A teacher in its place: who tells, and between which layers of what width there is something to be like."""

    teller: Teller
    pairs: Pairs = ()
    width: int = 0
    sketches: Mapping[int, Tensor] | None = None
    """By the teacher's layer, through what its states were seen; None: they are whole. See `signals.states`."""


@dataclass(frozen=True)
class PresentTeacher:
    """A model whose weights are at hand."""

    model: Model
    session: Session

    @property
    def name(self) -> str:
        return self.model.name

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.model)

    @cached_property
    def scorer(self) -> Scorer:
        """In evaluation mode, and nothing of it is trained."""
        model = load_model(self.model, self.tokenizer, self.session.device)
        model.requires_grad_(False)
        return build_scorer(model, self.session.precision).narrow().eval()

    def check(self, config: "DistillConfig", items: Sequence[Item]) -> None:
        """Refuse what it cannot say of these rows. DataError, ModelError."""
        check_positions(self.scorer.model, items, "Set max_length: {limit}, or choose a teacher that reads more")

    def vocabulary(self, student: PreTrainedModel) -> int:
        """How many ids are tokens on both sides."""
        return vocabulary(student, self.scorer.model, self.tokenizer)

    def seat(self, student: Scorer, aims: Aims, layers: Layers, weight: float, view: View) -> Seat:
        """For a student of that shape."""
        pairs: Pairs = ()
        if aims.hidden_weight:
            pairs = depth_map(len(decoder_layers(student.model)), len(decoder_layers(self.scorer.model)), layers)
        teller = Present(self.scorer, aims.vocabulary, weight, dict(pairs), bool(aims.divergence_weight), view)
        return Seat(teller, pairs, width_of(self.scorer))

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"signal": "its distributions, asked at every step"}


@dataclass(frozen=True)
class CapturedTeacher:
    """What stage `capture` kept of one."""

    data: Data

    @property
    def name(self) -> str:
        return self.data.name

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Whose tokens the shards speak of. DataError where the one beside them is another."""
        tokenizer = load_tokenizer(Model(self.name, LocalModel(path=str(self.data.path / TOKENIZER_FOLDER))))
        if tokenizer_hash(tokenizer) != self.reader.header.tokenizer:
            what = "the tokenizer beside the signal is not the one whose tokens it speaks of"
            raise DataError(str(self.data.path / TOKENIZER_FOLDER), what, "Capture the signal anew")
        return tokenizer

    @cached_property
    def reader(self) -> Reader:
        """Its shards; opened once, when their bytes are those that were sealed: a shard of another capture is whole by
        its own checksums. StorageError where they are not."""
        artifact = find(self.data.path)
        if artifact is not None and (damaged := artifact.damaged()):
            remedy = f"Remove {self.data.path} and run again: it is captured anew"
            raise StorageError(damaged, "its bytes are not those that were sealed", remedy)
        return Reader(self.data.path / SIGNALS_FOLDER)

    def check(self, config: "DistillConfig", items: Sequence[Item]) -> None:
        header = self.reader.header
        layers = tuple(one.layer for one in header.hidden)
        what, remedy = config.unfit(Kept(header.top, header.draws, header.temperature, layers, learn=None))
        if what:
            raise DataError(self.name, what, remedy)
        for item in items:
            if key_of(item) not in self.reader:
                self.reader.read([key_of(item)])  # which says what is wrong with it

    def vocabulary(self, student: PreTrainedModel) -> int:
        """How many ids it speaks of."""
        return self.reader.header.vocabulary

    def seat(self, student: Scorer, aims: Aims, layers: Layers, weight: float, view: View) -> Seat:
        pairs: Pairs = ()
        kept = {one.layer: one for one in self.reader.header.hidden}
        if aims.hidden_weight:
            depth = next(iter(kept.values())).of
            pairs = captured_map(len(decoder_layers(student.model)), depth, list(kept), layers)
        sketches = {theirs: sketch_of(kept[theirs]) for _, theirs in pairs}
        teller = Captured(self.reader, weight, dict(pairs), bool(aims.divergence_weight))
        return Seat(teller, pairs, max((kept[theirs].whole for _, theirs in pairs), default=0), sketches)

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"signal": "captured", "bytes_per_token": round(self.reader.bytes_per_token(), 2)}


def sketch_of(kept: HiddenLayer) -> Tensor:
    """Through what a captured layer was seen; shape (R, D)."""
    return sketch(kept.seed, kept.layer, kept.whole, kept.width)


def width_of(scorer: Scorer) -> int:
    """Of a model's hidden states."""
    return int(bare(scorer.model).config.get_text_config().hidden_size)


class Classroom:
    """Teachers who speak of the student's own tokens."""

    def __init__(self, config: "DistillConfig", session: Session) -> None:
        self.config, self.session = config, session
        inputs = session.inputs
        present = [PresentTeacher(model, session) for model in inputs.models.get("teacher", ())]
        captured = [CapturedTeacher(data) for data in inputs.data.get("teacher", ())]
        self.teachers: list[PresentTeacher | CapturedTeacher] = [*present, *captured]
        self.aims = Aims(
            Divergence(cast(DivergenceName, config.divergence), config.mix, config.softness),
            vocabulary=len(session.tokenizer),
            divergence_weight=config.divergence_weight,
            likelihood_weight=config.likelihood_weight,
            hidden_weight=config.hidden_weight,
            hidden=config.hidden,
        )
        self._view: View = same
        self._seats: list[Seat] = []

    def agree(self) -> None:
        """Give the student's tokenizer the template that is asked for, and refuse teachers who would read other tokens.
        ModelError names the first difference."""
        tokenizer = self.session.tokenizer
        set_template(self.config, tokenizer, self.teachers[0].tokenizer)
        probes = list(islice(named_rows(self.session.inputs, Chat), PROBES))
        for teacher in self.teachers:
            where = f"teacher {teacher.name}"
            refuse_other_tokens(tokenizer, teacher.tokenizer, teacher.name)
            if found := first_template_difference(tokenizer, teacher.tokenizer, probes):
                remedy = "Set template: teacher, or give the teacher the student's"
                if self.config.template == "teacher":  # the first one's, whose others have another
                    remedy = "Give all teachers one template"
                elif self.config.template is not None:
                    remedy = "Set template: teacher, or mend this stage's template or the teacher's own"
                raise ModelError(where, f"its chat template is not the student's: {found}", remedy)

    def admit(self, split: Split) -> Split:
        """The rows that can be taught: all, or it is said which cannot. DataError, ModelError."""
        for teacher in self.teachers:
            teacher.check(self.config, [*split.train, *split.held_out])
        if self.config.teacher_prompt is not None:
            self._view = self._guided(split, self.config.teacher_prompt)
        return split

    def check_answers(self, items: Sequence[Item], max_tokens: int) -> None:
        """Refuse teachers who cannot read whole what the student may answer to these. ModelError."""
        seen = [self._view(longest_answered([item], max_tokens)) for item in items]
        for teacher in self.teachers:
            assert isinstance(teacher, PresentTeacher), "what was captured was refused before"
            remedy = f"Set a lower max_tokens, or name another teacher than {teacher.name}, who reads {{limit}}"
            check_positions(teacher.scorer.model, seen, remedy)

    def _guided(self, split: Split, words: str) -> View:
        """Teachers read the same answers behind their own prompt."""
        items = {item.row: item for item in (*split.train, *split.held_out)}
        guides = {
            row: Guide.of(self.session.tokenizer, items[row], chat.messages, words, chat.tools)
            for row, chat in named_rows(self.session.inputs, Chat)
            if row in items
        }
        seen = [guides[item.row].item(item) for item in items.values()]
        for teacher in self.teachers:
            assert isinstance(teacher, PresentTeacher), "what was captured was refused before"
            check_positions(teacher.scorer.model, seen, "Shorten teacher_prompt, or set a lower max_length")
        return lambda item: guides[item.row].item(item)

    def fit(self, student: Scorer) -> None:
        """Everyone takes a seat. The student gets what has to stand between its hidden states and theirs."""
        sizes = {teacher.name: teacher.vocabulary(student.model) for teacher in self.teachers}
        smallest = min(sizes, key=lambda name: sizes[name])
        if differing := [name for name in sizes if sizes[name] != sizes[smallest]]:
            what = f"it speaks of {sizes[differing[0]]:,} tokens, and {smallest} of {sizes[smallest]:,}"
            raise DataError(differing[0], what, "Capture it anew, of the same tokenizer")
        self.aims = replace(self.aims, vocabulary=sizes[smallest])
        weights, layers = self.config.weights, self.config.layers
        for number, teacher in enumerate(self.teachers):
            seat = teacher.seat(student, self.aims, layers, weights[teacher.name], self._view)
            self._seats.append(seat)
            if self.aims.hidden_weight:
                seed = self.session.work.seed + number
                between = Projections(seat.pairs, width_of(student), seat.width, seed, sketches=seat.sketches)
                student.projections.append(between.to(student.device))

    def lessons(self) -> Teach:
        """For the task, once all sit."""
        return lessons(self.aims, [seat.teller for seat in self._seats])

    @property
    def followed(self) -> list[str]:
        """Which figures are worth a curve."""
        asked = {"divergence": self.aims.divergence_weight, "nll": 1.0, "hidden": self.aims.hidden_weight}
        return [name for name, weight in asked.items() if weight]

    def facts(self) -> dict[str, Any]:
        """Who taught, for the manifest."""
        facts: dict[str, Any] = {"teachers": {one.name: one.facts() for one in self.teachers}}
        if self.aims.hidden_weight:
            facts["layers"] = [[list(pair) for pair in seat.pairs] for seat in self._seats]
        return facts


def set_template(config: "DistillConfig", tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Give the student's tokenizer the template that its stage asks for, where it does."""
    if config.template is not None:
        tokenizer.chat_template = str(teacher.chat_template) if config.template == "teacher" else config.template


def refuse_other_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str) -> None:
    """ModelError names the first token that is another one to the teacher of that name."""
    if found := first_token_difference(student, teacher):
        remedy = "Choose both of one family, or compare across tokenizers: divergence: uld, gold or alm"
        raise ModelError(f"teacher {name}", f"its tokens are not the student's: {found}", remedy)


PROBES = 32
"""Conversations of the data that are compared token by token."""
