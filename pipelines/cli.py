"""The command line: `sharpaudit VERB`, one file a verb under commands/.

Exit codes: 0 complete; 1 failed, or a shard set aside; 2 user error; 3 too many rows rejected; 130 or 143
interrupted, resumable.
"""

from __future__ import annotations

import errno
import io
import os
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
from pipelines.commands.mitigate import mitigate
from pipelines.commands.prune import prune
from pipelines.commands.query import query
from pipelines.commands.replay import replay
from pipelines.commands.run import run
from pipelines.commands.sign import sign
from pipelines.commands.simplify import simplify
from pipelines.commands.spectrum import spectrum
from pipelines.commands.status import status
from pipelines.commands.validate import validate
from pipelines.commands.verify import verify
from pipelines.flow.signals import InterruptedRunError
from sharpaudit import __version__
from sharpaudit.errors import DISK_ERRORS, IntegrityError, TransientError, UserError, printable
from sharpaudit.tables.lock import LostRunError

HINT = "name another file or folder, or put that right, and give the same command again"
HINTS = {
    errno.EACCES: "name a place that this user may read and write, or change its permissions",
    errno.EPERM: "name a place that this user may read and write, or change its permissions",
    errno.ENOENT: "check the name; the folder above a file to write must be there",
    errno.ENOTDIR: "a part of the name is a file where a folder is needed: check the name",
    errno.EISDIR: "a file is needed there: name one",
    errno.EEXIST: "name another one: what is there is not replaced",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
}


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
    spectrum,
    mitigate,
    simplify,
    index,
    calibration,
    lab,
    bench,
):
    cli.add_command(command)


def main() -> None:
    """The console script. Expected failures are one line on stderr; a bug keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a letter shows its number.
            stream.reconfigure(errors="backslashreplace")
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
        if error.errno in {*DISK_ERRORS, errno.EROFS}:
            _fail(_disk_line(error), 1)
        _fail(_file_line(error), 2)


def _fail(line: str, code: int) -> None:
    click.echo(f"sharpaudit: {printable(line, 4000)}", err=True)
    sys.exit(code)


def _file_line(error: OSError) -> str:
    """What is wrong with a file that the user named, or that the system does not give to this user."""
    places = [str(Path(os.fsdecode(name)).absolute()) for name in (error.filename, error.filename2) if name]
    told = error.strerror or str(error) or type(error).__name__
    return f"{' to '.join(places)}{': ' if places else ''}{told}; {HINTS.get(error.errno or 0, HINT)}"


def _disk_line(error: OSError) -> str:
    told = error.strerror
    if error.filename:
        place = Path(str(error.filename)).absolute()
        folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
        told = f"{place}: {told} ({shutil.disk_usage(folder).free:,} bytes are free there)"
    return f"{told}; what was committed is whole: make room and run the same command again"
