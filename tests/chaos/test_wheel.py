"""The wheel, built, installed into an empty environment and used from another folder, as a stranger would.

Every command that the README shows in a block is run here, the long ones too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from shown import call, commands, form, run, users_folder

pytestmark = pytest.mark.chaos


def test_the_wheel_is_whole_and_stands_alone(wheel_programs: Path, tmp_path: Path) -> None:
    call(wheel_programs / "python", "-m", "pip", "check", cwd=tmp_path)
    where = call(wheel_programs / "python", "-c", "import sharpaudit; print(sharpaudit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(wheel_programs.parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return users_folder(tmp_path_factory.mktemp("reader"))


def wanted() -> list[str]:
    """What is run of the README, in its order."""
    forms = [form(entry.text) for entry in commands("README.md") if entry.fenced]
    return [text for text in forms if text is not None]


@pytest.mark.timeout(3000)
def test_every_command_of_the_readme_runs_from_the_wheel(folder: Path, wheel_programs: Path) -> None:
    failed = []
    for text in wanted():
        done = run(text, folder, wheel_programs)
        # A deadline may have come.
        allowed = {0, 143} if "--deadline" in text else {0}
        if done.returncode not in allowed or "Traceback" in done.stderr:
            failed.append(f"{text}: {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    assert not failed, "\n\n".join(failed)
    assert (folder / "runs/quickstart/report/index.html").exists()
