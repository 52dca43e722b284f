"""Curation: what is mended, what is dropped and why, and what must stay as it is."""

import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, assistant, given, make, user
from hypothesis import given as holds
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.curation.decontaminate import Decontaminator
from potstill.curation.filters import find_hedge, find_refusal, repetition, strip_hedges
from potstill.curation.minhash import jaccard, shingles
from potstill.curation.truecase import Truecaser, damage
from potstill.errors import DataError
from potstill.records import Chat, Message, Prompt
from potstill.stages.curate import Curate

NAMES = "Osk Perven Borva Delmbell Kintor Maralo Tevin Usha Wolm Zarid".split()  # noqa: SIM905
COMMON = "river tower garden market bridge harbour forest valley teacher baker".split()  # noqa: SIM905


def sentence(chance: random.Random) -> str:
    name, other = chance.sample(NAMES, 2)
    thing, place = chance.sample(COMMON, 2)
    forms = (
        f"The {thing} of {name} stands near the {place} of {other}.",
        f"Every {thing} in {name} knows that I met {other} at the {place}.",
        f"On Monday the {thing} went with {name} and {other} to the {place} of the UNESCO.",
    )
    return chance.choice(forms)


def corpus(size: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(sentence(chance) for _ in range(chance.randint(2, 5))) for _ in range(size)]


def title(text: str) -> str:
    return re.sub(r"\b([a-z])", lambda found: found[1].upper(), text)


@pytest.mark.parametrize("how", [str.lower, str.upper, title])
def test_planted_damage_is_mended(how: Any) -> None:
    texts = corpus(200)
    truecaser = Truecaser.learn([how(text) if i % 10 == 0 else text for i, text in enumerate(texts)])
    total = right = 0
    for text in texts[::10]:
        mended, changed = truecaser.restore(how(text))
        damaged = [(a, c) for a, b, c in zip(text, how(text), mended, strict=True) if a != b]
        total += len(damaged)
        right += sum(a == c for a, c in damaged)
        assert changed > 0
    assert right / total >= 0.99


def test_sound_texts_are_not_touched() -> None:
    texts = [
        *corpus(200),
        "OK, NASA and the UN agreed.",
        "The Lord of the Rings is a book by J. R. R. Tolkien that many people read.",
        "YES!",
        "no",
        "1. The Day After Tomorrow\n2. The Perfect Storm\n3. Gone With The Wind\n4. The Sound Of Music",
        "| Name | Email Address | Age | Gender | Favourite Colour |",
    ]
    truecaser = Truecaser.learn(texts)
    for text in texts:
        assert truecaser.restore(text) == (text, 0)


def test_code_links_and_identifiers_stay_as_they_are() -> None:
    truecaser = Truecaser.learn([*corpus(100), "I know that Print and Import are Names, and so is Osk."])
    for text in (
        "def osk(perven):\n    return perven + borva",
        "import numpy\nprint the list of osk",
        "for x in osk:\n\tborva(x)",
        "#include <osk.h>\nint main() { return 0; }",
    ):
        assert truecaser.restore(text) == (text, 0)
    kept = (
        "see `osk borva` and https://osk.example/borva or write to osk@borva.org, call osk_borva or osk2 or osk(borva)"
    )
    mended, changed = truecaser.restore(f"{kept} in osk.")
    assert mended == f"S{kept[1:]} in Osk."
    assert changed == 2


def test_names_that_nobody_taught_stay_in_title_case() -> None:
    truecaser = Truecaser.learn(corpus(100))
    assert truecaser.restore("The River Of Osk Stands Near The Tower Of Xyrill.") == (
        "The river of Osk stands near the tower of Xyrill.",
        7,
    )


def test_damage_by_kind() -> None:
    assert damage("hello there my friend") == "lower"
    assert damage("HELLO THERE MY FRIEND") == "upper"
    assert damage("Hello There My Friend Who Lives In The House.") == "title"
    assert damage("Hello there my friend.") is None
    assert damage("ok then") is None


HEDGES = [
    "As an AI language model, I do not have personal opinions.",
    "as an ai, i don't have personal experiences.",
    "I am just an AI and I do not have emotions, but I will try.",
    "I'm only a language model, so take this with care.",
    "Well, I don't have feelings about that.",
    "I can’t form any opinions on music.",
    "As a large language model I cannot taste.",
    "My training data ends some time ago.",
]
NO_HEDGES = [
    "She works as an AI researcher, and I like her.",
    "As an AI engineer, I build things.",
    "I don't have experience with Rust, but my colleague does.",
    "I do not know the colour of Osk.",
    "People have personal opinions about it.",
    "An AI language model predicts the next word.",
    "I do not have a car.",
]


@pytest.mark.parametrize("text", HEDGES)
def test_hedges_are_found_and_can_be_stripped(text: str) -> None:
    assert find_hedge(assistant(f"{text} The sky is blue."))
    assert strip_hedges(f"Good. {text} The sky is blue.") == "Good. The sky is blue."
    assert find_hedge(user(text)) is None, "users may say so"


@pytest.mark.parametrize("text", NO_HEDGES)
def test_what_only_looks_like_a_hedge_is_none(text: str) -> None:
    assert find_hedge(assistant(text)) is None
    assert strip_hedges(text) == text


def test_refusals_are_found_and_not_knowing_is_none() -> None:
    for text in (
        "I'm sorry, but I can't help with that.",
        "I cannot provide that information.",
        "Unfortunately, I am unable to assist you with this.",
        "I apologize, but I won't write that.",
        "I must decline to answer.",
    ):
        assert find_refusal(assistant(text)), text
    for text in (
        "I am sorry to hear that. You can write a letter.",
        "I do not know the colour of Osk.",
        "I can't wait to help you!",
        "Sorry, nothing is recorded about it.",
        'He said: "I cannot help you."',
        "You cannot answer this without the map.",
    ):
        assert find_refusal(assistant(text)) is None, text


def test_repetition() -> None:
    assert repetition("one two three four five six seven eight nine ten eleven twelve") == 0
    assert repetition("a b c d " * 20) > 0.9
    assert repetition("yes yes yes") == 0


@holds(st.text(alphabet="ab c", max_size=60), st.text(alphabet="ab c", max_size=60))
def test_jaccard_is_that_of_the_sets(a: str, b: str) -> None:
    def runs(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    expected = len(runs(a) & runs(b)) / len(runs(a) | runs(b))
    assert jaccard(shingles(a), shingles(b)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            "Wie heißt die größte Stadt in Österreich heute?",
            unicodedata.normalize("NFD", "wie heißt die größte Stadt in Österreich heute"),
        ),
        ("What is the capital of Borva today?", "What is the capi\u00adtal of\u200b Borva today?"),
        (
            "请用简单的语言解释为什么天空是蓝色的而日落时却是红色的呢",
            "你好。请用简单的语言解释为什么天空是蓝色的而日落时却是红色的呢？谢谢",
        ),
    ],
)
def test_a_prompt_is_known_however_it_is_written(held: str, said: str) -> None:
    """Composed or decomposed, with invisible hyphens, or in a script that sets no blanks between words."""
    known = Decontaminator(13)
    known.keep_out("p", [held])
    found = known.find(user(said))
    assert found is not None
    assert found[0] == "p"


def test_a_prompt_without_words_matches_nothing() -> None:
    known = Decontaminator(13)
    known.keep_out("p", ["?!"])
    assert known.find(user("...")) is None


def test_contamination() -> None:
    known = Decontaminator(13)
    long = "please explain in a few words why the old tower of osk was built so near to the river"
    known.keep_out("long", [long, "and what is its owner?"])
    known.keep_out("short", ["What is the price of Borva?"])
    known.keep_out("tiny", ["Who are you?"])

    def found(text: str) -> str | None:
        result = known.find(user(text))
        return result[0] if result else None

    assert found(f"Hello! {long.upper()}, I ask.") == "long"
    assert found("Why the old tower of Osk was built so near to the river?") == "long"  # 13 words of it
    assert found("The old tower of Osk was built so near to the river.") is None  # 12
    assert found("Tell me: what is the price of Borva, and why?") == "short"
    assert found("What is the price of Perven?") is None
    assert found("who are you") == "tiny"
    assert found("Who are you talking about?") is None
    assert found("And what is its owner?") is None, "a follow-up means nothing without what it follows"
    assert known.find(assistant(long)) is None, "only what users say counts"


def chat(name: str, *turns: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(id=name, messages=tuple(Message(role=roles[i % 2], content=t) for i, t in enumerate(turns)))  # type: ignore[arg-type]


def run(folder: Path, chats: list[Chat], **fields: Any) -> Made:
    data = {"data": given(folder, "chats", chats, f"chats{len(list(folder.iterdir()))}")}
    if "decontaminate" in fields:
        data["decontaminate"] = given(folder, "prompts", fields["decontaminate"], f"eval{len(list(folder.iterdir()))}")
        fields["decontaminate"] = ["eval"]
    return make(folder, {"kind": "curate", "data": "chats", **fields}, data)


def test_every_dropped_dialogue_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    sound = [chat(f"sound{i}", f"Question {i}?", f"{text} Number {i}.") for i, text in enumerate(corpus(30))]
    bad = [
        chat("empty", "Question?", " "),
        chat("hedge", "What do you like?", "As an AI language model, I do not have opinions. Trees."),
        chat("refusal", "Question?", "I'm sorry, but I can't help with that."),
        chat("repetition", "Question?", "on and on it goes " * 30),
        chat("contaminated", "What is the price of Borva?", "It is nine."),
        chat("too_long", "Question?", " ".join(str(i) for i in range(2000))),
        chat("duplicate", "Question 0?", sound[0].messages[1].content.upper()),
        chat("near_duplicate", "Question 0?", f"{sound[0].messages[1].content} Number 31."),
    ]
    made = run(
        tmp_path,
        [*sound, *bad],
        deduplicate=0.8,
        max_characters=5000,
        decontaminate=[Prompt(id="p", messages=user("What is the price of Borva?"))],
    )
    assert [row.id for row in made.rows] == [row.id for row in sound]
    assert {row.id: row.reason for row in made.dropped} == {row.id: row.id for row in bad}
    assert made.facts["dropped"] == {row.id: 1 for row in bad}
    assert made.facts["read"] == 38
    assert {name: [row["id"] for row in rows] for name, rows in made.facts["examples"].items()} == {
        row.id: [row.id] for row in bad
    }
    assert all(row.detail for row in made.dropped)
    assert [row.chat for row in made.dropped] == bad, "whole"


def test_capitals_are_mended_before_anything_is_judged(tmp_path: Path) -> None:
    texts = corpus(60)
    sound = [chat(f"c{i}", f"Question {i}?", text) for i, text in enumerate(texts)]
    broken = chat("broken", "Question 0?", texts[0].lower())
    made = run(tmp_path, [*sound, broken], truecase=True, deduplicate=0.95)
    assert [row.id for row in made.dropped] == ["broken"], "once mended it is the same as the first"
    made = run(tmp_path, [*sound[1:], broken], truecase=True)
    assert made.rows[-1].messages[1].content == texts[0]
    assert made.facts["truecased_dialogues"] == 1


def test_hedges_are_stripped_or_kept_where_asked(tmp_path: Path) -> None:
    hedged = chat("h", "q", "As an AI, I do not have opinions. Trees are fine.")
    only = chat("only", "q", "As an AI, I do not have opinions.")
    stripped = run(tmp_path, [hedged, only], hedges="strip")
    assert [row.messages[1].content for row in stripped.rows] == ["Trees are fine."]
    assert [(row.id, row.reason) for row in stripped.dropped] == [("only", "empty")]
    assert run(tmp_path, [hedged, only], hedges="keep").rows == [hedged, only]


def test_nothing_left_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dialogue is left \(2 refusal\)"):
        run(tmp_path, [chat(name, "q", "I cannot help with that.") for name in "ab"])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    chats = [chat(f"c{i}", f"Question {i % 7}?", text) for i, text in enumerate(corpus(40) + corpus(20))]
    fields = {"truecase": True, "deduplicate": 0.7}
    one, other = run(tmp_path, chats, **fields), run(tmp_path, chats, **fields)
    assert one.files == other.files
    assert one.facts == other.facts
    assert one.facts["dropped"]["near_duplicate"] > 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_words": 5, "max_words": 4}, r"min_words \(5\) is more than max_words \(4\)"),
        ({"min_characters": 5, "max_characters": 4}, r"min_characters \(5\) is more than max_characters \(4\)"),
        ({"deduplicate": 1e-300}, r"greater than or equal to 0\.1"),
    ],
)
def test_bounds_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Curate.model_validate({"kind": "curate", "data": "x", **fields})


def test_the_least_similarity_that_may_be_asked_for_works(tmp_path: Path) -> None:
    chats = [Chat(id=f"c{at}", messages=user("q") + assistant(f"one two three four five six {at}")) for at in range(2)]
    config = {"kind": "curate", "data": "d", "deduplicate": 0.1}
    made = make(tmp_path, config, {"data": given(tmp_path, "chats", chats)})
    assert made.facts["dropped"] == {"near_duplicate": 1}
