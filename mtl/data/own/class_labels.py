"""Class names from a column of labels."""

from __future__ import annotations

from collections.abc import Sequence


def class_labels(values: Sequence[object], where: str, names: Sequence[str] | None = None) -> list[str]:
    """Class names from a column of labels; refuses labels that would fail silently later.

    Args:
        values: strings, integers or booleans; with ``names``, integers that index them.
        where: the table, for messages.

    Raises:
        ValueError: when a label is missing (None, blank, or negative with ``names``), fractional, or a list.

    >>> class_labels([1, 0], "flowers.csv", names=["rose", "tulip"])
    ['tulip', 'rose']
    """
    if any(isinstance(v, list | tuple | dict) for v in values):
        raise ValueError(f"{where}: labels are lists; expected one class per example")
    texts = ["" if v is None else str(v).strip() for v in values]
    # v != v: NaN, which a blank becomes in a column of numbers; -1: the hub's mark for an unlabelled row
    rows = enumerate(zip(values, texts, strict=True))
    missing = [i for i, (v, t) in rows if not t or v != v or (names is not None and t.startswith("-"))]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(texts)} labels are missing (rows {missing[:5]}, counted from 0); "
            "fill them, or leave out the unlabelled rows or split"
        )
    fractional = any(isinstance(v, float) for v in values) or (
        texts and all(map(_is_number, texts)) and "." in "".join(texts)
    )
    if fractional:
        raise ValueError(
            f"{where}: labels are fractions such as {texts[0]}; expected class names or integers "
            "(integers turn into fractions when a spreadsheet or pandas saves a column that had blanks)"
        )
    if names is None:
        return texts
    if outside := [t for t in texts if not t.isdecimal() or int(t) >= len(names)]:
        raise ValueError(
            f"{where}: a label is {outside[0]}; expected integers below {len(names)}, the number of classes"
        )
    return [names[int(t)] for t in texts]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
