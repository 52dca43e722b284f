"""Checkers: final numbers exactly, other kinds strictly, code in a process that it cannot end well by ending early."""

import json
import resource
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.skills.checkers import built_in, can_read, find_checker
from potstill.skills.numbers import final_number
from potstill.skills.python_tests import Limits, find_code
from potstill.sources import Function

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
NUMBER = built_in("number")


def gold() -> list[str]:
    if not GSM8K.is_dir():
        pytest.skip("the problems of GSM8K are not here")
    files = [GSM8K / "train.jsonl", GSM8K / "test.jsonl"]
    return [json.loads(line)["answer"] for file in files for line in file.read_text().splitlines()]


def test_every_gold_answer_of_gsm8k_is_confirmed_and_every_planted_wrong_one_refused() -> None:
    answers = gold()
    assert len(answers) == 8792
    for answer in answers:
        said = answer.split("####")[1].strip()
        truth = final_number(answer)
        assert truth is not None
        assert truth.value == Fraction(said.replace(",", ""))
        for right in (answer, f"So it is ${said} in all.", f"\\boxed{{{said}}}", f"Thus.\n**Answer:** {said} apples"):
            assert NUMBER.check(right, answer) == "right", (right, answer)
        for value in (truth.value + 1, -truth.value - 1, truth.value * 10 + 1, truth.value + Fraction(1, 1000)):
            wrong = f"{float(value):.3f}" if value.denominator > 1 else str(value)
            for form in (f"#### {wrong}", f"It is {wrong}.", f"\\boxed{{{wrong}}}", f"{answer}\nAnswer: {wrong}"):
                if form.startswith(answer):  # the #### of the gold answer still stands in it, and counts
                    assert NUMBER.check(form, answer) == "right"
                else:
                    assert NUMBER.check(form, answer) == "wrong", (form, answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("It costs $1,234.50.", Fraction("1234.5")),
        ("\\boxed{\\frac{3}{4}}", Fraction(3, 4)),
        ("\\boxed{1\\frac{1}{2}}", Fraction(3, 2)),
        ("\\boxed{1{,}000}", 1000),
        ("first \\boxed{3}, then \\boxed{4}", 4),
        ("1 1/2 cups", Fraction(3, 2)),
        ("from 10-5", 5),
        ("10 - 5 = 5.", 5),
        ("x=-3", -3),
        ("(−3)", -3),
        ("3 \\times 10^5", 300_000),
        ("1.5e3 km", 1500),
        ("#### 7\nThat was the 2nd of 9.", 7),
        ("The answer is: 5", 5),
        ("Answer: 7 apples", 7),
        ("5km", 5),
        ("won the 2nd race by 3.", 3),
        ("½", Fraction(1, 2)),
        ("Answer: 1½", Fraction(3, 2)),
        ("Answer: –5", -5),
        ("Answer: minus 5", -5),
        ("#### -  5", -5),
        ("10 minus 5 is 5", 5),
        ("Answer: 2 million", 2_000_000),
        ("1'000", 1000),
        ("<b>5</b>", 5),
        ("48 + 24 = <<48+24=72>>72", 72),
    ],
)
def test_the_number_that_a_text_ends_up_with(text: str, value: object) -> None:
    found = final_number(text)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "2^5",
        "12:30",
        "1.2.3",
        "2/3/2024",
        "1,00",
        "1/0",
        "the 2nd",
        "a5",
        "1e999",
        "9" * 200,
        "Answer: 3 or 4",
        "Answer: 3\nAnswer: 4",
        "\\boxed{3 + 4}",
        "####",
        "5²",
        "Answer: 2π",
        "2 \\sqrt{3}",
        "Answer: not 5",
        "Answer: >5",
        "Answer: at least 5",
        "3–5",
        "0x10",
        "1_000",
        "1e3e4",
    ],
)
def test_what_cannot_be_told_is_no_number_never_a_guess(text: str) -> None:
    """Trap: "A failed parse stored as 0, as -1 in the mean, or dropped without a count"."""
    assert final_number(text) is None
    assert NUMBER.check(text, "3") == "unread"
    assert not can_read(NUMBER, text)


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f.numerator) < 10**30))
def test_a_number_is_read_in_every_way_that_it_is_written(value: Fraction) -> None:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    sign = "-" if value < 0 else ""
    forms = [str(value), f"\\boxed{{{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}}}"]
    if value.denominator == 1:
        forms += [f"{value.numerator:,}", f"{value.numerator}.00", f"{sign}${whole:,}.", f"about 3 of {value} kg"]
    elif whole:
        forms.append(f"{sign}{whole} {rest}/{value.denominator}")
    for form in forms:
        found = final_number(form)
        assert found is not None, form
        assert found.value == value, form


def test_a_percentage_is_its_number_or_its_value_and_nothing_else() -> None:
    for said, truth in (("50%", "50"), ("50", "50%"), ("0.5", "50%"), ("50 percent", "1/2"), ("50\\%", "50%")):
        assert NUMBER.check(said, truth) == "right", (said, truth)
    for said, truth in (("0.5", "50"), ("50%", "5"), ("5%", "50%"), ("0.5%", "50%"), ("50", "0.5")):
        assert NUMBER.check(said, truth) == "wrong", (said, truth)


@given(st.text(max_size=200))
def test_no_text_breaks_a_checker(text: str) -> None:
    for name in ("number", "exact", "choice", "json", "rating"):
        checker = built_in(name)
        assert checker.check(text, text) in (("right",) if can_read(checker, text) else ("unread",))
        checker.final(text)


@pytest.mark.parametrize(
    ("name", "answer", "reference", "verdict"),
    [
        ("exact", "  The   keeper is Ada. ", "The keeper is Ada.", "right"),
        ("exact", "I see.\nAnswer: Ada", "Ada", "right"),
        ("exact", "the keeper is ada.", "The keeper is Ada.", "wrong"),
        ("exact", "Answer: Ada\nAnswer: Leo", "Ada", "unread"),
        ("exact", " ", "Ada", "unread"),
        ("choice", "B", "B", "right"),
        ("choice", "(b)", "B) the river", "right"),
        ("choice", "So the answer is (C).", "B", "wrong"),
        ("choice", "The answer is B, or the answer is C.", "B", "unread"),
        ("choice", "Because of the river.", "B", "unread"),
        ("choice", "Answer: B. the river", "B", "right"),
        ("choice", "\\boxed{D}", "D", "right"),
        *(
            ("choice", said, letter, "unread")
            for said, letter in (
                ("The answer is A or B", "A"),
                ("A) x\nB) y", "A"),
                ("A. no wait, B", "A"),
                ("The answer is a mystery", "A"),
                ("(B) because A is wrong. The answer is C", "B"),
                ("(B) because A is wrong. The answer is C", "C"),
                ("Answer: D.\nOr C", "D"),
                ("\\boxed{D} or C", "D"),
                ("Answer: A\nAnswer: B", "A"),
            )
        ),
        ("choice", "B) A river", "B", "right"),
        ("choice", "A is too small. The answer is B.", "B", "right"),
        ("json", "Answer: 1\nAnswer: 2", "2", "unread"),
        ("json", '```json\n{"b": 1.0, "a": [1]}\n```', '{"a": [1], "b": 1}', "right"),
        ("json", '{"a": true}', '{"a": 1}', "wrong"),
        ("json", '{"a": NaN}', '{"a": 1}', "unread"),
        ("json", "{'a': 1}", '{"a": 1}', "unread"),
        ("rating", "Text 1\nRating: 5\nRationale: x", "Text 1\nRating: 5\nRationale: other words", "right"),
        ("rating", "Text 1\nRating: 1\nRationale: x", "Text 1\nRating: 5\nRationale: x", "wrong"),
        ("rating", "Text 1\nRating: N/A", "Text 1\nRating: N/A", "right"),
        ("rating", "Text 1\nRating: 5\nRating: 1", "Text 1\nRating: 5", "unread"),
        ("rating", "Rating: [[8/10]]", "Text 1\nRating: 5", "unread"),
        ("rating", "Text 1\nRating: 5", "Text 1\nRating: 5\n\nText 2\nRating: 1", "wrong"),
    ],
)
def test_each_kind_is_read_strictly(name: str, answer: str, reference: str, verdict: str) -> None:
    """Trap: "`[[8/10]]`, two ratings in one reply"; two final answers are none."""
    assert built_in(name).check(answer, reference) == verdict


def test_the_final_answer_alone() -> None:
    assert NUMBER.final("7 plus 5 is 12.\nAnswer: 1,200 apples") == "1200"
    assert built_in("choice").final("So the answer is (c).") == "C"
    assert built_in("exact").final("I see.\nAnswer: Ada") == "Ada"
    assert built_in("python_tests").final("Well:\n```python\nx = 1\n```\nDone.") == "```python\nx = 1\n```"


# Code.

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
GOOD = "def add(a, b):\n    return a + b"


def run(code: str, tests: str = TESTS, **limits: float) -> str:
    bounds = Limits(**{"seconds": 10.0, **limits})  # type: ignore[arg-type]
    return built_in("python_tests", bounds).check(f"Like this:\n```python\n{code}\n```", tests)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (GOOD, "right"),
        (GOOD.replace("+", "-"), "wrong"),
        ("def add(a, b) return", "wrong"),
        ("import sys\nsys.exit(0)", "wrong"),
        ("import os\nos._exit(0)", "wrong"),
        ("raise SystemExit", "wrong"),
        ("print('ok')", "wrong"),
        (f"{GOOD}\nprint('x' * 100000)", "right"),
        (f"{GOOD}\nimport os\nassert 'POTSTILL_SECRET' not in os.environ and 'HOME' in os.environ", "right"),
        (f"{GOOD}\nx = bytearray(2 << 30)", "wrong"),
        (f"{GOOD}\nopen('big', 'wb').write(bytes(64 << 20))", "wrong"),
    ],
)
def test_code_is_right_only_if_its_tests_ran_to_their_end(
    code: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_SECRET", "key")
    assert run(code) == verdict


def test_code_that_never_ends_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    mark = tmp_path / "alive"
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3); open({str(mark)!r}, \"w\")'])\n"
        "while True: pass"
    )
    assert run(code, seconds=1.0) == "wrong"
    assert time.monotonic() - began < 8
    time.sleep(3.2)
    assert not mark.exists()


def test_code_has_no_network_where_the_kernel_can_take_it_away() -> None:
    import ctypes
    import os

    if os.fork() == 0:  # whether this machine lets one
        try:
            os._exit(1 if ctypes.CDLL(None).unshare(0x50000000) else 0)
        finally:
            os._exit(1)
    if os.wait()[1] != 0:
        pytest.skip("this kernel lets no process give its network up")
    listen = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname(), 2)"
    assert run(f"{GOOD}\n{listen}") == "wrong"


def test_the_code_of_an_answer() -> None:
    assert find_code("```py\na\n```\nor\n```\nb = 1\n```") == "b = 1"
    assert find_code("def f(): pass") == "def f(): pass"
    assert find_code("I would add the numbers.") is None
    assert find_code("```python\nnever closed") is None
    assert built_in("python_tests").check("I would add them.", TESTS) == "unread"


# One's own.


def own(folder: Path, body: str) -> Function:
    path = folder / "mine.py"
    path.write_text(body)
    return Function(path, "check")


def test_a_users_own_checker(tmp_path: Path) -> None:
    function = own(tmp_path, "def check(answer, reference):\n    return answer.lower() == reference.lower()\n")
    checker = find_checker("mine.py:check", [function])
    assert [checker.check(said, "Ada") for said in ("ADA", "Leo")] == ["right", "wrong"]


@pytest.mark.parametrize(
    ("body", "says"), [("    return 1", "returned int; expected True or False"), ("    return answer.x", "mine.py:2")]
)
def test_a_users_checker_that_is_wrong_is_blamed_by_name(tmp_path: Path, body: str, says: str) -> None:
    checker = find_checker("mine.py:check", [own(tmp_path, f"def check(answer, reference):\n{body}\n")])
    with pytest.raises(DataError, match=says):
        checker.check("a", "b")


def test_what_floods_the_runners_pipe_is_ended_and_not_held_in_memory() -> None:
    code = (
        f"{GOOD}\nimport os\nwhile True:\n    for fd in range(3, 20):\n"
        "        try: os.write(fd, b'x' * (1 << 20))\n        except OSError: pass"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    assert run(code, seconds=20.0) == "wrong"
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "kilobytes"


@pytest.mark.parametrize("end", ["while True: pass", "pass"])
def test_a_child_that_leaves_the_session_is_ended_too(tmp_path: Path, end: str) -> None:
    mark = tmp_path / "alive"
    code = (
        f"{GOOD}\nimport os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(2)\n"
        f"        open({str(mark)!r}, 'w')\n    os._exit(0)\n"
        f"time.sleep(0.3)\n{end}"
    )
    assert run(code, seconds=1.5) == ("right" if end == "pass" else "wrong")
    time.sleep(2.3)
    assert not mark.exists()


def test_no_frame_holds_the_word() -> None:
    """The end that a program says cannot be read off the frames around it."""
    code = (
        "import os, re, sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for word in re.findall('[0-9a-f]{32}', repr(frame.f_locals)):\n"
        "        for fd in range(3, 20):\n            try: os.write(fd, word.encode())\n"
        "            except OSError: pass\n    frame = frame.f_back\nos._exit(0)"
    )
    assert run(code) == "wrong"
