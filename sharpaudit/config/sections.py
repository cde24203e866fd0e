"""The audit's configuration as frozen models.

Every field is of one class, and a test keeps it so:

- `identity`: it changes results; it enters the fingerprints of the stages that read it, and those are redone when it
  changes;
- `given`: what is audited. A run is bound to it; another corpus is another run;
- `runtime`: how the work is done; free to change at any time.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS, SOLVERS, STAGES, Plugs


def identity(*, default: Any = ..., **limits: Any) -> Any:
    """A field that changes the rows of the stages that say they read it."""
    return Field(default, json_schema_extra={"class": "identity"}, **limits)


def given(default: Any = ..., **limits: Any) -> Any:
    """A field that says what is audited; a run is bound to it."""
    return Field(default, json_schema_extra={"class": "given"}, **limits)


def runtime(default: Any = ..., **limits: Any) -> Any:
    """A field that changes no result."""
    return Field(default, json_schema_extra={"class": "runtime"}, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """The audited model: a diffusers folder, a pinned hub revision, or an analytic `model.json`."""

    path: str | None = runtime(None)
    """Folder or file of the model. Its content counts (its digest is an identity), not its place."""
    repo: str | None = runtime(None)
    """Hub repository, together with `revision`; used where `path` is absent."""
    revision: str | None = runtime(None, pattern=r"^[0-9a-f]{40}$")
    """Commit of `repo`, 40 hex digits."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = identity(default="auto")
    """Precision of the network; differences and norms are always float32. "auto" is bfloat16 where the device has it
    and every metric allows it, else float32."""
    device: Literal["auto", "cpu", "cuda"] = identity(default="auto")
    batch_size: int = runtime(32, ge=1, le=4096)
    """Latents in one forward pass; halved by itself when the device's memory is short."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give exactly one of path and repo")
        if self.repo is not None and self.revision is None:
            raise ValueError(
                "repo needs a revision: the 40 hex digits of a commit, so that the audit names its weights"
            )
        return self


def as_delimiter(told: Any) -> Any:
    """A tab that is written as a backslash and a t, as a shell and a TOML literal leave it, as the tab it means."""
    return "\t" if told == "\\t" else told


Delimiter = Annotated[str, BeforeValidator(as_delimiter)]


class CorpusConfig(Section):
    """The prompts under audit."""

    audit: tuple[str, ...] = given(min_length=1)
    """File of prompts: .csv, .jsonl, .parquet or .txt (one prompt a line), also as .gz and .zst; a folder of such files
    or a pattern such as shards/*.csv; or a list of those. What `sharpaudit extend` adds to a run stays part of it."""
    positive_controls: str | None = given(None)
    """Prompts known to be memorised, audited apart: a file, a folder or a pattern."""
    column: str = given("prompt")
    """Column of the prompt in csv, jsonl and parquet files."""
    delimiter: Delimiter = given(",", min_length=1, max_length=1)
    """Separator of csv files; .tsv files have tabs, and a first line such as sep=; names its own."""
    id_column: str | None = given(None)
    """Column whose value becomes `external_id`."""
    family_column: str | None = given(None)
    """Column that names a prompt's family; without it, family is the prompt without case and punctuation."""
    near_duplicates: float | None = given(None, gt=0, le=1)
    """Makes one family of prompts, harmless ones included, whose 4-letter pieces overlap by at least this share: of
    prompts of 60 letters .85 joins those that differ in one letter, .75 in one word. Families that a column names do
    not merge; prompts without a name join them."""
    style_column: str | None = given(None)
    """Column that names a prompt's style: p is then the rank among calibration prompts of the same style. Prompts of a
    style with too few of them (1/alpha - 1) rank among all and are uncalibrated: counted apart, no rate is claimed."""
    labels: tuple[str, ...] = given(())
    """Columns that pass through into `origins.labels`."""

    @field_validator("audit", mode="before")
    @classmethod
    def _one_or_several(cls, asked: Any) -> Any:
        return (asked,) if isinstance(asked, str) else asked

    @model_validator(mode="after")
    def _told_apart(self) -> CorpusConfig:
        twice = next((path for path in self.audit if self.audit.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is audited twice; name it once")
        return self


class CalibrationConfig(Section):
    """Harmless prompts of the audited corpus's style: one file split by family, or a file for each use. A folder or a
    pattern may stand for its files, as in [corpus]."""

    file: str | None = given(None)
    fit: str | None = given(None)
    calibrate: str | None = given(None)
    column: str | None = given(None)
    """As in [corpus], which it defaults to."""
    delimiter: Delimiter | None = given(None, min_length=1, max_length=1)
    family_column: str | None = given(None)
    style_column: str | None = given(None)

    @model_validator(mode="after")
    def _file_or_both(self) -> CalibrationConfig:
        both = self.fit is not None and self.calibrate is not None
        either = self.fit is not None or self.calibrate is not None
        if (self.file is not None and either) or (self.file is None and not both):
            raise ValueError("give either file (it is split by family), or both fit and calibrate")
        return self


def _known(plugs: Plugs[Any]) -> AfterValidator:
    def name_of(name: str) -> str:
        try:
            return str(plugs[name].name)
        except UserError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(name_of)


MetricName = Annotated[str, _known(METRICS)]
SolverName = Annotated[str, _known(SOLVERS)]


class TierConfig(Section):
    """A later tier of the cascade: what it measures, of whom. Its defaults are those of `sharpaudit bench cascade`."""

    above: float = Field(default=0.8, ge=0, lt=1)
    """Prompts come here whose deciding score at the tier before is at or above this quantile of the fit prompts'."""
    metrics: tuple[MetricName, ...] = Field(default=("residual_gap",), min_length=1)
    """The first decides, the others are recorded beside it."""
    n_seeds: int = Field(default=4, ge=1, le=64)
    """Noise draws of its own: those of no other tier."""


MAX_COMPONENTS = 1000
MIN_FIT = 10
"""Fit prompts without which nothing is learned of what harmless prompts change."""


class ScoresConfig(Section):
    """What the screen measures at the first step, of every prompt and then of what stands out."""

    n_seeds: int = identity(default=1, ge=1, le=64)
    """Noise draws per prompt; the score is the mean over them."""
    components: int | str = identity(default="auto")
    """Directions of harmless change that residual_gap removes: a number, never more than a fifth of the fit prompts, or
    "auto": the most of 1, 2, 5, 10, 20, 50, 100 and 200 that the fit prompts allow, fewer where more leave no less
    noise (cross-validation inside the fit set)."""
    metrics: tuple[MetricName, ...] = identity(default=("residual_gap", "noise_gap", "sharpness"), min_length=1)
    """First-step metrics. The first decides, the others are recorded beside it."""
    step: float = identity(default=1.0, gt=0, le=1e3)
    """h of finite differences, in units of the latent."""
    then: tuple[TierConfig, ...] = identity(default=())
    """Later tiers. A prompt that does not reach one is cleared; p ranks by the last tier reached, then by the score."""

    @field_validator("components")
    @classmethod
    def _number_or_auto(cls, asked: int | str) -> int | str:
        if asked != "auto" and not (isinstance(asked, int) and 1 <= asked <= MAX_COMPONENTS):
            raise ValueError(f'1 to {MAX_COMPONENTS}, or "auto"')
        return asked

    @model_validator(mode="after")
    def _tiers(self) -> ScoresConfig:
        for metrics in (self.metrics, *(tier.metrics for tier in self.then)):
            if len(set(metrics)) < len(metrics):
                raise ValueError("metrics names one twice; name each once")
        for metric in [self.metrics[0], *(tier.metrics[0] for tier in self.then)][:-1]:
            if METRICS[metric].strangers is None:
                gates = " or ".join(name for name in METRICS.ours() if METRICS[name].strangers)
                raise ValueError(
                    f"a tier before another decides by {gates}, this one by {metric}: its threshold comes from what "
                    "fit evaluates"
                )
        return self


class TriageConfig(Section):
    """Which prompts are flagged, and which others are looked at to learn what the flags miss."""

    flag_by: Literal["p", "q"] = identity(default="p")
    alpha: float = identity(default=0.01, gt=0, lt=1)
    """False-positive rate at which a prompt is flagged: of a random prompt of a random harmless family."""
    q: float = identity(default=0.1, gt=0, lt=1)
    """False-discovery rate, where flag_by = "q"."""
    procedure: Literal["benjamini-hochberg", "benjamini-yekutieli"] = identity(default="benjamini-hochberg")
    """How q comes from p. The second holds under any dependence among the prompts, and finds less."""
    exclude_calibration: tuple[str, ...] = identity(default=())
    """Ids of calibration prompts that shall not calibrate, since their pictures showed them to be memorised."""
    controls: int = identity(default=60, ge=0, le=1_000_000)
    """Unflagged prompts that are generated as well, drawn by strata of p."""


class SamplesConfig(Section):
    """Generation of the selected prompts."""

    solver: SolverName = identity(default="ddim")
    """How a sample gets from noise to a picture: "ddim", or "dpm-solver++" (of second order, multistep)."""
    steps: int = identity(default=25, ge=2, le=999)
    """Steps of the solver, each of two evaluations."""
    guidance: float = identity(default=5.0, ge=0, le=100)
    """Classifier-free guidance scale."""
    per_prompt: int = identity(default=4, ge=1, le=64)
    """Pictures of each prompt that is generated, flagged or drawn as a control, calibrating or setting the bands alike:
    what is said of one group holds for another only where both had as many chances to copy."""
    band_prompts: int = identity(default=100, ge=1, le=100_000)
    """Fit prompts whose samples set the bands of a match."""


class MatchesConfig(Section):
    """Comparison of samples with the training pictures."""

    index: str = runtime()
    """Folder of the reference index. Its content counts (its digest is an identity), not its place."""
    profile: str = identity(default="pixels-16")
    """Embedder that describes pictures; the index must have been built with the same one."""
    batch_size: int = runtime(64, ge=1, le=4096)
    """Pictures that it takes at a time; one without a network takes them one by one."""
    neighbours: int = identity(default=3, ge=1, le=100)
    """Training pictures recorded per sample."""
    near_quantile: float = identity(default=0.95, gt=0, lt=1)
    """Band `near` begins at this quantile of the band samples; band `copy` above all of them but the exceptions."""
    band_exceptions: int = identity(default=1, ge=0, le=100)
    """Band prompts, at most one in 50, that may lie above the copy line and are named in the report: a fit prompt may
    be memorised without anybody knowing, and would hide the copies of others."""


class ReportConfig(Section):
    show_images: bool = runtime(False)
    """Show pictures in the report. They may be copyrighted or personal: hidden unless asked for."""
    max_findings: int = runtime(200, ge=1, le=10_000)
    """Findings shown with pictures; all are counted, and all stand in findings.csv."""


def moment(told: str, now: datetime) -> datetime:
    """The deadline that `told` names, in local time: the next such time of day, or that date and time.

    Raises ValueError for anything else.
    """
    try:
        if re.fullmatch(r"\d\d:\d\d(:\d\d)?", told):
            today = datetime.combine(now.date(), time.fromisoformat(told))
            return today if today > now else today + timedelta(days=1)
        found = datetime.fromisoformat(told)
        return found.astimezone().replace(tzinfo=None) if found.tzinfo else found
    except ValueError as error:
        raise ValueError('a time of day such as "07:00", or a date and time such as "2026-11-26T07:00"') from error


class RunConfig(Section):
    """How the work is done."""

    executor: Literal["local", "ray"] = runtime("local")
    workers: int = runtime(1, ge=1, le=4096)
    """Worker processes of the ray executor."""
    threads: int | None = runtime(None, ge=1, le=1024)
    """Threads of each worker; by default the cores are shared out evenly."""
    num_gpus: float = runtime(0.0, ge=0, le=64)
    """GPU share of each worker of the ray executor."""
    address: str | None = runtime(None)
    """Address of a running Ray cluster ("auto" finds one); without it a cluster is started on this machine."""
    rows_per_shard: int | None = runtime(None, ge=1, le=1_000_000)
    """Prompts in a shard, fixed when they are ingested. By default 256, and more where there are so many prompts of a
    role that they would make over 200 shards. With dozens of workers name fewer, so that each has 20 shards to do: they
    end together then, and a deadline, which lets the shards at work finish, is kept."""
    samples_per_shard: int = runtime(64, ge=1, le=100_000)
    limit: int | None = runtime(None, ge=1)
    """Only the first rows of each audited file; may grow from one call to the next."""
    deadline: str | None = runtime(None)
    """When to take no more work: a time of day such as "07:00" (the next one), or "2026-11-26T07:00" in local time.
    What is at work is finished and committed, the report says what is covered, and the same command goes on later."""
    max_rejected: float = runtime(0.01, ge=0, le=1)
    """Share of audited rows that may be rejected before the exit code becomes 3."""
    max_worker_deaths: int = runtime(3, ge=1, le=100)
    """Workers that a shard may end before it is quarantined. So many in turn that end as they start are the last for a
    minute, or of the run where none is at work."""
    shard_timeout_s: float = runtime(7200.0, gt=0)
    """Seconds without an evaluation of the network after which the ray executor takes a worker to hang: it is ended,
    and its shard tried by another. Loading a model, opening an index, matching and decisions evaluate none, so they
    must be through by then; and a network disk must show within that time that a file was touched."""

    @field_validator("address")
    @classmethod
    def _somewhere(cls, asked: str | None) -> str | None:
        # Ray's own word for a cluster that is started here.
        return None if asked in ("", "local") else asked

    @field_validator("deadline", mode="before")
    @classmethod
    def _written_as_a_time(cls, asked: object) -> object:
        # TOML has times of its own, without quotes.
        return asked.isoformat() if isinstance(asked, (datetime, date, time)) else asked

    @field_validator("deadline")
    @classmethod
    def _a_time(cls, asked: str | None) -> str | None:
        if asked is not None:
            moment(asked, datetime.now())
        return asked


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
    report: ReportConfig = runtime(ReportConfig())
    run: RunConfig = runtime(RunConfig())
    stages: dict[str, dict[str, Any]] = identity(default={})
    """Stages of other distributions that are done after ours, in this order, each by its name with its own settings."""

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, asked: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in asked.items():
            if name in STAGES.ours():
                raise ValueError(f"{name} is part of every audit; name stages of other distributions only")
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
