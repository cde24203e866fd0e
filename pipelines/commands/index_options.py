"""Options that the commands of `sharpaudit index` share: where pictures are, by whom and how they are described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.options import PATH

if TYPE_CHECKING:
    from pipelines.indexing.build import Asked
    from sharpaudit.config import RunConfig

_SHARED: Sequence[Callable[[Callable[..., None]], Callable[..., None]]] = (
    click.option(
        "--layout",
        type=click.Choice(["folder", "webdataset", "parquet", "embeddings"]),
        default="folder",
        show_default=True,
        help="What the pictures are kept in: files, tar archives, tables; or vectors of theirs that are there already.",
    ),
    click.option(
        "--image-column", metavar="NAME", help="Of tables, where it is not clear which one holds the pictures."
    ),
    click.option("--caption-column", metavar="NAME", help="Of tables; caption or text where nothing is said."),
    click.option(
        "--vector-column", metavar="NAME", help="Of tables, where it is not clear which one holds the vectors."
    ),
    click.option(
        "--allow-unreadable",
        is_flag=True,
        help="Count folders that cannot be listed, and archives that are damaged, instead of refusing them.",
    ),
    click.option("--weights", type=PATH, help="Folder with the embedder's weights, for one that has some."),
    click.option(
        "--weights-sha256",
        metavar="HEX",
        multiple=True,
        help="Digest of weights that you vouch for; may be given again.",
    ),
    click.option(
        "--batch-size",
        metavar="N",
        default=64,
        show_default=True,
        type=click.IntRange(1, 4096),
        help="Pictures that an embedder takes at a time.",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="Of the stored vectors: float16 is half as large.",
    ),
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True),
    click.option(
        "--workers", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Processes of Ray."
    ),
    click.option("--gpus-per-worker", metavar="SHARE", type=click.FloatRange(0), default=0.0, show_default=True),
    click.option("--address", help="Of a Ray cluster that runs; without it one is started on this machine."),
)


_COLUMNS = {
    "image_column": ("parquet",),
    "caption_column": ("parquet", "embeddings"),
    "vector_column": ("embeddings",),
}
"""Options that name a column, and the layouts that have some."""


def describing(verb: Callable[..., None]) -> Callable[..., None]:
    """The shared options, which reach the verb by their names."""
    for option in reversed(_SHARED):
        verb = option(verb)
    return verb


def asked_of(pictures: Path, profiles: tuple[str, ...], given: dict[str, Any]) -> tuple[Asked, RunConfig]:
    """What is to be described, and by whom. given: the shared options, and captions of a folder.

    Prints what is to be known of the embedders. Raises UserError for options that do not go together, for an embedder
    that is unknown, and for weights that are not there.
    """
    import torch

    from pipelines.indexing.build import Asked
    from sharpaudit.config import RunConfig
    from sharpaudit.embedders.base import embedder, notes
    from sharpaudit.embedders.weights import Shelf
    from sharpaudit.errors import UserError

    if given["device"] == "cuda" and given["executor"] == "local" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use cpu or auto")
    if given["workers"] > 1 and given["executor"] == "local":
        click.echo(f"note: --workers {given['workers']}: without Ray one process works alone; add --executor ray")
    if given["executor"] == "ray" and not given["gpus_per_worker"] and torch.cuda.is_available():
        click.echo("note: the workers of Ray see no GPU: give each its share with --gpus-per-worker")
    paths, options = _source(pictures, given)
    twice = [name for name in profiles if profiles.count(name) > 1]
    if twice:
        raise UserError(f"--profile {twice[0]}: is given twice; name each embedder once")
    if given["layout"] == "embeddings" and len(profiles) > 1:
        raise UserError("--layout embeddings: the vectors are those of one embedder; name one with --profile")
    weights, vouched = given["weights"], given["weights_sha256"]
    for line in (line for name in profiles for line in notes(embedder(name, Shelf(weights, vouched)))):
        click.echo(f"note: {line}")
    place = None if weights is None else str(weights.absolute())
    asked = Asked(given["layout"], paths, options, profiles, place, vouched, given["batch_size"], given["device"])
    run = {name: given[name] for name in ("executor", "workers", "address")} | {"num_gpus": given["gpus_per_worker"]}
    return asked, RunConfig.model_validate(run)


def _source(pictures: Path, given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Paths and options of a layout. Raises UserError for an option that another layout has."""
    from sharpaudit.errors import UserError

    layout, captions = given["layout"], given.get("captions")
    if layout != "folder" and captions is not None:
        raise UserError(f"--captions: for files in a folder; of --layout {layout} captions stand beside the pictures")
    options = {"allow_unreadable": given["allow_unreadable"]}
    for name, layouts in _COLUMNS.items():
        if layout in layouts:
            options[name] = given[name]
        elif given[name] is not None:
            raise UserError(f"--{name.replace('_', '-')}: for tables; add --layout {' or '.join(layouts)}")
    paths = {"folder" if layout == "folder" else "place": str(pictures.absolute())}
    if captions is not None:
        paths["captions"] = str(captions.absolute())
    return paths, options
