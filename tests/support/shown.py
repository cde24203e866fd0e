"""Commands that the pages show, taken from their text and run in a shell that holds nothing but a path and a home.

A command is a line of a fenced block `sh`, a whole fenced block `python`, or code within a sentence that begins with a
program and is no mere mention of its name. All pages share one working folder, so that a page may go on where the one
before it ended. What only a user can have lies there beforehand: a model, prompts, harmless prompts and pictures.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow.parquet as pq

from pipelines.cli import cli
from sharpaudit.config import LAB
from tests.support.shells import bare
from tests.support.tiny_models import write_model

ROOT = Path(__file__).parents[2]
FINDING = "RUN 'select prompt_id from findings limit 1' --format csv"
PROGRAMS = ("sharpaudit", "make", "docker", "ray", "pip", ".ci/run", "sudo", "cp")
ANALYTIC = LAB / "analytic"

NOT_HERE = {
    r"docker .*": "not possible here: needs a Docker engine",
    r"ray (up|exec|down|dashboard) .*": "not possible here: needs machines of a cluster",
    r"pip install \"ray\[default\]==.*": "not possible here: for whoever starts such a cluster",
    r"sudo install .*": "not possible here: writes to the machine's /etc",
    r"sharpaudit run .* --workers 4 --gpus-per-worker 1": "not possible here: needs GPUs",
    r"sharpaudit run .*--set run.address=auto.*": "not possible here: needs a cluster that the machine belongs to",
    r"sharpaudit index (add|build) .* --weights .*": "not possible here: needs weights that are nowhere to be had here",
    r"sharpaudit index approximate .*": "not possible here: needs an index of 10,000 pictures",
    r"make gpu-check": "not possible here: needs a GPU",
    r"make advisories": "not possible here: asks the internet",
    r"make (test|chaos)|\.ci/run": "calls this test",
    r"make (lint|lock)": "about the repository; .ci/run calls the first, the second rewrites a file of it",
    r"make tables.*": "over 5 minutes; calls `sharpaudit bench tables`, which is run in small",
    r"pip install (--require-hashes .*|--no-deps .*|\"sharpaudit\[cpu\]\")": "how the wheel's environment is built",
    r"pip install \"sharpaudit\[onnx\]\"": "what it installs stands in the environment of the tests",
}
"""Commands that no test runs as shown, by pattern, and why."""

FEW = {"fit": 40, "calibration": 100, "development": 30, "test": 190}
"""Harmless prompts of each split that the small lab keeps; of other labels 10."""
FEW_PICTURES = {"unique": 300, "harmless": 40}
"""What the small lab's recipe says of its training set, which benches draw and encode whole."""
_IN_SMALL = (
    "--out runs/quickstart --limit 20 --set samples.steps=4 --set samples.band_prompts=3 --set triage.controls=2"
)
_OF_THE_LAB = r"(bench (?:cascade|exactness|directions))"
SMALLER = {
    r"make quickstart": f"sharpaudit run {shlex.quote(str(ROOT))}/configs/audits/quickstart.toml {_IN_SMALL}",
    r"sharpaudit run audits/quickstart.toml --out runs/quickstart": (
        f"sharpaudit run audits/quickstart.toml {_IN_SMALL}"
    ),
    r"sharpaudit bench (decisions|families|intervals)": r"sharpaudit bench \1 --draws 20",
    r"sharpaudit bench sql": "sharpaudit bench sql --rows 200000",
    r"sharpaudit bench search": "sharpaudit bench search --rows 20000 --streamed 30000 --rounds 1",
    r"sharpaudit bench embedding": "sharpaudit bench embedding --pictures 4 --rounds 1",
    r"sharpaudit bench ingest": "sharpaudit bench ingest --rows 3000 --near 1000",
    r"sharpaudit bench throughput": "sharpaudit bench throughput small-lab --rounds 1 --no-sd1",
    rf"sharpaudit {_OF_THE_LAB}(.*)": r"sharpaudit \1 small-lab\2",
    r"sharpaudit bench solvers": "sharpaudit bench solvers small-lab --at dpm-solver++:2",
    r"sharpaudit bench recombined": "sharpaudit bench recombined small-lab --candidates 120",
    r"sharpaudit bench screens.*": "sharpaudit bench screens small-lab --seeds 2",
    r"sharpaudit bench detection --trajectory": (
        "sharpaudit bench detection small-lab --split development --trajectory"
    ),
    r"sharpaudit bench detection.*": "sharpaudit bench detection small-lab --split development",
    r"sharpaudit bench figures.*": (
        "sharpaudit bench figures small-lab --few 1 --out figures --only identities --only generalised"
    ),
    r"sharpaudit bench mitigation.*": (
        "sharpaudit bench mitigation small-lab --split development --few 2 --method delay-dynamic"
    ),
    r"sharpaudit bench tables": (
        f"cp -r {shlex.quote(str(ROOT))}/docs docs && sharpaudit bench tables --only families"
    ),
    r"sharpaudit lab (train|pictures) (.*)": r"sharpaudit lab \1 \2 --miniature",
    r"sharpaudit lab card \S+": r"sharpaudit lab card small-lab",
    r"sharpaudit lab detectors \S+ --split test(.*)": r"sharpaudit lab detectors small-lab --split development\1",
}
"""Commands that take over 5 minutes by pattern, and the smallest form of each, which is run instead."""


@dataclass(frozen=True)
class Shown:
    """A command as a page has it. fenced: whether it stands in a block of its own."""

    page: str
    text: str
    fenced: bool


def pages() -> list[str]:
    """README, then the pages of the index in its order, each once; of what has changed no command is promised."""
    linked = re.findall(r"\]\(([^):#]+\.md)\)", (ROOT / "docs/index.md").read_text())
    found = [os.path.relpath(ROOT / "docs" / target, ROOT) for target in linked]
    return [page for page in dict.fromkeys(["README.md", "docs/index.md", *found]) if page != "CHANGELOG.md"]


def commands(page: str) -> list[Shown]:
    """The commands of a page, in their order."""
    text = (ROOT / page).read_text()
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", text, re.DOTALL | re.MULTILINE):
        language, block, inline = match.groups()
        if language == "sh":
            joined = block.replace("\\\n", " ")
            found += [Shown(page, line, True) for line in map(_uncommented, joined.splitlines()) if line]
        elif language == "python":
            found.append(Shown(page, f"python -c {shlex.quote(block)}", True))
        elif inline and inline.split()[0] in PROGRAMS and len(inline.split()) > 1:
            found.append(Shown(page, inline, False))
    return found


def _uncommented(line: str) -> str:
    return re.sub(r"\s+# .*$", "", line).strip()


def verbs(group: click.Group = cli, path: str = "sharpaudit") -> dict[str, click.Command]:
    """Every command by its name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inner = verbs(command, f"{path} {name}") if isinstance(command, click.Group) else {f"{path} {name}": command}
        found |= inner
    return found


def form(text: str) -> str | None:
    """What is run for a command: itself, its smaller form, or nothing."""
    if any(re.fullmatch(pattern, text) for pattern in NOT_HERE):
        return None
    found = [match.expand(small) for pattern, small in SMALLER.items() if (match := re.fullmatch(pattern, text))]
    return found[0] if found else text


BENCHES = re.compile(r"(cp -r \S+/docs docs && )?sharpaudit (bench|lab (train|label|detectors|card|pictures)) ")
RESEARCH = re.compile(r"sharpaudit (bench (screens|directions|figures)|lab (train|label|card|pictures)) ")
"""Commands that the wheel leaves to the repository."""


def wanted() -> list[str]:
    """What is run of all pages, each once, in their order."""
    shown = [entry for page in pages() for entry in commands(page) if not is_mention(entry)]
    return list(dict.fromkeys(text for entry in shown if (text := form(entry.text)) is not None))


def walk(texts: Sequence[str], folder: Path, programs: Path) -> list[str]:
    """Run the commands one after another; returns what each that failed has said. Prints how long each took."""
    failed = []
    for text in texts:
        begun = time.monotonic()
        if "PROMPT_ID" in text:
            asked = run(f"sharpaudit query {FINDING}", folder, programs)
            text = text.replace("PROMPT_ID", asked.stdout.split()[1])
        done = run(text, folder, programs)
        sys.stdout.write(f"{time.monotonic() - begun:7.1f} s  {text[:100]!r}\n")
        # A bench says 1 where a goal is not met, which is no matter of this test; a deadline may have come.
        allowed = {0} | ({1} if " bench " in text else set()) | ({143} if "--deadline" in text else set())
        if done.returncode not in allowed or "Traceback" in done.stderr:
            failed.append(f"{text}: {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return failed


def is_mention(entry: Shown) -> bool:
    """Whether code within a sentence only names a command, without the arguments that it needs."""
    if entry.fenced or not entry.text.startswith("sharpaudit "):
        return not entry.fenced and entry.text in ("ray up", "ray status", "docker save", "docker load")
    known = verbs()
    named = [name for name in known if f"{entry.text} ".startswith(f"{name} ")]
    if not named:
        return True
    rest = entry.text.removeprefix(named[0])
    return not rest and any(parameter.required for parameter in known[named[0]].params)


def users_folder(place: Path) -> Path:
    """A new working folder in `place` with what the pages take for granted, where own_model.toml names it.

    An analytic model stands for the user's.
    """
    folder = place / "work"
    audits = folder / "audits"
    (audits / "my-model").mkdir(parents=True)
    shutil.copy(ANALYTIC / "model.json", audits / "my-model")
    shutil.copy(ANALYTIC / "prompts/audit.csv", audits / "prompts.csv")
    shutil.copy(ANALYTIC / "prompts/harmless.csv", audits / "harmless.csv")
    (folder / "more.csv").write_text("prompt\na prompt that came later\nand another one\n", encoding="utf-8")
    (folder / "later").mkdir()
    (folder / "later/part-0.txt").write_text("a prompt in a folder\n", encoding="utf-8")
    pictures = folder / "pictures"
    pictures.mkdir()
    rows = pq.read_table(ANALYTIC / "index/references/00000.parquet", columns=["reference_id", "thumbnail"]).to_pylist()
    for row in rows:
        (pictures / f"{row['reference_id']}.png").write_bytes(row["thumbnail"])
    small_lab(folder / "small-lab")
    return folder


def small_lab(folder: Path) -> None:
    """The lab that ships with few of its prompts and a tiny network of random weights, in a new folder: what takes an
    hour there takes seconds here, and finds nothing."""
    shipped = LAB / "emoji"
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("model", "truth.csv"))
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    settings["recipe"] |= FEW_PICTURES
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    write_model(folder / "model", levels=4)
    kept = set[str]()
    with (shipped / "truth.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as stream:
        writer, taken = csv.DictWriter(stream, list(rows[0])), Counter[tuple[str, str]]()
        writer.writeheader()
        for row in rows:
            taken[row["split"], row["label"]] += 1
            most = FEW.get(row["split"], 0) if row["label"] == "harmless" else 10
            if taken[row["split"], row["label"]] <= most:
                writer.writerow(row)
                kept.add(row["prompt"])
    for path in (folder / "prompts").glob("*.csv"):
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([lines[0], *[line for line in lines[1:] if line[0] in kept]])


def user(folder: Path, programs: Path) -> dict[str, str]:
    """The variables of a user who has set nothing: the home beside `folder`, and `sharpaudit` of `programs`."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    found = bare(home=home) | {"PATH": os.pathsep.join([str(programs), os.defpath])}
    # The code of the tree that is tested is that of `programs`.
    found.pop("PYTHONPATH", None)
    return found


PLACES = {"RUN": "runs/tonight", '"SQL"': '"select 1"', "COMMAND": "run", "FOLDER": "later"}
"""What stands for the words in capitals of a sentence."""


def run(text: str, folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in `folder`, without a terminal."""
    for word, place in PLACES.items():
        text = re.sub(rf"(?<![\w-]){word}(?![\w-])", place, text)
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=user(folder, programs),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


def call(*command: str | Path, cwd: Path) -> str:
    """The output of a command of pip or of a new environment, which must succeed."""
    environment = bare() | {"PATH": os.defpath}
    # The code of the tree that is tested is that of the wheel.
    environment.pop("PYTHONPATH", None)
    if "pip" in command:
        # Where packages come from stands in pip's own variables and in the home folder.
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
