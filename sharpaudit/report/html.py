"""Facts to one static, self-contained page, and to findings.csv.

Whatever comes from outside (prompts, ids, paths, names) is shown with control and bidirectional characters escaped
and goes through the template's autoescape; the page loads nothing and runs nothing. Pictures are embedded only where
the configuration says so, scaled down; the originals stay in the run folder. A picture's file is named by its SHA-256,
and one that is missing or changed is refused: it is evidence.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sharpaudit.config import PATHS
from sharpaudit.errors import IntegrityError, printable
from sharpaudit.images import Pixels, decode, sha256_hex, thumbnail
from sharpaudit.report.chart import histogram
from sharpaudit.report.marked import marked
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.tables.answers import csv_text

OURS = {
    "scope": "Scope",
    "flow": "From prompts to copies",
    "screen": "The screen",
    "findings": "Findings",
    "missed": "What the flags may have missed",
    "errors": "Errors and exclusions",
    "limits": "Limits",
}
"""The sections of every report, in their order."""
BEHIND = 5
"""How many of them come before those of foreign stages."""
PICTURE_SIDE_PX = 256
PROMPT_CHARACTERS = 600

GRADE_WORDS = {
    "localised": "a copy, localised",
    "two instruments": "a copy by two instruments",
    "one instrument": "a copy by one instrument",
    "alike across seeds": "no copy found, but pictures that are alike across seeds",
    "score only": "the score alone",
    "none": "nothing",
}

FINDING_COLUMNS = (
    "prompt_id",
    "prompt",
    "external_ids",
    "source_rows",
    "selected_for",
    "value",
    "p_value",
    "q_value",
    "n_samples",
    "n_copies",
    "best_similarity",
    "best_verified",
    "normalised_similarity",
    "grade",
    "extent",
    "agreement",
    "copied_share",
    "plain_share",
    "mirrored",
    "best_seed_index",
    "best_sample_id",
    "best_image_path",
    "best_image_sha256",
    "best_reference_id",
    "thumbnail_path",
)


class Shown(NamedTuple):
    """A section of the page."""

    name: str
    title: str
    template: Template


def render(facts: Mapping[str, Any], read_image: Callable[[str], bytes], more: Sequence[ReportSection] = ()) -> str:
    """The page. more: sections of foreign stages, whose facts are among these.

    read_image: bytes of a picture by its path within the run; asked only where pictures are shown.
    """
    settings, environment = facts["run"]["settings"]["report"], _environment()
    foreign = [Shown(section.name, section.title, environment.from_string(section.template)) for section in more]
    sections = [Shown(name, title, environment.get_template(f"sections/{name}.html")) for name, title in OURS.items()]
    return environment.get_template("page.html").render(
        facts=facts,
        sections=[*sections[:BEHIND], *foreign, *sections[BEHIND:]],
        run=facts["run"],
        steps={step["step"]: step for step in facts["flow"]},
        findings=facts["findings"]["rows"][: settings["max_findings"]],
        grade_words=GRADE_WORDS,
        chart=Markup(histogram(facts["histogram"])) if facts["histogram"] else None,  # noqa: S704
        picture=(lambda path: _data_uri(path, read_image)) if settings["show_images"] else (lambda _: None),
        agreeing=(lambda row: _marked_uri(row, read_image)) if settings["show_images"] else (lambda _: None),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sharpaudit.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "expected": expected,
        "interval": interval,
        "machine": machine,
        "held": held,
        "listed": listed,
        "clean": _clean,
    }
    return environment


def findings_csv(facts: Mapping[str, Any]) -> str:
    """The findings as CSV, safe to open in a spreadsheet."""
    rows = facts["findings"]["rows"]
    return csv_text(FINDING_COLUMNS, [[row[name] for name in FINDING_COLUMNS] for row in rows])


def number(value: float | None) -> str:
    """Four significant digits, or "undefined"."""
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share as a percentage, or "undefined"."""
    if value is None:
        return "undefined"
    return f"{value:.1%}" if value >= 0.1 or value == 0 else f"{value:.2%}"


def expected(value: float | None) -> str:
    """An expected count with one decimal, or "undefined"."""
    return "undefined" if value is None else f"{value:,.1f}"


def interval(rate: Mapping[str, Any]) -> str:
    """A rate with its interval, where it has one: 4.2% (2.1% to 7.4%)."""
    if rate["rate"] is None:
        return "undefined"
    if rate["low"] is None:
        return percent(rate["rate"])
    return f"{percent(rate['rate'])} ({percent(rate['low'])} to {percent(rate['high'])})"


def share(value: float) -> str:
    """A share as a percentage that is rounded down: 100% is all, and nothing less."""
    if value == 1:
        return "100%"
    return f"{math.floor(value * 10_000) / 100:.2f}%" if value >= 0.0001 else "less than 0.01%"


def held(holding: Mapping[str, Any] | None) -> str:
    """What part of the training set the index holds, as a sentence: no copy means no copy of that."""
    if holding is None:
        return "What part of the training pictures the index holds is not recorded: it was built by an earlier version."
    what = "files that it was built from" if holding["what"] == "files" else holding["what"]
    told = f"The index holds {holding['references']:,} of {holding['of']:,} {what} ({share(holding['share'])})"
    kinds = [f"{n:,} {_clean(kind)}" for kind, n in holding["not_looked_at"].items()]
    passed = f"{', '.join(kinds[:8])}{', …' if len(kinds) > 8 else ''} not looked at" if kinds else ""
    n = holding["rejected"]
    rejected = f"{n:,} {'was' if n == 1 else 'were'} rejected" if n else ""
    left = ", ".join(filter(None, [rejected, passed]))
    repeated = f"{holding['duplicates']:,} more repeat one of them" if holding["duplicates"] else ""
    return f"{'; '.join(filter(None, [told, left, repeated]))}."


def machine(hardware: Mapping[str, Any]) -> str:
    """The recorded machine: 2 cores of X with bfloat16, 23.5 GiB, its accelerators, PyTorch."""
    cpu = f"{hardware['cores']} cores of {hardware['cpu']}{' with bfloat16' if hardware['cpu_has_bf16'] else ''}"
    memory = f"{hardware['memory_bytes'] / 2**30:.1f} GiB"
    return _clean(", ".join([cpu, memory, *hardware["devices"], f"PyTorch {hardware['torch']}"]))


def listed(settings: Mapping[str, Any]) -> list[str]:
    """Settings as lines of configuration, such as triage.alpha = 0.01, by name, without paths of a machine."""
    lines = []
    for section, value in sorted(settings.items()):
        of_section = _leaves(section, value).items()
        paths = {f"{section}.{name}" for name in PATHS.get(section, ())}
        lines += [f"{name} = {json.dumps(leaf)}" for name, leaf in of_section if name not in paths]
    return [_clean(line) for line in lines]


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Every value below `name` by its dotted name, sorted."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {full: leaf for key in sorted(value) for full, leaf in _leaves(f"{name}.{key}", value[key]).items()}


def _clean(text: object) -> str:
    return printable(str(text), PROMPT_CHARACTERS)


def _data_uri(path: str, read_image: Callable[[str], bytes]) -> str:
    return _embedded(_picture(path, read_image))


def _marked_uri(row: Mapping[str, Any], read_image: Callable[[str], bytes]) -> str | None:
    """The best picture of a finding with what of it agrees; None where that is not known."""
    if row["cells"] is None:
        return None
    return _embedded(marked(_picture(row["best_image_path"], read_image), row["cells"], row["cells_wide"]))


def _picture(path: str, read_image: Callable[[str], bytes]) -> Pixels:
    try:
        data = read_image(path)
    except OSError as error:
        raise IntegrityError(f"{printable(path)}: a picture of a finding cannot be read: {error.strerror}") from error
    if sha256_hex(data) != PurePosixPath(path).stem:
        raise IntegrityError(f"{printable(path)}: a picture of a finding is not the one that its name says")
    return decode(data)


def _embedded(picture_HWC: Pixels) -> str:
    small = thumbnail(picture_HWC, PICTURE_SIDE_PX)
    return f"data:image/png;base64,{base64.b64encode(small).decode()}"
