"""Shards of signals: whole or absent, verified on read, found by row and tokens, and readable by a stranger."""

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import signal_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from signal_rows import EVERYTHING, VOCABULARY, assert_same, capture, equal, key, make_header, make_rows

from potstill.errors import DataError, PotstillError, StorageError
from potstill.signals import files
from potstill.signals.files import Reader, Torn, Writer
from potstill.signals.rows import HiddenLayer, RowSignal

SMALL = make_header(draws=3, target_logp=True, hidden=(HiddenLayer(1, 2),), teacher="t", tokenizer="k", data="d")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    capture(tmp_path / "signal", 3)
    return tmp_path / "signal"


def test_rows_are_read_in_any_order(captured: Path) -> None:
    """Trap: "Offline logits matched to rows by step number under shuffling (EasyDistill 21): key by row id and token
    hash"."""
    rows = {name: row for shard in range(3) for name, row in make_rows(EVERYTHING, [7, 3, 12], shard).items()}
    reader = Reader(captured)
    assert reader.header == EVERYTHING
    assert len(reader) == len(rows) == 9
    names = list(rows)
    order = [*np.random.default_rng(1).permutation(9), 4, 4]
    for place, found in zip(order, reader.read([names[place] for place in order]), strict=True):
        assert_same(rows[names[place]], found, EVERYTHING)
    assert reader.read([]) == []
    assert names[3] in reader
    assert key("rows/9/9") not in reader


def test_two_read_at_once(captured: Path) -> None:
    names = [key(f"rows/{shard}/{row}") for shard in range(3) for row in range(3)]
    expected = Reader(captured).read(names)
    readers = [Reader(captured), Reader(captured)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(readers[turn % 2].read, names[::-1]) for turn in range(40)]
        for job in jobs:
            assert all(map(equal, job.result(), reversed(expected)))


def test_a_stranger_reads_a_shard_from_its_description_alone(captured: Path) -> None:
    """With nothing but JSON, zlib's checksum and arithmetic on whole numbers, number by number."""
    rows = make_rows(EVERYTHING, [7, 3, 12], 1)
    by_hand = read_by_hand((captured / "000001.signal").read_bytes())
    assert list(by_hand) == list(rows)
    for found, row in zip(by_hand.values(), Reader(captured).read(list(rows)), strict=True):
        assert found["entropy"] == pytest.approx(row.entropy, abs=1e-6)
        assert found["rest"] == pytest.approx(row.rest_logp, abs=1e-6)
        assert found["target_logp"] == pytest.approx(row.target_logp)
        assert found["hidden"][2] == pytest.approx(
            row.hidden[2].codes_CH * row.hidden[2].scale_C[:, None].astype(float)
        )
        ends = np.cumsum(row.drawn_sizes)[:-1]
        assert found["drawn"] == [
            dict(zip(ids.tolist(), counts.tolist(), strict=True))
            for ids, counts in zip(np.split(row.drawn_ids, ends), np.split(row.drawn_counts, ends), strict=True)
        ]
        for listed, ids_K, logp_K in zip(found["listed"], row.top_ids, row.top_logp, strict=True):
            assert {token: listed[token] for token in ids_K.tolist()} == pytest.approx(
                dict(zip(ids_K.tolist(), logp_K.tolist(), strict=True)), abs=0.05
            )  # where rounding brought the sum above 1, the reader takes it back


def read_by_hand(shard: bytes) -> dict[tuple[str, str], dict[str, Any]]:
    magic, length, checksum = struct.unpack_from("<8sII", shard)
    assert magic == b"potsig\r\n"
    assert zlib.crc32(shard[16 : 16 + length]) == checksum
    header = json.loads(shard[16 : 16 + length])
    assert (header["format"], header["version"]) == ("potstill signal", 2)
    offset, size, rows, checksum, magic = struct.unpack("<QQII8s", shard[-32:])
    assert (zlib.crc32(shard[offset:-12]), offset + size, magic) == (checksum, len(shard) - 32, b"potsig\r\n")
    at, names, found = 16 + length, offset + 16 * rows, {}
    for place in range(rows):
        positions, length, checksum, row, tokens = struct.unpack_from("<IIIHH", shard, offset + 16 * place)
        name = shard[names : names + row].decode(), shard[names + row : names + row + tokens].hex()
        assert zlib.crc32(shard[at : at + length]) == checksum
        found[name] = row_by_hand(header, shard[at : at + length], positions)
        at, names = at + length, names + row + tokens
    assert (at, names) == (offset, len(shard) - 32)
    return found


def row_by_hand(header: dict[str, Any], row: bytes, n: int) -> dict[str, Any]:
    hidden, at, vocabulary = {}, 0, header["vocabulary"]
    for layer in header["hidden"]:
        width = layer["width"]
        codes = struct.unpack_from(f"<{n * width}b", row, at)
        scales = struct.unpack_from(f"<{n}e", row, at + n * width)
        hidden[layer["layer"]] = np.array(codes).reshape(n, width) * np.array(scales)[:, None]
        at += n * width + 2 * n
    target = list(struct.unpack_from(f"<{n}f", row, at))
    whole = int.from_bytes(row[at + 4 * n :], "little")

    def take(width: int) -> int:
        nonlocal whole
        value, whole = whole & ((1 << width) - 1), whole >> width
        return value

    def zeros() -> int:
        found = 0
        while not take(1):
            found += 1
        return found

    def low(size: int) -> int:
        return math.floor(math.log2(vocabulary // size))

    def above(lows: list[int], k: int) -> list[int]:
        ids, high = [], 0
        for value in lows:
            high += zeros()
            ids.append(high << k | value)
        return ids

    top = header["top"]
    entropy = [math.log(vocabulary) * (take(12) / 4095) ** 2 for _ in range(n)]
    sizes = [take(header["draws"].bit_length()) for _ in range(n)]
    rest = [-20 * (take(8) / 255) ** 2 for _ in range(n)] if top else []
    logp = [[-20 * (take(8) / 255) ** 2 for _ in range(top)] for _ in range(n)]
    list_low = [[take(low(top)) for _ in range(top)] for _ in range(n)]
    drawn_low = [[take(low(size)) for _ in range(size)] for size in sizes]
    listed = [dict(zip(above(lows, low(top)), line, strict=True)) for lows, line in zip(list_low, logp, strict=True)]
    drawn = [above(lows, low(len(lows)) if lows else 0) for lows in drawn_low]
    magnitudes = [[zeros() for _ in ids] for ids in drawn]
    counts = [[take(magnitude) | 1 << magnitude for magnitude in line] for line in magnitudes]
    assert whole == 0
    drawn_counts = [dict(zip(ids, line, strict=True)) for ids, line in zip(drawn, counts, strict=True)]
    found = {"hidden": hidden, "target_logp": target, "entropy": entropy, "rest": rest}
    return found | {"listed": listed, "drawn": drawn_counts}


def zipf_rows(entropy: float, draws: int, rows: int = 20, positions: int = 300) -> dict[files.Key, RowSignal]:
    """Draws from a teacher of so many nats whose likelihoods follow Zipf's law, over ids in random order."""
    rng = np.random.default_rng(0)
    logs = np.log(np.arange(1, VOCABULARY + 1))
    low, high = 0.5, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        p_V = np.exp(-middle * logs) / np.exp(-middle * logs).sum()
        low, high = (middle, high) if -(p_V * np.log(p_V)).sum() > entropy else (low, middle)
    whole = np.cumsum(p_V)
    found = {}
    for number in range(rows):
        ids, counts, sizes = [], [], []
        for _ in range(positions):
            ranks, times = np.unique(np.searchsorted(whole, rng.random(draws) * whole[-1]), return_counts=True)
            ids.append((ranks * 67_867 + rng.integers(VOCABULARY)) % VOCABULARY)
            counts.append(times)
            sizes.append(len(ranks))
        found[key(f"chats/{number:06d}")] = RowSignal(
            drawn_ids=np.concatenate(ids).astype(np.int32),
            drawn_counts=np.concatenate(counts).astype(np.int32),
            drawn_sizes=np.array(sizes, dtype=np.int32),
            entropy=np.full(positions, entropy, dtype=np.float32),
        )
    return found


@pytest.mark.parametrize(("entropy", "draws", "most"), [(1.5, 50, 24), (2.0, 50, 30), (2.5, 50, 36), (2.5, 64, 40)])
def test_draws_of_a_large_vocabulary_take_few_bytes(tmp_path: Path, entropy: float, draws: int, most: float) -> None:
    """Checksums, row names, token hashes and header included."""
    header = make_header(draws=draws)
    rows = zipf_rows(entropy, draws)
    Writer(tmp_path, header).add(rows)
    reader = Reader(tmp_path)
    assert reader.bytes_per_token() == (tmp_path / "000000.signal").stat().st_size / 6000
    assert reader.bytes_per_token() < most
    assert sum(len(row.drawn_ids) for row in reader.read(list(rows))) == sum(
        len(row.drawn_ids) for row in rows.values()
    )


# What is damaged.


def test_wherever_a_byte_flips_the_shard_is_refused(tmp_path: Path) -> None:
    rows = make_rows(SMALL, [3, 2])
    Writer(tmp_path, SMALL).add(rows)
    path = tmp_path / "000000.signal"
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(StorageError) as error:
            Reader(tmp_path).read(list(rows))
        assert str(error.value).startswith(str(path))
    path.write_bytes(whole)
    assert Reader(tmp_path).read(list(rows))


@settings(max_examples=60)
@given(st.data())
def test_wherever_bytes_change_nothing_else_is_read_silently(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("signal")
    capture(folder, 1)
    path = folder / "000000.signal"
    broken = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(broken) - 1))
    broken[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    names = [key(f"rows/0/{row}") for row in range(3)]
    expected = Reader(folder).read(names)
    path.write_bytes(broken)
    try:
        found = Reader(folder).read(names)
    except PotstillError:
        return
    assert all(map(equal, found, expected))


def test_wherever_a_shard_ends_early_it_is_refused_and_captured_again(tmp_path: Path) -> None:
    rows = make_rows(SMALL, [3, 2])
    Writer(tmp_path, SMALL).add(rows)
    path = tmp_path / "000000.signal"
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(Torn, match="run again: it is captured anew"):
            Reader(tmp_path)
    writer = Writer(tmp_path, SMALL)
    assert writer.done() == set()
    assert list(tmp_path.iterdir()) == []
    writer.add(rows)
    assert path.read_bytes() == whole


def test_a_damaged_shard_is_captured_again_in_its_own_place(captured: Path) -> None:
    before = contents(captured)
    path = captured / "000001.signal"
    broken = bytearray(before[path.name])
    broken[len(broken) // 3] ^= 16  # inside a row, where opening alone does not look
    path.write_bytes(broken)
    with pytest.raises(Torn, match=r"000001.signal: the bytes of row rows/1/\d are not those that were written"):
        Reader(captured).read([key(f"rows/1/{row}") for row in range(3)])
    assert Writer(captured, EVERYTHING).done() == {key(f"rows/{shard}/{row}") for shard in (0, 2) for row in range(3)}
    assert not path.exists()
    capture(captured, 3)
    assert contents(captured) == before


def test_a_shard_that_is_cut_short_while_it_is_read_is_refused(captured: Path) -> None:
    """As a segment of memory it would end the process."""
    reader = Reader(captured)
    path = captured / "000001.signal"
    os.truncate(path, 900)
    with pytest.raises(Torn, match=r"000001.signal: the bytes of row rows/1/\d are not those"):
        reader.read([key(f"rows/1/{row}") for row in range(3)])
    path.unlink()
    with pytest.raises(StorageError, match=r"000001.signal: it cannot be read: no such file"):
        reader.read([key("rows/1/0")])


# What is another's.


def test_a_shard_of_another_capture_is_refused_and_left(captured: Path) -> None:
    before = contents(captured)
    with pytest.raises(
        DataError, match=r"another capture: teacher aaaaaaaaaaaaaaaaaaaa\.\.\., not other\. Remove that file"
    ):
        Writer(captured, make_header(**{**vars(EVERYTHING), "teacher": "other"}))
    assert contents(captured) == before
    layers = make_header(**{**vars(EVERYTHING), "hidden": (HiddenLayer(2, 6),)})
    with pytest.raises(DataError, match=r"hidden 2 \(5 wide\), 4 \(3 wide\), not 2 \(6 wide\)"):
        Writer(captured, layers)
    shutil.copy(captured / "000000.signal", captured / "000007.signal")
    other = captured.parent / "other"
    header = make_header(draws=3)
    Writer(other, header).add(make_rows(header, [2], 8))
    (other / "000000.signal").rename(captured / "000003.signal")
    with pytest.raises(
        DataError, match=r"000003.signal: this shard is of another capture than 000000.signal: top 0, n"
    ):
        Reader(captured)


def test_a_shard_of_another_version_is_refused_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "VERSION", 1)
        Writer(tmp_path, SMALL).add(make_rows(SMALL, [2]))
    for look in (lambda: Reader(tmp_path), lambda: Writer(tmp_path, SMALL)):
        with pytest.raises(StorageError, match="of version 1; this potstill reads 'potstill signal' of version 2"):
            look()
    assert (tmp_path / "000000.signal").exists()


def test_a_file_that_is_no_signal_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "notes.signal").write_bytes(b"what I thought of the signal while I took it: it was faint")
    for look in (lambda: Reader(tmp_path), lambda: Writer(tmp_path, SMALL)):
        with pytest.raises(StorageError, match=r"notes.signal: this is no potstill signal"):
            look()
    assert (tmp_path / "notes.signal").exists()


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_shards_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="no captured signal is in this folder"):
        Reader(tmp_path / name)


def test_a_row_that_was_not_captured_is_named(captured: Path) -> None:
    reader = Reader(captured)
    with pytest.raises(DataError, match="row rows/9/9 was not captured"):
        reader.read([key("rows/0/0"), key("rows/9/9")])
    with pytest.raises(
        DataError, match=r"the tokens of row rows/0/1 are not those that were captured: 0123, not [0-9a-f]"
    ):
        reader.read([("rows/0/1", "0123")])


# A writer that is killed.


def test_killed_at_any_moment_what_is_there_is_whole_and_the_next_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    shards = 25
    capture(tmp_path / "straight", shards)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    folder, seen = tmp_path / "killed", 0
    rng = np.random.default_rng(0)
    for kill in range(5):
        command = [sys.executable, signal_rows.__file__, str(folder), str(shards)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            child.stdout.read(4 * kill + 1)
            time.sleep(float(rng.random()) * 0.004)
            os.kill(child.pid, signal.SIGKILL)
        reader = Reader(folder)
        assert len(reader) >= max(seen, 3)
        seen = len(reader)
        for row, place in zip(reader.read(list(reader.keys())), reader.keys(), strict=True):
            shard = int(place[0].split("/")[1])
            assert_same(row, make_rows(EVERYTHING, [7, 3, 12], shard)[place], EVERYTHING)
    capture(folder, shards)
    assert contents(folder) == contents(tmp_path / "straight")


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_ended_at_each_step_of_writing(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after a shard's bytes are durable, before and after its name is."""

    class Killed(BaseException):
        pass

    left = iter([*[False] * (calls - 1), True])

    def sync(path: Path) -> None:
        if next(left, False):
            raise Killed
        files_sync(path)

    files_sync = files.sync
    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(Killed):
        capture(tmp_path / "killed", 2)
    kept = len(list((tmp_path / "killed").glob("*.signal")))
    assert kept == calls // 2
    if kept:
        assert len(Reader(tmp_path / "killed")) == 3 * kept
    capture(tmp_path / "killed", 2)
    capture(tmp_path / "straight", 2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    writer = Writer(tmp_path, SMALL)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="the disk is full"):
        writer.add(make_rows(SMALL, [2]))
    assert writer.done() == set()


def test_a_hundred_thousand_rows_are_found_quickly(tmp_path: Path) -> None:
    header = make_header(draws=0, target_logp=True)
    value = np.array([-1.5], dtype=np.float32)
    rows = {(f"chats/{row:06d}", f"{row:064x}"): RowSignal(target_logp=value * row) for row in range(100_000)}
    Writer(tmp_path, header).add(rows)
    start = time.process_time()
    reader = Reader(tmp_path)
    seconds = time.process_time() - start
    assert seconds < 2  # measured: 0.2
    names = list(rows)[::997]
    assert [float(row.target_logp[0]) for row in reader.read(names)] == [-1.5 * row for row in range(0, 100_000, 997)]


def test_it_needs_no_torch() -> None:
    program = "import sys, potstill.signals.files, potstill.signals.sparse; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert shown == "False\n"
