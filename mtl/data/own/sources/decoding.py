"""The characters of a file: unpacked and decoded, or refused in one line that says where and what to do."""

from __future__ import annotations

import codecs
import gzip
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: let its name end in .gz",
    b"PK\x03\x04": "a zip archive or a spreadsheet: let its name end in .zip, or save the sheet as csv",
    b"PAR1": "parquet: let its name end in .parquet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as csv",
    b"\x89PNG": "an image",
    b"%PDF": "a pdf",
}
BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError)


def check_encoding(encoding: str | None) -> str | None:
    """Refuse a name that is no encoding of texts."""
    try:
        b" ".decode(encoding or "utf-8")  # (an empty string would not look the name up)
    except UnicodeError:
        pass  # of an encoding that takes more bytes
    except LookupError as error:
        raise ValueError(
            f"encoding={encoding!r} is no encoding of texts; expected a name such as latin-1, cp1252 or utf-16"
        ) from error
    return encoding


def read_text(file: Path, encoding: str | None = None) -> str:
    """The characters of a file that is not packed; see :func:`decode`."""
    return decode(file.read_bytes(), str(file), encoding)


def decode(content: bytes, where: str, encoding: str | None = None) -> str:
    """Characters by the byte order mark, else in the encoding that is given, else UTF-8, without replacing any.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: with the line and the first byte that does not fit; or there is a NUL character.
    """
    if found := next((what for start, what in OTHER_FORMATS.items() if content.startswith(start)), None):
        raise ValueError(f"{where} is {found}; expected a file of text")
    name = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), encoding or "utf-8")
    if name in ("utf-8", "utf-8-sig") and b"\0" in content:  # the reason, where bytes are not UTF-8 either
        raise _nul(content.decode("latin-1"), where)
    try:
        text = content.decode(name)
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = content.count(b"\n", 0, at) + 1
        raise ValueError(
            f"{where}, line {line}: byte {at} (0x{content[at]:02x}) is not {name}; "
            "pass the encoding of the file, such as encoding='latin-1' (--encoding latin-1)"
        ) from error
    if "\0" in text:
        raise _nul(text, where)
    return text


def _nul(text: str, where: str) -> ValueError:
    line = text.count("\n", 0, text.index("\0")) + 1
    return ValueError(
        f"{where}, line {line}: a NUL character; the file is damaged, or UTF-16 without a byte order mark: "
        "pass encoding='utf-16-le' (--encoding utf-16-le)"
    )


def unpack(file: Path, suffixes: Sequence[str]) -> tuple[str, bytes]:
    """Name and contents of a file, of what is in a ``.gz``, or of the only one with such a suffix in a ``.zip``.

    Raises:
        ValueError: it cannot be unpacked, or an archive holds no such file, or several.
        OSError: it cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix not in (".gz", ".zip"):
        return str(file), file.read_bytes()
    try:
        if suffix == ".gz":
            return str(file.with_suffix("")), gzip.decompress(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            found = [n for n in archive.namelist() if n.lower().endswith(tuple(suffixes)) and not is_hidden(n)]
            if len(found) == 1:
                return f"{file}/{found[0]}", archive.read(found[0])
    except BROKEN as error:
        raise ValueError(f"{file} cannot be unpacked ({error}); pack it anew") from error
    raise ValueError(
        f"{file} holds {len(found) or 'no'} tables{f', {found[:5]}' if found else ''}; expected one "
        f"({', '.join(suffixes)}); unpack it, and pass the path of the table"
    )


def is_hidden(name: str) -> bool:
    """Whether a path within a source leads through something hidden, or through what macOS packs beside files."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
