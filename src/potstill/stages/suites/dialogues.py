"""What MT-Bench's two protocols have in common: its temperatures, its references, its judge prompts, its judgments."""

from typing import Annotated

from pydantic import Field

from potstill.errors import DataError
from potstill.evaluation import mt_bench
from potstill.evaluation.fastchat import read_judge_prompts
from potstill.evaluation.judge_prompts import Examiner, Type
from potstill.evaluation.recorded import read_recorded
from potstill.reading.files import read_lines
from potstill.records import Prompt
from potstill.stages.suites.base import Bench, FilePath, JudgedSuite
from potstill.validation import nearest

Temperature = Annotated[float, Field(ge=0)]


class DialogueSuite(JudgedSuite):
    """Dialogues of MT-Bench's kind."""

    references: FilePath | None = None
    """Reference answers as FastChat keeps them (reference_answer/JUDGE.jsonl), in place of those of the questions."""
    judge_prompts: FilePath | None = None
    """Your copy of FastChat's judge_prompts.jsonl: the judge is asked in the benchmark's words, not in potstill's."""
    judgments: FilePath | None = None
    """Judgments that are there already, as FastChat keeps them: those of the same question, model, turn, judge and
    answer are taken over, and only the others are asked for. They name the judge as the recipe or its server does."""
    temperatures: dict[str, Temperature] = Field(default_factory=dict)
    """Of the answers, by category; in others the benchmark's: 0.7 for writing and roleplay, 0.1 for stem and
    humanities, else 0."""

    def answer_temperature(self, category: str) -> float:
        return self.temperatures.get(category, mt_bench.temperature(category))

    def prompts(self, bench: Bench, name: str) -> list[Prompt]:
        self._check_categories(bench, name)
        found = super().prompts(bench, name)
        file = bench.file(name, "references")
        if file is None:
            return found
        known = read_recorded(file.path, file.name)
        said = [tuple(text or "" for text in known.to(prompt)) for prompt in found]
        return [prompt.model_copy(update={"references": told}) for prompt, told in zip(found, said, strict=True)]

    def _check_categories(self, bench: Bench, name: str) -> None:
        """DataError where a temperature is of a category that no question has. A trial sees a few of them alone."""
        data = bench.inputs.one(f"suites.{name}.questions")
        if not self.temperatures or data.part is not None:
            return
        there = {prompt.category for prompt in data.rows(Prompt)}
        for category in self.temperatures:
            if category not in there:
                known = sorted(there - {""})
                what = f"suites.{name}.temperatures has '{category}', which is the category of none of its questions"
                known_as = f"Name one of: {', '.join(known)}" if known else "Omit it: no question here has a category"
                raise DataError(data.name, what + nearest(category, known), known_as)

    def examiner(self, bench: Bench, name: str, kind: Type) -> Examiner:
        """How the judge is asked."""
        limit, seed = bench.config.judge_max_tokens, bench.work.seed
        file = bench.file(name, "judge_prompts")
        if file is None:
            return Examiner(kind, limit, seed)
        prompts = {prompt.name: prompt for prompt in read_judge_prompts(read_lines(file.path), file.name)}
        return Examiner(kind, limit, seed, prompts, file.name)

    def asked_alike(self) -> str:
        """For a forecast: suites of which this is the same share the answers."""
        own = ",".join(f"{category}={value:g}" for category, value in sorted(self.temperatures.items()))
        return f"{self.questions} {own}".strip()
