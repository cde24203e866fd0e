"""The audit's configuration: a file a section, and how a TOML file becomes them (reading.py)."""

from __future__ import annotations

from sharpaudit.config.audit import AuditConfig
from sharpaudit.config.base import Section
from sharpaudit.config.corpus import CalibrationConfig, CorpusConfig, as_delimiter
from sharpaudit.config.earlier import RENAMED, under_todays_names
from sharpaudit.config.matches import MatchesConfig
from sharpaudit.config.mitigation import MitigationConfig
from sharpaudit.config.model import ModelConfig
from sharpaudit.config.reading import LAB, PATHS, fields, load, override, parse, resolve_paths, value
from sharpaudit.config.report import ReportConfig
from sharpaudit.config.run import RunConfig, moment
from sharpaudit.config.samples import SamplesConfig
from sharpaudit.config.scores import MIN_FIT, MetricName, ScoresConfig, TierConfig
from sharpaudit.config.triage import TriageConfig

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
    "MitigationConfig",
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
