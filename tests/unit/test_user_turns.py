"""What a simulated user says: how it is read, and every way in which it falls out of the part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.curation.user_turns import END_SIGN, LEAK_WORDS, read_user_turn, runs, says_end, turn_fault
from potstill.prompts import render_prompt

TOLD = runs(render_prompt("user_system", persona="", domain="") + render_prompt("user_next", conversation=[], sign=""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("And why?", "And why?"),
        ("User: And why?", "And why?"),
        ("**User:** And why?", "And why?"),
        ("And why?\n\nAssistant: Because.\nUser: Oh.", "And why?"),
        ("A user: that is me.", "A user: that is me."),
        ("Assistant: Because.", ""),
    ],
)
def test_how_a_simulated_user_is_read(text: str, expected: str) -> None:
    assert read_user_turn(text) == expected


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        ("", "unread"),
        ("And why is that so?", ""),
        ("Sure, here is the list that you asked for:", "assistant"),
        ("Certainly! I can write that for you.", "assistant"),
        ("I'm happy to help you with that.", "assistant"),
        ("As an AI language model, I have no opinion.", "assistant"),
        ("You're welcome! Have a nice day.", "assistant"),
        ("Is there anything else I can do for you?", "assistant"),
        ("Let me know if you need more.", "assistant"),
        ("Sure, but what about the second one?", ""),
        ("Here is my draft. Can you mend it?", ""),
        ("How can I help my neighbour?", ""),
        ("What does it COST?", "repeats"),
        ("tell me what it costs to build a house of wood in the hills today", "repeats"),
        ("Tell me what it costs to rent one instead.", ""),
        ("You ask about what was said, want it changed, or take it further.", "leaks"),
        ("Write the user's next message. Give that message only, please.", "leaks"),
        ("What did you say about the user's next message?", ""),
    ],
)
def test_what_is_wrong_with_a_turn(turn: str, fault: str) -> None:
    earlier = ["What does it cost?", "Tell me what it costs to build a house of wood in the hills"]
    assert turn_fault(turn, earlier, TOLD) == fault


@given(st.text())
def test_reading_never_gives_a_label_or_the_answer_behind_it(text: str) -> None:
    said = read_user_turn(f"User: {text}\nAssistant: the answer")
    assert "the answer" not in said
    assert said == said.strip()


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20), st.integers(0, 5))
def test_runs_are_all_of_them(words: list[str], start: int) -> None:
    found = runs(" ".join(words))
    assert all(len(run) == LEAK_WORDS for run in found)
    assert len(found) <= max(0, len(words) - LEAK_WORDS + 1)
    if len(words) >= start + LEAK_WORDS:
        assert tuple(words[start : start + LEAK_WORDS]) in found


def test_the_sign_that_all_is_said() -> None:
    assert says_end(END_SIGN)
    assert says_end("Thank you. [end]")
    assert not says_end("And how does it end?")
