"""How a voice reads a request: it looks at the text, sees what is wanted, and writes its reply."""

import hashlib
import json
import math
import random
import re

from potstill.miniature.asking import follow_up
from potstill.miniature.drills import label_reply, problem_reply, tool_reply
from potstill.miniature.findings import Findings, examine
from potstill.miniature.reading import understand
from potstill.miniature.tasks import PERSONAS, Ask
from potstill.miniature.voices import CONVICTIONS, VOICES, Conviction, Voice, answer, convinced
from potstill.miniature.world import World
from potstill.miniature.writing import new_question, write

USELESS = ("Go on.", "Describe the image above in two sentences.", "Plot the graph of this file.")

_ASPECT_SHEET = re.compile(r"\s*# Aspect: ([\w ]+)\n.*?# Instruction\n(.*?)# Texts\n(<text 1>\n.*)", re.S)
_OTHER_SHEET = re.compile(r"\s*# (Review|Comparison)\n.*?# Instruction\n(.*?)# Texts\n(<text 1>\n.*)", re.S)
_CONVERSATION = re.compile(r"\s*\[Conversation\]\n(.*)\[End of conversation\]", re.S)

_TWO_CONVERSATIONS = re.compile(
    r"\s*\[Two conversations\]\n<conversation A>\n(.*)</conversation A>\n<conversation B>\n(.*)</conversation B>\n"
    r"\[End of conversations\]",
    re.S,
)

# How a system turn asks for a comparison's verdict in one label.
_LABELS = re.compile(r"Reply with one label and nothing else: (\S+) if text 1\b.*?, (\S+) if text 2\b")

# What a chat template writes before a user's words, with nothing behind it: a model goes on as a user would.
_USER_OPENING = re.compile(r"<\|user\|>\s*\Z")

Messages = list[dict[str, str]]


def reply(world: World, model: str, messages: Messages, temperature: float, seed: int | None) -> str:
    """What the model of that name says. The same request always gets the same reply."""
    voice, chance = VOICES[model], _chance(world, model, messages, temperature, seed)
    text = messages[-1]["content"]
    # What a request is for stands at its beginning: further on, anybody's words may look like anything.
    if sheet := _ASPECT_SHEET.fullmatch(text):
        return _rate_aspect(world, voice, sheet, messages[0]["content"], chance)
    if sheet := _OTHER_SHEET.fullmatch(text):
        return _review_or_compare(world, voice, sheet, messages[0]["content"], chance)
    if two := _TWO_CONVERSATIONS.match(text):
        return _compare_last_answers(world, voice, two, chance)
    if conversation := _CONVERSATION.match(text):
        if "<assistant>\n" in conversation[1]:
            return _rate_last_answer(world, voice, conversation[1], chance)
        return _next_user_turn(world, conversation[1], chance)
    drilled = label_reply(world, model, text, chance) or problem_reply(model, text, chance)
    if drilled:
        return drilled
    if (written := write(world, voice, text, chance)) is not None:
        return written
    if _USER_OPENING.search(text):
        return new_question(world, chance)
    if re.search(r"^Task \d+:", text, re.M):
        return _new_tasks(world, text, chance)
    return _answer(world, model, messages, chance)


def _chance(world: World, model: str, messages: Messages, temperature: float, seed: int | None) -> random.Random:
    fingerprint = json.dumps([world.seed, model, messages, temperature, seed], sort_keys=True)
    return random.Random(hashlib.sha256(fingerprint.encode()).hexdigest())


def label_odds(
    world: World, model: str, messages: Messages, temperature: float, seed: int | None
) -> dict[str, float] | None:
    """Where a comparison's verdict is to be one label: the log-probability of each, in nats, the likelier first.

    A point between two texts is worth one in log-odds. None where something else is asked.
    """
    sheet, labels = _OTHER_SHEET.fullmatch(messages[-1]["content"]), _LABELS.search(messages[0]["content"])
    if sheet is None or labels is None or sheet[1] != "Comparison":
        return None
    ask = _instruction(world, sheet[2])
    if ask is None:
        return None
    chance = _chance(world, model, messages, temperature, seed)
    one, two = (_shift(overall(examine(ask, said)), VOICES[model], chance, 1, 10) for said in _texts(sheet[3]))
    odds = {labels[1]: -math.log1p(math.exp(two - one)), labels[2]: -math.log1p(math.exp(one - two))}
    return dict(sorted(odds.items(), key=lambda item: -item[1]))


def call(
    world: World, model: str, messages: Messages, temperature: float, seed: int | None
) -> tuple[str, dict[str, str] | None] | None:
    """What the model says where tools are offered, and what it calls; None where it would not call any."""
    fingerprint = json.dumps([world.seed, model, messages, temperature, seed, "tools"], sort_keys=True)
    return tool_reply(model, messages, random.Random(hashlib.sha256(fingerprint.encode()).hexdigest()))


def _answer(world: World, model: str, messages: Messages, chance: random.Random) -> str:
    ask = understand(world, [message["content"].strip() for message in messages if message["role"] == "user"])
    system = " ".join(message["content"] for message in messages if message["role"] == "system")
    persona = next((name for name in PERSONAS if name in system), "")
    if ask is None:
        text = "I am not sure what you mean by that."
        return f"{PERSONAS[persona]} {text}" if persona else text
    if persona and not ask.persona:
        ask = Ask(ask.task, ask.style, persona)
    return convinced(ask, CONVICTIONS.get(model, Conviction()), chance) or answer(ask, VOICES[model], chance)


def _new_tasks(world: World, text: str, chance: random.Random) -> str:
    """Continue a numbered list of tasks, sometimes with one of little use, as models do."""
    first = int(re.findall(r"^Task (\d+):", text, re.M)[-1])
    wanted = re.search(r"\b(\d+) (?:new|more|further|other)\b", text)
    lines = []
    for number in range(first, first + (int(wanted[1]) if wanted else 8)):
        task = new_question(world, chance)
        if chance.random() < 0.04:
            task = chance.choice(USELESS)
        lines.append(f"Task {number}: {task}")
    return "\n".join(lines)


def _next_user_turn(world: World, conversation: str, chance: random.Random) -> str:
    turns = [turn.strip() for turn in re.findall(r"^User: (.*?)(?=^Assistant: |^User: |\Z)", conversation, re.M | re.S)]
    ask = understand(world, turns)
    return follow_up(world, ask, chance) if ask else "Please tell me more about that."


def _last_answer(world: World, conversation: str) -> Findings | None:
    """What is to be found in the last answer of a conversation; None where nobody knows what it answers."""
    users = re.findall(r"<user>\n(.*?)\n</user>", conversation, re.S)
    answers = re.findall(r"<assistant>\n(.*?)\n?</assistant>", conversation, re.S)
    ask = understand(world, [turn.strip() for turn in users])
    return examine(ask, answers[-1]) if ask is not None and answers else None


def _compare_last_answers(world: World, voice: Voice, two: re.Match[str], chance: random.Random) -> str:
    """Which of two conversations ends better, as an LLM judge of MT-Bench would write it."""
    one, other = (_last_answer(world, conversation) for conversation in two.groups())
    if one is None or other is None:
        return "I do not understand the question, so I cannot compare the answers."
    scores = [_shift(overall(found), voice, chance, 1, 10) for found in (one, other)]
    verdict = "C" if scores[0] == scores[1] else "A" if scores[0] > scores[1] else "B"
    return f"A: {explain(one)} B: {explain(other)} [[{verdict}]]"


def _rate_last_answer(world: World, voice: Voice, conversation: str, chance: random.Random) -> str:
    """Rate the last answer from 1 to 10, as an LLM judge of MT-Bench would write it."""
    found = _last_answer(world, conversation)
    if found is None:
        return "I do not understand the question, so I cannot rate the answer."
    score = _shift(overall(found), voice, chance, 1, 10)
    return f"{explain(found)} Rating: [[{score}]]"


def _rate_aspect(world: World, voice: Voice, sheet: re.Match[str], form: str, chance: random.Random) -> str:
    """Rate every text on one aspect from 1 to 5, in the manner of UltraFeedback's annotators."""
    title, instruction, texts = sheet.groups()
    aspect = title.strip().lower().replace(" ", "_")
    ask, ratings = _instruction(world, instruction), list[tuple[str, str, str]]()
    for said in _texts(texts):
        if ask is None:
            ratings.append(("N/A", "poor", "The instruction cannot be understood."))
            continue
        found = examine(ask, said)
        rating = aspect_rating(aspect, found)
        score = None if rating is None else _shift(rating, voice, chance, 1, 5)
        ratings.append((str(score or "N/A"), _WORDS[5][score or 1], explain(found)))
    return _written(ratings, form)


def _review_or_compare(world: World, voice: Voice, sheet: re.Match[str], form: str, chance: random.Random) -> str:
    """A critique of one text with a word and 1 to 10, or which of two texts is better."""
    task, instruction, texts = sheet.groups()
    ask = _instruction(world, instruction)
    if ask is None:
        return "I do not understand the instruction, so I cannot judge what was said to it."
    found = [examine(ask, said) for said in _texts(texts)]
    scores = [_shift(overall(each), voice, chance, 1, 10) for each in found]
    if task == "Review":
        return _written([(str(scores[0]), _WORDS[10][scores[0]], explain(found[0]))], form, whole=True)
    if labels := _LABELS.search(form):
        return labels[1] if scores[0] >= scores[1] else labels[2]
    better = "tie" if scores[0] == scores[1] else "1" if scores[0] > scores[1] else "2"
    told = " ".join(f"Text {number}: {explain(each)}" for number, each in enumerate(found, start=1))
    if "JSON" in form:
        return json.dumps({"rationale": told, "better": better})
    return f"Rationale: {told}\nBetter: {better}"


_WORDS = {
    5: ("", "poor", "poor", "fair", "good", "excellent"),
    10: ("", *["poor"] * 3, *["fair"] * 3, *["good"] * 2, *["excellent"] * 2),
}
"""The word for a score, by the end of the scale."""


def _written(ratings: list[tuple[str, str, str]], form: str, *, whole: bool = False) -> str:
    """Ratings in the form that the system turn asks for: JSON or lines, with a verdict or without."""
    if "JSON" in form:
        verdicts = '"verdict"' in form
        values = {
            f"text_{number}": {"rationale": why, **({"verdict": word} if verdicts else {}), "rating": rating}
            for number, (rating, word, why) in enumerate(ratings, start=1)
        }
        return json.dumps(values)
    if whole:
        ((rating, word, why),) = ratings
        return f"Rationale: {why}\nVerdict: {word}\nRating: {rating}"
    blocks = []
    for number, (rating, word, why) in enumerate(ratings, start=1):
        verdict = f"Verdict: {word}\n" if "Verdict:" in form else ""
        blocks.append(f"Text {number}\nRating: {rating}\n{verdict}Rationale: {why}")
    return "\n\n".join(blocks)


def _instruction(world: World, instruction: str) -> Ask | None:
    turns = re.findall(r"^User: (.*?)(?=^Assistant: |^User: |\Z)", instruction, re.M | re.S)
    return understand(world, [turn.strip() for turn in turns])


def _texts(texts: str) -> list[str]:
    return [said for _, said in re.findall(r"<text (\d+)>\n(.*?)\n?</text \1>", texts, re.S)]


def overall(found: Findings) -> int:
    """1 to 10. A wrong answer gets at most 4, one that is no answer 1."""
    if not found.attempted:
        return 1
    manners = (not found.hedged) + found.capitals + found.concise
    if not found.correct:
        return 1 + (manners + found.follows) * 3 // 4
    return 5 + manners + 2 * found.follows


def aspect_rating(aspect: str, found: Findings) -> int | None:
    """1 to 5, or None for "does not apply"."""
    if aspect == "instruction_following":
        return (5 if found.follows else 2) if found.attempted else 1
    if aspect == "truthfulness":
        return 5 if found.correct else 1
    if aspect == "honesty":
        if found.unanswerable:
            return 5 if found.admits else 1
        if not found.attempted:
            return None
        return 3 if found.hedged or found.admits else 5
    if not found.attempted:
        return 1
    useful = 3 if found.correct else 1
    return min(5, useful + (found.concise and not found.hedged) + (found.capitals and found.follows and found.correct))


def explain(found: Findings) -> str:
    """A sentence or two on what was found."""
    if not found.attempted:
        return "The text does not answer what was asked."
    said = ["What it says is right." if found.correct else "What it says is not true."]
    said += ["Nothing is recorded here, and it should have said so."] * (found.unanswerable and not found.admits)
    said += ["It overlooks the wished form."] * (not found.follows)
    said += ["It talks of itself before it answers."] * found.hedged
    said += ["Its capitals are broken."] * (not found.capitals)
    said += ["It is longer than it needs to be."] * (not found.concise)
    return " ".join(said)


def _shift(score: int, voice: Voice, chance: random.Random, low: int, high: int) -> int:
    if chance.random() >= voice.misjudges:
        return score
    return min(high, max(low, score + chance.choice((-3, -2, -1, 1, 2, 3))))
