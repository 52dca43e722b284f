"""Capitals given back: how many of the damaged, how few of the sound, by what evidence, and in bounded memory."""

import importlib
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from potstill.curation.capitals import damage, partial_damage, suspect, tokens
from potstill.curation.truecase import FormCounts, Truecaser
from potstill.miniature.encyclopedia import articles
from potstill.miniature.world import world

BENCH = Path(__file__).parents[2] / "bench"
DATA = Path(__file__).parents[3] / "shared" / "data"

WRITTEN = (
    "On Monday I met Anna Brandt at the UNESCO office in Paris. She said that NASA had called again.",
    "I'm sure that Peter's brother lives in New York, but Anna does not know it.",
    "In May we may go to Berlin. If Peter can come, we will go by train; Dr. Brandt will follow in March.",
    "The German embassy in Paris is near the river. Many Germans live there, and so does Anna.",
    "Use `Truecaser.learn` or call print_all(Paris) from main.py; see https://example.com/Paris for more.",
    "My iPhone is older than the one that Anna bought in New York. Does NASA use an iPhone?",
    "People from the United States and from Germany met in Berlin, e.g. Peter and Anna.",
    "Is it true that the UNESCO is older than NASA? I think that I read it on Monday.",
    "Anna wrote to the United Nations in May. Peter may write to them as well, I think.",
)
PROGRAMS = (
    "def paris(anna):\n    return anna + berlin",
    "import numpy\nprint the list of anna and peter",
    "for (int i = 0; i < paris; i++) { berlin[i] = anna; }",
    "SELECT name FROM berlin WHERE anna = 'peter';",
    "$ git commit -m 'anna and peter'",
    "<div class='paris'><p>anna</p></div>",
    "numbers = [1, 2, 3]\nanna = [peter for peter in numbers]",
)


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("truecase")
    sys.path.remove(str(BENCH))


def made_texts() -> list[str]:
    """Texts of the project's own: the miniature's encyclopedia, and some written by hand, each six times."""
    chance = random.Random(5)
    # Of the encyclopedia the articles on its entities; its other chapters are exercises, some of them no sentences.
    texts = [text for name, text in articles(world(seed=1, size=60), editions=4) if name.count("-") == 1]
    for first, second in zip(WRITTEN * 3, sorted(WRITTEN * 3), strict=True):
        texts.append(f"{first} {second}")
    chance.shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def taught() -> Truecaser:
    return Truecaser.learn(text for number, text in enumerate(made_texts()) if number % 10)


@pytest.mark.parametrize("kind", ["lower", "upper", "title", "starts", "sentence"])
def test_95_percent_of_damaged_tokens_come_back(bench: Any, taught: Truecaser, kind: str) -> None:
    score = bench.Score()
    for text in made_texts()[::10]:
        broken = bench.DAMAGES[kind](text)
        score.add(text, broken, taught.restore(broken)[0])
    assert score.damaged >= 40
    assert score.restored >= 0.95 * score.damaged, score.wrong.most_common(20)
    assert score.spoilt <= 0.01 * (score.damaged + score.kept), score.wrong.most_common(20)


def test_one_sound_token_in_a_thousand_changes_at_most(bench: Any, taught: Truecaser) -> None:
    score, pairs = bench.changed(taught, made_texts())
    assert score.kept > 5000
    assert score.spoilt <= 0.001 * score.kept, pairs[:3]


@pytest.mark.parametrize("text", PROGRAMS)
def test_programs_stay_as_they_are(taught: Truecaser, text: str) -> None:
    assert taught.restore(text) == (text, 0)


@pytest.mark.parametrize(
    "text",
    [
        "NASA, UNESCO",
        "1. The Day After Tomorrow\n2. Gone With The Wind\n3. The Sound Of Music",
        "WARNING: do not open.",
        "Dear Anna,\n\nthank you for the letter. I will come on Monday.\n\nYours,\nPeter",
        "- apples and oranges from the market\n- a letter to Anna, e.g. from Peter",
        "The prices rose vs. those of May. Yahoo! is a name.",
        "Das Haus der Familie steht am Ufer, und der Turm gehört der Stadt.",
        "van Gogh painted it. He was poor.",
        "Part i of it is short; the i-th one is long, and so is i.",
        "I read J. R. R. Tolkien's The Lord of the Rings in the U.S. army.",
    ],
)
def test_what_only_looks_broken_stays(taught: Truecaser, text: str) -> None:
    assert taught.restore(text) == (text, 0)


def test_neighbours_tell_one_word_in_two_forms_apart(taught: Truecaser) -> None:
    assert taught.restore("in may we may go to berlin.")[0] == "In May we may go to Berlin."


def test_possessives_plurals_and_pronouns(taught: Truecaser) -> None:
    assert taught.restore("i'm sure that anna's letters and peter's are here.")[0] == (
        "I'm sure that Anna's letters and Peter's are here."
    )
    assert taught.restore("ON THE 2ND DAY ANNA'S BROTHER MET NASA.")[0] == "On the 2nd day Anna's brother met NASA."


def test_one_broken_sentence_is_mended_and_the_others_stay(taught: Truecaser) -> None:
    text = "Anna went home. then peter said that he had met anna in paris. It was late, and GONE was the day."
    mended = "Anna went home. Then Peter said that he had met Anna in Paris. It was late, and GONE was the day."
    assert taught.restore(text) == (mended, 4)


def test_missing_capitals_of_sentences_only(taught: Truecaser) -> None:
    text = "we met Kwaku in the town. he told us of the river. nobody knew it, e.g. not Anna."
    mended = "We met Kwaku in the town. He told us of the river. Nobody knew it, e.g. not Anna."
    assert taught.restore(text) == (mended, 3)


def test_a_lone_pronoun_is_mended_in_sound_text(taught: Truecaser) -> None:
    text = "Anna said that i can come, and i'm glad."
    assert taught.restore(text) == ("Anna said that I can come, and I'm glad.", 2)


def test_names_of_the_other_turns_come_back(taught: Truecaser) -> None:
    asked, answer = "who is kwaku mensah?", "Nobody knows who Kwaku Mensah is, and Kwaku likes it."
    assert taught.restore(asked)[0] == "Who is kwaku mensah?"
    assert taught.restore(asked, [answer])[0] == "Who is Kwaku Mensah?"
    assert list(taught.restore_all([asked, answer])) == [("Who is Kwaku Mensah?", 3), (answer, 0)]


def test_words_never_seen_keep_the_capital_of_a_title_unless_they_end_like_common_ones(taught: Truecaser) -> None:
    learnt = FormCounts()
    for number in range(30):
        learnt.add(
            f"He saw the {chr(97 + number % 26)}{'aeiou'[number % 5]}ration of it and the word, and I saw it too."
        )
    truecaser = Truecaser(learnt)
    assert truecaser.restore("He Saw The Duration Of It And Zorbek Saw The Word Too.")[0] == (
        "He saw the duration of it and Zorbek saw the word too."
    )


def test_parts_merge_to_the_whole() -> None:
    texts = made_texts()
    whole, parts = FormCounts(), [FormCounts() for _ in range(3)]
    for number, text in enumerate(texts):
        whole.add(text)
        parts[number % 3].add(text)
    first, *others = pickle.loads(pickle.dumps(parts))
    for part in others:
        first.merge(part)
    assert (first.forms, first.pairs, first.gaps, first.starts) == (whole.forms, whole.pairs, whole.gaps, whole.starts)
    assert first.pruned == 0
    broken = [text.lower() for text in texts[:50]]
    learnt = Truecaser(whole)
    again = pickle.loads(pickle.dumps(Truecaser(first)))
    assert [learnt.restore(text) for text in broken] == [again.restore(text) for text in broken]


def test_counting_is_bounded_and_keeps_what_is_frequent() -> None:
    counts = FormCounts(max_words=200, max_pairs=400)
    for number in range(3000):
        name = "".join(chr(97 + number // 26**i % 26) for i in range(3))
        counts.add(f"So the road to Paris goes by X{name} and by the Y{name}.")
        assert len(counts.forms) <= 220
        assert len(counts.pairs) <= 440
    assert counts.pruned > 1000
    assert counts.forms["Paris"] > 2900
    assert Truecaser(counts).restore("the road to paris goes on.")[0] == "The road to Paris goes on."


@pytest.mark.parametrize("how", [str.lower, str.upper, str.title])
def test_the_quick_look_misses_no_damage(how: Any) -> None:
    for text in made_texts()[:200]:
        broken = how(text)
        words = list(tokens(broken))
        if damage(broken, words) or any(partial_damage(broken, words)):
            assert suspect(broken)


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the real texts, is not here")
@pytest.mark.slow
def test_real_texts(bench: Any) -> None:
    """Measured: title 98 %, upper 96 %, starts 92 %, lower 77 % (where names that nobody taught are lost), together
    95.5 % of the damaged; 0.016 % of sound prose and 0.007 % of code changed."""
    learnt, held = bench.split(bench.read(DATA))
    truecaser = Truecaser.learn(learnt)
    scores = bench.restored(truecaser, held)
    pooled = bench.Score()
    for (kind, _), score in scores.items():
        if kind != "beside":
            pooled.merge(score)
    assert pooled.damaged > 300_000
    assert pooled.restored >= 0.95 * pooled.damaged
    for texts in ([row.text for row in held], list(bench.code(DATA))):
        score, _ = bench.changed(truecaser, texts)
        assert score.spoilt <= 0.001 * score.kept


def test_letters_whose_case_cannot_be_changed_back_are_left_alone() -> None:
    """Turkish has two letters i, and a ligature stands for several letters: guessing would make another word."""
    mend = Truecaser.learn(["He said that this was so, and that was the end of it all."])
    for word in ("IŞIK", "İSTANBUL", "AĞIR"):
        restored, _ = mend.restore(f"{word} WAS THE END OF IT, AND {word} WAS SO, HE SAID.")
        assert restored == f"{word} was the end of it, and {word} was so, he said.", word
    for word in ("ışık", "ﬁne"):
        restored, _ = mend.restore(f"{word} was the end of it. he said that {word} was so. that was the end.")
        assert restored == f"{word} was the end of it. He said that {word} was so. That was the end.", word
    restored, _ = mend.restore("straße was the end of it. he said so. ärger was the end of it all. that was so.")
    assert restored.startswith("Straße was the end of it. He said so. Ärger was")
