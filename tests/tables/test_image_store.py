"""Pictures of a shard: kept once, whole, durable together before anything lists them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sharpaudit.errors import IntegrityError
from sharpaudit.tables.files import Files
from sharpaudit.tables.image_store import IMAGES, ImageStore, is_whole, read_image, sweep_images
from tests.support.faulty import FaultyFiles, LosingFiles, PowerLossError, RecordingFiles

PICTURES = [bytes([i]) * (i + 1) for i in range(12)]


def stored(root: Path, pictures: list[bytes], files: Files | None = None) -> list[str]:
    with ImageStore(root, files) as store:
        return [store.put(data) for data in pictures]


def files_of(root: Path) -> Iterator[Path]:
    return (path for path in (root / IMAGES).rglob("*") if path.is_file())


def test_pictures_are_read_back_by_their_names(tmp_path: Path) -> None:
    names = stored(tmp_path, PICTURES)
    assert [read_image(tmp_path, name) for name in names] == PICTURES
    assert sorted(files_of(tmp_path)) == sorted(tmp_path / name for name in names)


def test_a_picture_is_kept_once_and_unlisted_ones_are_swept(tmp_path: Path) -> None:
    kept, again, stray = stored(tmp_path, [b"one", b"one", b"two"])
    assert again == kept
    before = (tmp_path / kept).stat().st_ino
    assert stored(tmp_path, [b"one"]) == [kept]
    assert (tmp_path / kept).stat().st_ino == before
    assert sweep_images(tmp_path, {kept}) == 1
    assert (tmp_path / kept).read_bytes() == b"one"
    assert not (tmp_path / stray).exists()


def test_a_half_written_picture_is_written_again(tmp_path: Path) -> None:
    (name,) = stored(tmp_path, [b"picture"])
    (tmp_path / name).write_bytes(b"pic")
    stored(tmp_path, [b"picture"])
    assert (tmp_path / name).read_bytes() == b"picture"


def test_a_picture_that_was_changed_or_is_gone_is_named(tmp_path: Path) -> None:
    changed, gone = stored(tmp_path, [b"one", b"two"])
    (tmp_path / changed).write_bytes(b"eno")
    (tmp_path / gone).unlink()
    for name, what in ((changed, "was changed"), (gone, "is missing")):
        with pytest.raises(IntegrityError, match=f"{name}.*{what}"):
            read_image(tmp_path, name)


def test_a_block_that_raises_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    (old,) = stored(tmp_path, [b"old"])

    def interrupted() -> None:
        with ImageStore(tmp_path) as store:
            store.put(b"old")
            store.put(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(files_of(tmp_path)) == [tmp_path / old]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_operation_fails_no_attempt_is_left_and_the_error_names_what_is_known(
    tmp_path: Path, code: int
) -> None:
    for n in range(1, 100):
        files, root = FaultyFiles(n, code), tmp_path / str(n)
        try:
            stored(root, PICTURES[:4], files)
        except OSError as error:
            assert error.errno == code
            assert ".inprogress" not in str(error.filename)
        else:
            break
        assert all(is_whole(path) for path in files_of(root))
        assert [read_image(root, name) for name in stored(root, PICTURES[:4])] == PICTURES[:4]
    # Folders of the run and of pictures, then four writes, syncs, names and folders, and the one above those.
    assert n == files.count + 1 > 17


@pytest.mark.parametrize("names", ["all", "half", "none"])
def test_what_the_block_stored_outlasts_a_loss_of_power_at_any_later_moment(tmp_path: Path, names: str) -> None:
    files = LosingFiles(names=names)
    kept = stored(tmp_path / "run", PICTURES[:4], files)
    files.lose(tmp_path / "run")
    assert [read_image(tmp_path / "run", name) for name in kept] == PICTURES[:4]


@pytest.mark.parametrize("names", ["all", "half", "none"])
def test_a_loss_of_power_within_the_block_leaves_whole_pictures_or_what_is_written_again(
    tmp_path: Path, names: str
) -> None:
    counting = LosingFiles()
    stored(tmp_path / "counted", PICTURES[:4], counting)
    for n in range(1, counting.count + 1):
        root = tmp_path / str(n)
        with suppress(PowerLossError):
            stored(root, PICTURES[:4], files := LosingFiles(n, names))
        files.lose(root)
        # An attempt may be left, which the next run sweeps, but no name of a picture that is not whole.
        assert all(is_whole(path) for path in files_of(root) if not path.name.startswith("."))
        assert [read_image(root, name) for name in stored(root, PICTURES[:4])] == PICTURES[:4]


def test_a_folder_is_synced_once_however_many_pictures_it_gets(tmp_path: Path) -> None:
    """And last: what is listed after the block has its name for good."""
    same = [data for i in range(4_000) if stored_in(data := str(i).encode()) == "7f"]
    assert len(same) > 5
    files = RecordingFiles()
    stored(tmp_path, same, files)
    kinds = [kind for kind, _ in files.log]
    assert kinds.count("sync") == kinds.count("rename") == len(same)
    assert kinds[-3:] == ["rename", "sync_folder", "sync_folder"]
    files.log.clear()
    stored(tmp_path, same, files)
    assert [kind for kind, _ in files.log] == ["sync_folder"] * 2


def stored_in(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:2]
