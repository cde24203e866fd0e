"""The stages, one file each; `STAGES` is the order of the flow after ingest and before the report."""

from __future__ import annotations

from pipelines.stage import Stage
from pipelines.stages.bands import BandsStage
from pipelines.stages.fit import DifferencesStage, SubspaceStage, UnconditionalStage
from pipelines.stages.match import MatchStage
from pipelines.stages.sample import SampleStage
from pipelines.stages.score import ScoreStage
from pipelines.stages.thresholds import ThresholdsStage
from pipelines.stages.triage import TriageStage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        UnconditionalStage(),
        DifferencesStage(),
        SubspaceStage(),
        ThresholdsStage(),
        ScoreStage(),
        TriageStage(),
        SampleStage(),
        BandsStage(),
        MatchStage(),
    )
}
