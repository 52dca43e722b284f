"""distill: teach a model a teacher's distributions and hidden states, where its weights or what was captured is at hand."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from potstill.errors import RecipeError
from potstill.records import Chat
from potstill.sources import Inputs, Mixture, Share
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, sources

if TYPE_CHECKING:
    from potstill.stages.session import Session
    from potstill.training.batch import Item
    from potstill.training.lesson import Aims
    from potstill.training.tellers import Teller

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]
MIXED = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5}
"""The divergences that read `mix`, and what it is unless it is given."""


class DistillConfig(TrainingConfig):
    """White-box distillation: the student learns, at each token of an answer, what a teacher says there of all tokens.

    The loss of a token is the sum of three weighted terms: a divergence of the student's distribution from the
    teacher's, -log p of the token that follows, and how unlike their hidden states are.
    """

    kind: Literal["distill"]
    model: LocalModelName
    """The student to start from."""
    teacher: Annotated[Mixture, Reference(("model", "signals"), weights=True)]
    """Who teaches: a model whose weights are at hand, or what stage `capture` kept of one; or several with weights.
    Their terms add up, each by its weight."""
    data: Annotated[Mixture, Reference(("chats",))]
    """The conversations, or several sources of them; whatever wrote the answers, the teacher is asked at every token."""
    template: str | None = Field(default=None, min_length=1)
    """A chat template, as Jinja, in place of the student's own; the word "teacher" takes the teacher's."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The peak learning rate."""
    global_batch: int = Field(default=128, ge=1)
    """Conversations an optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of the longest conversation that is learnt as it is."""
    on_long: Literal["drop", "cut"] = "drop"
    """A longer conversation is left out, or loses whole turns at its end until it fits. Both are counted."""
    learn: Literal["assistant", "all"] = "assistant"
    """Learn what assistants say and the token that ends it, or every token."""
    divergence: DivergenceName = "forward_kl"
    """How distributions are compared, teacher P and student Q: KL(P, Q); KL(Q, P); the generalized Jensen-Shannon
    divergence; KL(P, mix P + (1 - mix) Q) and KL(Q, mix Q + (1 - mix) P); total variation; or the adaptive mixture of
    both KLs."""
    mix: float | None = Field(default=None, gt=0, lt=1)
    """jsd's beta, 0.5 unless given; the skews' alpha, 0.1; adaptive_kl's head, 0.5 of the teacher's mass."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Both sides' logits are divided by it; the divergence is multiplied by its square."""
    divergence_weight: float = Field(default=1.0, ge=0)
    """How much the divergence counts."""
    likelihood_weight: float = Field(default=0.0, ge=0)
    """How much -log p of the data's own tokens counts."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """How much hidden states count."""
    hidden: Literal["mse", "cosine"] = "cosine"
    """How hidden states are compared, behind a learnt linear projection where widths differ."""
    layers: Mapping[int, int] | int = 1
    """Which of the student's layers is to be like which of the teacher's, as {2: 8, 4: 16}; or how many, spread over
    the depth, the last with the last."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.mix is not None and self.divergence not in MIXED:
            raise ValueError(f"divergence {self.divergence} does not read mix; {', '.join(MIXED)} do")
        if not self.hidden_weight and self.model_fields_set & {"hidden", "layers"}:
            raise ValueError("hidden and layers are for hidden states, and hidden_weight is 0; set hidden_weight")
        if not self.divergence_weight and self.model_fields_set & {"divergence", "mix", "temperature"}:
            raise ValueError("divergence, mix and temperature are for the divergence, and divergence_weight is 0")
        if not (self.divergence_weight or self.hidden_weight):
            raise ValueError("nothing of the teacher counts; set divergence_weight or hidden_weight above 0")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Each teacher's, by its name."""
        given = (self.teacher,) if isinstance(self.teacher, str | Share) else self.teacher
        return {one.source: one.weight for one in given if isinstance(one, Share)} | {
            one: 1.0 for one in given if isinstance(one, str)
        }

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        return self.forecast(rows, 500)


def run(config: DistillConfig, inputs: Inputs, work: Work) -> Facts:
    """Check that teacher and student speak of the same tokens, tokenize, hold out, train, keep."""
    from potstill.stages.session import Session
    from potstill.training.data import chat_items
    from potstill.training.tasks import distillation
    from potstill.training.tellers import lessons

    session = Session(config, inputs, work)
    teachers = _teachers(config, session)
    _agree_on_template(config, session, teachers)
    for teacher in teachers:
        teacher.check_tokenizer(session.tokenizer, named_rows(inputs, Chat))
    with session.encoding():
        split = chat_items(
            session.tokenizer,
            named_rows(inputs, Chat),
            max_length=config.max_length,
            on_long=config.on_long,
            learn=config.learn,
            held_out=config.held_out,
            seed=work.seed,
            where=sources(inputs),
            store=session.store,
        )
    for teacher in teachers:
        teacher.check_rows([*split.train, *split.held_out])
    session.load(split)
    steps = session.steps(split.train, config.global_batch)
    task = distillation(steps, split.held_out, lessons(aims, tellers), figures)
    return session.finish(split, session.train(task))


STAGE = Stage(config=DistillConfig, produces="model", run=run, trains=True)
