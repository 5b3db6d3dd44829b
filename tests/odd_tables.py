"""Odd and damaged tables: see stress_files.py."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from odd_cases import REFUSED, Case, Either, Write, damages, flipped, put
from PIL import Image

import mtl
from mtl.data.own.texts import read_texts

ROWS = [("Où est-il, le “chat”?", "a"), ("plain", "a"), ("多 \"quoted\"", "b"), ("line\nbreak", "b")]  # fmt: skip
PLAIN = [("Où est-il?", "a"), ("plain", "a"), ("multo bene", "b"), ('he said "no"', "b")]
NUMBERS = [("1", "x"), ("2", "x"), ("3", "y"), ("4", "y")]


def texts_of(path: Path, **options: Any) -> list[tuple[str, str]]:
    """Texts and labels, in the order of the file."""
    found = mtl.open_texts(path, **options)
    return [(found.texts[i], label) for i, label in sorted((i, c) for c, p in found.items.items() for i in p)]


def delimited(rows: list[tuple[str, str]], delimiter: str = ",", **options: Any) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, **options).writerows([("text", "label"), *rows])
    return stream.getvalue()


def objects(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


FORMATS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    ".csv": delimited,
    ".tsv": partial(delimited, delimiter="\t"),
    ".jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in objects(rows)),
    ".json": lambda rows: json.dumps(objects(rows), ensure_ascii=False, indent=1),
}


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/{name}", content)
    return stream.getvalue()


def encodings() -> Iterator[Case]:
    """Every format in every encoding, packed or not."""
    for suffix, write in FORMATS.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            content = write(ROWS).encode(encoding)
            for name, packed in {
                f"t{suffix}": content,
                f"t{suffix}.gz": gzip.compress(content),
                "t.zip": zipped(f"t{suffix}", content),
            }.items():
                yield Case("tables, encodings", f"{name} of {suffix} in {encoding}", put(name, packed), texts_of, ROWS)
        latin = write(PLAIN).encode("latin-1")
        yield Case("tables, encodings", f"latin-1{suffix}", put(f"t{suffix}", latin), texts_of, REFUSED)
        told = partial(texts_of, encoding="latin-1")
        yield Case("tables, encodings", f"latin-1{suffix}, told", put(f"t{suffix}", latin), told, PLAIN)
        bare = write(PLAIN).encode("utf-16-le")
        yield Case("tables, encodings", f"no mark{suffix}", put(f"t{suffix}", bare), texts_of, REFUSED)


def damaged() -> Iterator[Case]:
    """Every format cut short, in another format, as noise."""
    for suffix, write in FORMATS.items():
        content = write(PLAIN * 31).encode()
        for packing in ("", ".gz"):
            whole = gzip.compress(content) if packing else content
            for name, damage in damages(whole):
                if name == "all but one byte" and suffix != ".json" and not packing:
                    continue  # the end of the last line, or nothing to see
                if name == "half" and suffix in (".csv", ".tsv") and not packing:
                    damage = damage.rpartition(b"\n")[0] + b"\nhalf a row"
                file = f"t{suffix}{packing}"
                yield Case("tables, damaged", f"{file}: {name}", put(file, damage), texts_of, REFUSED)
    for name, damage in damages(zipped("t.csv", FORMATS[".csv"](PLAIN).encode())):
        yield Case("tables, damaged", f"zip: {name}", put("t.zip", damage), texts_of, REFUSED)
    for name, damage in flipped(gzip.compress(FORMATS[".csv"](PLAIN).encode()), 8):
        yield Case("tables, damaged", f"gz: {name}", put("t.csv.gz", damage), texts_of, Either(PLAIN))


END = "\nb,x\nc,y\nd,y\n"
TEXT_FILES: dict[str, tuple[str, str | bytes, Any]] = {
    "a comma too many": ("t.csv", f"text,label\na, b,x{END}", REFUSED),
    "a cell too few": ("t.csv", f"text,label\na{END}", REFUSED),
    "a tab too many": ("t.tsv", "text\tlabel\na\tb\tx\nc\ty\n", REFUSED),
    "an open quotation mark": ("t.csv", f'text,label\n"a,x{END}', REFUSED),
    "text behind a quotation mark": ("t.csv", f'text,label\n"a" b,x{END}', REFUSED),
    "a tsv with quotation marks": ("t.tsv", 'text\tlabel\n"a\tx\nb"\tx\n"c\ty\nd\ty\n',
                                   [('"a', "x"), ('b"', "x"), ('"c', "y"), ("d", "y")]),
    "semicolons": ("t.csv", "text;label\n1;x\n2;x\n3;y\n4;y\n", NUMBERS),
    "bars": ("t.csv", "text|label\n1|x\n2|x\n3|y\n4|y\n", NUMBERS),
    "tabs in a csv": ("t.csv", "text\tlabel\n1\tx\n2\tx\n3\ty\n4\ty\n", NUMBERS),
    "a declared separator": ("t.csv", "sep=;\r\ntext;label\r\n1;x\r\n2;x\r\n3;y\r\n4;y\r\n", NUMBERS),
    "carriage returns": ("t.csv", "text,label\r1,x\r2,x\r3,y\r4,y\r", NUMBERS),
    "blank lines": ("t.csv", "\n\ntext,label\n\n1,x\n2,x\n\n3,y\n4,y\n\n\n", NUMBERS),
    "all in quotes": ("t.csv", delimited(NUMBERS, quoting=csv.QUOTE_ALL), NUMBERS),
    "spaces in the header": ("t.csv", " text , label\n1,x\n2,x\n3,y\n4,y\n", NUMBERS),
    "an index": ("t.csv", ",text,label\n0,1,x\n1,2,x\n2,3,y\n3,4,y\n", NUMBERS),
    "a column twice": ("t.csv", f"text,label,label\na,b,x{END}", REFUSED),
    "names missing": ("t.csv", "a,x\nb,x\nc,y\n", REFUSED),
    "a header": ("t.csv", "text,label\n", REFUSED),
    "nothing but lines": ("t.csv", "\n\n\n", REFUSED),
    "a label missing": ("t.csv", "text,label\na,x\nb,\nc,y\n", REFUSED),
    "labels that are fractions": ("t.csv", "text,label\na,0.0\nb,1.0\n", REFUSED),
    "one class": ("t.csv", "text,label\na,x\nb,x\n", REFUSED),
    "a NUL": ("t.csv", f"text,label\na\0b,x{END}", REFUSED),
    "a large cell": ("t.csv", f"text,label\n{'é' * 140_000},x\nb,y\n", [("é" * 140_000, "x"), ("b", "y")]),
    "a spreadsheet": ("t.csv", zipped("xl/workbook.xml", b"<x/>"), REFUSED),
    "an unknown suffix": ("t.xlsx", zipped("xl/workbook.xml", b"<x/>"), REFUSED),
    "two tables in a zip": ("t.zip", b"", REFUSED),
    "lines cut": ("t.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "la', REFUSED),
    "a list in lines": ("t.jsonl", '{"text": "a", "label": "x"}\n["b", "y"]\n', REFUSED),
    "a number in lines": ("t.jsonl", "1\n2\n", REFUSED),
    "a text that is a list": ("t.jsonl", '{"text": ["a"], "label": "x"}\n{"text": "b", "label": "y"}', REFUSED),
    "a label that is a list": ("t.jsonl", '{"text": "a", "label": ["x"]}\n{"text": "b", "label": "y"}', REFUSED),
    "a key twice": ("t.jsonl", '{"text": "a", "text": "b", "label": "x"}\n', REFUSED),
    "half a surrogate": ("t.jsonl", '{"text": "\\udc00", "label": "x"}\n{"text": "b", "label": "y"}', REFUSED),
    "NaN as a label": ("t.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": "y"}', REFUSED),
    "numbers as texts": ("t.jsonl", "\n".join(f'{{"text": {t}, "label": "{c}"}}' for t, c in NUMBERS), NUMBERS),
    "brackets without end": ("t.json", "[" * 50_000, REFUSED),
    "a number without end": ("t.json", f'[{{"text": {"9" * 5000}, "label": "x"}}]', REFUSED),
    "columns in JSON": ("t.json", '{"text": {"0": "a"}, "label": {"0": "x"}}', REFUSED),
    "lines in a json": ("t.json", '{"text": "1", "label": "x"}\n{"text": "3", "label": "y"}', [("1", "x"), ("3", "y")]),
    "an error page": ("t.json", '{"error": "not found"}', REFUSED),
}  # fmt: skip


def text_files() -> Iterator[Case]:
    for name, (file, content, right) in TEXT_FILES.items():
        yield Case("tables, odd", name, put(file, content), texts_of, right)
    for name, content, right in (
        ("lines", "a\r\nb\nc", ["a", "b", "c"]),
        ("a form feed", "a\x0cb\nc\x85d\n", ["a\x0cb", "c\x85d"]),
        ("a blank line", "a\n\nb\n", REFUSED),
        ("latin-1", "caf\xe9\n".encode("latin-1"), REFUSED),
        ("nothing", "", REFUSED),
    ):
        yield Case("texts without labels", name, put("new.txt", content), read_texts, right)


def pictures_of(path: Path, **options: Any) -> list[tuple[int, str]]:
    """The red of the pictures, and labels."""
    found = mtl.open_images(path, **options)
    reds = [(found.image(i).getpixel((0, 0)), label) for label, places in found.items.items() for i in places]
    return sorted((pixel[0], label) for pixel, label in reds)  # type: ignore[index]


def tree(folder: Path, files: dict[str, int]) -> Path:
    for name, red in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (red, 0, 0)).save(folder / name)
    return folder


def with_table(files: dict[str, int], name: str, content: str, give: str) -> Write:
    def write(folder: Path) -> Path:
        tree(folder, files)
        (folder / name).write_text(content)
        return folder / give

    return write


FOUR = {"a/1.png": 1, "a/2.png": 2, "b/3.png": 3, "b/4.png": 4}
RIGHT = [(1, "a"), (2, "a"), (3, "b"), (4, "b")]
LISTED = "file,label\n" + "".join(f"{name},{name[0]}\n" for name in FOUR)
PARTS = {f"{part}/{i}.png": 10 * k + i for k, part in enumerate(("test", "train")) for i in (1, 2, 3, 4)}
IN_PART = "file,label\n1.png,a\n2.png,a\n3.png,b\n4.png,b\n"
SITES = {f"{site}/{name}": red + 10 * k for k, site in enumerate(("east", "west")) for name, red in FOUR.items()}
FOLDERS: dict[str, tuple[Write, dict[str, Any], Any]] = {
    "a table": (with_table(FOUR, "t.csv", LISTED, "t.csv"), {}, RIGHT),
    "backslashes": (with_table(FOUR, "t.csv", LISTED.replace("/", "\\"), "t.csv"), {}, RIGHT),
    "a table beside train and test": (with_table(PARTS, "train.csv", IN_PART, "train.csv"), {}, REFUSED),
    "a missing picture": (with_table(FOUR, "t.csv", f"{LISTED}a/5.png,a\n", "t.csv"), {}, RIGHT),
    "no picture there": (with_table(FOUR, "t.csv", "file,label\nx.png,a\ny.png,b\n", "t.csv"), {}, REFUSED),
    "a blank name": (with_table(FOUR, "t.csv", f"{LISTED},a\n", "t.csv"), {}, REFUSED),
    "two labels": (with_table(FOUR, "t.csv", f"{LISTED}a/1.png,b\n", "t.csv"), {}, REFUSED),
    "a row twice": (with_table(FOUR, "t.csv", f"{LISTED}a/1.png,a\n", "t.csv"), {}, RIGHT),
    "a long row": (with_table(FOUR, "t.csv", f"{LISTED}a/1.png,a,b\n", "t.csv"), {}, REFUSED),
    "sites": (with_table(SITES, "note.md", "", "."), {}, REFUSED),
    "other files": (with_table(FOUR, "a/x.heic", "heic", "."), {}, RIGHT),
    "a file beside": (with_table(FOUR | {"9.png": 9}, "read.me", "", "."), {}, RIGHT),
    "the same picture twice": (with_table(FOUR | {"a/5.png": 1}, "read.me", "", "."), {}, RIGHT),
    "the same in two classes": (with_table(FOUR | {"b/5.png": 1}, "read.me", "", "."), {}, RIGHT[1:]),
    "no picture": (with_table({}, "a.txt", "", "."), {}, REFUSED),
    "a folder without pictures": (with_table(FOUR | {"c/0.png": 0}, "c/0.png", "", "."), {}, RIGHT),
}  # fmt: skip


def folders() -> Iterator[Case]:
    for name, (write, options, right) in FOLDERS.items():
        yield Case("folders of images", name, write, partial(pictures_of, **options), right)


def arrow(folder: Path, columns: dict[str, list[Any]], name: str = "t.parquet") -> Path:
    datasets.Dataset.from_dict(columns).to_parquet(folder / name)
    return folder / name


def arrow_files() -> Iterator[Case]:
    columns = {"text": [t for t, _ in PLAIN], "label": [c for _, c in PLAIN]}
    read, right = texts_of, PLAIN

    def spoilt(change: Callable[[bytes], bytes], folder: Path) -> Path:
        path = arrow(folder, columns)
        path.write_bytes(change(path.read_bytes()))
        return path

    yield Case("arrow", "parquet", lambda f: arrow(f, columns), read, right)
    for name, _ in damages(b"12345678"):
        change = lambda content, name=name: dict(damages(content))[name]  # noqa: E731
        yield Case("arrow", f"parquet: {name}", partial(spoilt, change), read, REFUSED)
    odd = {"a list": [["a"]] * 4, "bytes": [b"a", b"b", b"c", b"d"], "nothing": [None] * 4}
    for name, cells in odd.items():
        made = {"text": cells, "label": list("aabb")}
        yield Case("arrow", f"parquet, texts are {name}", lambda f, made=made: arrow(f, made), read, REFUSED)
    fractions = {"text": list("abcd"), "label": [0.5, 1.5, 0.5, 1.5]}
    yield Case("arrow", "parquet, labels are fractions", lambda f: arrow(f, fractions), read, REFUSED)
    yield Case("arrow", "no rows", lambda f: arrow(f, {"text": [], "label": []}), read, REFUSED)

    def unequal(folder: Path) -> Path:
        arrow(folder, columns, "a.parquet")
        arrow(folder, {"text": ["x"], "topic": [np.int64(3)]}, "b.parquet")
        return folder

    yield Case("arrow", "files of unequal columns", unequal, read, REFUSED)

    def saved(folder: Path, file: str, content: bytes | None) -> Path:
        datasets.DatasetDict(train=datasets.Dataset.from_dict(columns)).save_to_disk(folder / "disk")
        [path] = (folder / "disk").rglob(file)
        path.unlink() if content is None else path.write_bytes(content)
        return folder / "disk"

    for file in ("state.json", "dataset_info.json", "*.arrow", "dataset_dict.json"):
        for name, content in {"missing": None, "empty": b"", "noise": b"\x00\xff" * 50}.items():
            if (file, name) != ("dataset_dict.json", "missing"):
                yield Case("arrow", f"{file} {name}", partial(saved, file=file, content=content), read, REFUSED)
    whole = partial(saved, file="dataset_dict.json", content=b'{"splits": ["train"]}')
    yield Case("arrow", "save_to_disk", whole, read, right)


def cases() -> list[Case]:
    return [*encodings(), *damaged(), *text_files(), *folders(), *arrow_files()]
