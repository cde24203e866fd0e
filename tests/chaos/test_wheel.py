"""The wheel, built, installed into an empty environment and used from another folder, as a stranger would.

Every command that the README and the pages show is run, in one folder, page after page: here what a user needs, in
test_wheel_benches.py benches and the lab.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shown import BENCHES, call, users_folder, walk, wanted

pytestmark = pytest.mark.chaos


def test_the_wheel_is_whole_and_stands_alone(wheel_programs: Path, tmp_path: Path) -> None:
    call(wheel_programs / "python", "-m", "pip", "check", cwd=tmp_path)
    where = call(wheel_programs / "python", "-c", "import sharpaudit; print(sharpaudit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(wheel_programs.parent)


@pytest.mark.timeout(3000)
def test_every_command_of_the_pages_runs_from_the_wheel(wheel_programs: Path, tmp_path: Path) -> None:
    folder = users_folder(tmp_path)
    failed = walk([text for text in wanted() if not BENCHES.match(text)], folder, wheel_programs)
    assert not failed, "\n\n".join(failed)
    assert (folder / "runs/quickstart/report/index.html").exists()
