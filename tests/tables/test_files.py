"""Files are made new and for their owner alone: a link that someone planted is never followed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sharpaudit.tables import records
from sharpaudit.tables.files import IN_PROGRESS, Files
from sharpaudit.tables.records import replace_file


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Someone else's file."""
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
def test_a_link_in_the_place_of_a_new_file_is_refused(tmp_path: Path, outside: Path, exists: bool) -> None:
    target = outside if exists else tmp_path / "nothing"
    (tmp_path / "new").symlink_to(target)
    with pytest.raises(FileExistsError):
        Files().write(tmp_path / "new", b"theirs")
    assert outside.read_text() == "mine"
    assert target.exists() == exists


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path, outside: Path) -> None:
    with pytest.raises(FileExistsError):
        Files().write(outside, b"theirs")
    assert outside.read_text() == "mine"


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    Files().write(tmp_path / "new", b"rows")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_link_in_the_place_of_a_record_is_replaced_and_not_followed(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "run.json").symlink_to(outside)
    replace_file(tmp_path / "run.json", b"{}")
    assert not (tmp_path / "run.json").is_symlink()
    assert (tmp_path / "run.json").read_bytes() == b"{}"
    assert outside.read_text() == "mine"


def test_a_link_in_the_place_of_an_attempt_is_refused(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is drawn anew each time; here it was guessed."""

    class Known:
        hex = "guessed"

    monkeypatch.setattr(records.uuid, "uuid4", Known)
    (tmp_path / f".run.json-guessed{IN_PROGRESS}").symlink_to(outside)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "run.json", b"{}")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_a_full_device_is_named() -> None:
    """The system's error of a write speaks of no file."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        Files().append(Path("/dev/full"), b"a line of a log")
