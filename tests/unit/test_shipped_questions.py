"""The questions that come with potstill: whole, their own, unlike each other, with references whose code runs."""

import asyncio
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.curation.novelty import Novelty, common_subsequence, rouge_l, words
from potstill.questions import shipped_questions
from potstill.reading.formats import examine, read_file
from potstill.records import Prompt

DATA = Path(__file__).parents[3] / "shared" / "data"
PUBLISHED = (
    "mt_bench/question.jsonl",
    "alpaca_eval/vicuna-13b/alpaca_eval_gpt4/annotations.json",
    "self_instruct/seed_tasks.jsonl",
    "gsm8k/train.jsonl",
    "gsm8k/test.jsonl",
    "ultrachat/ultra_eval.json",
    "pandalm/testset_v1.json",
    "gpteacher/codegen_instruct.json",
    "gpteacher/roleplay_instruct.json",
    "format_demos/alpaca_en_demo.json",
    "format_demos/dpo_en_demo.json",
    "instruction_preference/instruction_data_with_preference.json",
)
RUN = 8
"""Words in a row that no question shares with a published one."""
FILES = {name: list(read_file(path, Prompt)) for name, path in shipped_questions().items()}
DIALOGUES = {prompt.id: prompt for prompt in FILES["dialogues"]}
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def test_dialogues_are_ten_of_each_category_with_two_turns_each() -> None:
    assert list(DIALOGUES) == [f"dialogue-{number:03d}" for number in range(1, 81)]
    assert Counter(prompt.category for prompt in DIALOGUES.values()) == dict.fromkeys(CATEGORIES, 10)
    for prompt in DIALOGUES.values():
        assert len(prompt.messages) == len(prompt.follow_ups) == 1
        if prompt.category in ("reasoning", "math", "coding"):
            assert len(prompt.references) == 2
        elif prompt.category != "extraction":
            assert prompt.references == ()


def user_turns(prompt: Prompt) -> list[str]:
    """All that a row asks."""
    return [text for text in (prompt.messages[0].content, *prompt.follow_ups, prompt.counterpart) if text]


def test_every_file_has_its_rows_under_stable_ids() -> None:
    sizes = {"dialogues": 80, "instructions": 200, "paired": 55, "answerable": 40}
    assert {name: len(rows) for name, rows in FILES.items()} == sizes
    for name, rows in FILES.items():
        stem = name.removesuffix("s")
        assert [prompt.id for prompt in rows] == [f"{stem}-{number:03d}" for number in range(1, len(rows) + 1)]
        assert all(prompt.category for prompt in rows)
        for text in (text for prompt in rows for text in user_turns(prompt)):
            assert text == text.strip()
            assert "```" in text or "  " not in text


def test_instructions_cover_many_kinds_from_the_beginning_on() -> None:
    rows = FILES["instructions"]
    assert not any(prompt.follow_ups or prompt.references for prompt in rows)
    counts = Counter(prompt.category for prompt in rows)
    assert len(counts) == 17
    assert min(counts.values()) >= 7
    assert max(counts.values()) <= 16
    assert len({prompt.category for prompt in rows[:40]}) >= 12, "whoever takes a few takes some of most kinds"
    lengths = sorted(len(words(prompt.messages[0].content)) for prompt in rows)
    assert lengths[0] <= 6
    assert lengths[-1] >= 150


def test_plain_questions_bring_their_answer_and_no_follow_up() -> None:
    assert all(len(prompt.references) == 1 and not prompt.follow_ups for prompt in FILES["answerable"])


def test_the_two_prompts_of_a_pair_differ_and_in_little_but_where_dialect_is_the_matter() -> None:
    assert len({prompt.category for prompt in FILES["paired"]}) == 10
    for prompt in FILES["paired"]:
        one, other = prompt.messages[0].content, prompt.counterpart
        assert one != other
        if prompt.category != "dialect":
            one_words, other_words = one.split(), other.split()
            assert common_subsequence(one_words, other_words) >= len(one_words) - 8, prompt.id
            assert abs(len(one_words) - len(other_words)) <= 6, prompt.id


def test_no_two_questions_are_alike() -> None:
    """But those of a pair, and what is asked in the two turns of one dialogue."""
    said = [(prompt.id, words(text)) for rows in FILES.values() for prompt in rows for text in user_turns(prompt)]
    alike = [
        (name, other, text, earlier)
        for at, (name, text) in enumerate(said)
        for other, earlier in said[:at]
        if name != other
        and 2 * min(len(text), len(earlier)) > 0.6 * (len(text) + len(earlier))
        and rouge_l(text, earlier) > 0.6
    ]
    assert alike == []


def _published() -> Iterator[str]:
    for name in PUBLISHED:
        for row in examine(DATA / name, Prompt):
            if row.record is not None:
                yield from (m.content for m in row.record.messages if m.role == "user")
                yield from row.record.follow_ups


def test_no_question_is_a_published_one() -> None:
    """None has a ROUGE-L over 0.5, or a run of words, with one of MT-Bench, AlpacaEval, Self-Instruct and others."""
    if not all((DATA / name).is_file() for name in PUBLISHED):
        pytest.skip("the published prompts to compare with are not here")
    known, runs, theirs = Novelty(0.5), set(), []
    for text in _published():
        known.add(text)
        said = words(text)
        runs.update(tuple(said[at : at + RUN]) for at in range(len(said) - RUN + 1))
        theirs.append(text)
    assert len(theirs) > 15_000
    assert known.nearest(theirs[0]) is not None, "the comparison must be able to find something"
    for rows in FILES.values():
        for text in (text for prompt in rows for text in user_turns(prompt)):
            near = known.nearest(text)
            assert near is None, (text, theirs[near])
            said = words(text)
            assert not [run for run in zip(*(said[at:] for at in range(RUN)), strict=False) if run in runs], text


# ---- the code in the references of the coding questions does what the questions ask


def code(number: int, turn: int, language: str = "python") -> str:
    """The blocks of code in a reference answer; the later turn may use those of the first."""
    turns = DIALOGUES[f"dialogue-{number:03d}"].references[:turn]
    return "\n\n".join(block for text in turns for block in re.findall(rf"```{language}\n(.*?)```", text, re.S))


def names(number: int, turn: int) -> SimpleNamespace:
    """What that code defines."""
    space: dict[str, Any] = {}
    exec(code(number, turn), space)
    return SimpleNamespace(**{name: value for name, value in space.items() if name != "__builtins__"})


def test_every_coding_question_is_among_those_whose_code_is_run() -> None:
    assert [int(name[-3:]) for name, prompt in DIALOGUES.items() if prompt.category == "coding"] == list(range(41, 51))


def test_ranges_are_compressed_and_expanded() -> None:
    it = names(41, 2)
    assert it.compress_ranges([9, 1, 2, 3, 10, 7]) == "1-3,7,9-10"
    for numbers in ([], [5], [-3, -2, -1, 0], [-9, 4, 5], [0, 2, 3]):
        assert it.expand_ranges(it.compress_ranges(numbers)) == numbers
    for wrong in ("3-1", "1,,2", " 1", "1,2", "1-1", "01", "2,1", "1-2,2", "-", "1-", "٣", "1\n"):
        with pytest.raises(ValueError, match="not"):
            it.expand_ranges(wrong)


def test_rolling_max_agrees_with_every_window_and_the_question_s_code_does_not() -> None:
    values = [3, -1, -4, -1, -5, 9, 2, 6, -5, -3, 5]
    for turn in (1, 2):
        for width in range(1, len(values) + 2):
            expected = [max(values[i : i + width]) for i in range(len(values) - width + 1)]
            assert names(42, turn).rolling_max(values, width) == expected
    space: dict[str, Any] = {}
    exec(re.findall(r"```\n(.*?)```", DIALOGUES["dialogue-042"].messages[0].content, re.S)[0], space)
    assert space["rolling_max"]([1, 2], 2) == []
    assert space["rolling_max"]([-3, -1, -2], 1) == [0, 0]
    assert len(space["rolling_max"]([1, 2, 3], 1)) > 2  # what the calls before left behind


def test_the_queries_find_who_ordered_each_month_and_who_missed_one() -> None:
    base = sqlite3.connect(":memory:")
    base.executescript("CREATE TABLE customers(id, name); CREATE TABLE orders(id, customer_id, day);")
    missed = {
        "Zoe": [],
        "Abe": [],
        "Kim": ["07"],
        "Lou": ["01"],
        "Mia": ["02", "03"],
        "Noa": [f"{m:02d}" for m in range(1, 13)],
    }
    for key, (name, months) in enumerate(missed.items()):
        base.execute("INSERT INTO customers VALUES (?, ?)", (key, name))
        for month in {f"{m:02d}" for m in range(1, 13)} - set(months):
            base.executemany(
                "INSERT INTO orders VALUES (0, ?, ?)", [(key, f"2023-{month}-31"), (key, f"2023-{month}-01")]
            )
        base.executemany("INSERT INTO orders VALUES (0, ?, ?)", [(key, "2022-07-04"), (key, "2024-02-01")])
    both = DIALOGUES["dialogue-043"].references
    first, second = (re.findall(r"```sql\n(.*?)```", text, re.S)[0] for text in both)
    assert base.execute(first).fetchall() == [("Abe",), ("Zoe",)]
    assert base.execute(second).fetchall() == [("Kim", "07"), ("Lou", "01")]
    base.close()


def test_the_cache_forgets_in_time_and_the_least_used() -> None:
    now = [0.0]
    for turn, more in ((1, ()), (2, (2,))):
        now[0] = 0.0
        cache = names(44, turn).ExpiringCache(10, lambda: now[0], *more)
        cache.put("a", 1)
        now[0] = 9.0
        assert (cache.get("a"), cache.get("b")) == (1, None)
        now[0] = 10.0
        assert cache.get("a") is None
    cache = names(44, 2).ExpiringCache(10, lambda: now[0], 2)
    cache.put("old", 1)
    now[0] += 6
    cache.put("b", 2)
    cache.get("old")
    cache.put("c", 3)  # b was used longest ago
    assert [cache.get(key) for key in ("old", "b", "c")] == [1, None, 3]
    now[0] += 4  # old has expired, so that c stays although it was used longest ago
    cache.put("d", 4)
    assert [cache.get(key) for key in ("old", "c", "d")] == [None, 3, 4]


def test_durations_are_read_and_written() -> None:
    it = names(45, 2)
    read = {"1h 20m 5s": 4805, "90m": 5400, "2h": 7200, "45s": 45, "1h5s": 3605}
    assert {text: it.parse_duration(text) for text in read} == read
    for wrong in ("", " 5s", "5s ", "5m 1h", "1h  5s", "5", "1h 1h", "-5s", " "):
        with pytest.raises(ValueError, match="not a duration"):
            it.parse_duration(wrong)
    assert [it.format_duration(n) for n in (4805, 3600, 0)] == ["1h 20m 5s", "1h", "0s"]
    assert all(it.parse_duration(it.format_duration(n)) == n for n in range(0, 9000, 7))
    assert it.format_duration(it.parse_duration("90m")) == "1h 30m"


def _least(sizes: list[int], width: int) -> int:
    """The least sum of squared blanks, over every way to break."""
    best = [0] if sum(sizes) + len(sizes) - 1 <= width else []
    for cut in range(1, len(sizes)):
        used = sum(sizes[:cut]) + cut - 1
        if used <= width:
            best.append((width - used) ** 2 + _least(sizes[cut:], width))
    return min(best)


def test_words_are_wrapped_greedily_and_evenly() -> None:
    it = names(46, 2)
    few = ["aaa", "bb", "cc", "ddddd"]
    assert it.wrap(few, 6) == ["aaa bb", "cc", "ddddd"]
    assert it.wrap_even(few, 6) == ["aaa", "bb cc", "ddddd"]
    assert it.wrap(["enormous", "a"], 3) == ["enormous", "a"]
    assert it.wrap([], 5) == it.wrap_even([], 5) == []
    many = ["to", "be", "or", "not", "that", "is", "a", "question", "of", "much", "dispute"]
    for width in range(8, 20):
        lines = it.wrap_even(many, width)
        assert " ".join(lines).split() == many
        assert sum((width - len(line)) ** 2 for line in lines[:-1]) == _least([len(word) for word in many], width)


def test_tasks_are_ordered_and_timed() -> None:
    it = names(47, 2)
    needs = {"serve": ["cook", "lay"], "cook": ["shop"], "lay": []}
    done = it.order(needs)
    assert sorted(done) == ["cook", "lay", "serve", "shop"]
    assert all(done.index(other) < done.index(task) for task, others in needs.items() for other in others)
    with pytest.raises(ValueError, match=r"^(a -> b -> a|b -> a -> b)$"):
        it.order({"c": ["a"], "a": ["b"], "b": ["a"]})
    assert it.finish(needs, {"shop": 2, "cook": 3, "lay": 4, "serve": 1}) == (6, ["shop", "cook", "serve"])
    assert it.finish({}, {}) == (0, [])


@pytest.mark.parametrize(
    ("text", "plain", "code"),
    [
        ("", None, None),
        ("a(b[c]{d})", None, None),
        ("(]", 1, 1),
        (")(", 0, 0),
        ("((x)", 0, 0),
        ("{[()", 1, 1),
        ('("[")', 3, None),
        (r'"\")" (', 6, 6),
        ('("', 0, 1),
        ('f("a" + "b', 1, 8),
    ],
)
def test_brackets_are_matched(text: str, plain: int | None, code: int | None) -> None:
    if '"' not in text:
        assert names(48, 1).first_fault(text) == plain
    assert names(48, 2).first_fault(text) == code


@pytest.mark.parametrize("turn", [1, 2])
def test_jobs_run_side_by_side_within_the_limit(turn: int) -> None:
    gather = names(49, turn).gather_limited
    running, most = [0], [0]

    def job(value: int) -> Callable[[], Any]:
        async def work() -> int:
            running[0] += 1
            most[0] = max(most[0], running[0])
            await asyncio.sleep(0.002 * (5 - value % 5))
            running[0] -= 1
            return value

        return work

    assert asyncio.run(gather([job(value) for value in range(9)], 3)) == list(range(9))
    assert most[0] == 3


def test_a_job_that_fails_stops_the_others() -> None:
    gather = names(49, 2).gather_limited
    begun: list[str] = []
    cancelled: list[str] = []

    def job(name: str) -> Callable[[], Any]:
        async def work() -> None:
            begun.append(name)
            if name == "bad":
                await asyncio.sleep(0)
                raise KeyError(name)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(name)
                raise

        return work

    with pytest.raises(KeyError, match="bad"):
        asyncio.run(gather([job(name) for name in ("slow", "bad", "later", "last")], 2))
    assert (begun, cancelled) == (["slow", "bad"], ["slow"])


def test_free_slots_are_what_no_minute_of_a_meeting_touches() -> None:
    it = names(50, 2)
    meetings = [(600, 660), (630, 645), (500, 560), (660, 700), (900, 1100), (780, 800)]
    slots = it.free_slots(meetings, 1)
    busy = {minute for start, end in meetings for minute in range(start, end)}
    assert {m for start, end in slots for m in range(start, end)} == set(range(540, 1020)) - busy
    assert it.free_slots(meetings, 80) == [(700, 780), (800, 900)]
    assert it.free_slots([(0, 1440)], 10) == []
    assert it.free_slots([(1030, 1100)], 480) == [(540, 1020)]
    both = it.common_slots({"here": [(600, 660)], "there": [(780, 800)]}, {"here": 0, "there": 60}, 30)
    assert both == [(540, 600), (660, 720), (740, 960)]
    assert it.common_slots({"a": [], "b": []}, {"a": 0, "b": 600}, 5) == []
