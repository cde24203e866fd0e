"""What calibration prompts mean for a run: those at the line are looked at, may be excluded, and may be of a style."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from pipelines.cli import cli
from pipelines.commands.options import excluding
from pipelines.operations.validate import validate
from pipelines.operations.verify import faults
from pipelines.stages.calibration import controls, fitted, powers
from sharpaudit.errors import UserError
from sharpaudit.statistics.missed import Drawn, missed
from sharpaudit.statistics.sampling import allocate
from sharpaudit.triage.calibrators import UNCALIBRATED
from tests.support.audits import audit, load, tables


def test_calibration_prompts_at_the_line_are_generated_and_matched(clean: Path) -> None:
    """floor(.02 * 121) = 2 of 120."""
    made = tables(clean)
    triage = {row["prompt_id"]: row for row in made["triage"]}
    looked_at = [row for row in triage.values() if row["selected_for"] == "calibration_check"]
    assert len(looked_at) == 2
    assert {row["role"] for row in looked_at} == {"calibration"}
    lowest = min(row["value"] for row in looked_at)
    assert sum(row["role"] == "calibration" and row["value"] >= lowest for row in triage.values()) == 2
    for row in looked_at:
        samples = {sample["sample_id"] for sample in made["samples"] if sample["prompt_id"] == row["prompt_id"]}
        assert len(samples) == row["n_samples"] == 2
        assert samples <= {match["sample_id"] for match in made["matches"]}


def test_excluding_calibration_prompts_redoes_triage_alone(config_path: Path, copy: Path, tmp_path: Path) -> None:
    before = tables(copy)
    out = next(row["prompt_id"] for row in before["triage"] if row["selected_for"] == "calibration_check")
    listed = tmp_path / "out.txt"
    listed.write_text(f"{out}\n\n")
    (override,) = excluding((), listed)
    for made in ('"prompt_id"\n"{}"\n', 'prompt,prompt_id\n"a, b",{}\n'):
        listed.write_text(made.format(out))
        assert excluding((), listed) == (override,)
    with pytest.raises(UserError, match=r"triage\.exclude_calibration"):
        audit(config_path, copy, override)
    audit(config_path, copy, override, update=True)
    after = tables(copy)
    assert after["scores"] == before["scores"]
    excluded = [row["prompt_id"] for row in after["triage"] if row["status"] == "excluded"]
    assert excluded == [out]
    values = {row["prompt_id"]: row for row in after["triage"]}
    for row in before["triage"]:
        if row["role"] == "audit":
            above = round(row["p_value"] * 121) - 1 - (values[out]["value"] >= row["value"])
            assert values[row["prompt_id"]]["p_value"] == pytest.approx((1 + above) / 120)
    assert faults(copy) == []


@pytest.mark.parametrize(("text", "says"), [(None, "No such file"), (b" \n", "no prompt id"), (b"\xff", "decode")])
def test_a_list_of_excluded_prompts_that_cannot_be_read_is_refused(
    tmp_path: Path, config_path: Path, text: bytes | None, says: str
) -> None:
    if text is not None:
        (tmp_path / "out.txt").write_bytes(text)
    call = ["run", str(config_path), "--out", str(tmp_path / "run"), "--exclude-calibration", str(tmp_path / "out.txt")]
    with pytest.raises(UserError, match=f"--exclude-calibration .*out.txt: .*{says}"):
        cli(call, standalone_mode=False)
    assert not (tmp_path / "run").exists()


def styled(source: Path, target: Path, style: dict[str, str]) -> Path:
    with source.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "look"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            first = row["prompt"].split()[1]
            writer.writerow(row | {"look": style.get(first, first)})
    return target


def test_prompts_rank_among_calibration_prompts_of_their_style(config_path: Path, clean: Path, tmp_path: Path) -> None:
    """At alpha = .07 a stratum needs 14 calibration prompts; prompts of styles with fewer stand apart."""
    prompts, style = config_path.parent / "testbed/prompts", {"pencil": "drawing", "oil": "painting"}
    files = {name: styled(prompts / f"{name}.csv", tmp_path / f"{name}.csv", style) for name in ("audit", "harmless")}
    given = [f"corpus.audit={files['audit']}", f"calibration.file={files['harmless']}", "corpus.style_column=look"]
    outcome = audit(config_path, tmp_path / "run", *given, "triage.alpha=0.07")
    made = tables(tmp_path / "run")
    style_of = {row["prompt_id"]: row["style"] for row in made["corpus"]}
    counts = dict.fromkeys(style_of.values(), 0)
    for row in made["triage"]:
        counts[style_of[row["prompt_id"]]] += row["role"] == "calibration"
    assert max(counts.values()) >= 14 > min(counts.values())
    calibrating = [row for row in made["triage"] if row["role"] == "calibration"]
    audited = [row for row in made["triage"] if row["role"] == "audit"]
    for row in audited:
        own = style_of[row["prompt_id"]]
        alike = [other for other in calibrating if style_of[other["prompt_id"]] == own]
        known = len(alike) >= 14
        assert row["calibrated_by"] == (f"style: {own}" if known else UNCALIBRATED)
        among = [other["value"] for other in (alike if known else calibrating)]
        at_least = sum(value >= row["value"] for value in among)
        assert row["p_value"] == pytest.approx((1 + at_least) / (1 + len(among)))
        assert known or not row["flagged"]
    # What is said beforehand of the strata is what the report says of them.
    told, left = outcome.facts["calibration"], [row for row in audited if row["calibrated_by"] == UNCALIBRATED]
    sizes = [n for n in counts.values() if n >= 14]
    expected = (
        f"calibration: 120 prompts, of which a style ranks among {min(sizes)} to {max(sizes)}; at alpha 0.07 the "
        f"false-positive rate, of a random prompt of a random harmless family, lies between {told['fpr_low']:.2%} and "
        f"{told['fpr_high']:.2%} (95%); the smallest p is {told['smallest_p']:.2g}; {len(left)} audited prompts are "
        "uncalibrated and counted apart, their styles having fewer than 14 calibration prompts: "
    )
    assert left
    assert expected in (tmp_path / "run/logs/run.jsonl").read_text()
    (line,) = [x for x in validate(load(config_path, *given, "triage.alpha=0.07"), 0.1) if x.startswith("calibration")]
    assert line.startswith(expected)
    (row,) = [row for row in outcome.facts["styles"] if row["stratum"] == UNCALIBRATED]
    assert row["audited"] == len(left)
    assert faults(tmp_path / "run") == []
    # Styles are no scores: those are as they were.
    assert [row["value"] for row in made["scores"]] == [row["value"] for row in tables(clean)["scores"]]


def test_an_audit_of_which_no_rate_could_be_claimed_is_refused(config_path: Path, tmp_path: Path) -> None:
    """The corpus names styles and the harmless prompts name none."""
    prompts = config_path.parent / "testbed/prompts"
    audited = styled(prompts / "audit.csv", tmp_path / "audit.csv", {})
    harmless = styled(prompts / "harmless.csv", tmp_path / "harmless.csv", dict.fromkeys(["pencil", "oil"], ""))
    text = harmless.read_text().splitlines()
    harmless.write_text("\n".join([text[0], *(line.rpartition(",")[0] + "," for line in text[1:])]) + "\n")
    given = [f"corpus.audit={audited}", f"calibration.file={harmless}", "corpus.style_column=look"]
    with pytest.raises(
        UserError, match=r"no style of the audited prompts has the \d+ .*120 without a style.*leave corpus"
    ):
        audit(config_path, tmp_path / "run", *given)
    # Put right, the same folder goes on.
    mended = [given[0], f"calibration.file={prompts / 'harmless.csv'}"]
    assert audit(config_path, tmp_path / "run", *mended).facts["styles"] == []


def test_validate_says_what_calibration_prompts_and_controls_cannot_show(config_path: Path) -> None:
    lines = list(validate(load(config_path), 0.1))
    told = next(line for line in lines if line.startswith("a false-discovery rate of 0.1 takes at least"))
    assert "999 where 0.01 of the prompts are memorised, 9,999 where 0.001" in told
    assert "suffice" not in "".join(lines)
    (line,) = [line for line in lines if line.startswith("power of 120 calibration prompts, if ")]
    assert line == powers(load(config_path).triage, 120, 49)
    (line,) = [line for line in lines if line.startswith("controls: ")]
    assert line == controls(6, load(config_path).triage.alpha, 49, 2)
    assert any(line.startswith("fit: 120 prompts are few for residual_gap; from about 400 on") for line in lines)
    assert list(fitted(load(config_path), 400)) == []
    assert list(fitted(load(config_path, 'scores.metrics=["noise_gap"]'), 10)) == []


def test_what_controls_would_bound_is_what_the_report_says_of_a_run_without_copies() -> None:
    """1,000 prompts as harmless ones score, alpha 5%: strata of 150, 300 and 500 unflagged ones."""
    line = controls(60, 0.05, 1000, 4)
    expected = missed([Drawn(150, 20, 0), Drawn(300, 20, 0), Drawn(500, 20, 0)]).total_high
    assert f"with no copy among 60, up to {expected:,.0f} of 1,000 prompts could be unflagged and copy in" in line
    assert "one of 4 pictures (95%), as 34%, 76%, 97% of prompts do that copy in 1, 3, 6 of 10 pictures" in line
    needed = int(re.search(r"below 10.0% takes (\d+)", line)[1])  # type: ignore[index]

    def bound(total: int) -> float:
        sizes = (150, 300, 500)
        return missed([Drawn(s, n, 0) for s, n in zip(sizes, allocate(total, sizes), strict=True)]).total_high

    assert bound(needed) < 100 <= bound(needed - 1)
    # Five strata cannot bound fewer than some 20 prompts, however many are drawn.
    assert line.endswith("; no number of controls brings it below 1.0%")
    assert "with none, any number of 1,000 prompts" in controls(0, 0.05, 1000, 4)


def test_the_power_at_the_chosen_size_is_said_with_its_assumption(config_path: Path) -> None:
    """999 are the least that find anything where 1% of 10,000 prompts are memorised: a fifth of them."""
    triage = load(config_path).triage
    line = powers(triage, 999, 10_000)
    assert "if memorised prompts score 4 standard deviations above normally distributed harmless ones" in line
    by_p, by_q = (int(re.search(rf"{rule} .*?(\d+)%", line)[1]) for rule in ("p <=", "q <="))  # type: ignore[index]
    assert by_p > 90
    assert by_q == pytest.approx(21, abs=8)
    assert "0% where 0.001 are, 0% where 0.0001 are memorised" in line
    assert "q <=" not in powers(triage, 999, 49)
