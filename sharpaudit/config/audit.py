"""A whole audit: every section, what they ask of one another, and the stages of other distributions."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, field_validator, model_validator

from sharpaudit.config.base import Section, identity, runtime
from sharpaudit.config.corpus import CalibrationConfig, CorpusConfig
from sharpaudit.config.matches import MatchesConfig
from sharpaudit.config.mitigation import MitigationConfig
from sharpaudit.config.model import ModelConfig
from sharpaudit.config.report import ReportConfig
from sharpaudit.config.run import RunConfig
from sharpaudit.config.samples import SamplesConfig
from sharpaudit.config.scores import ScoresConfig
from sharpaudit.config.triage import TriageConfig
from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS, STAGES


class AuditConfig(Section):
    """A whole audit."""

    name: str = runtime("audit", min_length=1, max_length=200)
    seed: int = identity(default=0, ge=0, lt=2**31)
    """Seed of all random numbers of the run."""
    model: ModelConfig
    corpus: CorpusConfig
    calibration: CalibrationConfig
    scores: ScoresConfig = runtime(ScoresConfig())
    triage: TriageConfig = runtime(TriageConfig())
    samples: SamplesConfig = runtime(SamplesConfig())
    matches: MatchesConfig
    mitigation: MitigationConfig = runtime(MitigationConfig())
    report: ReportConfig = runtime(ReportConfig())
    run: RunConfig = runtime(RunConfig())
    stages: dict[str, dict[str, Any]] = identity(default={})
    """Stages of other distributions that are done after ours, in this order, each by its name with its own settings."""

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, asked: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in asked.items():
            if name in STAGES.ours():
                raise ValueError(f"{name} is ours and has no settings here; name stages of other distributions only")
            try:
                STAGES[name].settings.model_validate(settings)
            except UserError as error:
                raise ValueError(str(error)) from error
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join([name, *(str(part) for part in first["loc"])])
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        return asked

    @model_validator(mode="after")
    def _enough_pictures(self) -> AuditConfig:
        n, least = self.mitigation.pictures, self.samples.per_prompt
        if self.mitigation.methods and n < least:
            raise ValueError(
                f"mitigation.pictures = {n} is fewer than samples.per_prompt = {least}: the picture that copies could "
                f"be none of them; ask for at least {least}"
            )
        return self

    @model_validator(mode="after")
    def _precision(self) -> AuditConfig:
        asked = [*self.scores.metrics, *(name for tier in self.scores.then for name in tier.metrics)]
        exact = [name for name in asked if METRICS[name].float32_only]
        if not exact or self.model.dtype == "float32":
            return self
        if self.model.dtype == "auto":
            return self.model_copy(update={"model": self.model.model_copy(update={"dtype": "float32"})})
        raise ValueError(
            f'model.dtype = "{self.model.dtype}" is not offered for {exact[0]}, whose ranks it changes: use "float32" '
            'or "auto", or leave the metric out'
        )
