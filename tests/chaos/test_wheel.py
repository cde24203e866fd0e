"""The wheel, built, installed into an empty environment and used from another folder, as a stranger would."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from shells import bare

ROOT = Path(__file__).parents[2]


LOCKED = (sys.platform, platform.machine(), sys.version_info[:2]) == ("linux", "x86_64", (3, 11))
"""Whether the lock is of this platform; elsewhere pip resolves what the wheel asks for."""


def call(*command: str | Path, cwd: Path) -> str:
    # Pip's own variables, which say where packages come from, and nothing that would let the checkout shine through.
    of_pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = bare(of_pip) | {"PATH": os.defpath}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.chaos
def test_the_wheel_runs_an_audit_from_an_empty_environment(tmp_path: Path) -> None:
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT, cwd=tmp_path)
    wheel = next((tmp_path / "dist").glob("sharpaudit-*.whl"))
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    install = (binaries / "python", "-m", "pip", "install", "--quiet", "--no-compile")
    if LOCKED:
        call(*install, "--require-hashes", "--requirement", ROOT / "infra/requirements.lock", cwd=tmp_path)
        call(*install, "--no-deps", wheel, cwd=tmp_path)
    else:
        call(*install, f"{wheel}[cpu]", cwd=tmp_path)
    call(binaries / "python", "-m", "pip", "check", cwd=tmp_path)
    where = call(binaries / "python", "-c", "import sharpaudit; print(sharpaudit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
    work = tmp_path / "elsewhere"
    work.mkdir()
    listed = call(binaries / "sharpaudit", "init", "audits", cwd=work)
    assert "audits/quickstart.toml" in listed
    said = call(binaries / "sharpaudit", "run", "audits/analytic.toml", "--out", "run", cwd=work)
    assert "430 prompts scored" in said
    told = call(
        binaries / "sharpaudit", "query", "run", "select count(*) as n from findings", "--format", "csv", cwd=work
    )
    assert int(told.splitlines()[1]) >= 20
    little = ["samples.band_prompts=3", "triage.controls=2", "samples.steps=4"]
    settings = [word for setting in little for word in ("--set", setting)]
    quickstart = ["run", "audits/quickstart.toml", "--out", "quickstart", "--limit", "20", *settings]
    said = call(binaries / "sharpaudit", *quickstart, cwd=work)
    assert "20 prompts scored" in said
    assert (work / "quickstart" / "report" / "index.html").exists()
