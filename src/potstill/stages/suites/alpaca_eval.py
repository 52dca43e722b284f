"""Suite `alpaca_eval`: one answer a prompt, compared with a baseline's (Li et al. 2023; Dubois et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from potstill.errors import DataError
from potstill.evaluation import published
from potstill.evaluation.alpaca_eval import WIN_RATE, Annotation, read_annotations
from potstill.evaluation.comparing import Contest, Form, Orders, label_share, mean_share, ranking_share
from potstill.evaluation.continued import take_annotations
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Sheet, blank
from potstill.evaluation.statistics import Observation
from potstill.reading.files import read_lines
from potstill.records import Prompt
from potstill.sources import Model
from potstill.stages.asking import Prompts
from potstill.stages.base import Reference
from potstill.stages.suites.base import Bench, Crowd, FilePath, Load, names_of
from potstill.stages.suites.compared import ComparedSuite
from potstill.teachers.base import Reply, Request, request_seed
from potstill.teachers.pairwise import SCHEMA, read_comparison, render_pair_prompt
from potstill.teachers.sittings import is_structured

if TYPE_CHECKING:
    from potstill.evaluation.length_control import Difficulty

LENGTH_CONTROLLED = Measure("alpaca_eval_length_controlled", (0.0, 1.0), unit="share won")
"""Of Student's interval, not of Wilson's: what a question adds to it is no share, for it moves the regression's weights
too. So it is a rate of all questions alone, and not of a category's, of which AlpacaEval gives none either."""
CONTROLLED = "/length_controlled"
"""What stands behind a suite's name where its win rate is the one at equal length."""
LISTED = 5
"""Likeliest first tokens that a judge is asked for, as AlpacaEval 2 does."""
OWN_PROMPTS = ("pairwise_system", "pairwise_label_system", "pairwise_user")
Label = Annotated[str, Field(pattern=r"^\S{1,16}$")]


class AlpacaEvalSuite(ComparedSuite):
    """One answer a prompt, compared by a judge with a baseline's, as AlpacaEval does: the win rate, and beside it what
    it would be at equal length."""

    protocol: Literal["alpaca_eval"]
    questions: Annotated[str, Reference(("prompts",))] = "shipped:instructions"
    """Prompts, held out from training. Default: those that come with potstill, which are its own: scores on them do not
    compare with published ones."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the answers. AlpacaEval pins it per model; 0.7 is what it has for most open ones, Zephyr's among them."""
    verdict: Literal["choice", "logprob"] = "choice"
    """choice: the judge says in words which is better, or neither (AlpacaEval 1). logprob: it says a label of one
    token, and the win is shared by the probabilities of both labels (AlpacaEval 2): it has to give log-probabilities.
    """
    orders: Orders = "drawn"
    """drawn: each comparison in one order, drawn by seed and question, as AlpacaEval does. both: in both, the mean
    counts, so that a judge's liking for a place cancels; at twice the price."""
    labels: tuple[Label, Label] = ("1", "2")
    """For `verdict: logprob`, what the judge is to call the first and the second text."""
    prompt_files: dict[str, FilePath] = Field(default_factory=dict)
    """Your own wording in place of potstill's, by the prompt's name: pairwise_system, pairwise_label_system,
    pairwise_user. Jinja2 text; the originals, with the blanks that each may use, lie in potstill/prompts. Under your
    own words a verdict may also be a ranking as AlpacaEval 1 asks for it: [{'model': 'model_1', 'rank': 1}, ...]."""
    difficulty: FilePath | None = None
    """How difficult each instruction is, for the win rate at equal length: AlpacaEval's instruction_difficulty.csv or
    df_gamed.csv, in the order of the questions. Without it that regression knows length alone."""
    judgments: FilePath | None = None
    """Judgments that are there already, as AlpacaEval keeps them (annotations.json): those of the same instruction,
    model, judge and answers are taken over, and only the others are asked for."""

    @field_validator("prompt_files")
    @classmethod
    def _known_prompts(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if name not in OWN_PROMPTS:
                raise ValueError(f"there is no prompt '{name}' here; expected one of: {', '.join(OWN_PROMPTS)}")
        return files

    @field_validator("labels")
    @classmethod
    def _two_labels(cls, labels: tuple[str, str]) -> tuple[str, str]:
        if labels[0] == labels[1]:
            raise ValueError(f"both labels are '{labels[0]}': nobody could tell which text is meant")
        return labels

    def prompts(self, bench: Bench, name: str) -> list[Prompt]:
        return [prompt.model_copy(update={"follow_ups": ()}) for prompt in super().prompts(bench, name)]

    def answer_temperature(self, category: str) -> float:
        return self.temperature

    def results(self, name: str) -> tuple[str, ...]:
        return name, name + CONTROLLED

    def load(self, rows: int, crowd: Crowd) -> Load:
        times = 2 if self.orders == "both" else 1
        return Load(
            lines=rows * (crowd.rows + 1),
            answers=rows * (crowd.models + crowd.others),
            judgments=rows * crowd.rows * times,
        )

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        super().check_rows(bench, name, prompts)
        self._difficulty(bench, name)
        form = self._form(bench, name, bench.judge(name))
        for sheet in map(blank, prompts):
            form.ask(sheet, sheet, 0)
        stored = [(row.annotator, frozenset({row.generator_2}), row.instruction) for row in self._stored(bench, name)]
        bench.check_judgments(name, stored, (prompt.messages[-1].content for prompt in prompts))

    def take_over(self, bench: Bench, name: str, sheets: list[Sheet]) -> list[Sheet]:
        if self.judgments is None:
            return sheets
        compared = self.contests(bench, name, sheets)
        taken = take_annotations(compared, self._stored(bench, name), names_of(bench.judge(name)), self.orders)
        return self.with_taken(bench, name, sheets, compared, taken, 2 if self.orders == "both" else 1)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        judge = bench.judge(name)
        compared = self.contests(bench, name, sheets)
        graded = bench.compare(judge, compared, self.orders, self._form(bench, name, judge))
        compared = [replace(contest, model=sheet) for contest, sheet in zip(compared, graded, strict=True)]
        self.keep_baseline(bench, name, compared)
        bench.keep(name, WIN_RATE, graded)
        self.tell(bench, name, compared)
        folder = bench.work.path / published.ALPACA_EVAL / name
        annotations = published.write_comparisons(folder, judge.name, compared, self.orders)
        bench.notes[name] |= {"average_length": _lengths(annotations)}
        self._control_length(bench, name, compared, annotations)

    def _control_length(
        self, bench: Bench, name: str, compared: Sequence[Contest], annotations: Mapping[str, Sequence[Annotation]]
    ) -> None:
        """What the win rate would be at equal length, as a result of its own: SUITE/length_controlled."""
        from potstill.evaluation import length_control  # imports numpy

        file, difficulty = bench.file(name, "difficulty"), self._difficulty(bench, name)
        prompts: dict[str, list[Prompt]] = {}
        for contest in compared:
            prompts.setdefault(contest.model.model, []).append(contest.model.prompt)
        rows: dict[str, list[Observation]] = {}
        missing: dict[str, str] = {}
        for model, found in annotations.items():
            try:
                values = length_control.fit(found, difficulty, file.name if file else f"suites.{name}").values
            except DataError as error:
                missing[model] = error.what
                continue
            rows[model] = [
                Observation(prompt.id, "1", None if value is None else value / 100)
                for prompt, value in zip(prompts[model], values, strict=True)
            ]
        if rows:
            bench.results[name + CONTROLLED] = SuiteResult(LENGTH_CONTROLLED, rows)
        told = {"explained_by": "length and instruction difficulty" if difficulty else "length alone"}
        bench.notes[name]["length_controlled"] = told | ({"not_fitted": missing} if missing else {})

    def _difficulty(self, bench: Bench, name: str) -> "Difficulty | None":
        from potstill.evaluation import length_control  # imports numpy

        file = bench.file(name, "difficulty")
        return None if file is None else length_control.read_difficulty(read_lines(file.path), file.name)

    def _stored(self, bench: Bench, name: str) -> list[Annotation]:
        """The annotations that are there already."""
        file = bench.file(name, "judgments")
        return [] if file is None else read_annotations(read_lines(file.path), file.name)

    def _form(self, bench: Bench, name: str, judge: Model) -> Form:
        limit = 1 if self.verdict == "logprob" else bench.config.judge_max_tokens
        voice = _Voice(self, Prompts(bench.inputs, f"suites.{name}."), judge, limit, bench.work.seed)
        return Form(voice.ask, voice.read, mean_share)


@dataclass(frozen=True)
class _Voice:
    """How one judge is asked to compare, and how it is read."""

    config: AlpacaEvalSuite
    words: Prompts
    judge: Model
    max_tokens: int
    seed: int

    def ask(self, one: Sheet, other: Sheet, turn: int) -> Request:
        conversation, texts = one.conversation(turn), self._texts(one, other, turn)
        seed = request_seed(self.seed, one.prompt.id, "alpaca_eval")
        if self.config.verdict == "choice":
            structured = is_structured(self.judge)
            messages = render_pair_prompt(conversation, texts, structured=structured, render=self.words.render)
            return Request(messages, self.max_tokens, seed=seed, schema=SCHEMA if structured else "")
        messages = render_pair_prompt(conversation, texts, labels=self.config.labels, render=self.words.render)
        # At temperature 1 the probabilities are the model's own with every server; the word drawn is not read.
        return Request(messages, self.max_tokens, temperature=1.0, seed=seed, top_logprobs=LISTED)

    def read(self, one: Sheet, other: Sheet, turn: int, reply: Reply) -> tuple[float | None, str]:
        if self.config.verdict == "logprob":
            return label_share(reply, self.config.labels, self.judge.name)
        if reply.finish not in ("stop", "length"):
            return None, reply.reason or f"no judgment: {reply.finish}"
        if self.config.prompt_files and (share := ranking_share(reply.text)) is not None:
            return share, ""
        quoted = (one.turns[turn].user, *self._texts(one, other, turn))
        rating = read_comparison(reply.text, structured=is_structured(self.judge), quoted=quoted)[0]
        return rating.score, "" if rating.score is not None else rating.rationale

    @staticmethod
    def _texts(one: Sheet, other: Sheet, turn: int) -> tuple[str, str]:
        return one.turns[turn].assistant or "", other.turns[turn].assistant or ""


def _lengths(annotations: dict[str, list[Annotation]]) -> dict[str, Any]:
    """Mean lengths of the answers in characters, the baseline's among them."""
    found: dict[str, list[int]] = {}
    for rows in annotations.values():
        found.setdefault(rows[0].generator_1, [len(row.output_1) for row in rows if row.output_1 is not None])
        found[rows[0].generator_2] = [len(row.output_2) for row in rows if row.output_2 is not None]
    return {name: round(sum(lengths) / len(lengths), 1) for name, lengths in found.items() if lengths}
