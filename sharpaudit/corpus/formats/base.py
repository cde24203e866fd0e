"""A format of prompt files: which names it has, and its reader, in one declaration.

A reader gives a `PromptRow` for every row of data, in their order, with source_row 0, 1, 2, ...; rows.make_row makes
one of a prompt and the cells beside it. A bad row is a row with a problem, and neither vanishes nor moves its
neighbours. What is wrong with the file as a whole (a missing column, bytes that are none of the format) is a UserError.
A reader works in bounded memory, runs nothing that the file holds, and opens what may be compressed by
opened.open_text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharpaudit.corpus.rows import PromptRow, Source

Reader = Callable[[Source], Iterator[PromptRow]]


@dataclass(frozen=True)
class Format:
    """name: the end of its files' names, with the dot, such as ".csv". digest: of a plug (plugs.py); "" for ours.

    packed: whether its files may also be compressed, with .gz or .zst after that end. like: the name of the format of
    which this is another spelling; files of both may lie in one folder.
    """

    name: str
    read: Reader
    packed: bool = False
    like: str = ""
    digest: str = ""

    @property
    def kind(self) -> str:
        """Equal for two spellings of one format."""
        return self.like or self.name
