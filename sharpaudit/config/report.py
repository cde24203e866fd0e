"""[report]: what the page shows."""

from __future__ import annotations

from sharpaudit.config.base import Section, runtime


class ReportConfig(Section):
    show_images: bool = runtime(False)
    """Show pictures in the report. They may be copyrighted or personal: hidden unless asked for."""
    max_findings: int = runtime(200, ge=1, le=10_000)
    """Findings shown with pictures; all are counted, and all stand in findings.csv."""
