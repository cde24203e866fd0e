"""Whole runs of earlier versions, sealed and signed, with what they were made from.

`golden/whole-version-N.tar.gz` holds the folder `audits`: audit.toml, its model, prompts and index, the run, and the
public key that it was signed by. Each was made once, by the version that first wrote runs of that number, and stays.

    python -m tests.support.golden FOLDER    makes the one of this version in the new FOLDER, from the same inputs
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
FIRST = 4
"""Earlier runs are refused."""
INPUTS = ("audit.toml", "testbed")


def unpacked(number: int, folder: Path) -> Path:
    """The folder `audits` of that version, in `folder`."""
    with tarfile.open(GOLDEN / f"whole-version-{number}.tar.gz") as archive:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder / "audits"


def todays(config: Path) -> Path:
    """The configuration beside it, with a key under the name that it has today, and what was a default then."""
    text = config.read_text(encoding="utf-8")
    written = config.with_name("todays.toml")
    text = text.replace('profile = "pixels-16"', 'profiles = ["pixels-16"]').replace("[scores]", "[scores]\nstep = 1.0")
    written.write_text(text, encoding="utf-8")
    return written


def make(folder: Path) -> None:
    """Run the audit at another level of flags, then at its own, as a signer does; pack what a reader gets."""
    from sharpaudit.tables.runs import RUN_VERSION
    from tests.support.audits import command, finish

    folder.mkdir()
    with tempfile.TemporaryDirectory() as first:
        for source in map(unpacked(FIRST, Path(first)).joinpath, INPUTS):
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
    todays(folder / "audit.toml").replace(folder / "audit.toml")
    config, key = folder / "audit.toml", folder / "auditor.pem"
    for call in (
        ("key", "make", key),
        ("run", config, "--out", folder / "run", "--set", "triage.alpha=0.1"),
        ("run", config, "--out", folder / "run", "--update", "--key", key),
    ):
        code, out, err = finish(command(*call))
        if code:
            sys.exit(out + err)
    with tarfile.open(GOLDEN / f"whole-version-{RUN_VERSION}.tar.gz", "x:gz") as archive:
        for name in (*INPUTS, "run", f"{key.name}.pub"):
            archive.add(folder / name, f"audits/{name}", filter=_nobodys)


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
