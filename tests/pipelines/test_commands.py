"""The verbs: help with an example, status, validate, init, index."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.commands.bench_options import note
from pipelines.operations.status import describe
from pipelines.operations.validate import at_work, validate
from sharpaudit import config as configuration
from sharpaudit.config import LAB, AuditConfig
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import write
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, command, finish, load
from tests.support.shells import bare

VERBS = {
    "run",
    "extend",
    "validate",
    "status",
    "query",
    "replay",
    "verify",
    "sign",
    "prune",
    "init",
    "spectrum",
    "mitigate",
    "simplify",
}
GROUPS = {
    "index": {"add", "approximate", "build", "info", "verify"},
    "key": {"make"},
    "lab": {"train", "label", "pictures", "detectors", "card", "compare"},
    "calibration": {"make"},
    "bench": {
        "detection",
        "throughput",
        "cascade",
        "screens",
        "exactness",
        "decisions",
        "sql",
        "tables",
        "ingest",
        "recombined",
        "solvers",
        "mitigation",
        "families",
        "intervals",
        "directions",
        "figures",
        "search",
        "embedding",
    },
}


def test_asking_for_help_loads_no_network_library() -> None:
    """Every command begins with this import: seconds, were torch among it."""
    large = "{'torch', 'ray', 'diffusers', 'duckdb'}"
    call = f"import sys, sharpaudit.__main__, pipelines.cli; print(*({large} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", call], check=True, env=bare(), capture_output=True, text=True)
    assert told.stdout.split() == []


def test_the_verbs_are_these_and_each_help_has_an_example() -> None:
    assert set(cli.commands) == VERBS | set(GROUPS)
    for bench in cli.commands["bench"].commands.values():  # type: ignore[attr-defined]
        options = {option for parameter in bench.params for option in parameter.opts}
        # The first measures nothing itself, and hands on the lines of those that do to none.
        assert bench.name in ("tables", "figures") or "--json" in options, bench.name
    for name, verbs in GROUPS.items():
        assert set(cli.commands[name].commands) == verbs  # type: ignore[attr-defined]
    calls = list(every_call(cli, []))
    assert len(calls) == len(VERBS) + sum(map(len, GROUPS.values()))
    for call in calls:
        told = CliRunner().invoke(cli, [*call, "--help"]).output
        assert re.search(rf"Example: sharpaudit {' '.join(call)}\b", told), call


def every_call(command: click.Command, words: list[str]) -> Iterator[list[str]]:
    """The words of every command and sub-command that does something."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_call(inner, [*words, name]) if isinstance(inner, click.Group) else [[*words, name]]


SHORT = {
    "--executor": ("ray", "run.executor", "local"),
    "--workers": ("3", "run.workers", "2"),
    "--gpus-per-worker": ("0.5", "run.num_gpus", "1"),
    "--limit": ("7", "run.limit", "8"),
    "--deadline": ("06:30", "run.deadline", "07:00"),
}


@pytest.mark.parametrize("option", SHORT)
@pytest.mark.parametrize("verb", ["run", "extend", "validate"])
def test_a_short_form_wins_over_the_key_that_it_stands_for(
    verb: str, option: str, clean: Path, config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        """Ends the command with the configuration that it would use."""

    def see(config: AuditConfig, *_: object, **__: object) -> None:
        raise SeenError(config)

    monkeypatch.setattr("pipelines.audit.run_audit", see)
    monkeypatch.setattr("pipelines.operations.validate.validate", see)
    monkeypatch.setattr("pipelines.flow.signals.install", lambda: None)
    value, key, other = SHORT[option]
    before, wanted = {
        "run": ([config_path], ["--out", tmp_path / "run"]),
        "validate": ([config_path], []),
        "extend": ([clean, tmp_path / "more.csv"], []),
    }[verb]
    call = [verb, *before, option, value, "--set", f"{key}={other}", *wanted]
    found = CliRunner().invoke(cli, list(map(str, call))).exception
    assert isinstance(found, SeenError)
    told = configuration.value(found.args[0], key)
    assert str(told) == value
    assert told == configuration.value(load(config_path, f"{key}={value}"), key)
    help_text = CliRunner().invoke(cli, [verb, "--help"]).output
    assert option in help_text


@pytest.mark.parametrize(
    "call", [("--workers", "0"), ("--gpus-per-worker", "-1"), ("--executor", "slurm"), ("--limit", "no")]
)
def test_a_short_form_refuses_what_its_key_refuses(call: tuple[str, str], config_path: Path) -> None:
    assert CliRunner().invoke(cli, ["validate", str(config_path), *call]).exit_code == 2


def test_a_path_that_extend_sets_starts_where_the_command_is_given(
    clean: Path, config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "index").symlink_to(config_path.parent / "testbed" / "index")
    (tmp_path / "more.csv").write_text("prompt,id\nsomething new,1\n")
    root = tmp_path / "run"
    shutil.copytree(clean, root)
    call = ("extend", root, tmp_path / "more.csv", "--set", "matches.index=index")
    code, _, err = finish(command(*call, cwd=tmp_path / "here"))
    assert code == 0, err
    assert RunFolder.open(root).config().matches.index == str(tmp_path / "here" / "index")


def test_workers_without_ray_are_said_to_be_one(config_path: Path, clean: Path, tmp_path: Path) -> None:
    said = StringIO()
    audit(config_path, shutil.copytree(clean, tmp_path / "run"), "run.workers=4", said=said)
    assert "run.workers = 4: without Ray one process works alone; add --executor ray" in said.getvalue()


def test_a_tilde_is_the_home_folder_also_after_an_equals_sign(tmp_path: Path) -> None:
    code, _, err = finish(command("init", "~/audits", shell=bare(home=tmp_path)))
    assert code == 0, err
    assert (tmp_path / "audits/quickstart.toml").exists()
    code, _, err = finish(command("key", "make", "~nobody-of-that-name/k", shell=bare(home=tmp_path), cwd=tmp_path))
    assert code == 2, err
    code, _, err = finish(command("key", "make", "~/k.pem", shell=bare(home=tmp_path)))
    assert (code, sorted(path.name for path in tmp_path.iterdir())) == (0, ["audits", "k.pem", "k.pem.pub"]), err


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (["label", "HERE", "--work", "HERE/w", "--sheets", "HERE/s"], "no settings.json there"),
        (["detectors", "HERE", "--out", "HERE/x"], "no truth.csv there"),
        (["card", "HERE"], "no settings.json there"),
        (["train", "HERE", "--work", "HERE/w"], "exists already"),
        (["pictures", "HERE"], "exists already"),
    ],
)
def test_the_lab_names_the_folder_that_is_not_what_it_needs(call: list[str], line: str, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["lab", *(part.replace("HERE", str(tmp_path)) for part in call)])
    assert isinstance(outcome.exception, UserError)
    assert str(outcome.exception).startswith(f"{tmp_path}: ")
    assert line in str(outcome.exception)
    assert not list(tmp_path.iterdir())


def test_status_counts_what_is_committed(clean: Path) -> None:
    found = describe(RunFolder.open(clean))
    assert found["state"] == "complete"
    assert found["driver"] is None
    assert found["tables"]["corpus"]["statuses"] == {"ok": 289}
    code, out, _ = finish(command("status", clean, "--json"))
    assert (code, json.loads(out)) == (0, found)


def test_validate_says_what_a_night_would_cost(config_path: Path) -> None:
    lines = list(validate(load(config_path), 0.1))
    assert lines[-1] == "valid: this audit would run"
    plan = next(line for line in lines if line.startswith("plan:"))
    # 120 fit prompts and a seed; 49 audited and 120 calibration prompts at 3; 1 flagged, 2 calibration prompts at the
    # line, 6 controls, 10 band prompts.
    assert f"fit_unconditional 1, fit_differences 120, score {3 * 169}, sample {(2 + 4 + 12 + 20) * 20}" in plan


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ((), "cpu", (8, 1)),
        (("run.workers=4",), "cpu", (8, 1)),
        (("run.threads=3",), "cpu", (3, 1)),
        (("run.executor=ray", "run.workers=4"), "cpu", (2, 4)),
        (("run.executor=ray", "run.workers=20"), "cpu", (1, 8)),
        (("run.executor=ray", "run.workers=4", "run.threads=4"), "cpu", (4, 2)),
        (("run.executor=ray", "run.workers=2", "run.num_gpus=1.0"), "cuda", (4, 2)),
        (("run.executor=ray", "run.workers=4", "run.num_gpus=0.5"), "cuda", (2, 2)),
        (("run.executor=ray", "run.workers=2", "run.num_gpus=2.0"), "cuda", (4, 1)),
        (("run.executor=ray", "run.workers=40", 'run.address="far:6379"'), "cpu", (8, 40)),
    ],
)
def test_workers_count_as_far_as_they_compute_at_once(
    config_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    device: str,
    expected: tuple[int, int],
) -> None:
    """On 8 cores and 2 GPUs."""
    monkeypatch.setattr("pipelines.operations.validate.usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert at_work(load(config_path, *settings).run, device) == expected


def test_the_hours_of_a_night_are_those_of_the_workers_that_count(
    config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.operations.validate.usable_cores", lambda: 2)
    monkeypatch.setattr("pipelines.operations.validate._rate", lambda *_: 100.0)
    evaluations = 121 + 3 * 169 + 38 * 20
    for settings, n in ((("run.workers=4",), 1), (("run.executor=ray", "run.workers=4", "run.num_gpus=0"), 2)):
        lines = list(validate(load(config_path, *settings), 0.1))
        workers = f"{n} worker{'s' if n > 1 else ''}"
        assert f"time: about {evaluations / 100 / n:.0f} seconds with {workers} of this machine's kind" in lines
        assert any(line.startswith(f"workers: 4 are asked for and {n} counted: ") for line in lines)
    assert not any(line.startswith("workers:") for line in validate(load(config_path), 0.1))


def test_validate_refuses_an_alpha_that_flags_nothing(config_path: Path) -> None:
    with pytest.raises(UserError, match="give at least 999 calibration prompts"):
        list(validate(load(config_path, "triage.alpha=0.001"), 0.1))


def test_run_refuses_it_before_anything_is_scored(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give at least 999 calibration prompts"):
        audit(config_path, tmp_path / "run", "triage.alpha=0.001")
    assert not (tmp_path / "run" / "scores").exists()


def test_init_writes_configs_that_load_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["init", str(tmp_path / "audits")]).exit_code == 0
    for path in sorted((tmp_path / "audits").iterdir()):
        load(path)
    assert isinstance(runner.invoke(cli, ["init", str(tmp_path / "audits")]).exception, UserError)


def test_the_shipped_testbed_is_what_its_generator_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for path in sorted((LAB / "analytic").rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", "00000.parquet"):
            assert (tmp_path / path.relative_to(LAB / "analytic")).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(("number", "refused"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_a_look_is_noted_beside_its_table_where_the_lab_cannot_be_written_to(
    number: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noted: list[Path] = []

    def log(folder: Path, _metrics: list[str], _why: str) -> None:
        if folder == tmp_path / "lab":
            raise OSError(number, "no")
        noted.append(folder)

    monkeypatch.setattr("sharpaudit.lab.detectors.log_touch", log)
    with pytest.raises(OSError, match="no") if refused else nullcontext():
        note(tmp_path / "lab", ["noise_gap"], "a look", tmp_path)
    assert noted == [tmp_path]
    assert ("is not noted there" in capsys.readouterr().err) != refused
