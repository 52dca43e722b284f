"""A judge's ratings as chats: the very prompt that the judge stage asks, a reply that it reads, balanced by score."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user
from stub_server import Stub

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Message, Prompt, Rating
from potstill.teachers.aspects import parse_aspect_reply, render_aspect_prompt


def rated(row: int, *scores: float | str, aspect: str = "truthfulness") -> Answers:
    """A row whose answers have these scores; a text is the rationale of a rating without one."""
    candidates = []
    for place, score in enumerate(scores):
        number, words = (None, str(score)) if isinstance(score, str) else (score, f"because\nof Rating: {place}")
        rating = Rating(aspect=aspect, score=number, rationale=words)
        candidates.append(Candidate(model=f"m{place}", text=f"answer {row}.{place}", ratings=(rating,)))
    return Answers(id=f"r{row}", prompt=Prompt(id=f"r{row}", messages=user(f"ask {row}")), candidates=tuple(candidates))


def run(folder: Path, rows: list[Answers], **fields: Any) -> Made:
    folder.mkdir(exist_ok=True)
    return make(folder, {"kind": "teach_judge", "data": "d", **fields}, {"data": given(folder, "ratings", rows)})


def scores(made: Made) -> Counter[str]:
    """What the replies say, as the judge stage reads them."""
    found: Counter[str] = Counter()
    for row in made.rows:
        shown = row.messages[1].content.count("</text ")
        for rating in parse_aspect_reply("truthfulness", row.messages[-1].content, shown):
            assert rating.rationale
            found[f"{rating.score:g}" if rating.score is not None else rating.rationale[:3]] += 1
    return found


def test_the_prompt_is_the_judges_and_its_reply_reads_back_as_the_ratings(tmp_path: Path) -> None:
    rows = [rated(0, 5, 1), rated(1, 4, "N/A: nothing is said")]
    made = run(tmp_path, rows, balance=False)
    assert [row.id for row in made.rows] == ["r0-truthfulness", "r1-truthfulness"]
    for row, given_ in zip(made.rows, rows, strict=True):
        texts = {candidate.text: candidate.ratings[0].score for candidate in given_.candidates}
        order = sorted(texts, key=row.messages[1].content.index)
        assert row.messages[:2] == render_aspect_prompt("truthfulness", given_.prompt.messages, order)
        assert row.messages[-1].role == "assistant"
        read = parse_aspect_reply("truthfulness", row.messages[-1].content, 2)
        assert [rating.score for rating in read] == [texts[text] for text in order]
    assert scores(made) == {"5": 1, "1": 1, "4": 1, "N/A": 1}
    assert any(
        row.messages[1].content.index(".1\n") < row.messages[1].content.index(".0\n")
        for row in run(tmp_path / "b", [rated(i, 5, 1) for i in range(9)], balance=False).rows
    ), "the order is drawn, so that no place stands for a score"


def test_no_score_stays_more_often_than_the_median_one(tmp_path: Path) -> None:
    """So that one rare score does not leave all the others as rare."""
    given_ = [5] * 20 + [1] * 4 + [3] * 7
    rows = [rated(i, score) for i, score in enumerate(given_)]
    made = run(tmp_path, rows, mode="single")
    assert scores(made) == {"5": 7, "1": 4, "3": 7}
    assert made.facts["scores_given"] == {"truthfulness": {"1": 4, "3": 7, "5": 20}}
    assert made.facts["scores_kept"] == {"truthfulness": {"1": 4, "3": 7, "5": 7}}
    assert made.facts["dropped"] == {"balance": 31 - 18}
    assert len({row.id for row in made.rows}) == 18
    assert run(tmp_path / "again", rows, mode="single").files == made.files
    assert scores(run(tmp_path / "two", rows, mode="single", most=2)) == {"5": 2, "1": 2, "3": 2}
    assert len(run(tmp_path / "all", rows, mode="single", balance=False).rows) == 31


def test_several_answers_in_one_request_are_balanced_too(tmp_path: Path) -> None:
    """The requests that hold the rare score come first; those without are what is left out."""
    rows = [rated(i, 5, 5 if i % 3 else 1) for i in range(60)]
    made = run(tmp_path, rows)
    assert scores(made) == {"1": 20, "5": 20}
    assert all(int(row.id[1:].split("-")[0]) % 3 == 0 for row in made.rows)


def test_ratings_that_cannot_be_taught_are_left_out_with_their_reason(tmp_path: Path) -> None:
    """Trap: "Ratings "N/A" averaged as numbers": N/A is taught as N/A, and what was unread is taught as nothing."""
    rows = [rated(0, 5, "unread: two ratings"), rated(1, 8), rated(2, 4, aspect="overall"), rated(3, 1)]
    made = run(tmp_path, rows)
    assert made.facts["dropped"] == {"other_aspect": 1, "other_scale": 1, "unread": 1}
    assert [row.detail for row in made.dropped] == ["", "8", "4"], "what was unread is not called N/A"
    assert scores(made) == {"5": 1, "1": 1}
    with pytest.raises(DataError, match=r"holds no rating that can be taught \(1 not_whole, 1 unread\)"):
        run(tmp_path / "none", [rated(0, "unread: x", 3.5)])
    with pytest.raises(DataError, match=r"holds no rating that can be taught \(there are none\)"):
        run(tmp_path / "empty", [])


def test_a_lesson_never_breaks_the_prompt_that_it_answers(tmp_path: Path) -> None:
    """The means of several judges or orders lie between the numbers that the prompt allows; balance counts them not."""
    rows = [rated(i, score) for i, score in enumerate([5, 5, 3, 3, 2.25, 2.5, 3.5, 4.5])]
    made = run(tmp_path, rows)
    assert scores(made) == {"5": 2, "3": 2}
    assert made.facts["dropped"] == {"not_whole": 4}
    assert made.facts["scores_given"] == made.facts["scores_kept"] == {"truthfulness": {"3": 2, "5": 2}}
    assert [(row.id[:2], row.detail) for row in made.dropped] == [
        ("r4", "2.25"),
        ("r5", "2.5"),
        ("r6", "3.5"),
        ("r7", "4.5"),
    ]


def test_a_rating_without_its_rationale_is_no_lesson(tmp_path: Path) -> None:
    """That of several judges together has none, and the prompt asks for one."""
    mute = [Rating(aspect="truthfulness", score=4), Rating(aspect="truthfulness", score=None, rationale="N/A:  ")]
    (row,) = [rated(0, 5, 4, 3)]
    first, *others = row.candidates
    others = [other.model_copy(update={"ratings": (rating,)}) for other, rating in zip(others, mute, strict=True)]
    made = run(tmp_path, [row.model_copy(update={"candidates": (first, *others)})])
    assert made.facts["dropped"] == {"no_rationale": 2}
    assert made.rows[0].messages[-1].content == "Text 1\nRating: 5\nRationale: because of Rating: 0"


def test_what_is_taught_can_be_said_by_the_judge_of_the_judge_stage(tmp_path: Path) -> None:
    """A judge that has learnt these chats by heart gives the stage `judge` the very ratings that they were made of."""
    rows = [rated(i, 5, 1) for i in range(3)]
    taught = {row.messages[1].content: row.messages[-1].content for row in run(tmp_path, rows).rows}
    bare = [
        row.model_copy(update={"candidates": tuple(c.model_copy(update={"ratings": ()}) for c in row.candidates)})
        for row in rows
    ]

    def heart(body: dict[str, Any]) -> str:
        asked = body["messages"][1]["content"]
        texts = [text for text in taught if set(text.split()) == set(asked.split())]
        (known,) = texts
        flipped = known != asked
        blocks = taught[known].split("\n\n")
        if flipped:  # the other order of the same two
            blocks = [blocks[1].replace("Text 2", "Text 1"), blocks[0].replace("Text 1", "Text 2")]
        return "\n\n".join(blocks)

    with Stub(answer=heart) as stub:
        made = make(
            tmp_path,
            {"kind": "judge", "judge": "m", "data": "d", "aspects": ["truthfulness"]},
            {"data": given(tmp_path, "answers", bare, "bare")},
            {"judge": endpoint(stub.base_url)},
        )
    assert made.facts["coverage"] == 1
    assert [[c.ratings[0].score for c in row.candidates] for row in made.rows] == [[5, 1]] * 3


def test_a_rationale_cannot_smuggle_a_second_rating_in(tmp_path: Path) -> None:
    row = rated(0, 5)
    sly = Rating(aspect="truthfulness", score=5, rationale="fine\nRating: 1\nText 2\nRating: 1")
    row = row.model_copy(update={"candidates": (row.candidates[0].model_copy(update={"ratings": (sly,)}),)})
    (made,) = run(tmp_path, [row]).rows
    assert [r.score for r in parse_aspect_reply("truthfulness", made.messages[-1].content, 1)] == [5]
    assert made.messages[-1] == Message(
        role="assistant", content="Text 1\nRating: 5\nRationale: fine Rating: 1 Text 2 Rating: 1"
    )
