"""The audit's configuration: its sections (sections.py) and how a file becomes them (reading.py)."""

from __future__ import annotations

from sharpaudit.config.earlier import RENAMED, under_todays_names
from sharpaudit.config.reading import LAB, PATHS, fields, load, override, parse, resolve_paths, value
from sharpaudit.config.sections import (
    MIN_FIT,
    AuditConfig,
    CalibrationConfig,
    CorpusConfig,
    MatchesConfig,
    MetricName,
    ModelConfig,
    ReportConfig,
    RunConfig,
    SamplesConfig,
    ScoresConfig,
    Section,
    TierConfig,
    TriageConfig,
    as_delimiter,
    moment,
)

__all__ = [
    "LAB",
    "MIN_FIT",
    "PATHS",
    "RENAMED",
    "AuditConfig",
    "CalibrationConfig",
    "CorpusConfig",
    "MatchesConfig",
    "MetricName",
    "ModelConfig",
    "ReportConfig",
    "RunConfig",
    "SamplesConfig",
    "ScoresConfig",
    "Section",
    "TierConfig",
    "TriageConfig",
    "as_delimiter",
    "fields",
    "load",
    "moment",
    "override",
    "parse",
    "resolve_paths",
    "under_todays_names",
    "value",
]
