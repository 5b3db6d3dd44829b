"""The reader of tables: whatever was written is read back, and what is damaged is named by file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl.data.own.sources.tables import PLAIN, read_table
from mtl.data.own.texts import open_texts, read_texts

QUOTING = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)
CELL = st.text(
    st.one_of(st.sampled_from("\"',;|\tab \r\n"), st.characters(codec="utf-8", exclude_characters="\0")), max_size=8
)
NAME = (
    st.text(st.characters(categories=["L", "N"], max_codepoint=0x2000), min_size=1, max_size=5)
    .map(str.strip)
    .filter(bool)
)
FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw, cell=CELL) -> tuple[list[str], list[list[str]]]:
    names = draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    row = st.lists(cell, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(row, min_size=1, max_size=5))


def written(names, rows, delimiter: str, quoting: int, end: str) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([names, *rows])
    return stream.getvalue()


def put(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def read(file: Path, **options) -> list[list[str]]:
    table = read_table(file, **options)
    return [[row[c] for c in table.columns] for row in table.rows]


def bare_return(rows) -> bool:
    """Python's writer leaves a carriage return unquoted when lines end with a line feed alone."""
    return any("\r" in cell for row in rows for cell in row)


@pytest.mark.filterwarnings("ignore:.*could each be a row")
@FAST
@given(tables(), st.sampled_from(",;\t|"), st.sampled_from(QUOTING), st.sampled_from(["\r\n", "\n", "\r"]))
def test_a_csv_of_any_dialect_is_read_back(tmp_path, table, delimiter, quoting, end):
    names, rows = table
    if len(names) == 1 and delimiter != ",":
        return  # nothing shows the delimiter
    if (
        end != "\r\n"
        and quoting == csv.QUOTE_MINIMAL
        and any(c in cell for row in rows for cell in row for c in "\r\n")
    ):
        return
    if end == "\r" and any("\n" in cell for row in rows for cell in row):
        return
    file = put(tmp_path, "t.csv", written(names, rows, delimiter, quoting, end))
    assert read_table(file).columns == tuple(names)
    assert read(file) == rows


@FAST
@given(tables(), st.sampled_from(QUOTING), st.sampled_from(["\r\n", "\n"]))
def test_a_quoted_tsv_is_read_back_or_refused(tmp_path, table, quoting, end):
    names, rows = table
    if end == "\n" and bare_return(rows):
        return
    file = put(tmp_path, "t.tsv", written(names, rows, "\t", quoting, end))
    try:
        found = read(file)
    except ValueError as refusal:
        found = str(refusal)
    if any(end in cell for row in rows for cell in row for end in "\r\n"):  # may be ambiguous
        assert found == rows or "t.tsv, line" in found
    else:
        assert found == rows


@FAST
@given(tables(st.text(st.sampled_from("\"' ,;ab"), min_size=1, max_size=6)))
def test_a_tsv_without_quoting_is_read_as_it_is(tmp_path, table):
    names, rows = table
    rows = [*rows, ['"odd' for _ in names]]  # no file is quoted consistently with this in it
    rows = [[cell if cell.strip() else "x" for cell in row] for row in rows]
    file = put(tmp_path, "t.tsv", "\n".join("\t".join(row) for row in [names, *rows]))
    assert read(file) == rows


@FAST
@given(tables(), st.data(), st.sampled_from([".csv", ".tsv"]))
def test_a_row_of_another_length_is_refused_with_its_line(tmp_path, table, data, suffix):
    names, rows = table
    rows = [[" ".join(cell.split()).replace('"', "") or "x" for cell in row] for row in rows]
    names = [*names, "last"]
    rows = [[*row, "y"] for row in rows]
    place = data.draw(st.integers(0, len(rows) - 1))
    rows[place] = data.draw(st.sampled_from([rows[place][:-1], [*rows[place], "z"]]))
    file = put(tmp_path, f"t{suffix}", written(names, rows, "," if suffix == ".csv" else "\t", csv.QUOTE_MINIMAL, "\n"))
    with pytest.raises(
        ValueError, match=rf"t{suffix}, line {place + 2}: {len(rows[place])} cells, expected {len(names)}"
    ):
        read_table(file)


@FAST
@given(st.binary(max_size=200), st.sampled_from([*PLAIN, *(f"{s}.gz" for s in PLAIN), ".zip"]), st.booleans())
def test_any_bytes_are_read_or_refused_by_name(tmp_path, content, suffix, pack):
    content = gzip.compress(content) if pack and suffix.endswith(".gz") else content
    file = put(tmp_path, f"t{suffix}", content)
    try:
        found = read_table(file)
    except ValueError as refusal:
        found = refusal
    if isinstance(found, ValueError):
        assert str(file) in str(found)
        assert "\n" not in str(found)
    else:
        assert found.rows


@FAST
@given(tables(st.text(st.sampled_from('ab"{}[]:, \n'), max_size=6)))
def test_json_in_both_forms_is_read_back(tmp_path, table):
    names, rows = table
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    for name, text in {"t.jsonl": "\n".join(map(json.dumps, objects)), "t.json": json.dumps(objects, indent=1)}.items():
        assert read_table(put(tmp_path, name, text)).rows == objects


TABLE = "text,label\nWo ist es?,fragé\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zip"])
def test_byte_order_marks_and_packing(tmp_path, encoding, packed):
    content = TABLE.encode(encoding)
    if packed == ".gz":
        file = put(tmp_path, "t.csv.gz", gzip.compress(content))
    elif packed == ".zip":
        file = tmp_path / "t.zip"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("inner/t.csv", content)
            archive.writestr("__MACOSX/inner/._t.csv", b"resource fork")
    else:
        file = put(tmp_path, "t.csv", content)
    assert read(file) == [["Wo ist es?", "fragé"]]


def test_both_byte_orders(tmp_path):
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert read(put(tmp_path, "t.csv", mark + TABLE.encode(name))) == [["Wo ist es?", "fragé"]]


def test_other_encodings_are_named_or_asked_for(tmp_path):
    file = put(tmp_path, "t.csv", TABLE.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"t.csv, line 2: byte 26 \(0xe9\) is not utf-8; .*--encoding latin-1"
    ) as caught:
        open_texts(file)
    assert "\n" not in str(caught.value)
    assert read(file, encoding="latin-1") == [["Wo ist es?", "fragé"]]
    with pytest.raises(ValueError, match="encoding='latin-11' is no encoding of texts"):
        open_texts(file, encoding="latin-11")
    with pytest.raises(ValueError, match=r"t.csv, line 1: a NUL character.*utf-16-le"):
        read_table(put(tmp_path, "t.csv", TABLE.encode("utf-16-le")[2:]))
    (tmp_path / "f" / "a").mkdir(parents=True)
    put(tmp_path / "f" / "a", "0.txt", "é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"0.txt, line 1: byte 0 \(0xe9\) is not utf-8"):
        read_texts(tmp_path / "f")
    assert read_texts(tmp_path / "f", encoding="latin-1") == ["é"]


READ = {
    "a semicolon": ("t.csv", "text;label\nhello, you;a\n", [["hello, you", "a"]]),
    "a tab in a csv": ("t.csv", "text\tlabel\nhello, you\ta\n", [["hello, you", "a"]]),
    "a declared separator": ("t.csv", "sep=;\ntext;label\na,b;x\n", [["a,b", "x"]]),
    "semicolons in quotes": ("t.csv", '"a;b;c",label\nx,y\n', [["x", "y"]]),
    "line ends of old spreadsheets": ("t.csv", "text,label\ra,x\rb,y\r", [["a", "x"], ["b", "y"]]),
    "blank lines": ("t.csv", "\n\ntext,label\n\na,x\n   \nb,y\n\n", [["a", "x"], ["b", "y"]]),
    "a quotation mark within": ("t.csv", 'text,label\n5" pipe,x\n', [['5" pipe', "x"]]),
    "a cell over lines": ("t.csv", 'text,label\n"a\n\nb",x\n', [["a\n\nb", "x"]]),
    "a large cell": ("t.csv", f"text,label\n{'a' * 200_000},x\n", [["a" * 200_000, "x"]]),
    "a column without a name": ("t.csv", ",text,label\n0,a,x\n", [["a", "x"]]),
    "spaces around names": ("t.csv", "text , label\na,x\n", [["a", "x"]]),
    "an open quotation mark in a tsv": ("t.tsv", 'text\tlabel\n"hello\tx\nyou"\ty\nsay "no"\tz\n', [
        ['"hello', "x"], ['you"', "y"], ['say "no"', "z"]]),
    "a tsv that is quoted": ("t.tsv", 'text\tlabel\n"say ""no"""\tx\n"a\tb"\ty\n', [['say "no"', "x"], ["a\tb", "y"]]),
    "one quoted text in a plain tsv": ("t.tsv", 'text\tlabel\n"hello"\tx\nyou\ty\n', [['"hello"', "x"], ["you", "y"]]),
    "one list in lines": ("t.json", '[\n{"text": "a", "label": "x"}\n]', [["a", "x"]]),
    "lines in a json": ("t.json", '{"text": "a", "label": "x"}\n', [["a", "x"]]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_odd_tables_are_read_right(tmp_path, name):
    file, content, rows = READ[name]
    assert read(put(tmp_path, file, content)) == rows


REFUSED = {
    "too many cells": ("t.csv", "text,label\na,x\nb, c,y\n", "line 3: 3 cells, expected 2 .text, label.: 'b, c,y'"),
    "too few cells": ("t.csv", "text,label\na\n", "line 2: 1 cells, expected 2"),
    "too many in a tsv": ("t.tsv", "text\tlabel\na\tb\tx\n", "line 2: 3 cells, expected 2 .*tab or line break"),
    "an open quotation mark": ("t.csv", 'text,label\na,x\n"b,y\nc,z\n', "line 3: a quotation mark opens a cell"),
    "text behind a mark": ("t.csv", 'text,label\n"hello" you,x\n', "line 2: text behind the quotation mark .* 2"),
    "a quotation mark lines later": ("t.csv", 'text,label\n"a,x\n"b" c,y\n', "line 2: text behind .* on line 3"),
    "two ways to read": ("t.tsv", 'text\tlabel\n"a\tx\nb"\ty\n', "line 2: a quotation mark opens a cell that may"),
    "a column twice": ("t.csv", "text,text\na,b\n", "has the column 'text' twice"),
    "no names": ("t.csv", ",\na,b\n", "has no column with a name"),
    "a header alone": ("t.csv", "text,label\n", "has a header and no rows"),
    "nothing": ("t.csv", "\n\n", "has nothing in it"),
    "no objects": ("t.jsonl", "\n", "has nothing in it"),
    "a NUL": ("t.csv", "text,label\na\0,x\n", "line 2: a NUL character"),
    "no JSON": ("t.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "a damaged list": ("t.json", '[\n{"text": "a"},\n{"text" "b"}\n]', "line 3 is not JSON"),
    "a list of strings": ("t.json", '["a", "b"]', r"entry 0 \(counted from 0\) is a str; expected a list of objects"),
    "a key twice": ("t.jsonl", '{"text": "a", "text": "b"}', "line 1 is not JSON .the key 'text' is there twice"),
    "half a character": ("t.jsonl", '{"text": "\\ud800"}', "object 1 holds half of a surrogate pair"),
    "depth": ("t.jsonl", "[" * 100_000, "t.jsonl"),
    "a spreadsheet": ("t.csv", b"PK\x03\x04rest", "is a zip archive or a spreadsheet"),
    "gzip": ("t.csv", gzip.compress(b"text,label"), "compressed with gzip: let its name end in .gz"),
    "half of a gz": ("t.csv.gz", gzip.compress(b"text,label\na,x\n" * 99)[:-9], "cannot be unpacked"),
    "no zip": ("t.zip", b"PK", "t.zip cannot be unpacked"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_tables_are_refused_in_one_line(tmp_path, name):
    file, content, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_table(put(tmp_path, file, content))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)


def test_a_cell_that_may_have_swallowed_rows_is_warned_of(tmp_path):
    file = put(tmp_path, "t.csv", 'text,label\na,x\n"open,x\nb,y\nclosed",y\n"two\nlines",y\n')
    with pytest.warns(
        UserWarning, match=r"t.csv, line 3: a cell goes over lines that could each be a row, as do 0 oth"
    ):
        table = read_table(file)
    assert table.cells("text") == ["a", "open,x\nb,y\nclosed", "two\nlines"]
    assert len(table.notes) == 1


def test_several_tables_in_one_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in "ab":
            archive.writestr(f"{name}.csv", TABLE)
    with pytest.raises(ValueError, match=r"holds 2 tables, \['a.csv', 'b.csv'\]; expected one"):
        read_table(tmp_path / "t.zip")


@pytest.mark.parametrize("cell", ['["a"]', '{"a": 1}'])
def test_texts_that_are_none_are_refused(tmp_path, cell):
    file = put(tmp_path, "t.jsonl", f'{{"text": {cell}, "label": "x"}}')
    with pytest.raises(ValueError, match=r"text 0, counted from 0, is a (list|dict); expected strings"):
        open_texts(file)
