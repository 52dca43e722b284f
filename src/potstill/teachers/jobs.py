"""One request on its way to a server, through all its attempts."""

from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from potstill.sources import EndpointModel
from potstill.teachers.base import Reply, Request, request_seed
from potstill.teachers.journal import Journal, entry_key
from potstill.teachers.scheduler import Lane
from potstill.teachers.wire import answer_limit, most_prompt_tokens, read_reply, request_body


@dataclass(eq=False)
class Job:
    """A request, and what is to be asked for it next. Its future holds the reply that stands, or what ended it all."""

    spec: EndpointModel
    request: Request
    body: dict[str, Any] = field(init=False)
    key: str = field(init=False)
    future: "Future[Reply]" = field(default_factory=Future)
    attempt: int = 0
    """How many replies were not accepted."""
    tries: int = 0
    """Of the present attempt."""
    first_try: float = 0.0
    """Loop time."""
    failed_at: Lane | None = None
    reserved_usd: float | None = None
    """Money set aside for it, while it is in flight."""
    first_key: str = field(init=False)
    """Of its first attempt: it names the request, whatever attempt it is at."""
    _prompt_most: int = 0

    def __post_init__(self) -> None:
        self._render(self.request)
        self.first_key = self.key

    def _render(self, request: Request) -> None:
        self.body = request_body(self.spec, request)
        self.key = entry_key(self.body, revision=self.spec.revision, sample=self.request.sample, attempt=self.attempt)
        self._prompt_most = 0

    @property
    def prompt_most(self) -> int:
        """Tokens of the prompt, at most."""
        self._prompt_most = self._prompt_most or most_prompt_tokens(self.body)
        return self._prompt_most

    @property
    def expected_tokens(self) -> float:
        """What a limit a minute is charged until more is known: a token for three bytes, and the longest answer."""
        return self.prompt_most / 3 + self.answer_most

    @property
    def answer_most(self) -> int:
        """The longest answer."""
        return answer_limit(self.body) or self.request.max_tokens

    @property
    def most_usd(self) -> float:
        """The most that it can cost; infinite where the body names no longest answer."""
        price = self.spec.price
        if price is None:
            return 0.0
        batch, limit = self.spec.batch, answer_limit(self.body)
        per_token = price.usd(0, 1, batch=batch)
        return price.usd(self.prompt_most, limit, batch=batch) if limit or not per_token else inf

    def stands(self, reply: Reply) -> bool:
        """Whether this reply is the one to hand out: it is accepted, or there are no attempts left."""
        return self.attempt + 1 >= self.request.attempts or self.request.accept(reply)

    def ask_anew(self) -> None:
        """Make it its next attempt: the same request with another seed."""
        self.attempt, self.tries = self.attempt + 1, 0
        self._render(replace(self.request, seed=request_seed(self.request.seed, "attempt", self.attempt)))

    def find(self, journal: Journal) -> bool:
        """Go on to the first attempt that the journal does not hold; True where a reply in it stands."""
        while (kept := journal.get(self.key)) is not None:
            try:
                reply = read_reply(kept)
            except ValueError as error:
                raise journal.unusable(error) from error
            if self.stands(reply):
                self.settle(reply)
                return True
            self.ask_anew()
        return False

    def settle(self, outcome: Reply | BaseException | None) -> None:
        """Give its future an outcome, unless it has one."""
        try:
            if isinstance(outcome, Reply):
                self.future.set_result(outcome)
            else:
                self.future.set_exception(outcome)
        except InvalidStateError:
            pass
