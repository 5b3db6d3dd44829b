"""Images in one folder per class."""

from __future__ import annotations

from pathlib import Path

from mtl.data.images.listing import Files, Listing, folders_in
from mtl.data.splits import part_named

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def from_folders(root: Path) -> Listing:
    """Class folders, or train/val/test folders of such."""
    subfolders = folders_in(root)
    groups: list[tuple[str | None, Path]] = [(None, folder) for folder in subfolders]
    if len(subfolders) > 1 and all(part_named(f.name) for f in subfolders):
        groups = [(part_named(f.name), folder) for f in subfolders for folder in folders_in(f)]
        if not groups:
            raise ValueError(
                f"{root} has {[f.name for f in subfolders]} without class folders in them; "
                "if a csv has the labels, pass the path of the csv"
            )
    elif len(subfolders) == 1:
        inner = f"; or pass {subfolders[0]} if the classes are in there" if folders_in(subfolders[0]) else ""
        raise ValueError(
            f"{root} has one sub-folder, {subfolders[0].name!r}; expected one per class, two at least{inner}"
        )
    found = [(part, folder.name, path) for part, folder in groups for path in _images_in(folder)]
    held = {label for _, label, _ in found}
    if empty := sorted({folder.name for _, folder in groups} - held):
        raise ValueError(
            f"class folders without images in {root}: {empty}; "
            f"remove them, or convert their files to one of {sorted(SUFFIXES)}"
        )
    reader = Files(tuple(path for _, _, path in found))
    return Listing(str(root), reader, [label for _, label, _ in found], [part for part, _, _ in found])


def _images_in(folder: Path) -> list[str]:
    """Images at any depth, sorted by path; hidden files, such as macOS's ``._x.jpg``, are not images."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p.as_posix() for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts))
