"""A sealed run passes wherever it lies; whatever is changed in it is named, also when the seal is made to fit."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.operations.verify import faults, replays
from pipelines.stages.report import made_of
from sharpaudit.errors import IntegrityError
from sharpaudit.evidence.seal import (
    EARLIER,
    MANIFEST,
    evidence,
    read_seal,
    sha256_of,
)
from sharpaudit.evidence.sealing import resealed
from sharpaudit.report.facts import collect
from sharpaudit.report.html import findings_csv, render
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.records import checksummed, read_checksummed
from sharpaudit.tables.runs import UNSEALED, RunFolder
from sharpaudit.tables.schemas import MATCHES, SCORES
from tests.support.audits import audit, command, edited_report, finish, flip, tables
from tests.support.shells import bare


def data_file(root: Path, table=SCORES) -> Path:
    folder = RunFolder.open(root).table(table)
    return folder.path(folder.current()[0])


def test_an_untouched_copy_passes_elsewhere_and_by_sha256sum(copy: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST], cwd=copy, env=bare(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome = CliRunner().invoke(cli, ["verify", str(copy)])
    assert outcome.exit_code == 0, outcome.output
    assert f"{len(read_seal(copy)):,} files are as sealed" in outcome.output


def flipped_table(root: Path) -> Path:
    return flip(data_file(root))


def swapped_image(root: Path) -> Path:
    first, second = sorted((root / "images").rglob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    return first


def removed_row(root: Path) -> Path:
    """The Parquet file without its last row, and the manifest's digest and size made to fit."""
    path = data_file(root)
    return refit(path, pq.read_table(path).slice(0, 3), rows=3)


def refit(path: Path, made: pa.Table, **fields: object) -> Path:
    """Write other rows in place of a shard's, with a manifest that names them; returns the new file."""
    manifest = next(m for m in (path.parent / "manifests").glob("*.json") if read_checksummed(m)["file"] == path.name)
    pq.write_table(made, path)
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    named = path.rename(path.with_name(f"part-{manifest.stem}-{sha256[:16]}.parquet"))
    told = {"sha256": sha256, "bytes": len(data), "file": named.name}
    manifest.write_bytes(checksummed(read_checksummed(manifest) | told | fields))
    return named


def edited_value(root: Path) -> Path:
    """A similarity raised, in a file whose manifest is made to fit in everything: only the report disagrees."""
    path = data_file(root, MATCHES)
    rows = pq.read_table(path)
    values = rows["similarity"].to_pylist()
    place = rows.column_names.index("similarity")
    raised = [None if value is None else min(1.0, value + 0.05) for value in values]
    refit(path, rows.set_column(place, rows.schema.field("similarity"), [raised]))
    return root / "report/facts.json"


def edited_facts(root: Path) -> Path:
    path = root / "report/facts.json"
    facts = json.loads(path.read_text())
    facts["findings"]["total"] -= 1
    path.write_text(json.dumps(facts))
    return path


def edited_settings(root: Path) -> Path:
    path = root / "config.toml"
    path.write_text(path.read_text().replace("alpha = 0.02", "alpha = 0.01"))
    return root / "report/facts.json"


def other_model(root: Path) -> Path:
    path = root / "config.toml"
    path.write_text(path.read_text().replace('dtype = "auto"', 'dtype = "float32"').replace("seed = 0", "seed = 1"))
    return path


def other_value(root: Path) -> Path:
    """A number that no part of the report shows, with a manifest that fits."""
    path = data_file(root)
    rows = pq.read_table(path)
    place = rows.column_names.index("n_seeds")
    refit(path, rows.set_column(place, rows.schema.field("n_seeds"), pa.array([9] * rows.num_rows, pa.int32())))
    return root / "report/made_of.json"


def edited_record(root: Path) -> Path:
    path = root / "run.json"
    tree = read_checksummed(path)
    tree["stages"]["score"]["fields"]["scores.step"] = 9.0
    path.write_bytes(checksummed(tree))
    return path


def edited_csv(root: Path) -> Path:
    path = root / "findings.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    return path


def other_share_of_the_training_set(root: Path) -> Path:
    """A report made anew of an index that is said to have rejected nothing: only run.json disagrees."""
    run, path = RunFolder.open(root), root / "report/facts.json"
    told = json.loads(path.read_text())["run"]
    told["index"]["holds"]["training_size"] = told["index"]["holds"]["references"]
    with open_connection(run) as connection:
        facts = collect(connection, told)
    path.write_text(json.dumps(facts))
    (root / "report/index.html").write_text(render(facts, lambda name: (root / name).read_bytes()))
    (root / "report/made_of.json").write_bytes(checksummed({"digest": made_of(run, told)}))
    return path


TAMPERED = [
    flipped_table,
    swapped_image,
    removed_row,
    edited_value,
    edited_report,
    edited_facts,
    edited_settings,
    edited_record,
    other_model,
    other_value,
    edited_csv,
    other_share_of_the_training_set,
]


def forge_seal(root: Path) -> None:
    """As whoever changed a file would, whatever this program refuses to seal."""
    lines = [f"{sha256_of(root / name)}  {name}\n" for name in sorted(evidence(root))]
    (root / MANIFEST).write_text("".join(lines))


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("sealed_anew", [False, True], ids=["old seal", "new seal"])
def test_what_was_changed_is_named(copy: Path, tamper: Callable[[Path], Path], sealed_anew: bool) -> None:
    named = tamper(copy)
    if sealed_anew:
        forge_seal(copy)
    outcome = CliRunner().invoke(cli, ["verify", str(copy)])
    assert outcome.exit_code == 1
    assert f"{named}:" in outcome.output
    assert (MANIFEST in outcome.output) != sealed_anew


def shaken(facts: Any, by: float) -> Any:
    """Every number with a fraction as another processor might have made it, times 1 + by."""
    if isinstance(facts, dict):
        return {name: shaken(value, by) for name, value in facts.items()}
    if isinstance(facts, list):
        return [shaken(value, by) for value in facts]
    return facts * (1 + by) if isinstance(facts, float) else facts


@pytest.mark.parametrize(("by", "name_it"), [(3e-16, False), (1e-7, True)])
def test_the_last_bit_of_another_processor_is_no_fault(copy: Path, by: float, name_it: bool) -> None:
    path = copy / "report/facts.json"
    facts = json.loads(path.read_text())
    told = facts | shaken({name: value for name, value in facts.items() if name != "run"}, by)
    assert told != facts
    path.write_text(json.dumps(told))
    (copy / "report/index.html").write_text(render(told, lambda image: (copy / image).read_bytes()))
    (copy / "findings.csv").write_text(findings_csv(told))
    forge_seal(copy)
    # The attestation names the facts by their digest.
    found = [line for line in faults(copy) if not line.startswith(f"{copy / 'attestation.dsse.json'}:")]
    assert any(line.startswith(f"{path}: ") for line in found) == name_it == bool(found)


def test_every_bad_file_is_named_and_none_hides_another(copy: Path) -> None:
    named = {flip(path) for path in (data_file(copy), *sorted((copy / "images").rglob("*.png"))[:3])}
    named |= {edited_report(copy)}
    (copy / "extra.txt").write_text("mine")
    found = faults(copy)
    assert all(any(line.startswith(f"{path}:") for line in found) for path in (*named, copy / "extra.txt"))


def test_a_removed_file_and_a_removed_line_are_named(copy: Path) -> None:
    lines = (copy / MANIFEST).read_text().splitlines()
    gone, unlisted = copy / lines[-1].split("  ")[1], copy / lines[0].split("  ")[1]
    gone.unlink()
    (copy / MANIFEST).write_text("\n".join(lines[1:]) + "\n")
    found = faults(copy)
    assert f"{gone}: sealed in {MANIFEST} and missing" in found
    assert f"{unlisted}: not in {MANIFEST}" in found
    (copy / MANIFEST).write_text("nonsense\n")
    assert any("line 1 is not a digest" in line for line in faults(copy))
    (copy / MANIFEST).unlink()
    assert any(line.startswith(f"{copy / MANIFEST}: missing") for line in faults(copy))


def test_a_link_is_no_evidence(copy: Path) -> None:
    path = copy / "findings.csv"
    path.rename(copy.parent / "outside.csv")
    path.symlink_to(copy.parent / "outside.csv")
    assert any("a link" in line for line in faults(copy))


def test_a_finished_run_writes_nothing_and_stays_sealed(config_path: Path, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert audit(config_path, copy).evaluations == 0
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {"progress.json"} | {path.name for path in (copy / "logs").rglob("*")}
    assert not (copy / UNSEALED).exists()


def test_an_update_seals_anew(config_path: Path, copy: Path) -> None:
    old = read_seal(copy)
    audit(config_path, copy, "triage.alpha=0.1", update=True)
    assert read_seal(copy) != old
    assert faults(copy) == []


def test_an_update_does_not_seal_over_a_changed_file(config_path: Path, copy: Path) -> None:
    # A thumbnail that the update does not read: whoever reads a file tells it first.
    shown = [{row["thumbnail_path"] for row in tables(copy)["matches"] if row["rank"] == rank} for rank in (1, 2, 3)]
    image = flip(copy / min(shown[2] - shown[1] - shown[0]))
    old = (copy / MANIFEST).read_bytes()
    for _ in range(2):  # the same call again is refused again
        with pytest.raises(IntegrityError, match=f"{image.name}: changed since the run was sealed"):
            audit(config_path, copy, "triage.alpha=0.1", update=True)
    assert (copy / MANIFEST).read_bytes() == old
    assert any("was cut off" in line for line in faults(copy))


@pytest.mark.parametrize(
    "point",
    [
        "sealed",
        *(pytest.param(point, marks=pytest.mark.chaos) for point in ("report.written", "table.committed/triage")),
    ],
)
def test_a_run_cut_off_before_its_seal_is_sealed_by_the_next(
    config_path: Path, copy: Path, tmp_path: Path, point: str
) -> None:
    options = ["--set", "triage.alpha=0.1", "--update"]
    crash = f"{point}:1:kill@{tmp_path}/struck"
    code, _, err = finish(command("run", config_path, "--out", copy, *options, crash=crash))
    assert code < 0, err
    assert (copy / UNSEALED).exists()
    audit(config_path, copy, "triage.alpha=0.1")
    assert faults(copy) == []
    assert not (copy / UNSEALED).exists()


@pytest.mark.parametrize("name", [f"{EARLIER}/0001.sha256", "report/index.html", "findings.csv"])
def test_a_half_written_file_is_neither_sealed_nor_kept(config_path: Path, copy: Path, name: str) -> None:
    """What a loss of power may leave: of the copy of a seal that a new one is about to replace, of a page."""
    half = (copy / name).with_name(f".{Path(name).name}-0123.inprogress")
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"0123")
    with resealed(copy):
        (copy / "findings.csv").touch()
    assert half.relative_to(copy).as_posix() not in read_seal(copy)
    audit(config_path, copy)
    assert not half.exists()
    assert faults(copy) == []


def test_a_failed_call_that_wrote_nothing_leaves_no_mark(config_path: Path, copy: Path) -> None:
    with pytest.raises(Exception, match=r"triage\.alpha"):
        audit(config_path, copy, "triage.alpha=0.1")
    assert not (copy / UNSEALED).exists()
    assert faults(copy) == []


def test_findings_are_made_again_on_request(copy: Path) -> None:
    made = list(replays(copy, 2))
    assert len(made) == 2
    assert all(same for _, same in made)
    assert {prompt_id for prompt_id, _ in made} <= {row["prompt_id"] for row in tables(copy)["triage"]}
    outcome = CliRunner().invoke(cli, ["verify", str(copy), "--replay", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert f"{made[0][0]}: reproduced" in outcome.output


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (MANIFEST, b"\xff\xfe"),
        ("config.toml", b"not = [toml"),
        ("config.toml", b""),
        ("report/facts.json", b'{"run": {}}'),
        ("report/facts.json", b"[1"),
        ("run.json", b'{"checksum": NaN}'),
        ("scores/table.json", b"{}"),
    ],
)
def test_damage_is_named_and_hides_nothing(copy: Path, name: str, data: bytes) -> None:
    folder = RunFolder.open(copy).table(SCORES).folder
    path = folder / "table.json" if name.startswith("scores/") else copy / name
    path.write_bytes(data)
    image = flip(sorted((copy / "images").rglob("*.png"))[0])
    outcome = CliRunner().invoke(cli, ["verify", str(copy)])
    assert outcome.exit_code == 1, outcome.exception
    assert str(path) in outcome.output or name == MANIFEST
    if name not in ("run.json",):
        assert image.name in outcome.output
