"""What is right and wrong with an answer, checked against the truth. The judge's words are made from this."""

import ast
import re
from dataclasses import dataclass

from potstill.miniature.tasks import PEOPLE, PERSONAS, Ask, Code, Compare, Describe, Extract, Fact, Sum
from potstill.miniature.voices import ideal
from potstill.miniature.world import ATTRIBUTES

ADMITS = re.compile(r"\b(do not|don't|does not|cannot) (know|say|tell)\b|\bnot recorded\b", re.I)
MOST_CODE = 400
"""Characters of a line that are read as code; the right ones are far shorter."""
HEDGE = re.compile(r"\b(as an ai|just an ai|language model|personal (opinions?|experiences?))\b", re.I)


@dataclass(frozen=True)
class Findings:
    """Everything a judge wants to know of one answer."""

    attempted: bool
    """It says something of the kind that was asked for."""
    correct: bool
    """What it says is true, and nothing untrue stands beside it."""
    unanswerable: bool
    """Nothing is recorded, and the right answer is to say so."""
    admits: bool
    """It says that it does not know."""
    follows: bool
    """It keeps to the wished form and persona."""
    hedged: bool
    """It talks of being an AI."""
    capitals: bool
    """Its capitals are in order."""
    excess_words: int
    """How much longer it is than it needs to be."""

    @property
    def concise(self) -> bool:
        return self.excess_words <= 3


def examine(ask: Ask, answer: str) -> Findings:
    """Check an answer against the truth."""
    task = ask.task
    unanswerable = isinstance(task, Fact) and task.value is None
    admits = bool(ADMITS.search(answer))
    attempted, correct = (admits, admits) if unanswerable else _check(ask, answer)
    if unanswerable and not admits:
        attempted = f"{task.attribute} of" in answer if isinstance(task, Fact) else False
    return Findings(
        attempted=attempted,
        correct=correct,
        unanswerable=unanswerable,
        admits=admits,
        follows=_follows(ask, answer),
        hedged=bool(HEDGE.search(answer)),
        capitals=_capitals(ask, answer),
        excess_words=max(0, len(answer.split()) - len(ideal(ask).split())),
    )


def _capitals(ask: Ask, answer: str) -> bool:
    letters = "".join(filter(str.isalpha, answer))
    if isinstance(ask.task, Code) or not any(map(str.isupper, ideal(ask))):
        return True
    begins_small = answer.lstrip()[:1].islower() and letters.islower()  # "8 minus 8 is 0." has no capital to lose
    return not begins_small and not (letters.isupper() and len(letters) > 3)


def _check(ask: Ask, answer: str) -> tuple[bool, bool]:
    """(attempted, correct) for a question that has an answer."""
    task = ask.task
    words = set(re.findall(r"\w+", answer.lower()))
    if isinstance(task, Fact):
        values = ATTRIBUTES[task.entity.sort][task.attribute]
        return _only(words, values, str(task.value))
    if isinstance(task, Compare):
        return _only(words, PEOPLE, task.short())
    if isinstance(task, Extract):
        return _only(words, task.choices(), task.short())
    if isinstance(task, Sum):
        numbers = re.findall(r"-?\d+", answer)
        told = {str(task.left), str(task.right), str(task.result)}
        return bool(numbers), bool(numbers) and numbers[-1] == str(task.result) and set(numbers) <= told
    if isinstance(task, Code):
        return _check_code(task, answer)
    return _check_description(task, words)


def _only(words: set[str], values: tuple[str, ...], truth: str) -> tuple[bool, bool]:
    said = {value for value in values if value.lower() in words}
    return bool(said), said == {truth}


def _check_code(task: Code, answer: str) -> tuple[bool, bool]:
    """The text is only ever parsed, never run."""
    found = re.search(r"def [^\n]*", answer)
    if not found:
        return False, False
    # One line of code may be followed by talk on the same line: the longest part that parses is the code.
    parts = found[0][:MOST_CODE].split(" ")
    for end in range(len(parts), 3, -1):
        try:
            tree = ast.dump(ast.parse(" ".join(parts[:end])))
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
            continue
        return True, tree == ast.dump(ast.parse(task.statement()))
    return True, False


def _check_description(task: Describe, words: set[str]) -> tuple[bool, bool]:
    named = task.entity.name.lower() in words
    true = {value.lower() for _, value in task.entity.facts}
    claimed = {value.lower() for values in ATTRIBUTES[task.entity.sort].values() for value in values} & words
    return named, named and bool(claimed) and claimed <= true


def _follows(ask: Ask, answer: str) -> bool:
    if ask.persona:
        exclamation = PERSONAS[ask.persona]
        if not answer.startswith(exclamation):
            return False
        answer = answer[len(exclamation) :]
    words = re.findall(r"[\w'-]+", answer)
    kind, _, word = ask.style.partition(" ")
    if kind == "one":
        return len(words) == 1
    if kind == "start":
        return bool(words) and words[0].lower() == word.lower()
    if kind == "end":
        return bool(words) and words[-1].lower() == word.lower()
    if isinstance(ask.task, Describe):
        return len(re.findall(r"[.!?](?:\s|$)", answer)) == ask.task.sentences
    return True
