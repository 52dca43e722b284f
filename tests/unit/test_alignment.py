"""Which tokens of two tokenizers stand for the same bytes. A docstring that begins with "Trap" quotes its bug."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import CHATML, FAMILIES, SHOUTED, TEMPLATES, TRIMMED, family
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.errors import DataError, ModelError
from potstill.records import Message, ToolCall
from potstill.tokens.alignment import Spans, align, explain_alignment, shared_tokens
from potstill.tokens.learnt import Spelling, Turn, end_token, learnt_turns
from potstill.tokens.tokenization import encode_chat, with_template

LOSSLESS = ("small", "large", "greedy", "prefix", "metaspace", "legacy")
"""Families whose tokens spell every byte of the text, but for blanks that they put before one."""

any_texts = st.text(
    st.sampled_from("aehlotcn HLï é e\u0301猫上 が😀👩\u200d👧½\u2581\t\n\r,.!?123  \u00a0\u2003ﬁİ")
    | st.characters(codec="utf-8"),
    min_size=1,
    max_size=40,
).filter(lambda text: "\ue000" not in text and "\x00" not in text and text.strip() != "")
texts = any_texts.filter(lambda text: "\u2581" not in text)
"""Without the letter that stands for a blank in some vocabularies, which they cannot tell from one."""


def chat(*answers: str) -> list[Message]:
    turns = []
    for answer in answers:
        turns += [Message(role="user", content="what?"), Message(role="assistant", content=answer)]
    return turns


def turns_of(name: str, template: str, *answers: str) -> tuple[Turn, ...]:
    ((_, turns),) = learnt_turns(family(name, template), [chat(*answers)])
    return turns


def aligned(ours: Sequence[Turn], theirs: Sequence[Turn]) -> str:
    """Below the line that says whose tokens they are."""
    head, _, shown = explain_alignment(ours, theirs, align(ours, theirs, "row 1"), ("s", "t")).partition("\n")
    assert head.split("~")[1] == "  teacher t"
    return shown


def pieces(name: str, turn: Turn) -> list[bytes]:
    """Each token's bytes as the vocabulary has them, found without its places in the text."""
    tokenizer = family(name)
    spelled = (Spelling.of(tokenizer).bytes_of(tokenizer.convert_tokens_to_ids(t), t) for t in turn.tokens)
    return [piece or b"" for piece in spelled]


GOLDEN = """\
"the"                   ~  "the"
" cat"                  ~  " cat"
" s|at"                 ~  " sat"
"!"                     ~  "!"
"</s>"                  ~  "<0x0A>|<|im_end|>"  end
"n"                     ~  "n"
"a\\xc3|\\xaf"            ~  "aï"
"v"                     ~  "v"
"e"                     ~  "e"
" |\\xf0\\x9f|\\x98|\\x80"  ~  " 😀"
" |he|ll|o"             ~  " hello"
"</s>"                  ~  "<0x0A>|<|im_end|>"  end"""


def test_golden_alignment_of_bytes_with_pieces() -> None:
    ours = turns_of("small", "default", "the cat sat!", "naïve 😀 hello")
    theirs = turns_of("metaspace", "break", "the cat sat!", "naïve 😀 hello")
    assert aligned(ours, theirs) == GOLDEN


BLANKS_IN_NO_TOKEN = """\
"Ġ"        ~  -
" the"     ~  "the"
" cat"     ~  "cat"
" sat"     ~  "sat"
"!"        ~  "!"
"\\n"       ~  -
"</s>"     ~  "<|im_end|>"  end
"ĠnaÃ¯ve"  ~  "naïve"
" 😀"       ~  "😀"
" hello"   ~  "hello"
" "        ~  -
"</s>"     ~  "<|im_end|>"  end"""


def test_golden_alignment_with_a_tokenizer_that_leaves_blanks_out() -> None:
    ours = turns_of("prefix", "blank", " the cat sat!\n", "naïve 😀 hello ")
    theirs = turns_of("words", "chatml", " the cat sat!\n", "naïve 😀 hello ")
    assert aligned(ours, theirs) == BLANKS_IN_NO_TOKEN


def spanned(turn_pieces: Sequence[bytes], starts_S: np.ndarray, ends_S: np.ndarray) -> list[bytes]:
    return [b"".join(turn_pieces[start:end]) for start, end in zip(starts_S, ends_S, strict=True)]


def differing(ours: str, theirs: str, student: Turn, teacher: Turn, spans: Spans) -> int:
    """In how many spans of one turn the tokens' own bytes differ, but for how the turn ends."""
    left = spanned(pieces(ours, student), spans.student_starts_S, spans.student_ends_S)
    right = spanned(pieces(theirs, teacher), spans.teacher_starts_S, spans.teacher_ends_S)
    return sum(a != b for a, b, end in zip(left, right, spans.ends_S, strict=True) if not end)


@pytest.mark.parametrize("ours", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(text=texts, theirs=st.sampled_from(LOSSLESS))
def test_spans_are_the_same_bytes_and_as_short_as_can_be(ours: str, text: str, theirs: str) -> None:
    """Places come from the text, these bytes from the vocabularies: two ways to the same."""
    (student,), (teacher,) = turns_of(ours, "default", text), turns_of(theirs, "chatml", text)
    spans = align([student], [teacher], "row 1")
    assert differing(ours, theirs, student, teacher, spans) == 0
    common = set(np.cumsum([len(piece) for piece in pieces(ours, student)][:-1]))
    common &= set(np.cumsum([len(piece) for piece in pieces(theirs, teacher)][:-1]))
    assert len(spans) == len(common) + 1
    assert spans.ends_S.tolist() == [False] * len(common) + [True]
    for starts_S, ends_S, tokens in (
        (spans.student_starts_S, spans.student_ends_S, len(student)),
        (spans.teacher_starts_S, spans.teacher_ends_S, len(teacher)),
    ):
        assert [0, *ends_S] == [*starts_S, tokens]


@settings(max_examples=150, deadline=None)
@given(
    answers=st.lists(any_texts, min_size=1, max_size=3),
    sides=st.lists(
        st.tuples(st.sampled_from(list(FAMILIES)), st.sampled_from(list(TEMPLATES))), min_size=2, max_size=2
    ),
)
def test_spans_stand_for_the_same_places_whatever_the_tokenizers(
    answers: list[str], sides: list[tuple[str, str]]
) -> None:
    student, teacher = (turns_of(name, template, *answers) for name, template in sides)
    spans = align(student, teacher, "row 1")
    assert spans.ends_S.sum() == len(answers)
    places = []
    for turns, starts_S, ends_S in (
        (student, spans.student_starts_S, spans.student_ends_S),
        (teacher, spans.teacher_starts_S, spans.teacher_ends_S),
    ):
        assert (starts_S < ends_S).all()
        assert (ends_S[:-1] <= starts_S[1:]).all()
        flat = [
            (number, end if end <= len(turn.said) else -1, exact)
            for number, turn in enumerate(turns)
            for end, exact in zip(turn.ends_L.tolist(), turn.exact_L.tolist(), strict=True)
        ]
        assert len(flat) == sum(map(len, turns))
        assert all(flat[end - 1][2] for end in ends_S)
        places.append([flat[end - 1][:2] for end in ends_S])
        assert all(flat[a][0] == flat[b - 1][0] for a, b in zip(starts_S, ends_S, strict=True)), "one turn each"
    assert places[0] == places[1]


@pytest.mark.parametrize("name", list(FAMILIES))
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_a_tokenizer_with_itself_gives_a_span_a_token(name: str, text: str) -> None:
    turns = turns_of(name, "default", text)
    spans = align(turns, turns, "row 1")
    assert (spans.student_starts_S == spans.teacher_starts_S).all()
    assert (spans.student_ends_S == spans.teacher_ends_S).all()
    if name in LOSSLESS:
        assert spans.student_ends_S.tolist() == list(range(1, len(turns[0]) + 1))


def first_turn(name: str, template: str, answer: str) -> Turn:
    return turns_of(name, template, answer)[0]


STRADDLED = """\
-          ~  "\\n"
"the"      ~  "the"
" cat"     ~  " cat"
"</s>"     ~  "<|im_end|>"  end"""


def test_what_a_straddling_token_takes_away_from_one_side_is_in_no_span() -> None:
    """The opening ends with a line break that merges with the answer's: the student never learns it."""
    assert aligned(turns_of("large", "default", "\nthe cat"), turns_of("legacy", "chatml", "\nthe cat")) == STRADDLED


OWN_MERGES = """\
"the |cat"       ~  "the| cat"
"!Ċ|<|im_end|>"  ~  "!|</s>"  end"""


def test_an_end_that_shares_a_token_with_the_words_is_one_span_with_them() -> None:
    assert aligned(turns_of("greedy", "break", "the cat!"), turns_of("small", "default", "the cat!")) == OWN_MERGES


TRIMMING = """\
" |\\t"     ~  -
"the"      ~  "the"
" cat."    ~  " cat|."
"\\n"       ~  -
"</s>"     ~  "<|im_end|>"  end"""


def test_blanks_that_one_template_trims_are_in_no_span() -> None:
    kept, trimmed = turns_of("legacy", "default", " \tthe cat.\n"), turns_of("small", TRIMMED, " \tthe cat.\n")
    assert aligned(kept, trimmed) == TRIMMING


def test_what_shares_a_token_with_trimmed_blanks_is_in_no_span() -> None:
    """ " the" against "the", and "!\\n" against "!": of the other bytes one side says nothing."""
    kept, trimmed = turns_of("greedy", "default", "the cat!\n"), turns_of("small", TRIMMED, "the cat!\n")
    assert aligned(kept, trimmed).splitlines()[-3:] == [
        '"!\\n"       ~  -',
        '-           ~  "!"',
        '"</s>"      ~  "<|im_end|>"  end',
    ]


def test_words_that_one_template_changes_are_refused() -> None:
    plain, shouted = turns_of("small", "chatml", "the cat"), turns_of("large", SHOUTED, "the cat")
    with pytest.raises(DataError) as error:
        align(plain, shouted, "chats, row r1")
    assert str(error.value) == (
        "chats, row r1, learnt turn 1: the student's template writes 'the cat' where the teacher's writes 'THE cat', "
        "from character 0 on. Give both tokenizers a chat template that keeps the words, or take the row out."
    )


def test_a_difference_far_behind_is_shown_with_what_is_around_it() -> None:
    text = "a cat sat on a mat. " * 3 + "is the cat a cat?"
    with pytest.raises(
        DataError, match=r"n a mat\. is the cat a ca' .* 'n a mat\. is THE cat a ca', from character 63"
    ):
        align(turns_of("small", "chatml", text), turns_of("small", SHOUTED, text), "row 1")


def test_a_template_that_ends_turns_in_two_ways_is_refused() -> None:
    fickle = CHATML.replace("'<|im_end|>", "('</s>' if 'cat' in message['content'] else '<|im_end|>') + '")
    with pytest.raises(ModelError, match=r"ends a turn with 'he cat</s>' where it ends others with '<\|im_end\|>'"):
        turns_of("small", fickle, "the dog", "the cat")


def test_turns_that_only_one_side_has_room_for_are_in_no_span() -> None:
    ours, theirs = turns_of("small", "default", "the cat", "sat"), turns_of("legacy", "chatml", "the cat", "sat")
    spans = align(ours, theirs[:1], "row 1")
    assert spans.ends_S.tolist() == [False, False, True]
    assert explain_alignment(ours, theirs[:1], spans, ("s", "t")).splitlines()[-1].endswith("~  -")


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_turns_hold_the_tokens_that_are_learnt(name: str, template: str) -> None:
    tokenizer, messages = family(name, template), chat("the cat!", "naïve 😀\n")
    silent = messages[1].model_copy(update={"train": False})
    for rows in (messages, [messages[0], silent, *messages[2:]], messages[1:]):
        ((encoded, turns),) = learnt_turns(tokenizer, [rows])
        expected = encode_chat(tokenizer, rows)
        assert (encoded.ids_L == expected.ids_L).all()
        assert (encoded.learn_L == expected.learn_L).all()
        assert encoded.turn_ends == expected.turn_ends
        learnt = tokenizer.convert_ids_to_tokens(encoded.ids_L[encoded.learn_L].tolist())
        assert [token for turn in turns for token in turn.tokens] == learnt
        assert [turn.said.decode() for turn in turns] == [m.content for m in rows if m.role == "assistant" and m.train]


@settings(max_examples=60, deadline=None)
@given(text=texts, names=st.tuples(st.sampled_from(LOSSLESS), st.sampled_from(LOSSLESS)))
def test_spans_shifted_by_one_token_are_noticed(text: str, names: tuple[str, str]) -> None:
    """Trap: "Cross-tokenizer alignment off by one span (TRL 5885, 5905)"."""
    student, teacher = first_turn(names[0], "default", text), first_turn(names[1], "chatml", text)
    spans = align([student], [teacher], "row 1")
    assert differing(*names, student, teacher, spans) == 0
    if len(spans) > 2 and len(set(pieces(names[0], student))) == len(student):
        shifted = Spans(
            spans.student_starts_S[:-1], spans.student_ends_S[:-1],
            spans.teacher_starts_S[1:], spans.teacher_ends_S[1:], spans.ends_S[:-1],
        )  # fmt: skip
        assert differing(*names, student, teacher, shifted) == len(spans) - 1


def matched(ours: str, theirs: str, template: str = "default") -> dict[str, str]:
    """Spellings by spellings."""
    student, teacher = family(ours, "default"), family(theirs, template)
    student_V, teacher_V = shared_tokens(student, teacher)
    assert len(set(teacher_V.tolist())) == len(teacher_V)
    assert (np.diff(student_V) > 0).all()
    pairs = zip(student_V.tolist(), teacher_V.tolist(), strict=True)
    return {student.convert_ids_to_tokens(a): teacher.convert_ids_to_tokens(b) for a, b in pairs}


def test_tokens_of_one_vocabulary_are_matched_to_themselves() -> None:
    for name in ("small", "greedy", "words"):
        student_V, teacher_V = shared_tokens(family(name), family(name))
        assert student_V.tolist() == sorted(family(name).get_vocab().values())
        assert (student_V == teacher_V).all()


def test_tokens_are_matched_by_their_bytes_however_they_are_spelled() -> None:
    pairs = matched("large", "metaspace")
    assert pairs["Ġcat"] == "▁cat"
    assert pairs["Ġ"] == "▁"  # which a text gets, and not <0x20>
    assert pairs["Ċ"] == "<0x0A>"
    assert pairs["a"] == "a"
    assert pairs["Ã"] == "<0xC3>"
    back = matched("metaspace", "large")
    assert back["<0x0A>"] == "Ċ"
    assert "<0x61>" not in back  # a is


def test_the_tokens_that_end_a_turn_are_matched_whatever_they_are_called() -> None:
    assert end_token(family("small", "chatml")) == family("small").convert_tokens_to_ids("<|im_end|>")
    pairs = matched("small", "legacy", "chatml")
    assert pairs["</s>"] == "<|im_end|>"
    assert "<|im_end|>" not in pairs
    assert pairs["<|user|>"] == "<|user|>"
    assert pairs["<s>"] == "<s>"


def test_an_end_of_several_tokens_is_no_distribution_to_compare() -> None:
    for template, comparable in (("break", False), ("chatml", True)):
        ours, theirs = turns_of("small", "default", "the cat", "sat"), turns_of("legacy", template, "the cat", "sat")
        spans = align(ours, theirs, "row 1")
        assert spans.ends_S.sum() == 2
        assert (spans.comparable_S == (~spans.ends_S | comparable)).all()


def test_calls_of_tools_are_aligned_as_what_is_said() -> None:
    weather = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'
    call = ToolCall(name="weather", arguments='{"city": "naïve 😀"}')
    rows = [chat("x")[0], Message(role="assistant", content="let us see", tool_calls=(call,))]
    ours, theirs = (learnt_turns(family(name, "default"), [rows], [[weather]])[0][1] for name in ("small", "legacy"))
    said = 'let us see\n<tool_call>\n{"name": "weather", "arguments": {"city": "naïve 😀"}}\n</tool_call>'
    assert ours[0].said.decode() == theirs[0].said.decode() == said
    spans = align(ours, theirs, "row 1")
    assert differing("small", "legacy", ours[0], theirs[0], spans) == 0
    assert spans.ends_S.tolist() == [False] * (len(spans) - 1) + [True]


def test_pieces_of_words_are_spelled_without_their_mark() -> None:
    """WordPiece: ##ing continues a word."""
    vocabulary = {"[UNK]": 0, "</s>": 1, "walk": 2, "##ing": 3, "##s": 4, "<|assistant|>": 5, "<|user|>": 6}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>", "<|assistant|>", "<|user|>"])
    pieces_of_words = with_template(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))
    ((_, theirs),) = learnt_turns(pieces_of_words, [chat("walks walking")])
    assert aligned(turns_of("small", "default", "walks walking"), theirs).splitlines()[1:] == [
        '"s"          ~  "s"',
        '" |w|a|l|k"  ~  "walk"',
        '"i|n|g"      ~  "ing"',
        '"</s>"       ~  "</s>"  end',
    ]
