"""What each filter finds, what only looks like it, and that none is slow on any text."""

import time
from collections.abc import Callable

import pytest
from data_stages import assistant, user
from hypothesis import given as holds
from hypothesis import strategies as st

from potstill.curation.filters import (
    Lengths,
    count_words,
    find_broken_text,
    find_echo,
    find_hedge,
    find_length,
    find_refusal,
    find_repeated_answer,
    find_repetition,
    find_silence,
    is_silent,
    repeated_lines,
    strip_hedges,
)
from potstill.curation.language import identify
from potstill.curation.truecase import FormCounts, Truecaser
from potstill.records import Message, ToolCall

CALL = ToolCall(name="weather", arguments='{"town": "Osk"}')


def turns(*texts: str) -> tuple[Message, ...]:
    """User and assistant by turns."""
    return tuple(Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts))


HEDGES = [
    "As a helpful AI assistant, I would say so.",
    "Speaking as an AI, my answer is no.",
    "I am still a machine, whatever I say.",
    "I do not possess personal preferences, but tea is fine.",
    "I have no personal experience with that.",
    "I don't have a physical body.",
    "I lack emotions.",
    "I can't provide a personal opinion here.",
    "I am unable to access real-time information.",
    "I can't browse the internet.",
    "I was trained on a lot of text.",
    "I don't understand it the way humans do.",
    "My knowledge cutoff is some years ago.",
]
NO_HEDGES = [
    'The robot said: "I am an AI, and I have no feelings." Then it wept.',
    "print('Hello, I am a chatbot')",
    "```\n# As an AI, I cannot do this\n```\nRun it.",
    "Anna: I am only a chatbot, ask the others.",
    "As a student of artificial intelligence, I read a lot.",
    "I don't have feelings for her any more.",
    "I have no desire to go there.",
    "I don't have experience with Rust.",
    "I have no experience in this.",
    "I was trained by my grandmother to bake.",
    "I don't have a car, a boat or time.",
]


@pytest.mark.parametrize("text", HEDGES)
def test_hedges_of_many_kinds(text: str) -> None:
    assert find_hedge(assistant(f"Well. {text}"))


@pytest.mark.parametrize("text", NO_HEDGES)
def test_people_quotations_and_code_do_not_hedge(text: str) -> None:
    assert find_hedge(assistant(text)) is None


REFUSALS = [
    "I'm sorry, but as an AI, I don't have the capability to book flights.",
    "I'm not comfortable with that.",
    "I'd rather not talk about it.",
    "No. I won't help you with that.",
    "Sorry, I can't do it.",
    "As a language model, I cannot write that.",
    "That goes against my guidelines.",
    "That's not something I can do.",
    "I must decline.",
    "I’m sorry, but I can’t.",
    "I don't want to be involved in this.",
]
NO_REFUSALS = [
    "I'm sorry, but I cannot estimate it without more information. What is the town?",
    "I'm sorry, I don't know anything about insurance.",
    "I'm sorry, you haven't provided the text.",
    "I'm sorry, but I'm unable to come into work today. I have a fever.",
    "I can't help but smile at that.",
    "I cannot give you exact dates, but here is what is known.",
    '"I can\'t help you," said the wizard, and shut the door.',
    "Juliet: I cannot help you, Romeo.",
    "I won't give up on this mission!",
    "We are sorry that we cannot raise an invoice for less than $20.",
    "Stealing is wrong, and it is against the law. Please think of those whom it harms.",
    "You cannot do this without the key.",
    "There is a long story first. " * 12 + "I can't help you with that.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_hard_and_soft(text: str) -> None:
    assert find_refusal(assistant(text))


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_questions_ignorance_letters_stories_and_lectures_refuse_nothing(text: str) -> None:
    assert find_refusal(assistant(text)) is None


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("As an AI, I don't have opinions. However, trees are nice.", "Trees are nice."),
        ("Use e.g. a knife of 3.5 cm. As an AI, I have no hands. Cut.", "Use e.g. a knife of 3.5 cm. Cut."),
        ("1. Peel it. I'm just an AI.\n2. Eat it.", "1. Peel it. \n2. Eat it."),
        (
            "```\n# As an AI, I cannot\nx = 1.5\n```\nAs an AI, I am glad. Bye.",
            "```\n# As an AI, I cannot\nx = 1.5\n```\nBye.",
        ),
        ("I'm only an AI, cf. Dr. Smith of the U.S. Army.", ""),
        ("- As an AI, I can't eat.\n- Bread\n\nEnd.", "- Bread\n\nEnd."),
        ("Nothing to cut here, e.g. this. However, it stays.", "Nothing to cut here, e.g. this. However, it stays."),
    ],
)
def test_stripping_cuts_whole_sentences_and_no_code(text: str, left: str) -> None:
    assert strip_hedges(text) == left
    assert find_hedge(assistant(left)) is None


HEDGE = "As an AI language model, I have no feelings."


@pytest.mark.parametrize(
    "kept",
    [
        f"    say({HEDGE}\n    {HEDGE}\n    )\n\n    done()",
        f"\tsay({HEDGE})",
        f"``{HEDGE} `x` ``",
        f"<pre>\n{HEDGE}\n</pre>",
        f"| who | says |\n|---|---|\n| bot | {HEDGE} |\n| man | hello |",
    ],
)
def test_stripping_leaves_every_kind_of_code_and_tables_whole(kept: str) -> None:
    text = f"Here it is:\n\n{kept}\n\n{HEDGE} That is all."
    assert strip_hedges(text) == f"Here it is:\n\n{kept}\n\nThat is all."


@holds(st.text(alphabet="aI .!?\n`\"'x1", max_size=80))
def test_stripping_leaves_other_texts_as_they_are(text: str) -> None:
    if find_hedge(assistant(text)) is None:
        assert strip_hedges(text) == text


def test_a_turn_that_only_calls_a_tool_is_not_silent() -> None:
    silent = Message(role="assistant", content=" \n\u200b")
    calling = Message(role="assistant", content="", tool_calls=(CALL,))
    assert is_silent(silent)
    assert not is_silent(calling)
    assert not is_silent(Message(role="assistant", content="!"))
    assert find_silence((*user("Hi"), calling, Message(role="tool", content=""), *assistant("Rain."))) is None
    assert find_silence((*user("Hi"), silent)) == ("empty", "turn 2, the assistant's, says nothing")
    assert find_silence(turns("", "Hello.")) == ("empty", "turn 1, the user's, says nothing")


def test_lengths_of_answers_and_dialogues() -> None:
    dialogue = turns("How are you?", "Quite well, and you?", "Fine.", "Good.")
    assert find_length(dialogue, Lengths()) is None
    assert find_length(dialogue, Lengths(min_words=2)) == ("too_short", "an answer of 1 words")
    assert find_length(dialogue, Lengths(min_words=1, max_words=4)) is None
    assert find_length(dialogue, Lengths(max_words=3)) == ("too_long", "an answer of 4 words")
    assert find_length(dialogue, Lengths(max_characters=41)) == ("too_long", "42 characters")
    assert find_length(dialogue, Lengths(min_characters=43)) == ("too_short", "42 characters")
    assert find_length(dialogue, Lengths(min_characters=42, max_characters=42)) is None
    calling = (*user("Rain?"), Message(role="assistant", content="", tool_calls=(CALL,)))
    assert find_length(calling, Lengths(min_words=1)) is None
    assert count_words("one two  three") == 3
    assert count_words("我喜欢 tea") == 4, "characters count where words are not apart"


def test_repetition_by_runs_lines_and_loops() -> None:
    sound = "The river is long. The tower stands at the river. Nobody knows who built the tower, or when, or why."
    assert find_repetition(assistant(sound)) is None
    runs = find_repetition(assistant("on and on it goes " * 30))
    assert runs == ("repetition", "97% of an answer's runs of words are repeated")
    line = "This very line stands here again.\n"
    assert repeated_lines(line) == 0
    assert repeated_lines(line * 4) == pytest.approx(3 * 32 / len(line * 4))
    lines = find_repetition(assistant(line * 4), max_runs=1)
    assert lines
    assert lines[0] == "repeated_lines"
    assert find_repetition(assistant(f"Fun: {'ha' * 40}")) == ("loop", "'ha' 40 times in a row")
    assert find_repetition(assistant(f"A line:\n{'-' * 80}\n| a | b |\n{'=' * 80}")) is None
    assert find_repetition(assistant("}\n" * 40 + "    return x\n" * 3), max_runs=1) is None, "braces may stand again"
    assert find_repetition(turns("ha" * 90, "No.")) is None, "users may"


def test_answers_said_twice() -> None:
    said = "You can take the bus to the tower."
    assert find_repeated_answer(turns("How?", said, "What?", "By bus.", "How?", said.upper())) == (
        "repeated_answer",
        "answers 1 and 3 are the same",
    )
    assert find_repeated_answer(turns("Red?", "Yes.", "Blue?", "Yes.")) is None


def test_answers_that_only_repeat_the_prompt() -> None:
    asked = "What is the colour of the river?"
    assert find_echo(turns(asked, "what is the colour of the river")) == ("echo", "an answer repeats the user's turn")
    assert find_echo(turns(asked, f"{asked} Blue.")), "next to nothing else"
    assert find_echo(turns(asked, f"{asked} It is blue, as all rivers of the region are.")) is None
    assert find_echo(turns("Say hello.", "Hello.")) is None
    assert find_echo(turns("Yes?", "Yes.")) is None


@pytest.mark.parametrize(
    "text",
    [
        "It\ufffds here.",
        "Itâ€™s here.",
        "The cafÃ© is open.",
        "It is 20Â° warm.",
        "A bell \x07 rings.",
        ", \\ " * 40,
        "ï»¿Hi.",
    ],
)
def test_spoilt_text_is_found(text: str) -> None:
    fault = find_broken_text((*user("Hi"), *assistant(text)))
    assert fault
    assert fault[0] == "broken_text"
    assert fault[1].startswith("turn 2: ")


@pytest.mark.parametrize(
    "text",
    [
        "It’s a café, “naïve” – 20 °C…",
        "NÃO! A MANHÃ É BELA.",
        "```\n" + "{}();" * 30 + "\n```",
        "|1| |5| |\n|8|3|4|\n" * 4,
        "👍👍👍 " * 20,
        "ह" + "ि" * 3 + " नमस्ते दुनिया, आप कैसे हैं? मैं ठीक हूँ, धन्यवाद।",
        "Line\r\nline\tline.",
    ],
)
def test_other_scripts_tables_and_code_are_not_spoilt(text: str) -> None:
    assert find_broken_text(assistant(text)) is None


ENDLESS = {
    "one word": "a",
    "spaces": " ",
    "lines": "\n",
    "I am": "I am ",
    "hedges": "As an AI, I am. ",
    "lacks": "I don't have a personal ",
    "quotes": "\"'",
    "backticks": "`",
    "pairs of backticks": "`` a",
    "indented": "\n\n    a\n   \n",
    "blank lines": "\n    ",
    "bars": "| ",
    "pre": "<pre",
    "stops": ".",
    "brackets": "f(",
    "capitals": "A",
    "ideographs": "の",
}
WORK: dict[str, Callable[[str], object]] = {
    "find_hedge": lambda text: find_hedge(assistant(text)),
    "find_refusal": lambda text: find_refusal(assistant(text)),
    "strip_hedges": strip_hedges,
    "find_silence": lambda text: find_silence(assistant(text)),
    "find_length": lambda text: find_length(assistant(text), Lengths(min_words=1)),
    "find_repetition": lambda text: find_repetition(assistant(text)),
    "find_repeated_answer": lambda text: find_repeated_answer(assistant(text) * 2),
    "find_echo": lambda text: find_echo((*user(text), *assistant(text))),
    "find_broken_text": lambda text: find_broken_text(assistant(text)),
    "identify": identify,
    "restore": Truecaser(FormCounts()).restore,
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize(
    ("size", "seconds"),
    [(100_000, 10.0), pytest.param(1_000_000, 60.0, marks=pytest.mark.slow)],
    ids=["100 kB", "1 MB"],
)
def test_no_text_takes_for_ever(name: str, size: int, seconds: float) -> None:
    """A megabyte takes a few seconds where time grows with the length, and hours where it grows with its square."""
    text = ENDLESS[name] * (size // len(ENDLESS[name]))
    for what, work in WORK.items():
        began = time.process_time()
        work(text)
        assert time.process_time() - began < seconds, what
