"""Answers, scores and curves in which a danger is planted, or is not, by seed: for the tests of the audits."""

import math
import random

from potstill.evaluation.audits.inherited_bias import Outcome
from potstill.evaluation.audits.inherited_errors import Shared
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Observation
from potstill.records import Chat, Message, Record, Text

CATEGORIES = ("history", "science", "sport", "music")
EXACT = Measure("exact", (0.0, 1.0), share=True, unit="share of questions")
VOCABULARY = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "tu", "ra", "si", "no") for b in
              ("rin", "gal", "ped", "tos", "ver", "lum", "dan", "fex", "bor", "wil", "cas", "mer")]  # fmt: skip


def copied_errors(seed: int, planted: bool, per_category: int = 100) -> list[Shared]:
    """A teacher wrong on a tenth of its history; a student that learnt that, nine times in ten, or errs on its own."""
    chance, found = random.Random(seed), []
    for category in CATEGORIES:
        for i in range(per_category):
            teacher_right = not (category == "history" and i % 10 == 0)
            copies = planted and not teacher_right and chance.random() < 0.9
            student_right = not copies and chance.random() > 0.15
            same = copies or (teacher_right and student_right)
            found.append(Shared(f"{category}{i}", category, teacher_right, student_right, same, "wrong"))
    return found


def paired_names(seed: int, planted: bool, templates: int = 40) -> list[Outcome]:
    """Answers to two names, scored from 0 to 1: the second's are a tenth of the scale worse, or as good."""
    chance, found = random.Random(seed), []
    for template in range(templates):
        ease = chance.gauss(0.6, 0.15)
        for name in ("Anna", "Zora"):
            worse = 0.15 if planted and name == "Zora" else 0.0
            score = min(1.0, max(0.0, ease - worse + chance.gauss(0, 0.1)))
            words = round(math.exp(chance.gauss(3.5, 0.15)))
            found.append(Outcome(f"t{template}", "name", name, words, chance.random() < 0.02, score))
    return found


def samples(seed: int, collapsed: bool, prompts: int = 40, each: int = 4) -> dict[str, list[str]]:
    """Answers of about twenty words; of a collapsed student most are drawn from three sentences."""
    chance = random.Random(seed)
    stock = [" ".join(chance.choices(VOCABULARY, k=20)) for _ in range(3)]

    def say() -> str:
        if collapsed and chance.random() < 0.7:
            return chance.choice(stock)
        return " ".join(chance.choices(VOCABULARY, k=chance.randint(15, 25)))

    return {f"p{i}": [say() for _ in range(each)] for i in range(prompts)}


def over_epochs(seed: int, planted: bool, questions: int = 200) -> SuiteResult:
    """Right answers of one model after 1, 2, 3 epochs: up to 70% and then down to 58%, or staying.

    What a model knows it mostly knows an epoch later: of the answers one in ten is drawn anew.
    """
    chance = random.Random(seed)
    levels = {1: 0.60, 2: 0.70, 3: 0.58 if planted else 0.70}
    hardness, found = [chance.random() for _ in range(questions)], {}
    for epochs, level in levels.items():
        right = [float((chance.random() if chance.random() < 0.1 else one) < level) for one in hardness]
        found[f"dpo[epochs={epochs}]"] = [Observation(f"q{i}", "1", value) for i, value in enumerate(right)]
    return SuiteResult(EXACT, found)


def curve(seed: int, planted: bool, evaluations: int = 10) -> list[dict[str, float | str]]:
    """A held-out loss that falls to 1 and rises by a tenth again, or stays there, with a scatter of a half per cent."""
    chance, rows = random.Random(seed), []
    for i in range(evaluations + 1):
        level = 1.0 + 0.8 * math.exp(-1.2 * i)
        if planted and i > evaluations / 2:
            level += 0.1 * (i - evaluations / 2) / (evaluations / 2)
        rows.append({"step": 10 * i, "split": "held_out", "loss": level + chance.gauss(0, 0.005)})
        rows += [{"step": 10 * i + j, "split": "train", "loss": 0.9 + math.exp(-i) + chance.gauss(0, 0.05),
                  "accuracy": min(1.0, 0.5 + i / 8)} for j in range(1, 11)]  # fmt: skip
    return rows


def questions(seed: int, count: int) -> dict[str, str]:
    """Questions that begin as half of all questions do, and go on in their own words."""
    chance = random.Random(seed)
    subjects = [" ".join(chance.choices(VOCABULARY, k=8)) for _ in range(count)]
    return {
        f"q{i}": f"Can you please explain to me in simple words what {one} means?" for i, one in enumerate(subjects)
    }


def training_rows(seed: int, leaked: list[str]) -> list[Record]:
    """Chats that ask other questions in the same opening words, and documents; among them the questions that leaked."""
    chance = random.Random(seed + 1000)
    asked = list(questions(seed + 2000, 400).values())
    chats: list[Record] = []
    for i, question in enumerate([*asked, *leaked]):
        if question in leaked and i % 2:
            question = f"Hello! {question} Thank you."
        answer = " ".join(chance.choices(VOCABULARY, k=30))
        chats.append(Chat(id=f"c{i}", messages=(Message(role="user", content=question),
                                                Message(role="assistant", content=answer))))  # fmt: skip
    documents = [Text(id=f"d{i}", text=" ".join(chance.choices(VOCABULARY, k=200))) for i in range(100)]
    return [*chats, *documents]
