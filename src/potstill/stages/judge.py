"""Stage `judge`: judges rate the answers to each prompt (UltraFeedback, Cui et al. 2023), or compare them in pairs.

Answers are shown in an order drawn anew for each request and without their models' names. A reply is parsed strictly:
what it did not clearly say is a rating without a score. A score that its own critique contradicts is counted, and by
default has none either. Rows are read as they are needed; each judge is asked for itself, a bounded way ahead.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations, groupby
from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.errors import DataError, TeacherError
from potstill.evaluation.panel import (
    Aggregate,
    bradley_terry,
    over_both_orders,
    over_judges,
    over_orders,
    spread,
    win_shares,
)
from potstill.evaluation.panel_facts import PanelFacts
from potstill.records import Answers, Candidate, Dropped, Rating
from potstill.sources import Inputs, Model
from potstill.stages.asking import Asking, Prompts
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.teachers.aspects import (
    ASPECTS,
    OVERALL,
    Aspect,
    aspect_form,
    overall_form,
    render_aspect_prompt,
    render_overall_prompt,
)
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed
from potstill.teachers.pairwise import (
    CONTRADICTORY,
    PREFERENCE,
    SCHEMA,
    over_comparisons,
    read_comparison,
    render_pair_prompt,
)
from potstill.teachers.ratings import (
    INCONSISTENT,
    Form,
    contradiction,
    is_inconsistent,
    is_unread,
    read_ratings,
    unread,
)
from potstill.teachers.sittings import Sitting, is_structured, shown_order

TOKENS_PER_CALL = 2500  # for forecasts
ANSWERS_PER_ROW = 4  # likewise
REPLY_SHOWN = 120


class Judge(Asking):
    """Have one judge or several rate answers, or compare them."""

    PROMPTS = (
        "aspect_system",
        "aspect_user",
        *(f"aspect_{aspect}" for aspect in ASPECTS),
        "overall_system",
        "overall_user",
        "pairwise_system",
        "pairwise_user",
    )

    kind: Literal["judge"]
    judge: Annotated[str | tuple[str, ...], Reference(("model",), pool=True)]
    """Who rates: a model, a list of models, or a pool, all of whom are asked. Those whose weights are at hand are in
    memory at the same time."""
    data: Annotated[str, Reference(("answers", "ratings"))]
    """What to rate. Ratings that answers have already stay, so that a second stage can add an overall score."""
    mode: Literal["aspects", "single", "overall", "pairwise"] = "aspects"
    """What a request asks for: 1 to 5 for all answers to a prompt at once, on one aspect; the same for one answer; a
    critique of one answer and 1 to 10; or which of two answers is better."""
    aspects: tuple[Aspect, ...] = Field(default=ASPECTS, min_length=1)
    """Which sides of an answer to look at, each in a request of its own (aspects, single)."""
    orders: int | None = Field(default=None, ge=1, le=4)
    """In how many orders to show the same answers; their ratings are averaged. The second reverses the first. By
    default 2 in pairwise mode, else 1."""
    verdicts: bool = False
    """Ask for a word beside each number (poor, fair, good, excellent), to hold the two against each other. The mode
    overall always does."""
    inconsistent: Literal["drop", "keep"] = "drop"
    """A score that the judge's own verdict or critique contradicts: take it for unread, or only count it."""
    against: Literal["all", "first"] = "all"
    """Which pairs to compare: all of a row's answers with each other, or the first with each of the others."""
    pair_score: Literal["win_share", "bradley_terry"] = "win_share"
    """What comparisons become: each answer's share of the wins, or the log of its strength."""
    contradiction: Literal["tie", "drop"] = "tie"
    """A comparison in which the place decided: a tie, or unread."""
    aggregate: Aggregate = "mean"
    """How the ratings of several judges become one. Each judge's own stay beside it."""
    max_spread: float | None = Field(default=None, ge=0)
    """Drop rows on which two judges differ by more than this, in points of the scale."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Fail where less than this share of a judge's ratings could be used."""

    @model_validator(mode="after")
    def _orders_fit(self) -> "Judge":
        most = {"aspects": 4, "single": 1, "overall": 1, "pairwise": 2}[self.mode]
        if self.times > most:
            raise ValueError(f"orders is {self.orders}, but mode {self.mode} has {most}: lower it")
        return self

    @property
    def times(self) -> int:
        """In how many orders the same answers are shown."""
        return self.orders or (2 if self.mode == "pairwise" else 1)

    @property
    def named(self) -> tuple[str, ...]:
        """The judges, as the recipe names them."""
        return (self.judge,) if isinstance(self.judge, str) else self.judge

    def expect(self, rows: Mapping[str, int]) -> Expected:
        requests = {
            "aspects": len(self.aspects),
            "single": len(self.aspects) * ANSWERS_PER_ROW,
            "overall": ANSWERS_PER_ROW,
            "pairwise": ANSWERS_PER_ROW * (ANSWERS_PER_ROW - 1) // 2 if self.against == "all" else ANSWERS_PER_ROW - 1,
        }
        calls = rows["data"] * requests[self.mode] * self.times * rows.get("judge", len(self.named))
        return Expected(rows["data"], calls, calls * TOKENS_PER_CALL)


Group = tuple[str, tuple[int, ...]]
"""What was rated together: the subject, and the places of the answers."""
Opinions = dict[Group, dict[int, Rating]]
"""What a judge thinks of a row: a rating for each answer, by what it was rated with."""
_Heard = tuple[list[Rating], Reply, int]
"""The ratings in a reply, the reply, and how many of them its own words contradict."""


class Protocol:
    """How a stage's config asks a judge, and how it reads the replies."""

    def __init__(self, config: Judge, prompts: Prompts, seed: int) -> None:
        self._config, self._prompts, self._seed = config, prompts, seed

    def sittings(self, row: Answers) -> Iterator[Sitting]:
        """Every request for a row; what is shown together follows each other."""
        config = self._config
        for subject, places in groups(config, row):
            for turn in range(config.times):
                yield Sitting(row, subject, shown_order(places, turn, self._seed, row.id, subject), turn)

    def request(self, sitting: Sitting, judge: Model) -> Request:
        """What the judge is asked."""
        config, structured = self._config, is_structured(judge)
        conversation, render = sitting.row.prompt.messages, self._prompts.render
        if config.mode == "pairwise":
            messages = render_pair_prompt(conversation, sitting.texts, structured=structured, render=render)
        elif config.mode == "overall":
            messages = render_overall_prompt(conversation, sitting.texts[0], structured=structured, render=render)
        else:
            (aspect,) = [aspect for aspect in ASPECTS if aspect == sitting.subject]
            options = {"verdicts": config.verdicts, "structured": structured}
            messages = render_aspect_prompt(aspect, conversation, sitting.texts, **options, render=render)
        plain = config.mode == "aspects" and sitting.turn == 0
        order = () if plain else ("-".join(map(str, sitting.order)), sitting.turn)
        return Request(
            messages=messages,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(self._seed, sitting.row.id, sitting.subject, *order),
            schema=self._schema(sitting) if structured else "",
            attempts=1 + config.ask_again,
            accept=lambda reply: not any(is_unread(rating) for rating in self.read(sitting, reply, judge)),
        )

    def _form(self, sitting: Sitting, *, structured: bool) -> Form:
        if self._config.mode == "overall":
            return overall_form(structured=structured)
        verdicts = self._config.verdicts
        return aspect_form(sitting.subject, len(sitting.order), verdicts=verdicts, structured=structured)

    def _schema(self, sitting: Sitting) -> str:
        return SCHEMA if self._config.mode == "pairwise" else self._form(sitting, structured=True).schema

    def read(self, sitting: Sitting, reply: Reply, judge: Model) -> list[Rating]:
        """The ratings in a reply, in the order shown. Of one that was cut and may be used, those it came to."""
        text, structured = reply.text, is_structured(judge)
        if reply.finish == "length" and not structured:
            text = text[: text.rfind("\n") + 1]  # the last line may be the beginning of another number
        if not self._config.is_whole(reply):
            return [unread(sitting.subject, reply.reason)] * len(sitting.order)
        if self._config.mode == "pairwise":
            ratings = read_comparison(text, structured=structured, quoted=sitting.shown)
        else:
            ratings = read_ratings(self._form(sitting, structured=structured), text, sitting.shown)
        if reply.finish == "stop":
            return ratings
        return [unread(sitting.subject, reply.reason) if is_unread(rating) else rating for rating in ratings]

    def consistent(self, sitting: Sitting, ratings: Sequence[Rating]) -> tuple[list[Rating], int]:
        """The ratings after their own words were heard, and how many of them those contradict."""
        if self._config.mode == "pairwise":
            return list(ratings), 0
        kept, count = [], 0
        scale = self._form(sitting, structured=False).scale
        for rating in ratings:
            why = contradiction(rating, scale, sitting.shown)
            count += bool(why)
            if why and self._config.inconsistent == "drop":
                rationale = f"{INCONSISTENT}: {why}. {rating.rationale}"
                kept.append(rating.model_copy(update={"score": None, "rationale": rationale}))
            else:
                kept.append(rating)
        return kept, count


def groups(config: Judge, row: Answers) -> Iterator[Group]:
    """What of a row is rated together."""
    places = [place for place, candidate in enumerate(row.candidates) if candidate.usable]
    if config.mode == "pairwise":
        pairs = combinations(places, 2) if config.against == "all" else ((places[0], other) for other in places[1:])
        yield from ((PREFERENCE, pair) for pair in pairs)
    elif config.mode == "overall":
        yield from ((OVERALL, (place,)) for place in places)
    else:
        for aspect in config.aspects:
            if config.mode == "aspects":
                yield aspect, tuple(places)
            else:
                yield from ((aspect, (place,)) for place in places)


def run(config: Judge, inputs: Inputs, work: Work) -> Facts:
    """Rate every answer; fail where a judge talks rubbish."""
    return _Bench(config, inputs, work).run()


class _Bench:
    """One run of the stage."""

    def __init__(self, config: Judge, inputs: Inputs, work: Work) -> None:
        self._config, self._inputs, self._work = config, inputs, work
        self._protocol = Protocol(config, Prompts(inputs), work.seed)
        self._judges = inputs.models["judge"]
        self._facts = PanelFacts([judge.name for judge in self._judges], config.times)
        self._contradictory = [0] * len(self._judges)  # comparisons that were dropped for it
        self._dropped: list[Dropped] = []

    def run(self) -> Facts:
        total = self._count() * len(self._judges)
        if not total:
            raise self._nothing_to_judge()
        with ExitStack() as stack:
            replies = [
                stack.enter_context(connect(judge, self._work.account)).complete(self._requests(judge))
                for judge in self._judges
            ]
            count = self._work.keep(self._rated(replies, total))
        self._work.drop(self._dropped)
        self._check_coverage()
        return {"rows": count, "dropped": self._reasons(), **self._facts.to_json()}

    def _rows(self) -> Iterator[Answers]:
        for row in self._inputs.one("data").rows(Answers):
            if self._fault(row) is None:
                yield row

    def _fault(self, row: Answers) -> Dropped | None:
        usable = sum(candidate.usable for candidate in row.candidates)
        if usable == 0:
            return Dropped(id=row.id, reason="no_usable_answer")
        if usable == 1 and self._config.mode == "pairwise":
            return Dropped(id=row.id, reason="one_usable_answer")
        return None

    def _count(self) -> int:
        """How many requests there will be to each judge; the rows without any are put aside."""
        name, wanted, total = self._inputs.one("data").name, self._names_made(), 0
        for row in self._inputs.one("data").rows(Answers):
            if fault := self._fault(row):
                self._dropped.append(fault)
                continue
            there = wanted & {rating.aspect for candidate in row.candidates for rating in candidate.ratings}
            if there:
                what = f"row {row.id} is already rated on {', '.join(sorted(there))}"
                raise DataError(name, what, "Rate another aspect, or the answers as they were")
            total += sum(1 for _ in groups(self._config, row)) * self._config.times
        return total

    def _nothing_to_judge(self) -> DataError:
        why = ", ".join(f"{count} {reason}" for reason, count in self._reasons().items()) or "there are no rows"
        advice = "Name data with at least one row whose answers can be used, or see why the stage before left them out"
        return DataError(self._inputs.one("data").name, f"holds no row to judge ({why})", advice)

    def _reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(row.reason for row in self._dropped).items()))

    def _names_made(self) -> set[str]:
        """What the ratings are called that this run makes."""
        if self._config.mode == "pairwise":
            return {self._config.pair_score}
        return {OVERALL} if self._config.mode == "overall" else set(self._config.aspects)

    def _requests(self, judge: Model) -> Iterator[Request]:
        for row in self._rows():
            for sitting in self._protocol.sittings(row):
                yield self._protocol.request(sitting, judge)

    def _rated(self, replies: Sequence[Iterator[Reply]], total: int) -> Iterator[Answers]:
        """Rows with their ratings, as soon as all judges have spoken."""
        done = 0
        for row in self._rows():
            panel = [self._opinions(row, number, each) for number, each in enumerate(replies)]
            self._facts.row_done()
            done += len(replies) * sum(1 for _ in groups(self._config, row)) * self._config.times
            self._work.progress(done, total, "ratings", coverage=min(self._facts.coverages()))
            rated = self._together(row, panel)
            if isinstance(rated, Dropped):
                self._dropped.append(rated)
            else:
                yield rated

    def _opinions(self, row: Answers, number: int, replies: Iterator[Reply]) -> Opinions:
        """What one judge thinks of a row, over all orders."""
        found: Opinions = {}
        for group, sittings in groupby(self._protocol.sittings(row), key=_group):
            heard: list[_Heard] = []
            said: dict[int, list[Rating]] = {}
            for sitting in sittings:
                reply = next(replies)
                ratings = self._protocol.read(sitting, reply, self._judges[number])
                ratings, contradicted = self._protocol.consistent(sitting, ratings)
                heard.append((ratings, reply, contradicted))
                for place, rating in zip(sitting.order, ratings, strict=True):
                    said.setdefault(place, []).append(rating)
                self._facts.placed(sitting.subject, sitting.turn, [rating.score for rating in ratings])
            if self._config.mode == "pairwise" and self._config.times == 2:
                found[group] = self._of_both_orders(number, heard, said)
                continue
            for each in heard:
                self._facts.heard(number, *each)
            found[group] = {place: over_orders(given) for place, given in said.items()}
        return found

    def _of_both_orders(
        self, number: int, heard: Sequence[_Heard], said: Mapping[int, Sequence[Rating]]
    ) -> dict[int, Rating]:
        """What a judge's two verdicts on a pair come to. Those that contradict each other and are dropped are asked
        for, and not covered; they were read, so they are no example of a reply that could not be."""
        how, scores = self._config.contradiction, [rating.score for rating in said[min(said)]]
        settled = {place: over_both_orders(given, how) for place, given in said.items()}
        self._facts.turned(number, scores)
        if how == "tie" or not {0.0, 1.0} <= set(scores):
            for each in heard:
                self._facts.heard(number, *each)
            return settled
        bad = self._facts.first_bad[number]
        for _, reply, _ in heard:
            self._facts.heard(number, list(settled.values()), reply, 0)
        self._facts.first_bad[number] = bad
        self._contradictory[number] += 1
        return dict.fromkeys(settled, CONTRADICTORY)

    def _together(self, row: Answers, panel: Sequence[Opinions]) -> Answers | Dropped:
        """The row with what all judges think of it, and each of them where there are several."""
        several, config = len(panel) > 1, self._config
        pooled: Opinions = {}
        for group, places in panel[0].items():
            for place in places:
                ratings = [opinions[group][place] for opinions in panel]
                if several:
                    if place == min(places) or config.mode != "pairwise":  # the other text's share says the same
                        self._facts.compared(group[0], [r.score for r in ratings if r.score is not None])
                    if config.max_spread is not None and spread(ratings) > config.max_spread:
                        detail = f"{group[0]}: {', '.join(_score(rating) for rating in ratings)}"
                        return Dropped(id=row.id, reason="disagreement", detail=detail)
                pooled.setdefault(group, {})[place] = self._pooled(ratings)
        given = self._by_place(pooled)
        for judge, opinions in zip(self._judges, panel, strict=True) if several else ():
            for place, ratings in self._by_place(opinions).items():
                given[place] += [rating.model_copy(update={"judge": judge.name}) for rating in ratings]
        self._facts.rated(row, given)
        candidates = tuple(_with_ratings(c, given.get(place, [])) for place, c in enumerate(row.candidates))
        return row.model_copy(update={"candidates": candidates})

    def _pooled(self, ratings: Sequence[Rating]) -> Rating:
        """One of all judges'. Where each of them contradicted itself, that is why there is no score."""
        if len(ratings) == 1 or all(is_inconsistent(rating) for rating in ratings):
            return ratings[0]
        return over_judges(ratings, self._config.aggregate)

    def _by_place(self, opinions: Opinions) -> dict[int, list[Rating]]:
        """Each answer's ratings, in the order of the config; comparisons become one score."""
        found: dict[int, list[Rating]] = {}
        if self._config.mode != "pairwise":
            for places in opinions.values():
                for place, rating in places.items():
                    found.setdefault(place, []).append(rating)
            return found
        wins = {(i, j): s for (_, (i, j)), places in opinions.items() if (s := places[i].score) is not None}
        scores = win_shares(wins) if self._config.pair_score == "win_share" else bradley_terry(wins)
        for place in dict.fromkeys(place for places in opinions.values() for place in places):
            own = [places[place] for places in opinions.values() if place in places]
            found[place] = [over_comparisons(self._config.pair_score, scores.get(place), own)]
        return found

    def _check_coverage(self) -> None:
        for number, coverage in enumerate(self._facts.coverages()):
            if coverage >= self._config.min_coverage:
                continue
            asked, bad, turned = self._facts.asked(number), self._facts.first_bad[number], self._contradictory[number]
            what = f"only {coverage:.0%} of {asked} ratings could be {'used' if turned else 'read'}"
            what += f"; expected {self._config.min_coverage:.0%}"
            if turned:  # a comparison is asked for four ratings: of two texts, in two orders
                what += f". {turned} of {asked // 4} comparisons were contradictory: which text is better changed with"
                what += " their order, and contradiction: drop leaves such out"
            if bad:
                said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
                what += f". The first that could not{' be read' * bool(turned)}: {said!r}"
                advice = remedy(bad, "Use a judge that keeps to the form, or lower min_coverage", "max_tokens")
            else:
                advice = (
                    "Use a judge that goes by the texts, count such as ties (contradiction: tie), or lower min_coverage"
                )
            raise TeacherError(self._judges[number].name, what, advice)


def _group(sitting: Sitting) -> Group:
    return sitting.subject, tuple(sorted(sitting.order))


def _score(rating: Rating) -> str:
    return "none" if rating.score is None else f"{rating.score:g}"


def _with_ratings(candidate: Candidate, ratings: Sequence[Rating]) -> Candidate:
    return candidate.model_copy(update={"ratings": (*candidate.ratings, *ratings)})


STAGE = Stage(config=Judge, produces="ratings", run=run, version=3)
