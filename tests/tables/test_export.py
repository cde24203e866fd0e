"""What a user names as output is written as a shell would: through pipes and links, never in place of a device."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpaudit.errors import UserError
from sharpaudit.evidence.keys import make_key
from sharpaudit.tables.records import export_file
from tests.support.shells import bare


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    export_file(tmp_path / "new", b"rows")
    assert mode_of(tmp_path / "new") == 0o666 & ~umask
    public = make_key(tmp_path / "k.pem")
    assert (mode_of(public), mode_of(tmp_path / "k.pem")) == (0o666 & ~umask, 0o600)


def test_a_file_that_is_replaced_keeps_its_mode_and_owner(tmp_path: Path, umask: int) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"before")
    old.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(old, 1234, 1235)
    owner = (old.stat().st_uid, old.stat().st_gid)
    export_file(old, b"after")
    assert old.read_bytes() == b"after"
    assert (mode_of(old), old.stat().st_uid, old.stat().st_gid) == (0o640, *owner)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(tmp_path: Path, there: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    if there:
        target.write_bytes(b"before")
    (tmp_path / "chain").symlink_to("elsewhere/target")
    (tmp_path / "link").symlink_to(tmp_path / "chain")
    export_file(tmp_path / "link", b"after")
    assert (tmp_path / "link").readlink() == tmp_path / "chain"
    assert target.read_bytes() == b"after"
    assert not target.is_symlink()


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    export_file(tmp_path / "pipe", b"x" * 200_000)
    reader.join(10)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("link", [False, True])
def test_a_device_stays_a_device(tmp_path: Path, link: bool) -> None:
    null, before = Path("/dev/null"), os.stat("/dev/null")
    if link:
        (tmp_path / "null").symlink_to(null)
    export_file(tmp_path / "null" if link else null, b"rows")
    assert (os.stat("/dev/null").st_ino, os.stat("/dev/null").st_rdev) == (before.st_ino, before.st_rdev)
    with pytest.raises(OSError, match="/dev/full") as caught:
        export_file(Path("/dev/full"), b"rows")
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_and_a_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IsADirectoryError):
        export_file(tmp_path, b"rows")
    (tmp_path / "disk").touch()
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    with pytest.raises(UserError, match="is a disk"):
        export_file(tmp_path / "disk", b"rows")
    assert (tmp_path / "disk").read_bytes() == b""


PROGRAM = """
from pathlib import Path
import sys
from sharpaudit.tables.records import export_file
print("before", flush=True)
export_file(Path(sys.argv[1]), b"rows\\n")
print("after", flush=True)
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
@pytest.mark.parametrize("where", ["pipe", "file"])
def test_the_shell_s_own_output_goes_on(tmp_path: Path, name: str, where: str) -> None:
    """Also a file that the shell has opened: what was printed before stays."""
    if name == "LINK":
        (tmp_path / "link").symlink_to("/dev/stdout")
    call = [sys.executable, "-c", PROGRAM, str(tmp_path / "link") if name == "LINK" else name]
    if where == "pipe":
        told = subprocess.run(call, env=bare(), stdout=subprocess.PIPE, check=True).stdout
    else:
        with (tmp_path / "out").open("ab") as out:
            subprocess.run(call, env=bare(), stdout=out, check=True)
        told = (tmp_path / "out").read_bytes()
    assert told == b"before\nrows\nafter\n"
