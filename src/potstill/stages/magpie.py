"""Stage `magpie`: an aligned model writes its own prompts (Magpie, Xu et al. 2024).

It is given only what its chat template writes before a user's words, and goes on as its users do. No seeds, no prompt;
what comes out is what such a model was trained to be asked.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal, Self

from pydantic import Field, model_validator

from potstill.errors import RecipeError, TeacherError
from potstill.records import Dropped, Message, Prompt
from potstill.sources import EndpointModel, Inputs, Model
from potstill.stages.asking import Asking, Tally
from potstill.stages.base import Expected, Facts, Harvest, ModelName, Stage, Work
from potstill.stages.prompting import TOKENS_PER_PROMPT, Sieve
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

LEAST_YIELD = 0.1
"""A round asks for no more than if a tenth of its replies could be kept."""


class Magpie(Asking):
    """Let an aligned model write what its users would ask."""

    kind: Literal["magpie"]
    teacher: ModelName
    """Who writes: a model that was taught to follow instructions. An endpoint has to offer plain completions."""
    count: int = Field(ge=1)
    """How many prompts to make."""
    opening: str | None = Field(default=None, min_length=1)
    """What the model is given, as text: all that its chat template writes before a user's words, control tokens
    included. Needed for an endpoint; where weights are at hand it is read off the chat template."""
    closing: str = ""
    """What the template writes behind a user's words, where a server spells it out: the prompt ends before it."""
    system: str | None = None
    """A system turn before the user's, which steers what is asked. The rows do not hold it. Only without `opening`,
    which would have to hold it."""
    max_requests: int | None = Field(default=None, ge=1)
    """Stop after this many, even if that leaves fewer prompts. Default: ten times `count`."""
    novelty: float | None = Field(default=None, gt=0, le=1)
    """Drop a prompt whose ROUGE-L F against any that was kept is over this; null: only those that are the same."""
    min_words: int = Field(default=3, ge=1)
    """Drop shorter prompts."""
    max_words: int = Field(default=500, ge=1)
    """Drop longer prompts."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the sampling. At 0 every prompt would be the same."""
    top_p: float = Field(default=0.995, gt=0, le=1)
    """Of the sampling."""
    max_tokens: int = Field(default=512, ge=1)
    """The longest prompt; one that is cut there is dropped, unless `truncated` is "keep"."""

    @model_validator(mode="after")
    def _one_opening(self) -> "Magpie":
        if self.opening is not None and self.system is not None:
            raise ValueError("opening and system exclude each other: write the system turn into the opening")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words} and max_words {self.max_words}: nothing would be kept")
        return self

    @property
    def most_requests(self) -> int:
        """What `max_requests` comes to."""
        return self.max_requests or 10 * self.count

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        (model,) = models["teacher"]
        if self.opening is None and isinstance(model.spec, EndpointModel):
            what = f"'{model.name}' is an endpoint, whose chat template is not at hand: 'opening' is missing"
            advice = 'Give what its template writes before a user\'s words, such as opening: "<|im_start|>user\\n"'
            raise RecipeError("teacher", what, advice)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        return Expected(self.count, self.count, 2 * self.count * TOKENS_PER_PROMPT)

    def for_trial(self, rows: int) -> Self:
        """Fewer prompts."""
        return self.model_copy(update={"count": min(self.count, rows)})


def run(config: Magpie, inputs: Inputs, work: Work) -> Facts:
    """Ask round after round for as many as are missing, until there are enough or requests have been spent."""
    model = inputs.model("teacher")
    opening, closing = _frame(config, model)
    known, tally = Sieve(config.novelty, config.min_words, config.max_words), Tally()
    asked, first = 0, None
    with connect(model, work.account) as teacher, work.harvest() as harvest:
        while harvest.rows < config.count and asked < config.most_requests:
            wanted = _round(config, harvest.rows, asked)
            requests = (_request(config, opening, work.seed, asked + i) for i in range(wanted))
            for number, reply in enumerate(teacher.complete(requests), start=asked):
                first = first or reply
                _take(config, harvest, known, f"magpie-{number}", tally.add(reply), closing)
                work.progress(harvest.rows, config.count, "prompts")
            asked += wanted
    if not harvest.rows:
        assert first
        what = f"none of {asked} replies is a prompt to keep ({harvest.why_nothing()})"
        raise TeacherError(model.name, what, remedy(first, "Check the opening, or use another teacher", "max_tokens"))
    return {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "requests": asked,
        "replies": tally.facts(),
        "short_by": config.count - harvest.rows,
        "opening": opening,
    }


def _frame(config: Magpie, model: Model) -> tuple[str, str]:
    """What to go on from, and what would end it."""
    if config.opening is not None:
        return config.opening, config.closing
    from potstill.tokens.tokenization import user_frame  # these import torch or transformers
    from potstill.training.models import load_tokenizer

    opening, behind = user_frame(load_tokenizer(model), config.system)
    return opening, config.closing or behind.strip()


def _round(config: Magpie, kept: int, asked: int) -> int:
    """How many to ask for next: what is missing, by what share of the replies could be kept so far."""
    share = max(kept / asked, LEAST_YIELD) if asked else 1.0
    return min(ceil((config.count - kept) / share), config.most_requests - asked)


def _request(config: Magpie, opening: str, seed: int, number: int) -> Request:
    return Request(
        messages=(),
        opening=opening,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=request_seed(seed, "user", number),
        sample=number,
        attempts=config.ask_again + 1,
        accept=config.accepting(str.strip),
    )


def _take(config: Magpie, harvest: Harvest, known: Sieve, name: str, reply: Reply, closing: str) -> None:
    """Keep what a model said as a user, or its reason to be dropped."""
    text, ended, _ = reply.text.partition(closing) if closing else (reply.text, "", "")
    text = text.strip()
    if not (config.is_whole(reply) or (ended and reply.finish == "length")):
        harvest.drop(Dropped(id=name, reason=f"reply_{reply.finish}", detail=reply.reason))
    elif harvest.rows >= config.count:
        harvest.drop(Dropped(id=name, reason="beyond_count", detail=text))
    elif known.take(harvest, name, text):
        harvest.keep(Prompt(id=name, messages=(Message(role="user", content=text),)))


STAGE = Stage(config=Magpie, produces="prompts", run=run)
