"""Configuration: what is refused, in which words, and that every field is of a class."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit import config
from sharpaudit.config import LAB, load
from sharpaudit.errors import UserError
from sharpaudit.plugs import STAGES

BASE = """
[model]
path = "model"
[corpus]
audit = "prompts.csv"
[calibration]
file = "harmless.csv"
[matches]
index = "index"
"""
SECOND_TIER = 'scores.then=[{above=0.5, metrics=["sharpness_jvp"]}]'


def write(folder: Path, text: str = BASE) -> Path:
    path = folder / "audit.toml"
    path.write_text(text)
    return path


def test_every_field_is_classified() -> None:
    for name, info in config.fields().items():
        assert info.get("class") in {"identity", "given", "runtime"}, (
            f"{name}: say what a change means: identity() if it changes rows, given() if it says what is audited, "
            "runtime() if it changes no result"
        )


def test_what_changes_rows_is_read_by_a_stage_and_nothing_else_is() -> None:
    read = {key for stage in STAGES.of(STAGES.ours()) for key in stage.reads}
    # Of [stages] each stage reads its own section.
    assert read == {name for name, info in config.fields().items() if info["class"] == "identity"} - {"stages"}


def test_paths_are_relative_to_the_config_and_lab_paths_to_the_package(tmp_path: Path) -> None:
    loaded = load(write(tmp_path), ["model.path=lab:analytic/model.json"])
    assert loaded.corpus.audit == (str(tmp_path / "prompts.csv"),)
    assert loaded.model.path == str(LAB / "analytic/model.json")


def test_a_resolved_configuration_is_its_own_configuration(tmp_path: Path) -> None:
    loaded = load(write(tmp_path))
    assert config.resolve_paths(loaded, Path("/elsewhere")) == loaded


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["triage.alfa=0.1"], ['unknown key "triage.alfa"', 'did you mean "alpha"']),
        (["nonsense=1"], ['unknown key "nonsense"', "known here: calibration, corpus"]),
        (["triage.alpha=2"], ["triage.alpha = 2", "less than 1"]),
        (["triage.alpha=nan"], ["triage.alpha", "finite"]),
        (["calibration.fit=other.csv"], ["calibration", "either file"]),
        (["model.repo=a/b"], ["model", "exactly one of path and repo"]),
        (["model.revision=main"], ["model.revision", "pattern"]),
        (["run.executor=slurm"], ["run.executor", "'local' or 'ray'"]),
        (["scores.then=[{abov=0.5}]"], ['unknown key "scores.then.0.abov"', 'did you mean "above"']),
        (["scores.then=[{above=2}]"], ["scores.then.0.above = 2", "less than 1"]),
        (
            ['scores.metrics=["sharpnes"]'],
            [
                'scores.metrics.0 = "sharpnes"',
                'no metric is called "sharpnes" (did you mean "sharpness"?)',
                "hessian_trace",
            ],
        ),
        (["samples.solver=dimm"], ['samples.solver = "dimm"', 'no solver is called "dimm" (did you mean "ddim"?)']),
        (["scores.components=0"], ["scores.components = 0", '1 to 1000, or "auto"']),
        (["scores.components=atuo"], ['scores.components = "atuo"', '1 to 1000, or "auto"']),
        (["scores.step=0"], ["scores.step = 0", 'above 0 and at most 1,000, or "auto"']),
        (["scores.step=2000.0"], ["scores.step = 2000.0", 'above 0 and at most 1,000, or "auto"']),
        (["scores.step=inf"], ["scores.step = ", 'above 0 and at most 1,000, or "auto"']),
        (["scores.step=[1]"], ["scores.step = ", 'above 0 and at most 1,000, or "auto"']),
        (["scores.step=true"], ["scores.step = ", 'above 0 and at most 1,000, or "auto"']),
        (["scores.step=small"], ['scores.step = "small"', 'above 0 and at most 1,000, or "auto"']),
        (["alpha"], ["key=value"]),
        (["seed.x=1"], ["seed"]),
        *(
            ([f"samples.{key}=2"], [f'unknown key "samples.{key}"', "it is samples.per_prompt now"])
            for key in ("per_flagged", "per_control", "per_band")
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path), overrides)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("metrics", ['scores.metrics=["residual_gap", "hessian_trace"]', SECOND_TIER])
def test_a_metric_that_rounding_changes_is_measured_in_float32(tmp_path: Path, metrics: str) -> None:
    path = write(tmp_path)
    assert load(path).model.dtype == "auto"
    assert load(path, [metrics]).model.dtype == "float32"
    assert load(path, [metrics, "model.dtype=float32"]).model.dtype == "float32"
    with pytest.raises(UserError, match=r'model\.dtype = "bfloat16" is not offered for (hessian_trace|sharpness_jvp)'):
        load(path, [metrics, "model.dtype=bfloat16"])


def test_a_byte_order_mark_is_no_part_of_a_config_and_utf16_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    expected = load(path)
    path.write_text(BASE, encoding="utf-8-sig")
    assert load(path) == expected
    for encoding in ("utf-16", "utf-16-le"):
        path.write_text(BASE, encoding=encoding)
        with pytest.raises(UserError, match=r"audit\.toml: the text is in UTF-16.*save it as UTF-8"):
            load(path)


@pytest.mark.parametrize("tab", ["\\t", "\t", '"\\t"', "'\\t'"])
def test_a_tab_may_be_written_as_people_write_it(tmp_path: Path, tab: str) -> None:
    """Bare in a shell, as the character itself, as a TOML string and as a TOML literal."""
    loaded = load(write(tmp_path), [f"corpus.delimiter={tab}", f"calibration.delimiter={tab}"])
    assert (loaded.corpus.delimiter, loaded.calibration.delimiter) == ("\t", "\t")


def test_no_calibration_prompts_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no calibration prompts: add"):
        load(write(tmp_path, BASE.replace('[calibration]\nfile = "harmless.csv"\n', "")))


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("07:00:00", "07:00:00"),
        ('"07:00"', "07:00"),
        ("2026-11-26T07:00:00", "2026-11-26T07:00:00"),
        ("2026-11-26 07:00:00+02:00", "2026-11-26T07:00:00+02:00"),
        ("2026-11-26", "2026-11-26"),
    ],
)
def test_a_deadline_may_be_a_time_of_toml(tmp_path: Path, told: str, kept: str) -> None:
    """In the file, or with --set."""
    assert load(write(tmp_path, f"{BASE}\n[run]\ndeadline = {told}\n")).run.deadline == kept
    assert load(write(tmp_path), [f"run.deadline={told}"]).run.deadline == kept


def test_a_missing_or_oversized_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.toml: cannot read"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(UserError, match="may have 1000000 bytes"):
        load(write(tmp_path, "#" * 1_000_001))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_config_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "audit.toml"
    path.write_bytes(raw)
    with pytest.raises(UserError):
        load(path)
