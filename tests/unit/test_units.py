"""Times, counts and sizes: one way to say them, everywhere."""

import re
from pathlib import Path

import pytest

import potstill
from potstill.units import amount, duration, memory, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (0.44, "0.4 s"), (9.9, "9.9 s"), (9.96, "10 s"), (42.4, "42 s"), (59.6, "1 min 00 s"),
        (119.6, "2 min 00 s"), (185, "3 min 05 s"), (7260, "2 h 01 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (87_207, "87.2 kB"), (999_499, "999 kB"),
        (999_999, "1 MB"), (2_023_191, "2.02 MB"), (5e13, "50 TB"), (1.234e15, "1234 TB"),
    ],
)  # fmt: skip
def test_sizes(count, text):
    assert size(count) == text


def test_counts():
    told = {
        None: "", 0: "0", 84.0: "84", 21_996: "21,996", 99_999.4: "99,999", 99_999.6: "100k", 271_660: "272k",
        999_499: "999k", 999_500: "1M", 5_091_688: "5.09M", 12_345_678: "12.3M", 7_241_732_096: "7.24G", 3e15: "3000T",
    }  # fmt: skip
    assert {count: amount(count) for count in told} == told


def test_memory():
    sizes = [memory(count) for count in (300 << 20, 1 << 30, 17.34 * (1 << 30), 1_234 << 30)]
    assert sizes == ["300 MiB", "1.0 GiB", "17.3 GiB", "1,234 GiB"]


def test_nobody_else_words_them():
    """A second way to say a time or a size would say it otherwise."""
    own = re.compile(r"def _?(duration|human\w*)\(|[kKMGT]i?B\b[^\n]*(1024|1e3|1e6|1e9|1 <<)")
    found = [p.name for p in Path(potstill.__file__).parent.rglob("*.py") if own.search(p.read_text())]
    assert found == ["units.py"]
