"""A rehearsal: everything that a configuration names, loaded; one prompt end to end; the plan of the night.

Nothing is written but into a temporary folder. The rate is measured on this machine with the audit's own
prompts, so the hours printed are an estimate for as many workers as the configuration asks for.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from pipelines.stage import Facts
from pipelines.stages.ingest import sources
from pipelines.stages.score import screen_rows
from pipelines.stages.search import SampleSearch
from pipelines.survey import survey
from sharpaudit.config import AuditConfig
from sharpaudit.corpus.assign import Known, assign
from sharpaudit.denoisers.load import load_denoiser, load_tokenizer
from sharpaudit.errors import Status, UserError
from sharpaudit.images import encode_png
from sharpaudit.samples.generate import generate
from sharpaudit.statistics.conformal import fpr_interval
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.shards import store_image
