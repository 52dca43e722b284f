"""Whatever a model writes, and however long, is read in time that grows with its length."""

import time

import pytest

from potstill.curation import eliminator, instances, user_turns
from potstill.evaluation.mt_bench import parse_grade
from potstill.prompts import guard
from potstill.skills import checkers, labels, numbers, python_tests
from potstill.stages.prompting import read_list
from potstill.stages.self_instruct import parse_tasks
from potstill.teachers.aspects import parse_aspect_reply
from potstill.teachers.pairwise import read_comparison

LENGTH = 100_000
SECONDS = 5
"""Where time grew with the square of the length, this many characters took half a minute and more."""
READERS = {
    "number": numbers.final_number,
    "exact": checkers._words,
    "choice": checkers._choice,
    "json": checkers._json,
    "rating": checkers._ratings,
    "code": python_tests.find_code,
    "label": lambda text: labels.read_label(text, ["a"]),
    "value": labels.read_value,
    "evolved": eliminator.read_evolved,
    "equal": eliminator.read_equal,
    "choosing": instances.read_choosing,
    "instances": lambda text: instances.read_instances(text, label_first=False),
    "user turn": user_turns.read_user_turn,
    "tasks": lambda text: parse_tasks(text, 1),
    "list": read_list,
    "grade": lambda text: parse_grade(text, ["x"]),
    "aspect": lambda text: parse_aspect_reply("honesty", text, 2, ["x"]),
    "comparison": read_comparison,
    "guard": guard,
}
RUNS = ["\n", " ", "1", "-", "[", "*", "Task 1 ", "text 1\n", "```python\n", "\\frac{ ", "2^"]
BEGINNINGS = ["", "The answer is ", "Answer:", "[[", "```json\n", "x^2 "]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("run", RUNS)
def test_a_long_run_of_anything_is_read_in_time(name: str, run: str) -> None:
    began = time.perf_counter()
    for beginning in BEGINNINGS:
        READERS[name](beginning + run * (LENGTH // len(run)) + "x")
    assert time.perf_counter() - began < SECONDS


def test_what_the_readers_say_stays_the_same() -> None:
    """The forms with blanks, emphasis and further lines that they are to read."""
    assert numbers.answer_lines("**Final Answer:** _42_ **\nAnswer:\n 7 * \nThe answer is: 8") == ["42", "7", "8"]
    assert str(numbers.final_number(r"\frac{ 1 }{ 2 }").value) == "1/2"  # type: ignore[union-attr]
    assert str(numbers.final_number("Answer: is minus 4").value) == "-4"  # type: ignore[union-attr]
    assert labels.read_label("\n**Label: ** _good_ *", ["good"]) == "good"
    assert labels.read_label('```json \n\n{"label": "good"}\n```', ["good"]) == "good"
    assert python_tests.find_code("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\n```py\nz") == "y = 2"
    assert checkers._choice("The answer is : (B).") == "B"
    found = instances.read_instances(
        "**Example 1:**\n\nInput: - n/a -\nOutput: b\n\n# Example 2\nInput: c\nOutput: d", label_first=False
    )
    assert [(one.input, one.output) for one in found] == [("", "b"), ("c", "d")]
    assert user_turns.read_user_turn("User: a\n\n **Assistant** : b") == "a"
    assert parse_tasks("Do it.\n\n**Task 2:** Do that.\n Task 3 . And that.", 1) == ["Do it.", "Do that.", "And that."]
    assert parse_tasks("Do it.\n---\n***\n\n## Task 2: That.\n---\nTask 3: So.", 1) == ["Do it.", "That.", "So."]
    assert parse_tasks(f"Do it.\nTask {'9' * 5000}: no", 1) == []
