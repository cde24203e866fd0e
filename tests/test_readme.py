"""The commands that README shows are run as shown; of the pages' none lacks an argument or a place in a page.

Here the README's quick ones, from the environment of the tests; the others in chaos/test_wheel.py, from the wheel's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.support.shown import (
    BENCHES,
    NOT_HERE,
    ROOT,
    SMALLER,
    Shown,
    commands,
    form,
    is_mention,
    pages,
    run,
    user,
    users_folder,
    verbs,
    wanted,
)

PROGRAMS = Path(sys.executable).parent
OVER_RAY = "sharpaudit run audits/analytic.toml --out runs/first-on-ray --executor ray --workers 2"
LATER = (
    "make quickstart",
    "sharpaudit validate audits/own_model.toml",
    "sharpaudit run audits/own_model.toml",
    OVER_RAY,
)
"""Of the README's commands those that take longer, which chaos/test_wheel.py runs. Ray from a bare shell is tried here
too, on a smaller audit: pipelines/workers/test_cluster.py."""
KILLED = "sharpaudit run audits/analytic.toml --out runs/first"


def shown() -> list[Shown]:
    return [entry for page in pages() for entry in commands(page) if not is_mention(entry)]


def test_every_page_is_reached_from_the_index() -> None:
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert there <= set(pages())
    assert "docs/index.md" in (ROOT / "README.md").read_text()


def test_every_command_stands_in_a_page_with_its_arguments() -> None:
    texts = [entry.text for entry in shown()]
    assert [name for name in verbs() if not any(re.match(rf"{name}\b", text) for text in texts)] == []


def test_no_command_of_the_pages_lacks_what_it_needs() -> None:
    known, faults, seen = verbs(), list[str](), 0
    for entry in shown():
        for part in re.split(r"\s(?:&&|\||>)\s", entry.text):
            named = next((name for name in known if f"{part} ".startswith(f"{name} ")), None)
            if named is None or "--help" in part:
                continue
            seen += 1
            try:
                known[named].make_context(named, shlex.split(part.removeprefix(named)))
            except (click.MissingParameter, click.NoSuchOption, click.BadOptionUsage) as error:
                faults.append(f"{entry.page}: {entry.text}: {error}")
            except click.UsageError as error:
                # A file that only a reader has; one argument too many is told by this class alone.
                if "unexpected extra argument" in str(error):
                    faults.append(f"{entry.page}: {entry.text}: {error}")
    assert seen > 50
    assert faults == []


def test_no_reason_and_no_smaller_form_is_of_a_command_that_is_shown_no_longer() -> None:
    texts = [entry.text for entry in shown()]
    assert [pattern for pattern in NOT_HERE if not any(re.fullmatch(pattern, text) for text in texts)] == []
    assert [pattern for pattern in SMALLER if not any(re.fullmatch(pattern, text) for text in texts)] == []


def test_what_takes_longer_is_left_to_the_walk_from_the_wheel() -> None:
    there = [entry.text for entry in commands("README.md")]
    assert [later for later in LATER if not any(text.startswith(later) for text in there)] == []
    walked = [text for text in wanted() if not BENCHES.match(text)]
    assert OVER_RAY in walked
    assert all(form(text) in walked for text in there if text.startswith(LATER))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return users_folder(tmp_path_factory.mktemp("reader"))


def test_the_commands_of_the_readme_run_as_shown(folder: Path) -> None:
    quick = [entry for entry in commands("README.md") if entry.fenced and not entry.text.startswith(LATER)]
    done = []
    for entry in quick:
        text = form(entry.text)
        if text is None:
            continue
        if text == KILLED:
            kill_at_work(text, folder)
        told = run(text, folder, PROGRAMS)
        assert told.returncode == 0, f"{text}\n{told.stdout[-2000:]}\n{told.stderr[-2000:]}"
        done.append(text)
    assert KILLED in done
    assert list((folder.parent / "home").iterdir()) == []


def kill_at_work(text: str, folder: Path) -> None:
    """Give the command, and kill all of it once a shard of scores is committed."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {text}"],
        cwd=folder,
        env=user(folder, PROGRAMS),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((folder / "runs/first").glob("scores/*/manifests/*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "runs/first/report/index.html").exists()
