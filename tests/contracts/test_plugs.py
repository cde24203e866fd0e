"""The door for others: a package with a plug of every kind, and a whole audit of the analytic model with all of them.

The package stands on the path as pip leaves one: a module, and the entry points that its distribution declares. One
audit in this process is asked what a user would ask of it.
"""

from __future__ import annotations

import configparser
import csv
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.cli import cli
from pipelines.flow.identity import identities, inputs_of
from pipelines.operations.prune import prune
from pipelines.operations.verify import examine, faults
from pipelines.stages import shard_worker
from pipelines.stages.base import Work
from pipelines.workers.ray import ShardActor
from sharpaudit import open_run, plugs
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import Sizes, _references, write
from sharpaudit.matches.build import build_index
from sharpaudit.tables.lock import Driver, Process
from sharpaudit.tables.runs import RunFolder, changes
from sharpaudit.tables.schemas import define
from tests.support.audits import audit, load, tables
from tests.support.toys import COLUMNS

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests/support/toys.py"
ENTRY_POINTS = """
[sharpaudit.metrics]
gap_halfway = toy_plugs:METRIC
[sharpaudit.solvers]
clipped-ddim = toy_plugs:SOLVER
[sharpaudit.families]
mirrored = toy_plugs:FAMILY
[sharpaudit.embedders]
mean-colour = toy_plugs:EMBEDDER
[sharpaudit.formats]
.md-list = toy_plugs:FORMAT
[sharpaudit.mitigations]
less-noise = toy_plugs:MITIGATION
[sharpaudit.stages]
brightness = toy_plugs:STAGE
"""
CONFIG = """
[model]
path = "model.json"
[corpus]
audit = "prompts.md-list"
[calibration]
file = "testbed/prompts/harmless.csv"
[scores]
metrics = ["residual_gap", "gap_halfway"]
components = 10
[triage]
alpha = 0.02
controls = 4
[samples]
solver = "clipped-ddim"
steps = 6
per_prompt = 2
band_prompts = 8
[matches]
index = "index"
profiles = ["mean-colour"]
[mitigation]
methods = ["less-noise"]
pictures = 4
alignment = "mean-colour"
[stages.brightness]
dark_below = 0.45
"""


def offer(folder: Path, version: str = "1.0") -> None:
    """The package toy-plugs, as pip leaves it in `folder`."""
    for old in folder.glob("*.dist-info"):
        shutil.rmtree(old)
    shutil.copy(TOYS, folder / "toy_plugs.py")
    info = folder / f"toy_plugs-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-plugs\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    plugs._offered.cache_clear()


def forget() -> None:
    """What this process knows of the package."""
    sys.modules.pop("toy_plugs", None)
    plugs._offered.cache_clear()
    for kind in plugs.KINDS.values():
        for name in set(kind._loaded) - set(kind.ours()):
            del kind._loaded[name]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    offer(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    forget()


@pytest.fixture(scope="module")
def config_path(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The analytic testbed for the toys: its model under the other kind, its prompts as a list, another index."""
    folder = tmp_path_factory.mktemp("toys")
    write(folder / "testbed", Sizes(strong=4, weak=2, audited_harmless=20, harmless=160, other_references=8))
    model = json.loads((folder / "testbed/model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model | {"kind": "mirrored"}))
    with (folder / "testbed/prompts/audit.csv").open(newline="") as stream:
        prompts = [row["prompt"] for row in csv.DictReader(stream)]
    (folder / "prompts.md-list").write_text("# Prompts\n" + "".join(f"- {prompt}\n" for prompt in prompts))
    denoiser = GaussianDenoiser.from_file(folder / "testbed/model.json")
    planted = [entry["prompt"] for entry in model["planted"]]
    build_index(folder / "index", "mean-colour", _references(denoiser, planted, 8, 0))
    (folder / "audit.toml").write_text(CONFIG)
    return folder / "audit.toml"


@pytest.fixture(scope="module")
def clean(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "run"
    audit(config_path, root)
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "run"))


def test_every_plug_works_in_a_whole_audit(config_path: Path, root: Path) -> None:
    made = tables(root)
    prompts = [row for row in made["corpus"] if row["role"] == "audit"]
    assert len(prompts) == 26
    assert {row["metric"] for row in made["scores"]} == {"residual_gap", "gap_halfway"}
    assert {row["profile"] for row in made["matches"]} == {"mean-colour"}
    assert [row["sample_id"] for row in made["brightness"]] == sorted(row["sample_id"] for row in made["samples"])
    assert all(0 < row["brightness"] < 1 for row in made["brightness"])
    assert {row["method"] for row in made["mitigation"]} == {"none", "less-noise"}
    # These prompts name no colour: a text is the fourth direction, and a picture has as much of it as it is dark.
    assert all(0 < row["alignment"] < 1 for row in made["mitigation"])
    assert "Alignment with the prompt" in (root / "report/index.html").read_text()
    assert audit(config_path, root).evaluations == 0
    assert tables(root) == made


def test_whose_the_plugs_are_stands_in_the_record_and_in_the_identities(root: Path) -> None:
    record = RunFolder.open(root).record() or {}
    told = {(plug["kind"], plug["name"]): plug for plug in record["facts"]["plugs"]}
    assert {kind for kind, _ in told} == set(plugs.KINDS)
    assert {(plug["distribution"], plug["version"]) for plug in told.values()} == {("toy-plugs", "1.0")}
    held = {
        name: [f for f in stage["fields"] if f in {" ".join(key) for key in told}]
        for name, stage in record["stages"].items()
    }
    assert held == {
        "ingest": ["model family mirrored"],
        "fit_unconditional": ["metric gap_halfway", "model family mirrored"],
        "fit_differences": [],
        "fit_subspace": [],
        "fit_thresholds": ["metric gap_halfway"],
        "score": ["metric gap_halfway"],
        "triage": [],
        "selection": [],
        "sample": ["model family mirrored", "solver clipped-ddim"],
        "bands": ["embedder mean-colour"],
        "match": [],
        "corroborate": [],
        "mitigate": ["embedder mean-colour", "method of mitigation less-noise"],
        "brightness": ["stage brightness"],
    }


def test_a_stage_is_known_to_sql_the_report_and_verify(root: Path) -> None:
    with open_run(root) as run:
        n_dark = run.sql("SELECT count(*) AS n FROM dark_samples").to_pylist()[0]["n"]
        assert run.sql("SELECT count(*) AS n FROM outcomes WHERE table_name = 'brightness'").to_pylist() == [{"n": 1}]
    bright = sorted(row["brightness"] for row in tables(root)["brightness"])
    assert n_dark == sum(value < 0.45 for value in bright)
    assert 0 < n_dark < len(bright)
    facts = json.loads((root / "report/facts.json").read_text())
    assert facts["sections"].keys() == {"mitigate", "brightness"}
    assert facts["sections"]["brightness"] == {"n": n_dark}
    page = (root / "report/index.html").read_text()
    assert re.search(r"<h2><span>7</span>Brightness</h2>\s*<p>" + str(n_dark) + " pictures are dark.</p>", page)
    assert "stages.brightness.dark_below = 0.45" in page
    assert faults(root) == []
    with duckdb.connect(str(root / "audit.duckdb"), read_only=True) as database:
        assert database.sql("SELECT count(*) FROM dark_samples").fetchall() == [(n_dark,)]


def test_its_settings_are_its_identity_and_what_they_made_is_pruned(config_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match=r"stages\.brightness\.dark_below = 0\.45 \(now 0\.4\); add --update"):
        audit(config_path, root, "stages.brightness.dark_below=0.4")
    before = tables(root)
    assert audit(config_path, root, "stages.brightness.dark_below=0.4", update=True).evaluations == 0
    after = tables(root)
    assert {name for name in after if after[name] != before[name]} == {"brightness"}
    assert prune(root).shards == len(list(root.glob("brightness/*/manifests/*.json")))
    assert tables(root) == after
    assert faults(root) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.brightness.dark_belo=1", r"brightness\.dark_belo: Extra inputs are not permitted"),
        ("stages.brightnes.dark_below=1", r'no stage is called "brightnes" \(did you mean "brightness"\?\)'),
        ("stages.score.step=1", "score is ours and has no settings here"),
        ('samples.solver="cliped-ddim"', r'no solver is called "cliped-ddim" \(did you mean "clipped-ddim"\?\)'),
        ('matches.profiles=["mean-color"]', r'no embedder is called "mean-color" \(did you mean "mean-colour"\?\)'),
        (
            'mitigation.methods=["les-noise"]',
            r'no method of mitigation is called "les-noise" \(did you mean "less-noise"',
        ),
        ('mitigation.methods=["less-noise", "less-noise"]', "less-noise is named twice"),
        ("samples.per_prompt=5", r"mitigation.pictures = 4 is fewer than samples.per_prompt = 5"),
        ('mitigation.methods=["none"]', '"none" is drawn of every finding'),
        ('scores.metrics=["gap_half"]', r'no metric is called "gap_half" \(did you mean "gap_halfway"\?\)'),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(config_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(config_path, override)
    assert "\n" not in str(caught.value)


def worker_of(root: Path) -> ShardActor:
    """A worker of Ray as it stands on another machine, before its first shard."""
    worker = ShardActor.__new__(ShardActor)
    worker._root, worker._opener, worker._worker = root, shard_worker, None
    worker._driver = Driver("none", Process.this())
    return worker


def test_another_version_of_the_package_is_another_identity(config_path: Path, root: Path, package: Path) -> None:
    offer(package, "1.1")
    try:
        with pytest.raises(UserError, match=r"prompts\.md-list is read by another version of its format"):
            audit(config_path, root)
        config, run = load(config_path), RunFolder.open(root)
        changed = {
            name
            for change in changes(run.record() or {}, identities(config, inputs_of(config)))
            for name in change.fields
        }
        kinds = set(plugs.KINDS) - {plugs.FORMATS.kind}
        assert {name.rsplit(" ", 1)[0] for name in changed} == kinds
        with pytest.raises(UserError, match=r"made with toy-plugs 1\.0, digest 1; here is version 1\.1"):
            worker_of(root).do(Work("score", "none", 0, ""))
    finally:
        offer(package)


def test_with_another_version_of_the_package_an_intact_run_is_verified_but_for_its_page(
    root: Path, package: Path
) -> None:
    offer(package, "1.1")
    try:
        verdict = examine(root)
        assert verdict.faults == []
        (note,) = verdict.notes
        assert "NOT made again from the tables" in note
        assert 'stage "brightness" of toy-plugs 1.0 that is not here as it was' in note
        with open_run(root) as run:
            assert run.view("findings").num_rows >= 0
            with pytest.raises(UserError, match="dark_samples does not exist"):
                run.sql("from dark_samples")
    finally:
        offer(package)


@pytest.mark.parametrize("spoil", ["import", "twice"])
def test_a_stage_that_cannot_be_had_keeps_nobody_from_the_tables(root: Path, package: Path, spoil: str) -> None:
    forget()
    other = package / "other_plugs-1.0.dist-info"
    try:
        if spoil == "import":
            (package / "toy_plugs.py").write_text("raise RuntimeError('no such library')")
        else:
            other.mkdir()
            (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugs\nVersion: 1.0\n")
            (other / "entry_points.txt").write_text("[sharpaudit.stages]\nbrightness = toy_plugs:STAGE\n")
            plugs._offered.cache_clear()
        with pytest.raises(UserError, match=r"cannot be imported|is offered by"):
            plugs.STAGES["brightness"]
        with open_run(root) as run:
            assert run.sql("SELECT count(*) AS n FROM brightness").to_pylist()[0]["n"] > 0
        assert faults(root) == []
    finally:
        shutil.rmtree(other, ignore_errors=True)
        forget()
        offer(package)


def test_without_the_package_a_run_is_refused_by_its_name_and_still_verified(
    config_path: Path, root: Path, package: Path
) -> None:
    sys.path.remove(str(package))
    forget()
    try:
        says = r'comes from toy-plugs==1\.0, which is not installed here: pip install "toy-plugs==1\.0"'
        for asked in (RunFolder.open(root).config, lambda: worker_of(root).do(Work("score", "none", 0, ""))):
            with pytest.raises(UserError, match=says):
                asked()
        with pytest.raises(UserError, match="no metric is called"):
            audit(config_path, root)
        # Who gives the command again where the run lies is told whose it was.
        with pytest.raises(UserError, match=says):
            cli(["run", str(config_path), "--out", str(root)], standalone_mode=False)
        assert faults(root) == []
        with open_run(root) as run:
            assert run.sql("SELECT count(*) AS n FROM brightness").to_pylist()[0]["n"] > 0
            told = json.loads((root / "report/facts.json").read_text())
            assert run.view("findings").num_rows == told["findings"]["total"] > 0
    finally:
        sys.path.insert(0, str(package))
        forget()


def test_a_stage_joins_a_run_while_another_setting_changes(config_path: Path, tmp_path: Path) -> None:
    without = config_path.with_name("without.toml")
    without.write_text(config_path.read_text().split("[stages.brightness]")[0])
    audit(without, tmp_path / "run")
    assert "brightness" not in tables(tmp_path / "run")
    audit(config_path, tmp_path / "run", "triage.controls=3", update=True)
    assert len(tables(tmp_path / "run")["brightness"]) > 0
    assert faults(tmp_path / "run") == []
    with pytest.raises(UserError, match="stage brightness made part of this run and is left out of the configuration"):
        audit(without, tmp_path / "run", "triage.controls=3")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"table": define("risk", "brightness", ("sample_id",), COLUMNS)}, "its table risk is risk in SQL"),
        ({"table": define("samples/x", "brightness", ("sample_id",), COLUMNS)}, "its table samples/x is in one folder"),
        ({"table": define("brightness", "other", ("sample_id",), COLUMNS)}, "must be of its own name"),
        ({"views": {"Risk": "SELECT 1"}}, 'view "Risk": a table, a view or a macro has this name'),
        ({"views": {"mine": "SELECT nothing FROM brightness"}}, 'view "mine": .*nothing'),
        ({"upstream": ("later",)}, "comes after later; name that one before it"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_the_night(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], says: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setattr(type(plugs.STAGES["brightness"]), name, value)
    with pytest.raises(UserError, match=says):
        audit(config_path, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/*/manifests"))


def test_prune_takes_no_folder_for_an_earlier_one_that_is_none(root: Path) -> None:
    other = root / "samples" / "brightness"
    shutil.copytree(next((root / "brightness").iterdir()), other / "0123abcd")
    prune(root)
    assert (other / "0123abcd" / "table.json").exists()


def test_the_page_on_extending_shows_these_plugs() -> None:
    page, code = (ROOT / "docs/extending.md").read_text(), TOYS.read_text()
    shown = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 8
    assert [block for block in shown if block.strip() not in code] == []
    (groups,) = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)][
        :1
    ]
    offered = configparser.ConfigParser(delimiters="=")
    offered.optionxform = str  # type: ignore[assignment,method-assign]
    offered.read_string(ENTRY_POINTS)
    assert groups["project"]["entry-points"] == {name: dict(offered[name]) for name in offered.sections()}
