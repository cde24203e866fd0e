"""What the decisions promise, simulated: rates over many audits, with and without memorised prompts in them.

An audit: scores of harmless prompts from one law, memorised ones five standard deviations higher, decided by the code
that a run uses. Rates are compared with their nominal value and the Monte-Carlo error of the draws made here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sharpaudit.errors import UserError
from sharpaudit.statistics.conformal import p_values
from sharpaudit.statistics.fdr import q_values
from tests.support.small_audits import Prompt, decided, named, settings_of

ALPHA, Q = 0.05, 0.2
N_DRAWS = 120


def drawn(rng, n_audit=200, n_memorised=0, n_calibration=99, hidden=0):
    """One audit; the last `hidden` calibration prompts are memorised as well."""
    memorised = rng.normal(size=n_memorised) + 5
    calibration = rng.normal(size=n_calibration)
    calibration[n_calibration - hidden :] += 5
    return [
        *named("audit", rng.normal(size=n_audit - n_memorised), prefix="harmless"),
        *named("audit", memorised, prefix="memorised"),
        *named("calibration", calibration),
    ]


def rates(config, draws=N_DRAWS, **how):
    """Means over the draws: share of harmless prompts flagged, of flags that are false, of memorised prompts found."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        rows = [row for row in decided(drawn(rng, **how), config).values() if row["role"] == "audit"]
        harmless = [row["flagged"] for row in rows if row["prompt_id"].startswith("harmless")]
        memorised = [row["flagged"] for row in rows if row["prompt_id"].startswith("memorised")]
        flags = sum(harmless) + sum(memorised)
        found.append((np.mean(harmless), sum(harmless) / max(1, flags), np.mean(memorised or [np.nan])))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("n_memorised", [0, 2, 20], ids=["none memorised", "1% memorised", "10% memorised"])
def test_the_false_positive_rate_is_alpha_whatever_the_corpus_holds(n_memorised):
    false, _, power = rates(settings_of(triage={"alpha": ALPHA}), n_memorised=n_memorised)
    # Of one calibration set Beta(5, 95): sd .022; of the mean of 120 about .002, and the audited prompts add as much.
    assert false == pytest.approx(ALPHA, abs=0.012)
    assert n_memorised == 0 or power > 0.95


@pytest.mark.parametrize(
    ("procedure", "n_memorised"),
    [
        *(pytest.param("benjamini-hochberg", n, id=f"benjamini-hochberg-{n // 2}% memorised") for n in (0, 2, 20)),
        # It flags no more than the other does (statistics/test_fdr.py); here that it still finds.
        pytest.param("benjamini-yekutieli", 20, id="benjamini-yekutieli-10% memorised"),
    ],
)
def test_the_false_discovery_rate_is_at_most_q(procedure, n_memorised):
    config = settings_of(triage={"flag_by": "q", "q": Q, "procedure": procedure})
    _, wrong, power = rates(config, 200, n_memorised=n_memorised, n_calibration=1999)
    # Without memorised prompts it is 0 or 1 in each draw: three standard errors of the mean of 200 are .085.
    assert wrong <= Q + 0.085
    if n_memorised == 20:
        assert power > 0.9


def test_a_test_of_the_rates_can_fail():
    """What rule 6.1 forbids, calibrating on prompts that score lower since the screen was fitted on them, is seen."""
    rng, flagged = np.random.default_rng(2), []
    for _ in range(30):
        prompts = [dataclasses.replace(p, value=p.value - 1) if p.role == "calibration" else p for p in drawn(rng)]
        flagged += [row["flagged"] for row in decided(prompts, settings_of(triage={"alpha": ALPHA})).values()]
    assert np.mean(flagged) > 2 * ALPHA


def test_copies_of_a_memorised_prompt_buy_no_discovery():
    """Fifty wordings of one memorised caption are one hypothesis; as fifty they would let harmless prompts pass."""
    rng, config = np.random.default_rng(3), settings_of(triage={"flag_by": "q", "q": Q})
    wrong, by_rows = [], []
    for _ in range(N_DRAWS):
        prompts = drawn(rng, n_calibration=999)
        copies = [Prompt(f"copy-{i}", value=5.0, family="copied") for i in range(50)]
        rows = [row for row in decided([*prompts, *copies], config).values() if row["role"] == "audit"]
        harmless = np.array([row["prompt_id"].startswith("harmless") for row in rows])
        p = np.array([row["p_value"] for row in rows])
        for found, flagged in ((wrong, [row["flagged"] for row in rows]), (by_rows, q_values(p) <= Q)):
            n_false = int((harmless & np.array(flagged)).sum())
            found.append(n_false / max(1, n_false + 1))
    assert np.mean(wrong) <= Q + 0.11
    assert np.mean(by_rows) > 0.8


def test_memorised_calibration_prompts_only_make_a_p_larger():
    config = settings_of(triage={"alpha": ALPHA})
    clean, spoiled = (decided(drawn(np.random.default_rng(4), n_memorised=5, hidden=h), config) for h in (0, 6))
    for name, row in clean.items():
        assert row["p_value"] is None or row["p_value"] <= spoiled[name]["p_value"]
    false, _, power = rates(config, hidden=6, n_memorised=5)
    assert false <= ALPHA
    assert power < 0.9


def test_calibration_prompts_at_the_line_are_looked_at_and_can_be_excluded():
    config = settings_of(triage={"alpha": ALPHA})
    prompts = drawn(np.random.default_rng(5), n_memorised=5, hidden=6)
    rows = decided(prompts, config)
    marked = [name for name, row in rows.items() if row["at_line"]]
    # floor(.05 * 100) = 5 of the 99 stand at or above the line, the highest ones.
    assert len(marked) == 5
    assert set(marked) <= {f"calibration-{i}" for i in range(93, 99)}
    without = decided(prompts, settings_of(triage={"alpha": ALPHA, "exclude_calibration": marked}))
    gone = [p for p in prompts if p.name not in marked]
    alone = decided(gone, config)
    assert {name: without[name]["p_value"] for name in alone} == {n: row["p_value"] for n, row in alone.items()}
    for name in marked:
        assert (without[name]["status"], without[name]["at_line"]) == ("excluded", False)
        assert without[name]["value"] == rows[name]["value"]


def test_an_excluded_prompt_must_calibrate():
    prompts = [*named("audit", [1.0]), *named("calibration", range(30))]
    for wrong in ("audit-0", "nobody"):
        with pytest.raises(UserError, match=f'"{wrong}" is the id of no calibration prompt'):
            decided(prompts, settings_of(triage={"exclude_calibration": [wrong]}))


def test_flags_by_q_look_at_calibration_prompts_above_the_last_flag():
    config = settings_of(triage={"flag_by": "q", "q": 0.1, "alpha": 0.01})
    prompts = [*named("audit", [9.0] * 5), *named("audit", np.zeros(95), prefix="low")]
    calibration = [*named("calibration", np.linspace(-1, 1, 398)), Prompt("high", "calibration", 10.0)]
    rows = decided([*prompts, *calibration], config)
    assert {name for name, row in rows.items() if row["flagged"]} == {f"audit-{i}" for i in range(5)}
    # They stand at p = 2/400: the one above them and the one below.
    assert {name for name, row in rows.items() if row["at_line"]} == {"high", "calibration-397"}
    nothing = decided([*named("audit", np.zeros(95)), *calibration], config)
    assert not any(row["at_line"] for row in nothing.values())


def through_tiers(rng, role, n):
    """Harmless prompts at two tiers: a fifth goes on, by scores of the first, and is scored anew there."""
    first, second = rng.normal(size=n), rng.normal(size=n)
    on = first > 0.8416
    values = np.where(on, second, first)
    return [Prompt(f"{role}-{i}", role, float(values[i]), tier=2 if on[i] else 1) for i in range(n)]


def test_what_an_early_tier_cleared_counts_among_the_hypotheses():
    """Over the survivors alone nearly every audit of harmless prompts would make a discovery."""
    config = settings_of(triage={"flag_by": "q", "q": Q})
    rng, any_flag, among_survivors = np.random.default_rng(3), [], []
    for _ in range(N_DRAWS):
        made = decided([*through_tiers(rng, "audit", 200), *through_tiers(rng, "calibration", 1999)], config).values()
        rows = [row for row in made if row["role"] == "audit"]
        assert all(row["q_value"] is not None for row in rows)
        any_flag.append(any(row["flagged"] for row in rows))
        survivors = np.array([row["p_value"] for row in rows if row["tier"] == 2])
        among_survivors.append(bool((q_values(survivors) <= Q).any()))
    # 0 or 1 in each draw: three standard errors of the mean of 120 are .11.
    assert np.mean(any_flag) <= Q + 0.11
    assert np.mean(among_survivors) > 0.6


def test_testing_after_each_of_several_seeds_breaks_alpha():
    """Why early stopping over seeds is not offered: whoever may stop at any of eight looks has eight chances."""
    rng, alpha = np.random.default_rng(4), 0.01
    scores, known = (np.cumsum(rng.normal(size=(n, 8)), axis=1) / np.arange(1, 9) for n in (40_000, 99_999))
    looks = np.stack([p_values(scores[:, k], known[:, k]) <= alpha for k in range(8)])
    assert looks[-1].mean() == pytest.approx(alpha, abs=0.002)
    assert looks.any(axis=0).mean() > 0.02
