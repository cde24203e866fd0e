"""Facts to one static, self-contained page, and to findings.csv.

Whatever comes from outside (prompts, ids, paths, names) is shown with control and bidirectional characters escaped
and goes through the template's autoescape; the page loads nothing and runs nothing. Pictures are embedded only where
the configuration says so, scaled down; the originals stay in the run folder.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sharpaudit.errors import printable
from sharpaudit.images import UnreadableImage, decode, thumbnail
from sharpaudit.report.chart import histogram
from sharpaudit.tables.query import csv_text

PICTURE_SIDE_PX = 256
PROMPT_CHARACTERS = 600

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
    "best_seed_index",
    "best_sample_id",
    "best_image_path",
    "best_image_sha256",
    "best_reference_id",
    "thumbnail_path",
)


def render(facts: Mapping[str, Any], read_image: Callable[[str], bytes]) -> str:
    """The page. read_image: bytes of a picture by its path within the run; asked only where pictures are shown."""
    environment = Environment(
        loader=PackageLoader("sharpaudit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "interval": interval,
        "clean": lambda text: printable(str(text), PROMPT_CHARACTERS),
    }
    shown = facts["run"]["settings"]["report"]["show_images"]
    return environment.get_template("report.html").render(
        facts=facts,
        run=facts["run"],
        chart=Markup(histogram(facts["histogram"])) if facts["histogram"] else None,  # noqa: S704
        picture=(lambda path: _data_uri(read_image(path))) if shown else (lambda _: None),
    )


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


def interval(rate: Mapping[str, Any]) -> str:
    """A rate with its interval: 4.2% (2.1% to 7.4%)."""
    if rate["rate"] is None:
        return "undefined"
    return f"{percent(rate['rate'])} ({percent(rate['low'])} to {percent(rate['high'])})"


def _data_uri(data: bytes) -> str | None:
    try:
        small = thumbnail(decode(data), PICTURE_SIDE_PX)
    except UnreadableImage:
        return None
    return f"data:image/png;base64,{base64.b64encode(small).decode()}"
