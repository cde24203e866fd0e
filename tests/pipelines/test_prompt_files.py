"""Prompt files as runs meet them: folders, patterns and names; what binds a run; commands that read prompts."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.commands.options import excluding
from pipelines.flow.binding import _added
from pipelines.operations.validate import validate
from pipelines.stages.ingest import names_in, sources
from sharpaudit.errors import UserError
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, load, tables

INGESTED = {"until": "fit_unconditional"}
"""As far as a run must go to have read its prompts."""


@pytest.fixture
def shards(config_path: Path, tmp_path: Path) -> Path:
    """The audited prompts in three files, one of them compressed, as Spark leaves them."""
    header, *rows = (config_path.parent / "testbed/prompts/audit.csv").read_text().splitlines()
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        (folder / f"part-{i:05d}.csv").write_text("\n".join([header, *rows[i::3]]) + "\n")
    packed = folder / "part-00001.csv"
    packed.with_suffix(".csv.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    (folder / "part-00003.csv").touch()
    (folder / "_SUCCESS").touch()
    return folder


def prompts(root: Path) -> set[tuple[str, str]]:
    return {(row["prompt"], row["role"]) for row in tables(root)["corpus"]}


def names(root: Path) -> set[str]:
    return set(names_in(RunFolder.open(root).record()).values())


def test_a_folder_and_a_pattern_are_the_prompts_of_their_files(
    config_path: Path, clean: Path, shards: Path, tmp_path: Path
) -> None:
    for i, place in enumerate((shards, shards / "part-*")):
        root = tmp_path / f"run{i}"
        audit(config_path, root, f"corpus.audit={place}", **INGESTED)
        assert prompts(root) == prompts(clean)
        origins = [row for row in tables(root)["origins"] if row["source"].startswith("audit:")]
        assert {row["source"] for row in origins} == {
            f"audit:shards/part-0000{end}" for end in ("0.csv", "1.csv.gz", "2.csv")
        }
        assert names(root) == {row["source"] for row in origins} | {
            "audit:shards/part-00003.csv",
            "harmless:harmless.csv",
        }


def test_a_run_is_bound_to_the_files_of_its_folder(
    config_path: Path, clean: Path, shards: Path, tmp_path: Path
) -> None:
    root, given = tmp_path / "run", f"corpus.audit={shards}"
    added = shards / "part-00004.csv"
    audit(config_path, root, given, **INGESTED)
    audit(config_path, root, given, **INGESTED)
    added.write_text("id,prompt\nz,A prompt that came later\n")
    with pytest.raises(UserError, match=r"audit:shards/part-00004\.csv is not part of this run .*`sharpaudit extend`"):
        audit(config_path, root, given, **INGESTED)
    audit(config_path, root, given, extend=True, **INGESTED)
    assert prompts(root) == prompts(clean) | {("A prompt that came later", "audit")}
    (shards / "part-00002.csv").rename(tmp_path / "part-00002.csv")
    with pytest.raises(UserError, match=r"audit:shards/part-00002\.csv is missing now"):
        audit(config_path, root, given, **INGESTED)


def test_harmless_prompts_and_positive_controls_may_be_folders(config_path: Path, clean: Path, tmp_path: Path) -> None:
    header, *rows = (config_path.parent / "testbed/prompts/harmless.csv").read_text().splitlines()
    for name, part in {"h/a.csv": rows[::2], "h/b.csv": rows[1::2], "pc/a.csv": ["pc,A known one"]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(["id,prompt" if name == "pc/a.csv" else header, *part]) + "\n")
    files = f"calibration.file={tmp_path / 'h'}", f"corpus.positive_controls={tmp_path / 'pc/*.csv'}"
    audit(config_path, tmp_path / "run", *files, **INGESTED)
    assert prompts(tmp_path / "run") == prompts(clean) | {("A known one", "positive_control")}


def test_files_of_one_name_are_told_apart_and_keep_their_names(config_path: Path, tmp_path: Path) -> None:
    for place in ("en", "de", "fr"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "p.csv").write_text(f"id,prompt\n1,A prompt in {place}\n")
    en, de, fr = (tmp_path / place / "p.csv" for place in ("en", "de", "fr"))
    root, both = tmp_path / "run", f'corpus.audit=["{en}", "{de}"]'
    audit(config_path, root, both, **INGESTED)
    told = {row["source"]: row["external_id"] for row in tables(root)["origins"] if row["source"][:5] == "audit"}
    assert told == {"audit:en/p.csv": "1", "audit:de/p.csv": "1"}
    audit(config_path, root, f'corpus.audit=["{de}", "{en}"]', **INGESTED)
    alone = tmp_path / "alone"
    audit(config_path, alone, f"corpus.audit={en}", **INGESTED)
    assert "audit:p.csv" in names(alone)
    audit(config_path, alone, f'corpus.audit=["{en}", "{fr}"]', extend=True, **INGESTED)
    assert names(alone) >= {"audit:p.csv", "audit:fr/p.csv"}
    # The config names the first one alone, from another place; the second stays part of the run.
    moved = Path(shutil.copytree(tmp_path / "en", tmp_path / "moved")) / "p.csv"
    audit(config_path, alone, f"corpus.audit={moved}", **INGESTED)
    assert names(alone) >= {"audit:p.csv", "audit:fr/p.csv"}


def test_a_file_that_is_named_twice_is_refused(config_path: Path, shards: Path) -> None:
    first = shards / "part-00000.csv"
    with pytest.raises(UserError, match=r"part-00000\.csv is audited twice"):
        load(config_path, f'corpus.audit=["{first}", "{first}"]')
    with pytest.raises(UserError, match=r"part-00000\.csv: the file is named twice"):
        sources(load(config_path, f'corpus.audit=["{shards}", "{first}"]'))


def test_a_folder_of_empty_shards_is_one_line(config_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/part-0.csv").touch()
    for act in (
        lambda: audit(config_path, tmp_path / "run", f"corpus.audit={tmp_path / 'empty'}"),
        lambda: list(validate(load(config_path, f"corpus.audit={tmp_path / 'empty'}"), 0.1)),
    ):
        with pytest.raises(UserError, match=r"empty: no row holds a prompt that can be audited \(there is none\)"):
            act()


@pytest.mark.parametrize(
    ("held", "asked", "added"),
    [
        (["/a/p", "/b/q"], ["/a/p"], ["/b/q"]),
        (["/a/p", "/b/q"], ["/c/p"], ["/b/q"]),
        (["/a/p", "/b/p"], ["/a/p"], ["/b/p"]),
        (["/a/p", "/b/p"], ["/c/p"], ["/b/p"]),
        (["/a/p", "/b/q"], ["/a/p", "/c/q"], []),
        (["/a/p", "/b/q"], ["/b/q", "/a/p"], []),
        (["/a/p", "/b/q"], ["/c/r"], ["/b/q"]),
    ],
)
def test_what_a_run_holds_beyond_its_config(held: list[str], asked: list[str], added: list[str]) -> None:
    assert _added(held, asked) == added


USES = {
    "audited": "corpus.audit",
    "positive controls": "corpus.positive_controls",
    "harmless": "calibration.file",
}


@pytest.mark.parametrize("use", USES)
def test_utf16_is_refused_wherever_prompts_are_read(config_path: Path, tmp_path: Path, use: str) -> None:
    path = tmp_path / "windows.txt"
    path.write_text("A small red boat\nA large blue hat\n" * 20, encoding="utf-16")
    with pytest.raises(UserError, match=r"windows\.txt: the text is in UTF-16"):
        audit(config_path, tmp_path / "run", f"{USES[use]}={path}", **INGESTED)


def test_an_extension_in_utf16_is_refused_and_no_part_of_the_run(config_path: Path, copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_text("A small red boat\nA large blue hat\n", encoding="utf-16-le")
    outcome = CliRunner().invoke(cli, ["extend", str(copy), str(path)])
    assert "windows.txt: the text is in UTF-16LE" in str(outcome.exception)
    assert "audit:windows.txt" not in names(copy)


def test_calibration_prompts_are_made_of_a_folder_and_never_of_utf16(tmp_path: Path) -> None:
    captions = [
        f"a {look} picture of a {thing}" for look in ("red", "blue", "green") for thing in ("cat", "dog", "hat")
    ]
    (tmp_path / "shards").mkdir()
    for i in range(3):
        text = "n\tcaption\n" + "".join(f"{i}\t{caption}\n" for caption in captions[i::3])
        (tmp_path / f"shards/{i}.csv.gz").write_bytes(gzip.compress(text.encode()))
    call = ["calibration", "make", str(tmp_path / "shards"), "--out", str(tmp_path / "out.csv"), "--n", "3"]
    outcome = CliRunner().invoke(cli, [*call, "--column", "caption", "--delimiter", "\\t"])
    assert outcome.exit_code == 0, outcome.output
    assert "from 9 captions" in outcome.output
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3
    (tmp_path / "windows.txt").write_text("\n".join(captions), encoding="utf-16-le")
    call = ["calibration", "make", str(tmp_path / "windows.txt"), "--out", str(tmp_path / "more.csv")]
    assert "windows.txt: the text is in UTF-16LE" in str(CliRunner().invoke(cli, call).exception)


def test_excluded_ids_are_read_as_windows_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("c0ffee\r\n", encoding="utf-8-sig")
    assert excluding((), path) == ('triage.exclude_calibration=["c0ffee"]',)
    path.write_text("c0ffee\r\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"--exclude-calibration .*out\.txt: the text is in UTF-16"):
        excluding((), path)
