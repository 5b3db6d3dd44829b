"""Class-disjoint splits: classes to train on, to validate with, and to test with.

Few-shot results are about *unseen classes*, so a split divides classes, never the images of one class.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from mtl.data.own.saved_fields import fractions_of, seed_of, strings_of
from mtl.tools.claim import is_begun
from mtl.tools.files import atomic_write

PARTS = ("train", "val", "test")
FRACTIONS = (0.6, 0.2, 0.2)

_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_PART_OF = {alias: part for part, aliases in _ALIASES.items() for alias in aliases}


def part_named(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` when a folder, file or hub split goes by one of their usual names.

    >>> part_named("Validation"), part_named("tulips")
    ('val', None)
    """
    return _PART_OF.get(name.lower())


@dataclass(frozen=True)
class ClassSplit:
    """Class names of each part; no class is in two parts.

    Args:
        train, val, test: class names, sorted; a part may be empty when its fraction is zero.
        seed: of the draw.
        fractions: the shares of train, val and test that were asked for.
        drawn: the parts that were drawn; the others came with the data.

    Raises:
        ValueError: when a class is in two parts.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    seed: int = 0
    fractions: tuple[float, float, float] = FRACTIONS
    drawn: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        if shared := shared_classes(self.parts):
            raise ValueError(f"classes in more than one part of a split: {_quote(shared)}; keep each in one part only")

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Class names by the name of the part."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def save(self, path: str | Path) -> None:
        """Write the split as json, to be read back by :meth:`load`; parent folders are made."""
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> ClassSplit:
        """Read a split from a file of :meth:`save`.

        Raises:
            ValueError: when the file is not such a split.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            lists = {k: strings_of(stored, k) for k in (*PARTS, "drawn")}
            return ClassSplit(**lists, fractions=fractions_of(stored), seed=seed_of(stored))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved class split ({error}); delete it to have it drawn anew") from error

    def check_classes(self, classes: Iterable[str], where: str = "the data") -> None:
        """Refuse a split whose classes are gone from the data; warn about classes that the split does not know.

        Raises:
            ValueError: naming every class of the split that ``classes`` lacks.
        """
        known, held = set().union(*self.parts.values()), set(classes)
        if gone := sorted(known - held):
            raise ValueError(
                f"the split names {len(gone)} classes that {where} lacks: {_quote(gone)}; "
                "bring them back, or delete the saved split to have it drawn anew"
            )
        if new := sorted(held - known):
            warnings.warn(f"{len(new)} classes of {where} are in no part of the split: {_quote(new)}", stacklevel=2)

    def check_ways(self, ways: int) -> None:
        """Refuse a part that has classes, but fewer than one episode takes.

        Raises:
            ValueError: saying how many classes each short part has and which ``--ways`` would work.
        """
        for part, classes in self.parts.items():
            if 0 < len(classes) < ways:
                smallest = min(len(c) for c in self.parts.values() if c)
                raise ValueError(
                    f"the {part!r} part has {len(classes)} classes and ways={ways} takes {ways} in every episode; "
                    f"{_ways_hint(smallest)} add classes ({_needed(ways, self.fractions)} in all are enough), or "
                    "divide examples in place of classes (--split example of the few-shot recipes)"
                )


def split_classes(
    classes: Sequence[str],
    *,
    given: Mapping[str, Sequence[str]] | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> ClassSplit:
    """Divide class names into train, val and test.

    The order of the draw is that of a hash of (seed, name): the same on every machine and version, and a class that is
    added later leaves the order of the others alone.

    Args:
        classes: distinct class names; their order does not matter.
        given: parts that came with the data and are kept, such as ``ImageCollection.parts``. A part that is missing
            there is drawn from ``given["train"]``, in the proportion of the fractions.
        fractions: shares of train, val and test, which sum to one. Every share above zero gets at least one class.
        seed: which draw.

    Raises:
        ValueError: when fractions do not sum to one, names repeat, or there are fewer classes than parts.

    >>> split = split_classes(["ash", "birch", "cedar", "elm", "fir"], seed=0)
    >>> {part: len(names) for part, names in split.parts.items()}
    {'train': 3, 'val': 1, 'test': 1}
    """
    share = dict(zip(PARTS, _check_fractions(fractions), strict=True))
    given = {part: names for part, names in (given or {}).items() if names}
    pool = given.get("train", ()) if given else classes
    wanted = {p: f for p, f in share.items() if f > 0 and (p == "train" or p not in given)}
    if len(set(pool)) != len(pool):
        raise ValueError(f"class names must be distinct; got repeats among {_quote(pool)}")
    if len(pool) < len(wanted):
        raise ValueError(
            f"{len(pool)} classes cannot be divided into {' and '.join(wanted)}, one class in each at the least; "
            "add classes, set the fraction of a part that you do not need to 0, or divide examples in place of classes "
            "(--split example of the few-shot recipes)"
        )
    parts = {**given, **_deal(pool, wanted, seed)}
    names = {part: tuple(sorted(parts.get(part, ()))) for part in PARTS}
    drawn = tuple(wanted) if not given or len(wanted) > 1 else ()
    return ClassSplit(**names, seed=seed, fractions=fractions, drawn=drawn)


def load_or_make_split(
    path: str | Path,
    classes: Sequence[str],
    *,
    given: Mapping[str, Sequence[str]] | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    ways: int | None = None,
) -> ClassSplit:
    """The split stored at ``path``, or, the first time, a new one by :func:`split_classes` that is stored there.

    It is not stored in the folder of a run that began without it.

    Args:
        ways: refuse parts with fewer classes, before anything is stored; see :meth:`ClassSplit.check_ways`.

    Raises:
        ValueError: when the stored split names classes that are gone, or was drawn with another seed or fractions; or
            parts have too few classes.
    """
    path = Path(path)
    if not path.exists():
        split = split_classes(classes, given=given, fractions=fractions, seed=seed)
        split.check_ways(ways or 0)
        if not is_begun(path.parent):
            split.save(path)
        return split
    split = ClassSplit.load(path)
    split.check_ways(ways or 0)
    split.check_classes(classes, where=f"the data ({path} was made earlier)")
    if split.drawn and (split.seed, split.fractions) != (seed, tuple(fractions)):
        raise ValueError(
            f"{path} was drawn with seed={split.seed}, fractions={split.fractions}, and seed={seed}, "
            f"fractions={tuple(fractions)} are asked for; ask for the same, or delete it to have it drawn anew"
        )
    return split


def shared_classes(parts: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Classes that are in more than one part, sorted."""
    counts: dict[str, int] = {}
    for names in parts.values():
        for name in set(names):
            counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(name for name, count in counts.items() if count > 1))


def disjoint_parts(parts: Sequence[str | None], labels: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Class names by part when a source comes divided by class; else nothing, with a warning if it seems to.

    Args:
        parts: the part that each example came in, or None.
        labels: the class of each example.
        where: the source, for the warning.
    """
    found: dict[str, set[str]] = {}
    for part, label in zip(parts, labels, strict=True):
        if part is None:
            return {}
        found.setdefault(part, set()).add(label)
    if shared := shared_classes(found):
        warnings.warn(
            f"{where}: {len(shared)} classes are in more than one of {list(found)}, such as "
            f"{_quote(shared[:5])}; "
            "parts that share classes cannot test on unseen ones, so they are pooled; "
            "divide the classes with split_classes",
            stacklevel=5,
        )
        return {}
    return {part: tuple(sorted(names)) for part, names in found.items()} if len(found) > 1 else {}


def _check_fractions(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"fractions={fractions}: expected train (above 0), val and test shares that sum to 1, such as {FRACTIONS}"
        )
    return fractions


def _deal(pool: Sequence[str], wanted: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Deal the pool to the wanted parts; train, which is last to be dealt, takes what rounding leaves over."""
    order = sorted(pool, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    total, dealt = sum(wanted.values()), {}
    others = [part for part in wanted if part != "train"]
    for i, part in enumerate(others):
        # one class stays behind for train and for each part that is still to come
        room = len(order) - (len(others) - i)
        size = min(max(1, round(len(pool) * wanted[part] / total)), room)
        dealt[part], order = order[:size], order[size:]
    return {**dealt, "train": order}


def _quote(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _needed(ways: int, fractions: tuple[float, float, float]) -> int:
    """The least number of classes that gives every part enough for an episode."""
    shares = {part: share for part, share in zip(PARTS, fractions, strict=True) if share > 0}
    enough = lambda n: min(map(len, _deal([str(i) for i in range(n)], shares, 0).values())) >= ways  # noqa: E731
    return next(n for n in count(ways * len(shares)) if enough(n))


def _ways_hint(classes: int) -> str:
    return f"use --ways {classes}," if classes >= 2 else "add classes (an episode needs two),"
