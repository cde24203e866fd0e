"""The command line: `sharpaudit VERB`, one file a verb under commands/.

Exit codes: 0 complete; 1 failed, or a shard set aside; 2 user error; 3 too many rows rejected; 130 or 143
interrupted, resumable.
"""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import click

from pipelines.commands.bench import bench
from pipelines.commands.calibration import calibration
from pipelines.commands.extend import extend
from pipelines.commands.index import index
from pipelines.commands.init import init
from pipelines.commands.key import key
from pipelines.commands.lab import lab
from pipelines.commands.prune import prune
from pipelines.commands.query import query
from pipelines.commands.replay import replay
from pipelines.commands.run import run
from pipelines.commands.sign import sign
from pipelines.commands.status import status
from pipelines.commands.validate import validate
from pipelines.commands.verify import verify
from pipelines.signals import InterruptedRunError
from sharpaudit import __version__
from sharpaudit.errors import DISK_ERRORS, IntegrityError, TransientError, UserError, printable
from sharpaudit.tables.lock import LostRunError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sharpaudit")
def cli() -> None:
    """Learn which prompts make a text-to-image diffusion model reproduce its training images."""


for command in (
    run,
    extend,
    validate,
    status,
    query,
    replay,
    verify,
    sign,
    key,
    prune,
    init,
    index,
    calibration,
    lab,
    bench,
):
    cli.add_command(command)


def main() -> None:
    """The console script. Expected failures are one line on stderr; a bug keeps its traceback."""
    try:
        # Without its standalone mode click returns the exit code that a command asks for.
        sys.exit(cli(standalone_mode=False))
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UserError as error:
        _fail(str(error), 2)
    except (IntegrityError, LostRunError, TransientError) as error:
        _fail(str(error), 1)
    except InterruptedRunError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in {*DISK_ERRORS, errno.EROFS}:
            raise
        _fail(_disk_line(error), 1)


def _fail(line: str, code: int) -> None:
    click.echo(f"sharpaudit: {printable(line, 4000)}", err=True)
    sys.exit(code)


def _disk_line(error: OSError) -> str:
    told = error.strerror
    if error.filename:
        place = Path(str(error.filename)).absolute()
        folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
        told = f"{place}: {told} ({shutil.disk_usage(folder).free:,} bytes are free there)"
    return f"{told}; what was committed is whole: make room and run the same command again"
