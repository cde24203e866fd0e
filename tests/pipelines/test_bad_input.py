"""Bad input: one clear line each, exit code 2, nothing lost, other prompts unaffected."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.flow.outcome import exit_code
from sharpaudit.denoisers.base import Prediction
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import Sizes, write
from sharpaudit.tables.records import checksummed, read_checksummed
from tests.support.audits import audit, command, finish, load, tables
from tests.support.tiny_models import write_model

HOSTILE = [
    "🦆 a duck 👩‍👩‍👧 with family",
    "שלום עולם \u202e reversed",
    "a NUL \x00 inside",
    "line one\nline two\r\nline three",
    "<script>alert(1)</script> & 'quotes' \"double\"",
    "../../etc/passwd",
    "\x1b]52;c;aGk=\x07 escape",
    "=cmd()|' /C calc'!A0",
    "word " * 20_000,  # 100 kB
]
REJECTED = {"": "empty", "  \t ": "empty"}


def test_hostile_prompts_are_audited_or_rejected_and_disturb_no_other(
    config_path: Path, clean: Path, tmp_path: Path
) -> None:
    source = config_path.parent / "testbed/prompts/audit.csv"
    with source.open(newline="") as stream:
        rows = list(csv.reader(stream))
    lines = [json.dumps({"id": i, "prompt": p}) for i, p in rows[1:]]
    lines += [json.dumps({"id": f"h{i}", "prompt": p}) for i, p in enumerate([*HOSTILE, *REJECTED])]
    lines += ['{"id": "s1", "prompt": "lone \\ud800 surrogate"}', '{"id": "n1", "prompt": null}', "{broken"]
    raw = "\n".join(lines).encode() + b'\n{"id": "u1", "prompt": "broken \xff byte"}\n'
    corpus = tmp_path / "audit.jsonl"
    corpus.write_bytes(raw)
    # With controls for all, so that whatever is not flagged is generated and matched too.
    audit(config_path, tmp_path / "run", f"corpus.audit={corpus}", "run.max_rejected=0.5", "triage.controls=99")
    made, whole = tables(tmp_path / "run"), tables(clean)
    by_id = {row["external_id"]: row for row in made["origins"]}
    prompts = {row["prompt_id"]: row["prompt"] for row in made["corpus"]}
    for table in ("triage", "samples", "matches"):
        done = {row["prompt_id"] for row in made[table] if row["status"] == "ok"}
        assert {by_id[f"h{i}"]["prompt_id"] for i in range(len(HOSTILE))} <= done, table
    for i, prompt in enumerate(HOSTILE):
        assert prompts[by_id[f"h{i}"]["prompt_id"]] == prompt
    for i, status in enumerate(REJECTED.values()):
        assert by_id[f"h{len(HOSTILE) + i}"]["status"] == status
    assert by_id["s1"]["status"] == by_id["u1"]["status"] == "invalid_utf8"
    assert by_id["n1"]["status"] == "missing"
    assert sum(row["source"].startswith("audit:") for row in made["origins"]) == len(raw.splitlines())
    known = {row["prompt_id"] for row in whole["corpus"]}
    assert [row for row in made["scores"] if row["prompt_id"] in known] == whole["scores"]


NAMES = [
    "../../../../tmp/outside",
    "/etc/passwd",
    "a NUL \x00 inside",
    "x" * 300,
    "two\nlines",
    "\u202ereversed",
    "-rf",
    "CON",
    "~/.ssh",
    "$(touch outside)",
    "{prompt_id}",
    "%2e%2e%2f",
]


def test_no_name_that_a_user_gives_becomes_a_path(config_path: Path, tmp_path: Path) -> None:
    """Hostile ids, families, styles and labels come back as they were, and no file appears outside the run."""
    with (config_path.parent / "testbed/prompts/audit.csv").open(newline="") as stream:
        prompts = [row["prompt"] for row in csv.DictReader(stream)]
    place = tmp_path / "place"
    place.mkdir()
    given = [
        {"prompt": prompt, "id": name, "kin": name + prompt, "look": NAMES[(i + 1) % len(NAMES)], "note": name}
        for i, (prompt, name) in enumerate(zip(prompts, NAMES * len(prompts), strict=False))
    ]
    (place / "audit.jsonl").write_text("\n".join(map(json.dumps, given)))
    with (config_path.parent / "testbed/prompts/harmless.csv").open(newline="") as stream:
        harmless = [row["prompt"] for row in csv.DictReader(stream)]
    kept = [{"prompt": prompt, "kin": f"{i}../..", "look": "-rf"} for i, prompt in enumerate(harmless)]
    (place / "harmless.jsonl").write_text("\n".join(map(json.dumps, kept)))
    before = {path for path in config_path.parent.rglob("*") if "run" not in path.parts}
    overrides = ('corpus.family_column="kin"', 'corpus.style_column="look"', 'corpus.labels=["note"]')
    files = f"corpus.audit={place / 'audit.jsonl'}", f"calibration.file={place / 'harmless.jsonl'}"
    audit(config_path, place / "run", *files, *overrides)
    made = tables(place / "run")
    origins = {row["source_row"]: row for row in made["origins"] if row["source"].startswith("audit:")}
    assert [origins[i]["external_id"] for i in sorted(origins)] == [row["id"] for row in given]
    assert {dict(row["labels"])["note"] for row in origins.values()} == set(NAMES)
    corpus = {row["prompt"]: row for row in made["corpus"]}
    assert all(corpus[row["prompt"]]["style"] == row["look"] for row in given)
    assert {path.name for path in place.iterdir()} == {"audit.jsonl", "harmless.jsonl", "run"}
    assert {path for path in config_path.parent.rglob("*") if "run" not in path.parts} == before
    names = [path.name for path in (place / "run").rglob("*")]
    assert not [name for name in names if any(part in name for part in ("outside", "passwd", "xxxx", "CON", "%2e"))]


@pytest.mark.parametrize("name", NAMES)
def test_replaying_a_name_that_is_no_prompt_is_one_line(clean: Path, name: str) -> None:
    from pipelines.operations.replay import replay_prompt

    with pytest.raises(UserError) as caught:
        replay_prompt(clean, name)
    assert "\n" not in str(caught.value)
    assert "\x00" not in str(caught.value)


def test_a_network_whose_rounding_would_decide_is_refused(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches this one predicts something else than alone: the empty prompt itself shows a gap."""
    predict = GaussianDenoiser.predict

    def rough(self: GaussianDenoiser, x_BCHW: torch.Tensor, *rest: Any, **options: Any) -> Prediction:
        made = predict(self, x_BCHW, *rest, **options)
        return replace(made, x0_hat=made.x0_hat + 100.0 * (len(x_BCHW) > 1))

    monkeypatch.setattr(GaussianDenoiser, "predict", rough)
    with pytest.raises(UserError, match=r'the noise floor .* exceeds .* set model\.dtype = "float32"'):
        audit(config_path, tmp_path / "run")
    assert tables(tmp_path / "run")["scores"] == []


def test_too_little_room_is_said_before_the_night(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.operations import validate as operation

    monkeypatch.setattr(operation.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(UserError, match=r"the run needs about .* bytes and 1 are free"):
        list(operation.validate(load(config_path), 0.1))


def test_room_is_looked_for_where_the_run_is_going_to_be(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.operations import validate as operation

    asked: list[Path] = []
    monkeypatch.setattr(operation.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=2**50))
    lines = list(operation.validate(load(config_path), 0.1, out=tmp_path / "not/yet/there"))
    assert asked == [tmp_path]
    assert any(line.endswith(f"free on the disk of {tmp_path}") for line in lines)


def test_duplicates_are_scored_once_and_map_back(config_path: Path, tmp_path: Path) -> None:
    source = config_path.parent / "testbed/prompts/audit.csv"
    header, *rows = source.read_text().splitlines()
    corpus = tmp_path / "audit.csv"
    corpus.write_text(
        "\n".join([header, *rows, *(f"again{i}{row[row.index(',') :]}" for i, row in enumerate(rows))]) + "\n"
    )
    audit(config_path, tmp_path / "run", f"corpus.audit={corpus}")
    made = tables(tmp_path / "run")
    origins = [row for row in made["origins"] if row["source"] == "audit:audit.csv"]
    assert len(origins) == 2 * len(rows)
    audited = {row["prompt_id"] for row in made["corpus"] if row["role"] == "audit"}
    assert len(audited) == len(rows)
    for prompt_id in audited:
        assert sum(row["prompt_id"] == prompt_id for row in origins) == 2


def changed_index(folder: Path) -> str:
    manifest = folder / "testbed/index/manifest.json"
    manifest.write_text(manifest.read_text().replace("pixels-16", "sscd-320"))
    return r"manifest\.json: changed after the index was built"


def index_of_another_profile(folder: Path) -> str:
    manifest = folder / "testbed/index/manifest.json"
    tree = read_checksummed(manifest)
    manifest.write_bytes(checksummed(tree | {"profiles": {"sscd-320": tree["profiles"]["pixels-16"]}}))
    return r'testbed/index: made with profile "sscd-320" .* but "pixels-16" .* is asked for'


def no_weights(folder: Path) -> str:
    """Weights as a pickle alone, which is never loaded."""
    unet = write_model(folder / "testbed/unsafe") / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    return r"diffusion_pytorch_model\.safetensors is missing; .*never from \.bin or \.ckpt"


CASES = {
    "missing corpus": (["corpus.audit=nowhere.csv"], ["nowhere.csv"]),
    "unknown column": (["corpus.column=promt"], ["promt", "prompt"]),
    "unknown key": (["scores.seeds=1"], ['unknown key "scores.seeds"', "n_seeds"]),
    "missing model": (["model.path=nothing.json"], ["nothing.json"]),
    "missing index": (["matches.index=nowhere"], ["nowhere"]),
    "unknown profile": (['matches.profiles=["pixels-61"]'], ["pixels-61", "pixels-16"]),
    "too few calibration prompts": (["triage.alpha=0.0001"], ["alpha"]),
    "calibration file without column": (["calibration.column=text"], ["text"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_mistake_is_one_line(config_path: Path, tmp_path: Path, case: str) -> None:
    from pipelines.operations.validate import validate

    overrides, words = CASES[case]
    with pytest.raises(UserError) as caught:
        list(validate(load(config_path, *overrides), 0.1))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "case",
    [
        "unknown column",
        pytest.param("too few calibration prompts", marks=pytest.mark.chaos),
        pytest.param("calibration file without column", marks=pytest.mark.chaos),
    ],
)
def test_a_mistake_put_right_goes_on_in_the_same_folder(
    config_path: Path, clean: Path, tmp_path: Path, case: str
) -> None:
    """What was refused while its prompts were read has bound the run to nothing."""
    for _ in range(2):
        with pytest.raises(UserError, match=CASES[case][1][0]):
            audit(config_path, tmp_path / "run", *CASES[case][0])
    audit(config_path, tmp_path / "run")
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.parametrize("spoil", [changed_index, index_of_another_profile, no_weights])
def test_a_spoiled_input_is_named(tmp_path: Path, config_path: Path, spoil: object) -> None:
    shutil.copytree(config_path.parent, tmp_path / "small")
    path = tmp_path / "small/audit.toml"
    word = spoil(tmp_path / "small")  # type: ignore[operator]
    model = ["model.path=testbed/unsafe"] if spoil is no_weights else []
    with pytest.raises(UserError, match=word):
        audit(path, tmp_path / "run", *model)


def test_fit_and_calibration_that_share_a_family_are_refused(config_path: Path, tmp_path: Path) -> None:
    harmless = config_path.parent / "testbed/prompts/harmless.csv"
    text = config_path.read_text().replace(
        'file = "testbed/prompts/harmless.csv"', f'fit = "{harmless}"\ncalibrate = "{harmless}"'
    )
    path = config_path.parent / "shared.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="fit and calibration"):
        audit(path, tmp_path / "run")


def test_the_command_line_says_one_line_and_exits_with_two(config_path: Path, tmp_path: Path) -> None:
    code, out, err = finish(command("run", config_path, "--out", tmp_path / "run", "--set", "triage.alfa=1"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert 'did you mean "alpha"' in err


def test_a_corpus_with_too_many_rejected_rows_ends_with_three(tmp_path: Path, config_path: Path) -> None:
    corpus = tmp_path / "audit.txt"
    corpus.write_text("A small red boat\n\n\nA large blue hat\n")
    override = f"corpus.audit={corpus}"
    assert exit_code(audit(config_path, tmp_path / "run", override), load(config_path, override)) == 3


def test_a_run_on_a_testbed_without_planted_prompts_finds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "testbed", Sizes(strong=0, weak=0, audited_harmless=40, harmless=240, other_references=12))
    config = tmp_path / "audit.toml"
    from tests.support.audits import CONFIG

    config.write_text(CONFIG)
    outcome = audit(config, tmp_path / "run")
    assert outcome.quarantined == []
