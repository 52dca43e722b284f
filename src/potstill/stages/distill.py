"""distill: teach a model a teacher's distributions and hidden states, by its weights or by what was captured of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from potstill.records import Chat
from potstill.sources import Inputs, Mixture, Share, Spec
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, sources

if TYPE_CHECKING:
    from potstill.stages.classroom import Seat, Teachers
    from potstill.stages.session import Session
    from potstill.training.batch import Item
    from potstill.training.data import Split
    from potstill.training.lesson import Aims
    from potstill.training.scoring import Scorer
    from potstill.training.tellers import View

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]
MIXED = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5}
"""The divergences that read `mix`, and what it is unless it is given."""


class OnPolicy(Spec):
    """The student's own answers, to the prompts of the data, as they are while it trains; Agarwal et al. 2024 (GKD)."""

    share: float = Field(default=1.0, gt=0, le=1)
    """The share of rows that the student answers; GKD's lambda."""
    reuse: int = Field(default=1, ge=1)
    """How many steps one round of answers serves: more are written together, which is faster, by weights that are up to
    so many steps old, less one."""
    temperature: float = Field(default=1.0, ge=0)
    """At which answers are drawn; 0 is greedy. The loss has its own."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Answers are drawn from the likeliest tokens that have this much of the mass."""
    top_k: int = Field(default=0, ge=0)
    """And from so many of them at most; 0 is all."""
    max_tokens: int = Field(default=256, ge=1)
    """An answer is cut there; then it teaches nobody to end."""


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
    """The conversations, or several sources of them; whoever wrote the answers, the teacher is asked at every token."""
    teacher_prompt: str | None = Field(default=None, min_length=1)
    """Words in the teacher's system turn that the student does not read, such as a principle: it learns to answer as if
    it had. "{answer}" stands there for what the row's own answers say. With the student as its own teacher, this is
    context distillation (Askell et al. 2021). Not for captured signals."""
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
    on_policy: OnPolicy | None = None
    """Let the student answer the data's prompts itself and the teacher speak of those answers; unset: of the data's."""

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
        if self.teacher_prompt is not None and self.hidden_weight:
            raise ValueError("behind another prompt hidden states mean other things; leave out hidden_weight")
        if self.on_policy is not None and self.sharding != "none":
            raise ValueError("the student answers with its whole weights, which sharding cuts up; set sharding: none")
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
    """Check that teachers and student speak of the same tokens, tokenize, hold out, train, keep."""
    from potstill.stages.classroom import agree_on_tokens, seats, teachers_of
    from potstill.stages.session import Session
    from potstill.training.data import chat_items
    from potstill.training.itself import check_itself
    from potstill.training.tasks import distillation
    from potstill.training.tellers import lessons

    session = Session(config, inputs, work)
    teachers = teachers_of(session)
    agree_on_tokens(session.tokenizer, teachers, config.template, inputs)
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
    aims, view = _aims(config, session), _view(config, session, split)
    for teacher in teachers:
        teacher.check(aims, [*split.train, *split.held_out], _beyond(config))
    placed: list[tuple[Aims, list[Seat]]] = []

    def fit(scorer: "Scorer") -> None:
        placed.append(seats(scorer, teachers, aims, config.layers, config.weights, work.seed, view))
        check_itself(scorer, placed[0][0], split.train)

    session.load(split, fit=fit)
    aims, seated = placed[0]
    steps = _steps(config, session, split.train)
    task = distillation(steps, split.held_out, lessons(aims, [seat.teller for seat in seated]), _followed(config))
    happened = session.train(task)
    return session.finish(split, {**happened, **_facts(config, teachers, seated, steps, happened["steps"])})


def _aims(config: DistillConfig, session: "Session") -> "Aims":
    from potstill.objectives.divergence import Divergence
    from potstill.training.lesson import Aims

    return Aims(
        Divergence(config.divergence, config.mix, config.temperature),
        vocabulary=len(session.tokenizer),
        divergence_weight=config.divergence_weight,
        likelihood_weight=config.likelihood_weight,
        hidden_weight=config.hidden_weight,
        hidden=config.hidden,
    )


def _view(config: DistillConfig, session: "Session", split: "Split") -> "View":
    """What a teacher reads where the student reads a row: behind its own prompt, where it has one."""
    from potstill.training.guidance import Guide
    from potstill.training.tellers import same

    if config.teacher_prompt is None:
        return same
    items = {item.row: item for item in (*split.train, *split.held_out)}
    guides = {
        row: Guide.of(session.tokenizer, items[row], chat.messages, config.teacher_prompt, chat.tools)
        for row, chat in named_rows(session.inputs, Chat)
        if row in items
    }
    return lambda item: guides[item.row].item(item)


def _beyond(config: DistillConfig) -> str:
    """What a teacher is asked besides the rows as they are."""
    asked = {
        "the student's own answers (on_policy)": config.on_policy,
        "other prompts (teacher_prompt)": config.teacher_prompt,
    }
    return " and ".join(what for what, option in asked.items() if option is not None)


def _followed(config: DistillConfig) -> list[str]:
    """Which figures are worth a curve."""
    asked = {"divergence": config.divergence_weight, "nll": 1.0, "hidden": config.hidden_weight}
    return [name for name, weight in asked.items() if weight]


def _steps(config: DistillConfig, session: "Session", train: "Sequence[Item]") -> "Sequence[Sequence[Item]]":
    """The global batches; a share of their rows answered by the student itself, where that is asked for."""
    from potstill.training.on_policy import OnPolicySteps, Plan
    from potstill.training.sampling import Sampling, Speaker

    steps = session.steps(train, config.global_batch)
    own = config.on_policy
    if own is None:
        return steps
    plan = Plan(
        own.share, own.reuse, Sampling(own.temperature, own.top_p, own.top_k, own.max_tokens), session.work.seed
    )
    speaker = Speaker.of(session.team.scorer, session.tokenizer)
    return OnPolicySteps(steps, speaker, plan, session.work.state)


def _facts(
    config: DistillConfig, teachers: "Teachers", seated: "Sequence[Seat]", steps: "Sequence[Any]", done: int
) -> dict[str, Any]:
    """Who taught, and what the student answered itself."""
    from potstill.training.on_policy import OnPolicySteps

    facts: dict[str, Any] = {"teachers": {one.name: one.facts() for one in teachers}}
    if config.hidden_weight:
        facts["layers"] = [[list(pair) for pair in seat.pairs] for seat in seated]
    if isinstance(steps, OnPolicySteps):
        facts["own_answers"] = steps.facts(done)
    return facts


STAGE = Stage(config=DistillConfig, produces="model", run=run, trains=True)
