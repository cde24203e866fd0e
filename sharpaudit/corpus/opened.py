"""A file of prompts as the stream of bytes that its reader sees: unpacked, UTF-8, with LF at line ends.

gzip and Zstandard are known by their first bytes, whatever the file is called, and unpacked as they are read, several
members too. No more than MAX_EXPANDED bytes come out of a file. A byte order mark of UTF-8 is left out. What is not
text at all, or text of another Unicode encoding, is refused here, with what to do about it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from sharpaudit.encoding import UTF8_BOM, other_unicode, refusal
from sharpaudit.errors import UserError, printable

MAX_EXPANDED = 64 << 30
"""Bytes that one compressed file may unpack to: some 500 million prompts."""
_HEAD = 1 << 16
_LINES_WITHIN = 1 << 24
"""Bytes that tell how lines end."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes([byte]) + b"\x2a\x4d\x18" for byte in range(0x50, 0x60))
"""Frames that parallel compressors put before those of Zstandard."""
_NO_TEXT = {
    b"PAR1\x15": "a Parquet file: rename it to end in .parquet",
    b"PK\x03\x04": "a zip archive, as .xlsx, .ods and .npz are too: export the table as csv, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "an .xls workbook: export the table as csv",
    _GZIP: "compressed by gzip twice: unpack it once",
    _ZSTD: "compressed by Zstandard once more: unpack it once",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it, or compress it by gzip or zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"ARROW1\x00\x00": "an Arrow file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"SQLite format 3\x00": "a SQLite database: export the table as csv",
    b"%PDF-": "a PDF: give its text as .txt, one prompt a line",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS and not the file: fetch that by `git lfs pull`",
}
_NO_TEXT_LATER = {
    (4, b"1AY&SY"): "compressed by bzip2: unpack it, or compress it by gzip or zstd",
    (257, b"ustar"): "a tar archive: unpack it and name the folder",
}


class _Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


def open_text(path: Path, *, lines: bool = False) -> io.BufferedReader:
    """The content of the file. lines: for a reader that knows LF alone, CR stands as LF in a file without any LF.

    Raises UserError for a file that is no UTF-8 text, and, as it is read, for one that does not unpack.
    """
    stream = _Text(path)
    if lines and _ends_in_cr(path):
        stream.translation = bytes.maketrans(b"\r", b"\n")
    return io.BufferedReader(stream, _HEAD)


def _ends_in_cr(path: Path) -> bool:
    """Whether lines end in CR alone: no LF stands in the file but as its last byte. The first bytes settle it, and as a
    rule a few of them."""
    found, n_read = False, 0
    with io.BufferedReader(_Text(path), _HEAD) as file:
        while n_read < _LINES_WITHIN and (part := file.read1()):
            found |= b"\r" in part
            n_read += len(part)
            if b"\n" in part:
                return found and part.index(b"\n") == len(part) - 1 and not file.read1()
    return found


class _Text(io.RawIOBase):
    """The bytes of a text file, unpacked and without a byte order mark."""

    translation: bytes | None = None

    def __init__(self, path: Path) -> None:
        self._name = printable(str(path))
        self._file = path.open("rb", buffering=0)
        try:
            self._stream, self._packed = _unpacked(self._file)
            self._n_read = 0
            head = self._filled()
            _require_text(head, self._name)
        except BaseException:
            self._file.close()
            raise
        self._head = head.removeprefix(UTF8_BOM)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part, self._head = (self._head[: len(buffer)], self._head[len(buffer) :]) if self._head else (b"", b"")
        part = part or self._read(len(buffer))
        if self.translation is not None:
            part = part.translate(self.translation)
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _filled(self) -> bytes:
        """The first _HEAD bytes, or all: one read may bring fewer."""
        found = b""
        while len(found) < _HEAD and (part := self._read(_HEAD - len(found))):
            found += part
        return found

    def _read(self, n: int) -> bytes:
        try:
            part = self._stream.read(n)
        except (EOFError, zlib.error, OSError, pa.ArrowException) as error:
            if not self._packed or getattr(error, "errno", None) is not None:
                raise
            raise UserError(
                f"{self._name}: cannot be unpacked beyond byte {self._n_read:,} of its content: "
                f"{printable(str(error)).rstrip('.')}; the file is cut or damaged: copy or compress it again"
            ) from error
        self._n_read += len(part)
        if self._packed and self._n_read > MAX_EXPANDED:
            raise UserError(
                f"{self._name}: unpacks to more than {MAX_EXPANDED:,} bytes, the most that is read of a compressed "
                "file; unpack it, or split it"
            )
        return part


def _unpacked(file: BinaryIO) -> tuple[_Readable, bool]:
    """The stream of the content, and whether it is unpacked."""
    start = file.read(4)
    file.seek(0)
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file, mode="rb"), True
    if start == _ZSTD or start in _SKIPPABLE:
        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), True
    return file, False


def _require_text(head: bytes, name: str) -> None:
    what = next((what for magic, what in _NO_TEXT.items() if head.startswith(magic)), None)
    what = what or next((what for (at, magic), what in _NO_TEXT_LATER.items() if head.startswith(magic, at)), None)
    if what is not None:
        raise UserError(f"{name}: {what}")
    encoding = other_unicode(head)
    if encoding is not None:
        raise refusal(name, encoding)
