"""Who teaches in a stage of distillation: models and captured signals, checked before they are asked anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import DataError, ModelError
from potstill.objectives.divergence import takes_drawn
from potstill.records import Chat
from potstill.signals.files import Reader
from potstill.sources import Data, Inputs, LocalModel, Model
from potstill.stages.session import Session
from potstill.stages.training import named_rows
from potstill.training.batch import Item
from potstill.training.layers import Pairs, Projections, captured_map, decoder_layers, depth_map
from potstill.training.lesson import Aims
from potstill.training.models import load_model, load_tokenizer
from potstill.training.preflight import first_template_difference, first_token_difference, vocabulary
from potstill.training.probe import bare
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tellers import Captured, Present, Teller, View, key_of

Layers = Mapping[int, int] | int
"""Which of the student's layers is to be like which of the teacher's, or how many are."""


@dataclass(frozen=True)
class Seat:
    """A teacher in its place: who tells, and between which layers of what width there is something to be like."""

    teller: Teller
    pairs: Pairs = ()
    width: int = 0


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
        return build_scorer(model, self.session.precision).eval()

    def check(self, aims: Aims, items: Sequence[Item], beyond: str) -> None:
        """Refuse what it cannot say. `beyond`: what it is asked besides these rows, in words. DataError, ModelError."""

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
        path = str(self.data.path / TOKENIZER_FOLDER)
        return load_tokenizer(Model(self.name, LocalModel(path=path)))

    @cached_property
    def reader(self) -> Reader:
        """Its shards; opened once."""
        return Reader(self.data.path / SIGNALS_FOLDER)

    def check(self, aims: Aims, items: Sequence[Item], beyond: str) -> None:
        header = self.reader.header
        if beyond:
            what = f"it was captured, and cannot be asked about {beyond}"
            raise DataError(self.name, what, "Name the teacher's model itself")
        if aims.divergence_weight:
            self._check_distributions(aims)
        if aims.hidden_weight and not header.hidden:
            raise DataError(self.name, "no hidden states were captured", "Set layers where it is captured")
        for item in items:
            if key_of(item) not in self.reader:
                self.reader.read([key_of(item)])  # which says what is wrong with it

    def vocabulary(self, student: PreTrainedModel) -> int:
        """How many ids it speaks of."""
        return self.reader.header.vocabulary

    def _check_distributions(self, aims: Aims) -> None:
        header, divergence = self.reader.header, aims.divergence
        if not header.distribution:
            raise DataError(self.name, "no distributions were captured", "Set draws or top where it is captured")
        if header.temperature != divergence.temperature:
            what = f"it was captured at temperature {header.temperature:g}, and the divergence is at"
            remedy = f"Set temperature: {header.temperature:g}, or capture at the other"
            raise DataError(self.name, f"{what} {divergence.temperature:g}", remedy)
        if header.draws and not takes_drawn(divergence.name):
            what = f"it holds draws, which are right on average for forward_kl alone, not for {divergence.name}"
            raise DataError(self.name, what, "Set divergence: forward_kl, or capture with top and without draws")

    def seat(self, student: Scorer, aims: Aims, layers: Layers, weight: float, view: View) -> Seat:
        pairs: Pairs = ()
        kept = {one.layer: one for one in self.reader.header.hidden}
        if aims.hidden_weight:
            depth = next(iter(kept.values())).of
            pairs = captured_map(len(decoder_layers(student.model)), depth, list(kept), layers)
        widths = {kept[theirs].width for _, theirs in pairs}
        teller = Captured(self.reader, weight, dict(pairs), bool(aims.divergence_weight))
        return Seat(teller, pairs, max(widths, default=0))

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"signal": "captured", "bytes_per_token": round(self.reader.bytes_per_token(), 2)}


Teachers = Sequence[PresentTeacher | CapturedTeacher]

SIGNALS_FOLDER = "signals"
TOKENIZER_FOLDER = "tokenizer"
"""Of a captured signal: its shards, and whose tokens they speak of."""


def width_of(scorer: Scorer) -> int:
    """Of a model's hidden states."""
    return int(bare(scorer.model).config.get_text_config().hidden_size)


def teachers_of(session: Session) -> Teachers:
    """All that the field `teacher` names, models first."""
    inputs = session.inputs
    present = [PresentTeacher(model, session) for model in inputs.models.get("teacher", ())]
    return [*present, *(CapturedTeacher(data) for data in inputs.data.get("teacher", ()))]


def seats(
    student: Scorer, teachers: Teachers, aims: Aims, layers: Layers, weights: Mapping[str, float], seed: int, view: View
) -> tuple[Aims, list[Seat]]:
    """Everyone's place, and the aims with the number of ids that are tokens on all sides. The student gets what has to
    stand between its hidden states and theirs."""
    sizes = {teacher.name: teacher.vocabulary(student.model) for teacher in teachers}
    smallest = min(sizes, key=lambda name: sizes[name])
    if differing := [name for name in sizes if sizes[name] != sizes[smallest]]:
        what = f"it speaks of {sizes[differing[0]]:,} tokens, and {smallest} of {sizes[smallest]:,}"
        raise DataError(differing[0], what, "Capture it anew, of the same tokenizer")
    aims = replace(aims, vocabulary=sizes[smallest])
    found = [teacher.seat(student, aims, layers, weights[teacher.name], view) for teacher in teachers]
    if aims.hidden_weight:
        for number, seat in enumerate(found):
            between = Projections(seat.pairs, width_of(student), seat.width, seed + number)
            student.projections.append(between.to(student.device))
    return aims, found


def agree_on_tokens(
    tokenizer: PreTrainedTokenizerBase, teachers: Teachers, template: str | None, inputs: Inputs
) -> None:
    """Give the student's tokenizer the template that is asked for, and refuse teachers who would read other tokens.

    ModelError names the first difference.
    """
    if template == "teacher":
        template = str(teachers[0].tokenizer.chat_template)
    if template is not None:
        tokenizer.chat_template = template
    probes = list(islice(named_rows(inputs, Chat), PROBES))
    for teacher in teachers:
        if found := first_token_difference(tokenizer, teacher.tokenizer):
            remedy = "Choose a student and a teacher of one family, or compare them across tokenizers: divergence: alm"
            raise ModelError(f"teacher {teacher.name}", f"its tokens are not the student's: {found}", remedy)
        if found := first_template_difference(tokenizer, teacher.tokenizer, probes):
            remedy = "Set template: teacher, or give the teacher the student's"
            raise ModelError(f"teacher {teacher.name}", f"its chat template is not the student's: {found}", remedy)


PROBES = 32
"""Conversations of the data that are compared token by token."""
