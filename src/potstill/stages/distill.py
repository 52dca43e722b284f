"""distill: teach a model a teacher's distributions and hidden states, by its weights or by what was captured of it."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.errors import RecipeError
from potstill.sources import Inputs, Mixture, Share, Spec
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Source, Stage, Work
from potstill.stages.kept import KeepsSignals, Kept
from potstill.stages.training import TrainingConfig, chats_as_items

if TYPE_CHECKING:
    from potstill.stages.session import Session
    from potstill.training.batch import Item
    from potstill.training.scoring import Scorer
    from potstill.training.tasks import Teach

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl",
    "uld", "gold", "alm",
]  # fmt: skip
ACROSS = ("uld", "gold", "alm")
"""Those that compare a teacher and a student of different vocabularies."""
MIXED = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5, "gold": 0.5}
"""The divergences that read `mix`, and what it is unless it is given."""
SERVED_BY_DRAWS = "forward_kl"
"""The divergence that draws serve: it alone is linear in the teacher."""
Layer = Annotated[int, Field(ge=1)]


class OnPolicy(Spec):
    """The student's own answers, to the prompts of the data, as they are while it trains; Agarwal et al. 2024 (GKD)."""

    share: float = Field(default=1.0, gt=0, le=1)
    """The share of rows that the student answers; GKD's lambda."""
    reuse: int = Field(default=1, ge=1)
    """How many steps one round of answers serves: more are written together, which is faster, by weights that are up to
    so many steps old, less one."""
    sampling_temperature: float = Field(default=1.0, ge=0)
    """At which answers are drawn; 0 is greedy. It is no part of the loss, whose temperature is another."""
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
    both KLs. A teacher with other tokens is compared where both sides' tokens end at the same byte: uld by sorted
    probabilities, gold by name where both have a token and sorted otherwise, alm by how likely each finds what stands
    between two such places."""
    mix: float | None = Field(default=None, gt=0, lt=1)
    """jsd's and gold's beta, 0.5 unless given; the skews' alpha, 0.1; adaptive_kl's head, 0.5 of the teacher's mass."""
    temperature: float | None = Field(default=None, ge=0.01, le=1000)
    """Both sides' logits are divided by it, 1 unless given, and the divergence is multiplied by its square (uld's by
    itself). alm's takes the root of what spans' probabilities are, 100 unless given. gold has none."""
    divergence_weight: float = Field(default=1.0, ge=0)
    """How much the divergence counts."""
    likelihood_weight: float = Field(default=0.0, ge=0)
    """How much -log p of the data's own tokens counts."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """How much hidden states count."""
    hidden: Literal["mse", "cosine"] = "cosine"
    """How hidden states are compared, behind a learnt linear projection where widths differ."""
    layers: Mapping[Layer, Layer] | Layer = 1
    """Which of the student's layers is to be like which of the teacher's, as {2: 8, 4: 16}; or how many, spread over
    the depth, the last with the last."""
    on_policy: OnPolicy | None = None
    """Let the student answer the data's prompts itself and the teacher speak of those answers; unset: of the data's."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        self._somebody_teaches()
        if self.mix is not None and self.divergence not in MIXED:
            raise ValueError(f"divergence {self.divergence} does not read mix; {', '.join(MIXED)} do")
        if self.divergence in ACROSS:
            self._across()
        if not self.hidden_weight and self.model_fields_set & {"hidden", "layers"}:
            raise ValueError("hidden and layers are for hidden states, and hidden_weight is 0; set hidden_weight")
        if not self.divergence_weight and self.model_fields_set & {"divergence", "mix", "temperature"}:
            raise ValueError("divergence, mix and temperature are for the divergence, and divergence_weight is 0")
        if not (self.divergence_weight or self.hidden_weight):
            raise ValueError("nothing of the teacher counts; set divergence_weight or hidden_weight above 0")
        if self.teacher_prompt is not None and (odd := _miswritten(self.teacher_prompt)):
            raise ValueError(f"teacher_prompt has {odd!r}, which stands for nothing; write {{answer}}")
        if self.teacher_prompt is not None and self.hidden_weight:
            raise ValueError("behind another prompt hidden states mean other things; leave out hidden_weight")
        if self.on_policy is not None and self.likelihood_weight:
            raise ValueError("likelihood_weight would teach the student its own answers; leave it out, or on_policy")
        if self.learn == "all" and (self.on_policy is not None or self.teacher_prompt is not None):
            raise ValueError("on_policy and teacher_prompt are for what assistants say; set learn: assistant")
        if self.on_policy is not None and self.sharding != "none":
            raise ValueError("the student answers with its whole weights, which sharding cuts up; set sharding: none")
        return self

    def _somebody_teaches(self) -> None:
        """Each by one name and one weight."""
        if not self._named:
            raise ValueError("teacher is an empty list; name a model, or a stage of kind capture")
        twice = [name for name, count in Counter(name for name, _ in self._named).items() if count > 1]
        if twice:
            raise ValueError(f"'{twice[0]}' is named twice as a teacher; name it once, with one weight")
        as_it_was = self.teacher_prompt is None and not self.likelihood_weight
        if as_it_was and [name for name, _ in self._named] == [self.model]:
            raise ValueError(
                f"'{self.model}' has nothing to learn from itself; name another teacher, or give it a teacher_prompt"
            )
        if self.hidden_weight and self.layers == {}:
            raise ValueError("layers is an empty mapping; write pairs such as {2: 8}, or how many there are to be")

    @property
    def _named(self) -> list[tuple[str, float]]:
        """Teachers and their weights, as they are written."""
        given = (self.teacher,) if isinstance(self.teacher, str | Share) else self.teacher
        return [(one.source, one.weight) if isinstance(one, Share) else (one, 1.0) for one in given]

    def _across(self) -> None:
        """What cannot be compared where tokens differ."""
        name = self.divergence
        if self.hidden_weight:
            raise ValueError(
                f"hidden states stand at other places across tokenizers; leave hidden_weight out of {name}"
            )
        if self.on_policy is not None or self.teacher_prompt is not None:
            raise ValueError(f"{name} aligns the data's own answers; leave on_policy and teacher_prompt out")
        if self.learn == "all":
            raise ValueError(f"{name} aligns what assistants say, and templates differ elsewhere; set learn: assistant")
        if name == "gold" and self.temperature not in (None, 1.0):
            raise ValueError(
                "gold multiplies probabilities along a span, which are of temperature 1; leave temperature out"
            )

    @property
    def softness(self) -> float:
        """The temperature, as it is where none is given."""
        return self.temperature or (100.0 if self.divergence == "alm" else 1.0)

    @property
    def weights(self) -> dict[str, float]:
        """Each teacher's, by its name."""
        return dict(self._named)

    def check_sources(self, sources: Mapping[str, Sequence[Source]]) -> None:
        for teacher in sources.get("teacher", ()):
            if isinstance(teacher.config, KeepsSignals):
                what, remedy = self.unfit(teacher.config.kept())
                if what:
                    raise RecipeError("teacher", f"of '{teacher.name}', {what}", remedy)
                there = teacher.reads["data"]
                for data in sources["data"]:
                    if data.name not in there:
                        what = f"'{teacher.name}' captures rows of {', '.join(there)}, and none of '{data.name}'"
                        raise RecipeError("data", what, "Name the same data in both stages")

    def unfit(self, kept: Kept) -> tuple[str, str]:
        """What of a captured signal this stage cannot learn from, and what to do about it; empty where it can."""
        theirs = set(self.layers.values()) if isinstance(self.layers, Mapping) else set[int]()
        itself = "Name the teacher's model itself"
        otherwise = "Capture it otherwise, or set this stage to what is captured"
        if self.beyond:
            return f"it is captured, and cannot be asked about {self.beyond}", itself
        if self.divergence in ACROSS:
            what = f"it is captured, and {self.divergence} asks a teacher about other tokens than the student's"
            return what, itself
        if kept.learn not in (None, self.learn):
            return f"it is captured with learn: {kept.learn}, and this stage has learn: {self.learn}", otherwise
        if self.divergence_weight:
            if not (kept.top or kept.draws):
                return "no distributions are captured; it has neither draws nor top", otherwise
            if kept.temperature != self.softness:
                what = f"it is captured at temperature {kept.temperature:g}, and the divergence is at {self.softness:g}"
                return what, otherwise
            if kept.draws and self.divergence != SERVED_BY_DRAWS:
                what = f"its draws are right on average for {SERVED_BY_DRAWS} alone, not for {self.divergence}"
                return what, f"Set divergence: {SERVED_BY_DRAWS}, or capture with top and without draws"
        if self.hidden_weight:
            if not kept.layers:
                return "no hidden states are captured; it has no layers", otherwise
            if absent := theirs - set(kept.layers):
                return f"layer {min(absent)} is not captured: {', '.join(map(str, kept.layers))} are", otherwise
            if isinstance(self.layers, int) and self.layers > len(set(kept.layers)):
                return f"{self.layers} layers are to be learnt, and {len(set(kept.layers))} are captured", otherwise
        return "", ""

    @property
    def beyond(self) -> str:
        """What a teacher is asked besides the rows as they are."""
        asked = {
            "the student's own answers (on_policy)": self.on_policy,
            "other prompts (teacher_prompt)": self.teacher_prompt,
        }
        return " and ".join(what for what, option in asked.items() if option is not None)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        return self.forecast(rows, 500)


def _miswritten(words: str) -> str:
    """What was to be "{answer}", it seems; empty where nothing."""
    named = ((found[0], found[1].lower()) for found in re.finditer(r"\{\s*(\w+)\s*\}?", words))
    return next((whole for whole, name in named if whole != "{answer}" and get_close_matches(name, ["answer"])), "")


def run(config: DistillConfig, inputs: Inputs, work: Work) -> Facts:
    """Check that teachers and student speak of the same tokens, tokenize, hold out, train, keep."""
    from potstill.stages.classroom import Classroom
    from potstill.stages.interpreters import Interpreters
    from potstill.stages.session import Session
    from potstill.training.itself import check_itself
    from potstill.training.preflight import vocabulary_of
    from potstill.training.sampling import check_room
    from potstill.training.tasks import distillation

    session = Session(config, inputs, work)
    room = Interpreters(config, session) if config.divergence in ACROSS else Classroom(config, session)
    room.agree()
    with session.encoding():
        split = chats_as_items(config, inputs, session.tokenizer, work.seed, session.store, held_out=config.held_out)
    split = room.admit(split)

    def fit(scorer: "Scorer") -> "Teach":
        if config.on_policy is not None:
            check_room(scorer.model, split.train, config.on_policy.max_tokens)
        check_itself(scorer, vocabulary_of(scorer.model, session.tokenizer, "the student"), split.train)
        room.fit(scorer)
        if config.on_policy is not None:
            room.check_answers(split.train, config.on_policy.max_tokens)
        return room.lessons()

    session.load(split, fit=fit, longest=_longest(config, split.train))
    steps, answered = _steps(config, session, split.train)
    task = distillation(steps, split.held_out, room.lessons(), room.followed)
    happened = session.train(task)
    return session.finish(split, {**happened, **room.facts(), **answered(happened["steps"])})


def _longest(config: DistillConfig, train: "Sequence[Item]") -> "list[Item]":
    """A stand-in for the longest answer that the student may give itself."""
    from potstill.training.sampling import longest_answered

    return [longest_answered(train, config.on_policy.max_tokens)] if config.on_policy else []


def _steps(
    config: DistillConfig, session: "Session", train: "Sequence[Item]"
) -> "tuple[Sequence[Sequence[Item]], Callable[[int], Facts]]":
    """The global batches; a share of their rows answered by the student itself, where that is asked for, and what is
    to be said of those answers after so many steps."""
    from potstill.training.on_policy import OnPolicySteps, Plan
    from potstill.training.sampling import Sampling, Speaker

    steps, own = session.steps(train, config.global_batch), config.on_policy
    if own is None:
        return steps, lambda done: {}
    sampling = Sampling(own.sampling_temperature, own.top_p, own.top_k, own.max_tokens)
    speaker = Speaker.of(session.team.scorer, session.tokenizer)
    plan = Plan(own.share, own.reuse, sampling, session.work.seed)
    answering = OnPolicySteps(steps, speaker, plan, session.work.state, session.work.warn)
    return answering, lambda done: {"own_answers": answering.facts(done)}


STAGE = Stage(config=DistillConfig, produces="model", run=run, trains=True)
