"""One ingest of the bench in a process that does nothing else: python -m, with what is asked as JSON.

It prints how many audited prompts and families of them there are, the files of the run, the
seconds, and the GiB that it held at its peak.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.bench.sql import STAGES
from pipelines.bench.sql_facts import peak_kib
from pipelines.stages.fit import role_of
from pipelines.stages.ingest import ingest
from sharpaudit import config as configuration
from sharpaudit.config import LAB
from sharpaudit.denoisers.load import load_tokenizer
from sharpaudit.tables.declared import described
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, ORIGINS


def main(asked: dict[str, Any]) -> None:
    """asked: the file of prompts, the folder of the run, and the similarity of near-duplicates, if any."""
    lab = LAB / "emoji"
    tree = {
        "name": "ingest",
        "model": {"path": str(lab / "model"), "dtype": "float32", "device": "cpu"},
        "corpus": {"audit": asked["prompts"], "near_duplicates": asked["near"]},
        "calibration": {
            "fit": str(lab / "prompts/fit.csv"),
            "calibrate": str(lab / "prompts/calibration.csv"),
            "family_column": "family",
        },
        "matches": {"index": str(lab / "references")},
    }
    config = configuration.parse(tree, asked["prompts"])
    run = RunFolder.create(Path(asked["run"]))
    run.write_record({"stages": STAGES, "tables": [described(table) for table in (ORIGINS, CORPUS)]})
    tokenizer = load_tokenizer(config.model)
    begun = time.monotonic()
    ingest(run, config, tokenizer)
    seconds, peak = time.monotonic() - begun, peak_kib()
    corpus = run.table(CORPUS)
    audited = [manifest for manifest in corpus.current() if role_of(manifest) == "audit"]
    families: set[str] = set()
    for manifest in audited:
        families.update(corpus.read(manifest, ["family_id"])["family_id"].to_pylist())
    n_files = sum(path.is_file() for path in run.root.rglob("*"))
    found = {"n_prompts": sum(m.rows for m in audited), "n_families": len(families), "n_files": n_files}
    sys.stdout.write(json.dumps(found | {"seconds": seconds, "gib": peak / 2**20}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    # All is measured and told. Libraries' threads that still run could abort an orderly end of the interpreter.
    os._exit(0)
