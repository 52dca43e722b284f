"""Two tokenizers over one conversation: which of their learnt tokens stand for the same bytes.

Templates differ, so turns are aligned one by one: first what is said, byte for byte, then how the turn ends.

- A span is cut wherever both tokenizers really end a token, and nowhere else.
- How a turn ends (`</s>` here, `\\n<|im_end|>` there) is a span of its own, whatever its tokens. Where a token has the
  end of what is said and the beginning of that (`!\\n`), the last span of the turn has both.
- What a template writes before what is said is in no span. A token that has some of it and goes on (a blank before
  the first word) stands for the rest.
- Blanks and line breaks at either end of what is said that one template trims and the other keeps are in no span, nor
  is what shares a token with them. Any other difference is refused.
- Text that a normaliser changes or leaves out counts as it stands in the conversation.

Suffixes: S spans of one row, L learnt tokens of one turn, V matched tokens of two vocabularies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from potstill.errors import DataError
from potstill.reading.files import escaped
from potstill.tokens.learnt import Spelling, Turn, end_token
from potstill.tokens.tokenization import control_tokens

Places = NDArray[np.int64]

SHOWN = 24
"""Characters of either text around a difference."""


@dataclass(frozen=True)
class Spans:
    """What corresponds in one row: places among its learnt tokens, in order and half open. No span is empty."""

    student_starts_S: Places
    student_ends_S: Places
    teacher_starts_S: Places
    teacher_ends_S: Places
    ends_S: NDArray[np.bool_]
    """Whether the span is, or goes up to, the end of a turn."""

    def __len__(self) -> int:
        return len(self.ends_S)

    def only(self, which_S: NDArray[np.bool_]) -> "Spans":
        """Some of them."""
        return Spans(
            self.student_starts_S[which_S],
            self.student_ends_S[which_S],
            self.teacher_starts_S[which_S],
            self.teacher_ends_S[which_S],
            self.ends_S[which_S],
        )

    @property
    def comparable_S(self) -> NDArray[np.bool_]:
        """Whether the distributions of the spans' first tokens say the same thing on both sides.

        Not where a turn ends and a template writes something of its own before the end token: `\\n` is likely there
        because the turn ends, and of a text it would be the next line.
        """
        student_S, teacher_S = self.student_ends_S - self.student_starts_S, self.teacher_ends_S - self.teacher_starts_S
        comparable_S: NDArray[np.bool_] = ~self.ends_S | ((student_S == 1) & (teacher_S == 1))
        return comparable_S


def align(student: Sequence[Turn], teacher: Sequence[Turn], where: str) -> Spans:
    """The spans of one row, which both tokenizers read; see `potstill.tokens.learnt.learnt_turns`.

    Where one side has been cut to fewer turns, the others are in no span. DataError at `where` (the row, for a person)
    if their templates make different words of it.
    """
    rows: list[tuple[int, int, int, int, bool]] = []
    student_base = teacher_base = 0
    for number, (ours, theirs) in enumerate(zip(student, teacher, strict=False), 1):
        for first, last, their_first, their_last, end in _align_turn(ours, theirs, f"{where}, learnt turn {number}"):
            rows.append((student_base + first, student_base + last, teacher_base + their_first,
                         teacher_base + their_last, end))  # fmt: skip
        student_base, teacher_base = student_base + len(ours), teacher_base + len(theirs)
    table_5S = np.array(rows, dtype=np.int64).reshape(-1, 5).T.copy()
    return Spans(table_5S[0], table_5S[1], table_5S[2], table_5S[3], table_5S[4].astype(np.bool_))


def _align_turn(student: Turn, teacher: Turn, where: str) -> list[tuple[int, int, int, int, bool]]:
    """Student's first and last token of each span, then the teacher's; and whether it reaches the end of the turn."""
    (student_from, teacher_from), length, trailing = _common(student.said, teacher.said, where)
    ours, theirs = (
        _boundaries(turn, start, length) for turn, start in ((student, student_from), (teacher, teacher_from))
    )
    spans = []
    for low, high in pairwise(sorted(ours.keys() & theirs.keys())):
        (first, last), (their_first, their_last) = (ours[low], ours[high]), (theirs[low], theirs[high])
        alike = high <= length or low > length or not trailing
        if alike and last > first and their_last > their_first:
            spans.append((first, last, their_first, their_last, high == length + 2))
    return spans


def _common(student: bytes, teacher: bytes, where: str) -> tuple[tuple[int, int], int, bool]:
    """Where in both texts the common one begins, its length, and whether one has blanks behind it and the other not."""
    if student == teacher:
        return (0, 0), len(student), False
    ours, theirs = student.decode(), teacher.decode()
    if ours.strip() != theirs.strip():
        raise DataError(where, *_difference(ours, theirs))
    (lead, body, trail), (their_lead, _, their_trail) = _split(ours), _split(theirs)
    starts = (0, 0) if lead == their_lead else (len(lead.encode()), len(their_lead.encode()))
    common = (lead if lead == their_lead else "") + body + (trail if trail == their_trail else "")
    return starts, len(common.encode()), trail != their_trail


def _split(text: str) -> tuple[str, str, str]:
    """The blanks at its beginning, what is between, the blanks at its end."""
    begins = text[: len(text) - len(text.lstrip())]
    return begins, text.strip(), text[len(text.rstrip()) :] if text.strip() else ""


def _difference(student: str, teacher: str) -> tuple[str, str]:
    """What is wrong, and what to do."""
    ours, theirs = student.strip(), teacher.strip()
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = [text[max(0, place - SHOWN // 2) : place + SHOWN // 2] for text in (ours, theirs)]
    what = (
        f"the student's template writes {shown[0]!r} where the teacher's writes {shown[1]!r}, from character {place} on"
    )
    return what, "Give both tokenizers a chat template that keeps the words, or take the row out"


def _boundaries(turn: Turn, start: int, length: int) -> dict[int, int]:
    """How many of its tokens stand before each byte at which one ends, counted from `start`, up to `length`.

    Beyond stand two more places: `length` + 1 is where the words are over and the end begins, `length` + 2 behind it.
    """
    found: dict[int, int] = {}
    over = len(turn.said)

    def mark(place: int, tokens: int) -> None:
        """Tokens without bytes go with what follows: of several counts at one place the first stands."""
        if 0 <= place - start <= length:
            found.setdefault(place - start, tokens)

    before = turn.opens  # where the token before ends, if it is known
    mark(before, 0)
    ends = zip(turn.starts_L.tolist(), turn.ends_L.tolist(), turn.exact_L.tolist(), strict=True)
    for index, (begin, end, exact) in enumerate(ends):
        if before <= over <= begin:
            found.setdefault(length + 1, index)
        if before < 0 < end and start == 0:
            found.setdefault(0, index)  # the template's own blank, and the first word
        if exact:
            mark(end, index + 1)
        before = end if exact else over + 1
    if len(turn):
        found[length + 2] = len(turn)
    return found


def shared_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of tokens that mean the same in both vocabularies, pairwise, by the student's ids; each at most once.

    The tokens that end a turn are matched to each other, other control tokens where they are spelled alike, and all
    else where it is the same bytes, however the vocabularies spell them.
    """
    (ours, our_controls), (theirs, their_controls) = _by_bytes(student), _by_bytes(teacher)
    ends = end_token(student), end_token(teacher)
    pairs = {ends[0]: ends[1]}
    for mine, other in ((our_controls, their_controls), (ours, theirs)):
        pairs |= {
            index: other[spelled]
            for spelled, index in mine.items()
            if index != ends[0] and other.get(spelled, ends[1]) != ends[1]
        }
    student_V = np.array(sorted(pairs), dtype=np.int64)
    return student_V, np.array([pairs[index] for index in student_V.tolist()], dtype=np.int64)


def _by_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Text tokens and control tokens by the bytes that they are. Where several are the same, the one that is used: a
    plain token before a byte's, the first before others."""
    spelling = Spelling.of(tokenizer)
    controls = set(control_tokens(tokenizer).values())
    texts: dict[bytes, int] = {}
    specials: dict[bytes, int] = {}
    vocabulary = tokenizer.get_vocab()
    for token, index in sorted(vocabulary.items(), key=lambda entry: (spelling.is_byte(entry[0]), entry[1])):
        if piece := spelling.bytes_of(index, token):
            (specials if index in controls else texts).setdefault(piece, index)
    return texts, specials


def explain_alignment(student: Sequence[Turn], teacher: Sequence[Turn], spans: Spans, names: tuple[str, str]) -> str:
    """One line a span: the student's tokens, then the teacher's, and `end` where it ends a turn. For people.

    The first line says whose they are; `names` are the student's and the teacher's.
    Tokens that are learnt and in no span stand alone on their side.
    """
    sides = []
    for turns, starts_S, ends_S in (
        (student, spans.student_starts_S, spans.student_ends_S),
        (teacher, spans.teacher_starts_S, spans.teacher_ends_S),
    ):
        texts = [text for turn in turns for text in _token_texts(turn)]
        sides.append((texts, [*starts_S.tolist(), len(texts)], [0, *ends_S.tolist()]))
    lines = [(f"student {names[0]}", f"teacher {names[1]}", "")]
    for span in range(len(spans) + 1):
        (ours, ours_next, ours_past), (theirs, theirs_next, theirs_past) = sides
        if alone := ours[ours_past[span] : ours_next[span]]:
            lines.append((_joined(alone), "-", ""))
        if alone := theirs[theirs_past[span] : theirs_next[span]]:
            lines.append(("-", _joined(alone), ""))
        if span < len(spans):
            left = _joined(ours[ours_next[span] : ours_past[span + 1]])
            right = _joined(theirs[theirs_next[span] : theirs_past[span + 1]])
            lines.append((left, right, "  end" if spans.ends_S[span] else ""))
    width = max(len(left) for left, _, _ in lines)
    return "\n".join(f"{left:<{width}}  ~  {right}{end}" for left, right, end in lines)


def _token_texts(turn: Turn) -> list[str]:
    """Each token as text; of the template's own, and where it is not known, as the vocabulary spells it."""
    texts = []
    for start, end, token in zip(turn.starts_L.tolist(), turn.ends_L.tolist(), turn.tokens, strict=True):
        inside = 0 <= start < end <= len(turn.said)
        text = turn.said[start:end].decode(errors="backslashreplace") if inside else token
        texts.append(escaped(text))
    return texts


def _joined(texts: Sequence[str]) -> str:
    return '"' + "|".join(texts) + '"'
