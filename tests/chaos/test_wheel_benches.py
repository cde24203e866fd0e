"""The pages' benches and their commands on the lab, from the wheel; research from the repository, as it asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.shown import BENCHES, RESEARCH, run, users_folder, walk, wanted

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(3000)
def test_every_bench_of_the_pages_runs_in_small(wheel_programs: Path, tmp_path: Path) -> None:
    folder, here = users_folder(tmp_path), Path(sys.executable).parent
    texts = [text for text in wanted() if BENCHES.match(text)]
    research = [text for text in texts if RESEARCH.match(text)]
    assert len(research) > 4
    for text in research:
        refused = run(text, folder, wheel_programs)
        assert refused.returncode == 2, text
        assert "in a clone of the repository" in refused.stderr
    failed = walk([text for text in texts if text not in research], folder, wheel_programs)
    failed += walk(research, folder, here)
    assert not failed, "\n\n".join(failed)
