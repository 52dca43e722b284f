"""Lines of large files: where they begin, what is remembered, and that a search finds what a plain loop finds."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.view import lines as module
from potstill.view.lines import FACETS, Lines, Query, facets, search


def write(folder, rows, end="\n"):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)) + end, "utf-8")
    return path


def test_lines_are_found_whatever_the_blocks(tmp_path, monkeypatch):
    path = write(tmp_path, [{"id": str(i), "text": "x" * (i % 50)} for i in range(500)])
    whole = [json.loads(line) for line in path.read_bytes().splitlines()]
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr(module, "SCANNED", size)
        found = Lines(path)
        assert [json.loads(found.line(i)) for i in range(len(found))] == whole


@pytest.mark.parametrize(("text", "count"), [("", 0), ("{}", 1), ("{}\n", 1), ("{}\n{}", 2), ("\n\n", 2)])
def test_a_file_may_end_anywhere(tmp_path, text, count):
    (tmp_path / "a.jsonl").write_text(text)
    assert len(Lines(tmp_path / "a.jsonl")) == count


def test_where_lines_begin_is_remembered_and_never_believed_of_another_file(tmp_path, monkeypatch):
    kept = tmp_path / "cache" / "a.npy"
    rows = [{"id": str(i)} for i in range(12_000)]
    path = write(tmp_path, rows)
    assert len(Lines(path, kept)) == 12_000
    assert kept.exists()
    with monkeypatch.context() as patched:
        patched.setattr(Lines, "_find", lambda self: pytest.fail("it is remembered"))
        assert len(Lines(path, kept)) == 12_000
    write(tmp_path, rows[:-1])
    assert len(Lines(path, kept)) == 11_999
    for damage in (b"", b"rubbish", kept.read_bytes()[:-9]):
        kept.write_bytes(damage)
        assert len(Lines(path, kept)) == 11_999


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(Lines(write(tmp_path, [{}] * 12_000), tmp_path / "cache" / "a.npy")) == 12_000


STRANGE = ["null", "7", '"x"', "[1]", "[" * 100_000, '{"a": ' * 700 + "7" + "}" * 700, '{"candidates": 7}',
           '{"candidates": [7, {"ratings": "x"}, {"ratings": [7, {"score": "9"}], "model": ["needle"]}]}',
           '{"candidates": {"model": "x"}, "chosen_score": true}', '{"prompt": 7, "category": ["needle"]}']  # fmt: skip


def test_rows_of_any_shape_are_searched_and_filtered(tmp_path):
    """What was changed after it was sealed may hold anything."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*STRANGE, '{"id": "a", "text": "needle"}']) + "\n")
    lines = Lines(path)
    assert facets(lines) is not None
    assert len(STRANGE) in search(lines, Query.of("needle", {}), 0, 99).numbers
    for name in (*FACETS, "rating"):
        assert list(search(lines, Query.of("", {name: "5"}), 0, 99).numbers) == []


def test_a_file_that_is_cut_while_it_is_looked_at_ends_nothing(tmp_path):
    path = write(tmp_path, [{"id": str(i), "text": "x" * 500} for i in range(2000)])
    lines = Lines(path)
    assert len(lines) == 2000
    os.truncate(path, 5000)
    assert lines.line(1999) == b""
    assert list(search(lines, Query.of("x", {}), 0, 99).numbers) != []


WORDS = st.sampled_from(["Äpfel", "apfel", "text", 'a "b"', "x\\y", "line\nbreak", "role", "wise", "日本", "ROLE"])
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
ROWS = st.lists(st.fixed_dictionaries({"id": st.sampled_from("abc"), "text": TEXTS}), max_size=40)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, word=WORDS, start=st.integers(0, 45), size=st.sampled_from([16, 200, 1 << 20]))
def test_a_search_finds_what_a_plain_loop_finds(tmp_path_factory, rows, word, start, size):
    path = write(tmp_path_factory.mktemp("rows"), rows)
    found, query = Lines(path), Query((word,))
    expected = [i for i, row in enumerate(rows) if word.casefold() in f"{row['id']}\n{row['text']}".casefold()]
    before = module.SEARCHED
    module.SEARCHED = size
    try:
        assert list(search(found, query, start, 99).numbers) == [i for i in expected if i >= start]
        assert list(search(found, query, start, 99, backwards=True).numbers) == [i for i in expected if i < start]
        seen, at = [], 0
        while at is not None:
            hits = search(found, query, at, 2)
            seen, at = [*seen, *hits.numbers], hits.more
        assert seen == expected
    finally:
        module.SEARCHED = before


def test_rows_that_cannot_match_are_never_parsed(tmp_path, monkeypatch):
    path = write(tmp_path, [{"id": str(i), "text": "needle" if i == 700 else "hay"} for i in range(1000)])
    parsed = []
    matches = Query.matches
    monkeypatch.setattr(Query, "matches", lambda self, line: parsed.append(1) or matches(self, line))
    assert list(search(Lines(path), Query(("needle",)), 0, 10).numbers) == [700]
    assert list(search(Lines(path), Query((), {"category": "nowhere"}), 0, 10).numbers) == []
    assert len(parsed) == 1


def test_a_search_stops_in_time_and_says_where_it_was(tmp_path, monkeypatch):
    path = write(tmp_path, [{"id": str(i), "text": "hay"} for i in range(2000)])
    monkeypatch.setattr(module, "SEARCHED", 1000)
    monkeypatch.setattr(module, "SECONDS_A_SEARCH", 0.0)
    hits = search(Lines(path), Query(("needle",)), 0, 10)
    assert hits.timed_out
    assert 0 < hits.more < 2000
    monkeypatch.setattr(module, "SECONDS_A_SEARCH", 60.0)
    assert search(Lines(path), Query(("needle",)), hits.more, 10) == module.Hits([], None)


def test_a_line_that_is_no_json_is_searched_as_it_stands(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "a"}\nnot json, but a needle\n\xff\xfe needle\n')
    found = Lines(tmp_path / "a.jsonl")
    assert list(search(found, Query(("needle",)), 0, 9).numbers) == [1, 2]
    assert list(search(found, Query(("needle",), {"category": "x"}), 0, 9).numbers) == []


def test_offsets_are_of_a_kind_that_holds_large_files(tmp_path):
    assert Lines(write(tmp_path, [{}])).offsets.dtype == np.int64
