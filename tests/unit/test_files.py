"""From bytes to rows: every kind of file holds the same rows, in one piece or many, without being held whole."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from data_stages import make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.reading import files
from potstill.reading.files import count_rows, read_lines, shards
from potstill.reading.formats import examine, read_file
from potstill.records import Chat, Feedback, Pair, Text
from potstill.sources import Data

ROWS = [{"text": f"text {i}"} for i in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CHATS: list[dict[str, Any]] = [
    {"id": f"c{i}", "messages": [{"role": "user", "content": 'q, "x"\n'}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(3)
]


def values(path: Path) -> list[Any]:
    return [line.value for line in read_lines(path)]


def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for module in ("pyarrow.feather", "pyarrow.parquet"):
        pytest.importorskip(module)

    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with (
        pyarrow.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as out,
    ):
        for batch in table.to_batches(max_chunksize=7):
            out.write_batch(batch)
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.ndjson").write_text(LINES)
    (tmp_path / "A.JSONL").write_text(LINES)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in ROWS))
    (tmp_path / "a.tsv").write_text("\ufefftext\r\n" + "".join(f"{row['text']}\r\n" for row in ROWS))
    (tmp_path / "a.txt").write_text("\n\n".join(row["text"] for row in ROWS))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "a.csv.bz2").write_bytes(bz2.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress((tmp_path / "a.json").read_bytes()))
    for name in ("a.jsonl", "a.json"):
        packed = pyarrow.compress((tmp_path / name).read_bytes(), codec="zstd", asbytes=True)
        (tmp_path / f"{name}.zst").write_bytes(packed)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 16
    for path in written:
        assert values(path) == ROWS, path.name
        assert count_rows(path) == len(ROWS), path.name


def test_a_folder_or_a_pattern_is_read_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for at in range(3):
        (folder / "data" / f"part-{at}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS[at * 10 :][:10]))
    (folder / ".cache" / "x.jsonl").write_text("{}")
    (folder / "README.md").write_text("# words")
    (folder / "dataset_info.json").write_text("{}")
    assert values(folder) == values(folder / "data" / "part-*.jsonl") == ROWS
    assert count_rows(folder) == 30
    found = list(read_file(folder, Text))
    assert [row.id for row in found[:2]] == ["words-0", "words-1"]
    assert len({row.id for row in found}) == 30
    assert next(iter(read_file(folder / "data" / "part-1*", Text))).id == "data-0"
    (folder / "data" / "part-1.jsonl").write_text('{"text": 7}\n')
    (bad,) = [row for row in examine(folder, Text) if row.error]
    assert bad.name == "part-1.jsonl:1"
    assert str(bad.error).startswith(f"{folder / 'data' / 'part-1.jsonl'}:1: 'text' is a number")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("my_train.jsonl", "my_test.jsonl"), "test, train"),
        (("data/train-00000-of-00001.jsonl", "data/other-00000-of-00001.jsonl"), "other, train"),
        (("a/data-00000-of-00001.jsonl", "data-00000-of-00001.jsonl", "a/part-00000-of-00001.jsonl"), "data, part"),
    ],
)
def test_splits_are_known_by_any_name(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    """The second is what `export` makes of splits {train, other}."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    with pytest.raises(DataError, match=f"the folder holds several splits: {told}; expected the files of one"):
        shards(tmp_path)
    assert values(tmp_path / names[0]) == ROWS


def test_a_dataset_saved_to_disk_is_one_split_in_several_shards(tmp_path: Path) -> None:
    for at in range(2):
        (tmp_path / f"data-0000{at}-of-00002.jsonl").write_text(LINES)
    (tmp_path / "attrain.jsonl").write_text(LINES)
    assert len(shards(tmp_path)) == 3


@pytest.mark.parametrize("names", [("train-0.jsonl", "test-0.jsonl"), ("train/0.jsonl", "validation/0.jsonl")])
def test_splits_side_by_side_are_never_mixed(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    with pytest.raises(DataError, match=r"the folder holds several splits: \w+, \w+; expected the files of one"):
        shards(tmp_path)
    alone = tmp_path / (names[0].split("/")[0] if "/" in names[0] else "train-*")
    assert values(alone) == ROWS
    (tmp_path / "trains").mkdir()
    (tmp_path / "trains" / "training.jsonl").write_text(LINES)
    assert len(shards(tmp_path / "trains")) == 1


def test_what_cannot_be_found_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, says in {
        tmp_path / "empty": "the folder holds no file of rows",
        tmp_path / "no-*.jsonl": "no file fits this pattern",
        tmp_path / "no.jsonl": "there is no such file",
    }.items():
        with pytest.raises(DataError, match=says):
            values(path)


def test_a_table_of_text_holds_more_than_text_where_its_columns_say_so(tmp_path: Path) -> None:
    cell = json.dumps(CHATS[0]["messages"]).replace('"', '""')
    (tmp_path / "chats.csv").write_text(f'id,messages,note\nc0,"{cell}",\n')
    (chat,) = read_file(tmp_path / "chats.csv", Chat)
    assert json.loads(chat.to_line()) == CHATS[0]
    (tmp_path / "pairs.tsv").write_text(
        'prompt\tchosen\trejected\tscore_chosen\tchosen_score_note\n[1, 2]\ta "b"\tc\t9.5\tx\n'.replace('"b"', "b")
    )
    (pair,) = read_file(tmp_path / "pairs.tsv", Pair)
    assert (pair.prompt[0].content, pair.chosen_score) == ("[1, 2]", 9.5)
    (tmp_path / "kto.csv").write_text("prompt,completion,label\nq,a,True\nq,b,false\nq,c,maybe\n")
    assert [row["label"] for row in values(tmp_path / "kto.csv")] == [True, False, "maybe"]


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        (b"text,other\na,b\nc\n", 3, "1 cells under 2 columns; expected one a column"),
        (b'text\n"a\nb"\nc,d\n', 4, "2 cells under 1 columns"),
        (b"text\nok\ncaf\xe9\n", 3, "not UTF-8; expected UTF-8 text"),
        (b'text\n"never ends\n', 2, "not a table (unexpected end of data)"),
    ],
)
def test_a_damaged_table_is_told_by_line(tmp_path: Path, body: bytes, line: int, says: str) -> None:
    (tmp_path / "t.csv").write_bytes(body)
    (bad,) = [found for found in read_lines(tmp_path / "t.csv") if found.error]
    assert bad.error.startswith(says)
    assert bad.number == line


@given(
    st.lists(st.recursive(st.integers() | st.text(max_size=5) | st.none(), st.lists, max_leaves=4), max_size=6),
    st.integers(1, 9),
    st.sampled_from([None, 0, 2]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_list_is_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], piece: int, indent: int | None
) -> None:
    """A number, a half of a character or a bracket may stand at the end of a piece."""
    monkeypatch.setattr(files, "_PIECE", piece)
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    path = tmp_path / "rows.json"
    path.write_text("\ufeff\n" + text)
    if not rows:
        with pytest.raises(DataError, match="the file is empty"):
            values(path)
        return
    found = list(read_lines(path))
    assert [line.error for line in found] == [""] * len(rows)
    assert [line.value for line in found] == rows
    if indent is None:
        assert {line.number for line in found} == {2}
    path.write_bytes(path.read_bytes()[:-1])
    assert "the list is cut short" in list(read_lines(path))[-1].error


@pytest.mark.parametrize("piece", [1, 2, 5, 1 << 18])
def test_bad_bytes_in_a_list_are_told_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(files, "_PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"text": "\xc3\xa9"},\n{"text": "\xe9"}]')
    *good, bad = read_lines(path)
    assert [line.value for line in good] in ([], [{"text": "é"}])  # in one piece it is told at once
    assert bad.error == "not UTF-8 (byte 0xe9 at position 27); expected UTF-8 text"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow"])
def test_a_large_file_is_never_held(tmp_path: Path, name: str) -> None:
    """Twenty megabytes; reading them takes a few."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")

    rows = [{"id": str(i), "text": f"{i} " + "word " * 200} for i in range(20_000)]
    path = tmp_path / name
    if name.endswith(("parquet", "arrow")):
        table = pyarrow.Table.from_pylist(rows)
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(table, path, row_group_size=1000)
        else:
            with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table)
    elif name == "rows.json":
        path.write_text(json.dumps(rows))
    elif name == "rows.csv":
        path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    del rows
    tracemalloc.start()
    try:
        assert sum(1 for _ in examine(path, Text)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000, f"{peak:,} bytes"


MANY = [{"text": "word " * 12 + str(at)} for at in range(200)]
WHOLE = json.dumps(MANY)


@pytest.mark.parametrize("mode", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("two.json", WHOLE + "\n" + WHOLE, "not JSON at '.*expected nothing behind the list"),
        ("more.json", WHOLE + "garbage", "not JSON at 'garbage'; expected nothing behind the list"),
        (
            "comma.json",
            WHOLE.replace("}, {", "} {", 1),
            "expected a comma and the next element, or the end of the list",
        ),
        ("trailing.json", WHOLE[:-1] + ",]", "not JSON at ']'; expected a list of whole JSON objects"),
        ("cut.json", WHOLE[:-1], "the list is cut short; expected a comma"),
        ("bad.json", WHOLE.replace('99"}', '99"nope}'), "not JSON at .*expected a list of whole JSON objects"),
        ("bytes.json", WHOLE + "\udcff", "not UTF-8"),
        ("quote.csv", "text\n" + "".join(f'"row {at}{chr(34) * (at != 99)}\n' for at in range(200)), "not a table"),
        ("twice.csv", "text,text\na,b\n", "two columns are called 'text'; expected a name of its own for each"),
    ],
)
def test_nothing_behind_damage_is_lost_in_silence(tmp_path: Path, name: str, body: str, says: str, mode: str) -> None:
    """Where nobody can tell where the next row begins, on_bad_row: skip would lose all that follow."""
    path = tmp_path / name
    path.write_text(body, errors="surrogateescape")
    config = {"kind": "import", "path": str(path), "rows": "texts", "on_bad_row": mode}
    with pytest.raises(DataError, match=f"{says}.*(this cannot be skipped)"):
        make(tmp_path, config, {"path": Data(name, "file", path)})


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    for path in tmp_path.glob("a.*"):
        with pytest.raises(DataError, match="two columns are called 'text'"):
            values(path)


def test_a_value_of_another_type_is_named_by_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [datetime(2020, 1, 1)]}), tmp_path / "a.parquet")
    (row,) = examine(tmp_path / "a.parquet", Text)
    assert "'text' is of the type datetime; expected text" in str(row.error)


def pair(path: Path) -> Pair | str:
    (row,) = examine(path, Pair)
    return row.record or str(row.error)


@pytest.mark.parametrize(
    ("written", "score"), [("4.5", 4.5), (" 7 ", 7.0), ("-1e1", -10.0), ("1,5", None), ("1_0", None)]
)
def test_a_score_as_text_is_a_number_or_a_bad_row(tmp_path: Path, written: str, score: float | None) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": written}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.csv").write_text(f'prompt,chosen,rejected,score_chosen\nq,a,b,"{written}"\n')
    for path in tmp_path.glob("a.*"):
        found = pair(path)
        if score is None:
            assert f"'score_chosen' is '{written}'; expected a number, such as 4.5" in str(found), path.name
        else:
            assert isinstance(found, Pair), path.name
            assert found.chosen_score == score, path.name


def test_a_decimal_score_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": Decimal("4.25")}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    found = pair(tmp_path / "a.parquet")
    assert isinstance(found, Pair)
    assert found.chosen_score == 4.25


def test_a_label_that_is_neither_true_nor_false_is_named(tmp_path: Path) -> None:
    for value, shown in ((0, "0"), ("yes", "'yes'")):
        (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a", "label": value}))
        (row,) = examine(tmp_path / "a.jsonl", Feedback)
        assert f"'label' is {shown}; expected true or false" in str(row.error)


def test_identical_answers_are_counted_as_ties_are(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": answer} for answer in "ab"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"kind": "import", "path": str(tmp_path / "a.jsonl"), "rows": "pairs"}
    made = make(tmp_path, config, {"path": Data("a.jsonl", "file", tmp_path / "a.jsonl")})
    assert made.facts["dropped"] == {"identical": 1}


def test_rows_that_can_never_be_of_a_kind_are_not_to_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (row,) = examine(tmp_path / "a.jsonl", Pair)
    assert str(row.error).endswith("Rows of this shape can be texts, prompts; name that kind, or another file.")
