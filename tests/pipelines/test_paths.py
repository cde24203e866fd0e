"""Names of folders as people have them, outputs that cannot be written, and a locale without UTF-8."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import sharpaudit
from pipelines.cli import HINTS
from pipelines.operations.verify import faults
from sharpaudit.tables.files import is_plain
from sharpaudit.tables.query import query
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, command, finish, tables
from tests.support.shells import bare

NAMES = ["a?b", "a*", "a[b]c", "a\\b", "a#b%20c", "two words\nand lines", "it's {x,y}", 'say "é日本"', "$HOME;~"]


def test_a_run_lives_in_a_folder_of_any_name(config_path: Path, clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "".join(dict.fromkeys("".join(NAMES)))
    assert not is_plain(root)
    audit(config_path, root)
    assert tables(root) == tables(clean)
    assert faults(root) == []
    assert (root / "audit.duckdb").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_read_in_a_folder_of_any_name(clean: Path, tmp_path: Path, name: str) -> None:
    """And no other one, whose name the first would match as a pattern: nothing of it may be read."""
    root = Path(shutil.copytree(clean, tmp_path / name))
    shutil.copytree(clean, tmp_path / "aab")
    sql = "select count(*) from scores"
    with open_connection(RunFolder.open(clean)) as connection:
        expected = query(connection, sql).rows
    with open_connection(RunFolder.open(root)) as connection:
        assert query(connection, sql).rows == expected
    with sharpaudit.open_run(root) as run:
        assert len(run.findings()) > 0


OUTPUTS = (
    ["query", "RUN", "select 1", "--out", "PLACE"],
    ["query", "RUN", "select 1", "--format", "parquet", "--out", "PLACE"],
    ["key", "make", "PLACE"],
    ["calibration", "make", "PROMPTS", "--n", "3", "--out", "PLACE.csv"],
    ["bench", "decisions", "--draws", "8", "--json", "PLACE"],
    ["init", "PLACE"],
)
FAULTS = ("a file above", "a long name", "missing folder")
"""The last is none of `init`, which makes a folder with those above it."""


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        pytest.param(call, fault, id=f"{' '.join(call[:2])}, {fault}")
        for call in OUTPUTS
        for fault in FAULTS[: 2 if call[0] == "init" else 3]
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(
    clean: Path,
    config_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: list[str],
    fault: str,
) -> None:
    (tmp_path / "file").write_text("")
    place = {
        "missing folder": tmp_path / "no" / "where",
        "a file above": tmp_path / "file" / "x",
        "a long name": tmp_path / ("x" * 300),
    }[fault]
    if call[0] == "bench":
        monkeypatch.setattr("pipelines.bench.decisions.simulate", lambda *_: [])
        monkeypatch.setattr("pipelines.bench.decisions.markdown", lambda found: "")
        monkeypatch.setattr("pipelines.bench.decisions.bench_lines", lambda found: [])
    prompts = config_path.parent / "testbed/prompts/harmless.csv"
    for name, value in (("RUN", clean), ("PROMPTS", prompts), ("PLACE", place)):
        call = [part.replace(name, str(value)) for part in call]
    before = sorted(tmp_path.rglob("*"))
    code, line = at_the_border(call)
    assert code == 2, line
    assert line.count("\n") == 1
    assert str(place)[:100] in line
    assert "inprogress" not in line
    assert any(hint in line for hint in HINTS.values())
    assert sorted(tmp_path.rglob("*")) == before


def at_the_border(call: list[str]) -> tuple[int, str]:
    """Exit code and error output of a command, as `main` gives them."""
    import pipelines.cli as border

    with CliRunner().isolation(input=None) as (_, err, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sharpaudit", *call])
        with pytest.raises(SystemExit) as ended:
            border.main()
        return int(ended.value.code or 0), err.getvalue().decode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_this_user_may_not_write_to_is_one_line(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    code, line = at_the_border(["query", str(clean), "select 1", "--out", str(tmp_path / "shut" / "x")])
    assert code == 2
    assert "Permission denied" in line


@pytest.mark.chaos
def test_a_locale_without_utf_8_reads_and_writes_the_same(config_path: Path, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    folder = tmp_path / "naïve café"
    shutil.copytree(config_path.parent, folder)
    config = folder / "audit.toml"
    config.write_text(config.read_text(encoding="utf-8").replace('"small"', '"größer"'), encoding="utf-8")
    code, _, err = finish(command("run", config, "--out", tmp_path / "日本", shell=bare(ascii_only)))
    assert code == 0, err
    assert RunFolder.open(tmp_path / "日本").config().name == "größer"
    code, _, err = finish(command("status", tmp_path / "日本", shell=bare(ascii_only)))
    assert code == 0, err
