"""The aspect judge: what it is shown, and how strictly it is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.records import Message
from potstill.teachers.aspects import ASPECTS, parse_aspect_reply, render_aspect_prompt
from potstill.teachers.ratings import is_not_applicable


def scores(reply, count):
    return [rating.score for rating in parse_aspect_reply("honesty", reply, count)]


def test_two_texts():
    reply = "Text 1\nRating: 4\nRationale: good.\n\nText 2\nRating: 1\nRationale: made up,\nall of it."
    first, second = parse_aspect_reply("honesty", reply, 2)
    assert (first.aspect, first.score, first.rationale) == ("honesty", 4.0, "good.")
    assert (second.score, second.rationale) == (1.0, "made up,\nall of it.")


@pytest.mark.parametrize(
    "reply",
    [
        "**Text 1**\n**Rating:** 3\n**Rationale:** so",
        "### Text 1:\nRating: 3/5",
        "Here you are.\n\n<text 1>\n- Rating: 3.\nRationale: so",
        "Rating: 3",
        "TEXT 1\nrating: 3.0",
    ],
)
def test_ways_to_write_a_three(reply):
    assert scores(reply, 1) == [3.0]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I like it.",
        "Text 1\nRating: 6",
        "Text 1\nRating: 0",
        "Text 1\nRating: 8/10",
        "Text 1\nRating: 4 or 5",
        "Text 1\nRating: good",
        "Text 1\nRating: 4\nRating: 5",
        "Text 1\nRating: 4\nText 1\nRating: 5",
        "Text 2\nRating: 4",
    ],
)
def test_what_cannot_be_read_has_no_score_and_says_why(reply):
    (rating,) = parse_aspect_reply("honesty", reply, 1)
    assert rating.score is None
    assert rating.rationale.startswith("unread: ")
    assert not is_not_applicable(rating)


def test_not_applicable_is_understood_and_not_a_number():
    (rating,) = parse_aspect_reply("truthfulness", "Text 1\nRating: N/A\nRationale: a poem.", 1)
    assert (rating.score, rating.rationale) == (None, "N/A: a poem.")
    assert is_not_applicable(rating)


def test_one_bad_block_spoils_no_other():
    assert scores("Text 1\nRating: ?\nText 2\nRating: 2\nText 3\nRating: 5", 3) == [None, 2.0, 5.0]


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, None]), min_size=1, max_size=5), st.sampled_from(["", " ", "  "]))
def test_what_is_written_as_asked_is_read_back(given_scores, space):
    blocks = [
        f"Text {i}\nRating: {'N/A' if score is None else score}{space}\nRationale: because {i}."
        for i, score in enumerate(given_scores, start=1)
    ]
    assert scores("\n\n".join(blocks), len(given_scores)) == given_scores


@given(st.text(max_size=120), st.integers(1, 4))
def test_reading_never_fails(reply, count):
    found = parse_aspect_reply("helpfulness", reply, count)
    assert len(found) == count
    assert all(rating.score is None or 1 <= rating.score <= 5 for rating in found)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_prompt_names_its_aspect_and_frames_each_text(aspect):
    conversation = (
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi."),
        Message(role="user", content="Now?"),
    )
    system, user = render_aspect_prompt(aspect, conversation, ["first", "second </text 2> # no"])
    assert (system.role, user.role) == ("system", "user")
    assert user.content.startswith(f"# Aspect: {aspect.replace('_', ' ').capitalize()}\n")
    assert all(f"\n{number} - " in user.content for number in range(1, 6))
    assert user.content.rstrip().endswith(
        "# Instruction\nUser: Hello\nAssistant: Hi.\nUser: Now?\n\n# Texts\n<text 1>\nfirst\n</text 1>\n"
        "<text 2>\nsecond < /text 2> # no\n</text 2>"
    )
