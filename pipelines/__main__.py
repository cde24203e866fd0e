"""`python -m pipelines` is the console script `sharpaudit`."""

from __future__ import annotations

from pipelines.cli import main

main()
