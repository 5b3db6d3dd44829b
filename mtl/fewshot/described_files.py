"""One file of tensors and what they mean: safetensors, with JSON in its header, and a digest of each of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mtl.tools.files import write_whole
from mtl.tools.identity import digest
from mtl.tools.json_files import check_fields, parse_json

_LARGEST_HEADER = 1 << 24  # bytes; a description has some thousand


@dataclass(frozen=True)
class FileKind:
    """What files of one kind have in common.

    Args:
        header: key of the description in the metadata of safetensors.
        format: one more when older versions of mtl would misread a file.
        other: what is said of a file of another kind: ``"is not an adapted task"``.
        writer: what writes such files.
        fields: of the description, see :func:`~mtl.tools.json_files.check_fields`.
    """

    header: str
    format: int
    other: str
    writer: str
    fields: Mapping[str, type]

    def write(self, path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a file, whole or not at all.

        Args:
            content: what JSON holds of it.
            tensors: on the CPU, each contiguous and in memory of its own.

        Raises:
            FileExistsError: there is a file of another kind.
            OSError: it could not be written; what was there still is.
        """
        if path.exists() and not self._is_one(path):
            raise FileExistsError(f"{path} {self.other}, and would be replaced; save to another path")
        facts = {"format": self.format, "mtl": version("mtl"), **content, "tensors": digest(dict(tensors))}
        write_whole(path, self.sealed(facts, tensors))

    def sealed(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
        """The bytes of a file, with a digest of its description."""
        whole: dict[str, Any] = json.loads(json.dumps(content))
        return save(dict(tensors), {self.header: json.dumps(whole | {"digest": digest(whole)})})

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Description and tensors of a file, as they were saved.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, of a later version, or something else; names it.
        """
        contents = path.read_bytes()
        content = self._description(contents, path)
        if content.get("format") != self.format:
            written = f"format {content.get('format')!r} of mtl {content.get('mtl')}"
            raise ValueError(f"{path} has {written}, and this is mtl {version('mtl')}; update mtl, or save it again")
        if content.pop("digest", None) != digest(content):
            raise ValueError(f"{path} is not as it was saved: its digest differs; bring it back from a copy")
        check_fields(content, path, self.fields)
        try:
            tensors = load(contents)
        except SafetensorError as error:
            raise self._refusal(path) from error
        if digest(tensors) != content["tensors"]:
            raise ValueError(f"{path} is damaged: its tensors differ from what was saved; bring it back from a copy")
        return content, tensors

    def _description(self, contents: bytes, path: Path) -> dict[str, Any]:
        """The JSON in the header; files come from anybody."""
        size = int.from_bytes(contents[:8], "little")
        if len(contents) < 8 or size > min(len(contents) - 8, _LARGEST_HEADER):
            raise self._refusal(path)
        header = parse_json(contents[8 : 8 + size], path).get("__metadata__")
        if not isinstance(header, dict) or self.header not in header:
            raise self._refusal(path)
        return parse_json(header[self.header].encode(), path)

    def _refusal(self, path: Path) -> ValueError:
        return ValueError(f"{path} {self.other}, or is damaged; expected a file of {self.writer}")

    def _is_one(self, path: Path) -> bool:
        try:
            self._description(path.read_bytes(), path)
        except (ValueError, OSError):
            return False
        return True
