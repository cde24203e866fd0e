"""A Parquet file of prompts is read by a process of its own: whatever becomes of it, there are rows or one line."""

from __future__ import annotations

import gc
import random
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpaudit.corpus.formats import parquet as parquet_format
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import Source
from sharpaudit.errors import UserError
from tests.corpus.test_read import refused, rows_of, written


def test_bytes_changed_at_random_end_in_rows_or_in_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(500)]}), path, row_group_size=100)
    whole, draw = path.read_bytes(), random.Random(0)
    ended = []
    for _ in range(15):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            ended.append(len(rows_of(path)))
        except UserError as error:
            assert "x.parquet: " in str(error)
            assert "\n" not in str(error)
            ended.append(-1)
    assert -1 in ended


def test_a_file_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["x" * (1 << 26)]}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(parquet_format, "MEMORY", 1 << 25)
    assert "not readable as Parquet from row 0 on" in refused(path)


def test_a_crash_of_the_reader_is_one_line_and_loses_no_row_before_it(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, pyarrow as pa\n"
        "schema = pa.schema([('prompt', pa.large_binary())])\n"
        "out = pa.ipc.new_stream(sys.stdout.buffer, schema)\n"
        "out.write_batch(pa.record_batch([pa.array([b'a', b'b'], pa.large_binary())], schema))\n"
        "sys.stdout.buffer.flush()\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    script.chmod(0o700)
    monkeypatch.setattr(parquet_format.sys, "executable", str(script))
    reading = read_rows(Source("audit:x", "audit", written(tmp_path / "x.parquet", b"PAR1")))
    assert [next(reading).prompt, next(reading).prompt] == [b"a", b"b"]
    with pytest.raises(UserError, match=r"x\.parquet: not readable as Parquet from row 2 on: .* signal SIGSEGV"):
        next(reading)


FAKES = {
    "ends without a word": "out.close()",
    "stops in the middle of the stream": "pass",
    "claims other rows": "out.close(); sys.stderr.write('3 rows')",
    "is killed while it writes": "os.write(1, b'\\xff\\xff\\xff\\xff\\x10\\x00'); os.kill(os.getpid(), signal.SIGKILL)",
    "writes nonsense and goes on": "sys.stdout.flush()\nwhile True: os.write(1, b'\\xff' * 65536)",
}


@pytest.mark.parametrize("how", FAKES)
def test_rows_are_whole_only_if_the_reader_says_so(tmp_path, monkeypatch, how):
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, pyarrow as pa\n"
        "schema = pa.schema([('prompt', pa.large_binary())])\n"
        "out = pa.ipc.new_stream(sys.stdout.buffer, schema)\n"
        "out.write_batch(pa.record_batch([pa.array([b'a', b'b'], pa.large_binary())], schema))\n"
        f"sys.stdout.buffer.flush()\n{FAKES[how]}\n"
    )
    script.chmod(0o700)
    monkeypatch.setattr(parquet_format.sys, "executable", str(script))
    monkeypatch.setattr(parquet_format, "ENDS_WITHIN_S", 0.5)
    reading = read_rows(Source("audit:x", "audit", written(tmp_path / "x.parquet", b"PAR1")))
    assert [next(reading).prompt, next(reading).prompt] == [b"a", b"b"]
    with pytest.raises(UserError, match=r"x\.parquet: not readable as Parquet from row 2 on"):
        next(reading)


def test_the_reader_imports_nothing_from_where_it_is_started(tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise SystemExit(0)")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    assert [row.prompt for row in rows_of(Path("x.parquet"))] == [b"a"]


def test_whoever_needs_no_more_rows_leaves_no_process(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["a" * 1000] * 100_000}), path)
    assert len(rows_of(path, 0, 2)) == 2
    gc.collect()
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            assert "formats.parquet" not in " ".join(process.cmdline())
