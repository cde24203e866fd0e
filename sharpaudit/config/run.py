"""[run]: how the work is done, none of which changes a result."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import Literal

from pydantic import field_validator

from sharpaudit.config.base import Section, runtime


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
