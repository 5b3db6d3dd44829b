"""Dividing families: which classes, which photographs and which families are for training, validation and test."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from mtl.data.families.data_set import DataSet, Family
from mtl.data.own.saved_fields import fractions_of, seed_of, strings_of
from mtl.data.own.splits import FRACTIONS, PARTS, split_classes
from mtl.tools.claim import is_begun
from mtl.tools.files import atomic_write

Part = Literal["train", "val", "test"]
By = Literal["class", "example"] | Part
RAREST_FIRST: tuple[Part, ...] = ("test", "val", "train")
NESTED = 0.9  # share of a class's examples in one part that binds the class to it


@dataclass(frozen=True)
class FamilyRequest:
    """How families are to be divided.

    Args:
        split: ``"class"`` tests on unseen classes; ``"example"`` has every class in every part, photographs apart;
            ``"family"`` puts whole families into one part; None takes ``"class"`` for families with enough classes
            in each part, else ``"example"``.
        hold_out: glob patterns of families for the test only, such as ``"emoji.vendor"`` or ``"omniglot.*"``.
        validation: glob patterns of families for validation only: what early stopping judges by.
        ways: classes that each part should have at least.
        min_per_class: examples that a class should have at least.
        fractions: shares of train, val and test.
        seed: of the draw.
    """

    split: Literal["class", "example", "family"] | None = None
    hold_out: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    ways: int = 5
    min_per_class: int = 15
    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0


@dataclass(frozen=True)
class FamilyRule:
    """How one family is divided.

    Args:
        by: ``"class"``, ``"example"``, or the part that all of it belongs to.
        parts: class names by part, for ``"class"``.
    """

    by: By
    parts: Mapping[str, tuple[str, ...]]

    def part_of(self) -> dict[str, str]:
        """The part of each class, when divided by class."""
        return {name: part for part, names in self.parts.items() for name in names}


@dataclass(frozen=True)
class FamilySplit:
    """A rule for each family, by name. Photographs follow from it and the seed alone: see :func:`example_parts`."""

    request: FamilyRequest
    rules: Mapping[str, FamilyRule]

    def save(self, path: str | Path) -> None:
        """Write json, to be read back by :meth:`load`."""
        content = {"request": asdict(self.request), "families": {k: asdict(rule) for k, rule in self.rules.items()}}
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> FamilySplit:
        """Read a file of :meth:`save`.

        Raises:
            ValueError: when it is none.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            request = content["request"]
            lists = {k: strings_of(request, k) for k in ("hold_out", "validation")}
            rules = {
                name: FamilyRule(rule["by"], {part: strings_of(rule["parts"], part) for part in rule["parts"]})
                for name, rule in content["families"].items()
            }
            known = {**lists, "fractions": fractions_of(request), "seed": seed_of(request)}
            return FamilySplit(FamilyRequest(**request | known), rules)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a saved split of families ({error}); delete it to have it drawn anew"
            ) from error


def make_split(families: Sequence[Family], request: FamilyRequest) -> FamilySplit:
    """Divide families; the draw depends on names and the seed, not on order or machine.

    Raises:
        ValueError: a pattern fits no family, a family is both held out and for validation, there are too few families
            to divide them, or none is left to train on.
    """
    roles = _roles([f.name for f in families], request)
    rules: dict[str, FamilyRule] = {name: FamilyRule(part, {}) for name, part in roles.items()}
    for data_set in _data_sets(families):
        seen = [f for f in families if f.data_set is data_set and f.name not in roles]
        rules |= _rules_of(data_set, seen, request)
    return FamilySplit(request, {f.name: rules[f.name] for f in families})


def load_or_make(path: str | Path, families: Sequence[Family], request: FamilyRequest) -> FamilySplit:
    """The split stored at ``path``, or, the first time, a new one that is stored there.

    Raises:
        ValueError: the stored one was asked for in another way, or its families or classes are not those of the data.
    """
    if not Path(path).exists():
        split = make_split(families, request)
        if not is_begun(Path(path).parent):  # of a run without this split
            split.save(path)
        return split
    split = FamilySplit.load(path)
    if split.request != request:
        stored, now = asdict(split.request), asdict(request)
        changed = ", ".join(f"{k}={stored[k]!r} then and {now[k]!r} now" for k in now if stored[k] != now[k])
        raise ValueError(f"{path} was drawn in another way ({changed}); ask for the same, or delete it to draw anew")
    if differ := sorted({f.name for f in families} ^ split.rules.keys()):
        raise ValueError(f"{path} was drawn for other families ({', '.join(differ)}); open the same, or delete it")
    for family in families:
        if gone := sorted(split.rules[family.name].part_of().keys() - family.items.keys()):
            raise ValueError(
                f"{path} names {len(gone)} classes that {family.name} lacks, such as {gone[0]!r}; "
                "bring them back, or delete it to have it drawn anew"
            )
    return split


def example_parts(data_set: DataSet, families: Sequence[Family], split: FamilySplit) -> list[str]:
    """The one part of each photograph, whatever column asks about it.

    A photograph of a test class of *any* column divided by class is for the test, one of a validation class of any
    other for validation; those columns' training classes have the rest. Where no column is divided by class, a hash of
    the group or the file name decides, among the parts that the data set's families use.

    Args:
        families: all families; those of the data set count.
    """
    rules = {f.name: split.rules[f.name] for f in families if f.data_set is data_set}
    shares = _shares(split.request)
    used = {rule.by for rule in rules.values()}
    if used <= set(PARTS):
        shares = {part: share or 1e-9 for part, share in shares.items() if part in used}
    columns = [(f.labels, rules[f.name].part_of()) for f in families if f.name in rules]
    parts = []
    for position, key in enumerate(data_set.keys):
        found = {part_of.get(label) for labels, part_of in columns if (label := labels[position]) is not None}
        rarest = next((part for part in RAREST_FIRST if part in found), None)
        parts.append(rarest or _hashed(f"{split.request.seed}:{data_set.groups.get(position, key)}", shares))
    return parts


def _rules_of(data_set: DataSet, seen: Sequence[Family], request: FamilyRequest) -> dict[str, FamilyRule]:
    """Rules of the families of a data set that are trained on, coarse columns first: finer ones nest in them."""
    rules: dict[str, FamilyRule] = {}
    parts: list[str | None] = [None] * len(data_set.keys)
    for family in sorted(seen, key=lambda f: (len(f.items), f.name)):
        usable = [c for c, places in family.items.items() if len(places) >= request.min_per_class]
        if not _by_class(len(usable), request):
            rules[family.name] = FamilyRule("example", {})
            continue
        rule = FamilyRule("class", _deal(family, usable, parts, request))
        after = _with_classes(parts, family, rule)
        if request.split is None and not _enough(family, rule, after, request):
            rule, after = FamilyRule("example", {}), parts
        rules[family.name], parts = rule, after
    return rules


def _with_classes(parts: Sequence[str | None], family: Family, rule: FamilyRule) -> list[str | None]:
    """Parts of photographs when the classes of one more column count."""
    part_of = rule.part_of()
    found = [{part, part_of.get(label or "")} for part, label in zip(parts, family.labels, strict=True)]
    return [next((part for part in RAREST_FIRST if part in both), None) for both in found]


def _enough(family: Family, rule: FamilyRule, parts: Sequence[str | None], request: FamilyRequest) -> bool:
    """Whether there are classes to train on and to test with, of photographs that are in their part."""
    sizes = {c: sum(parts[i] == part for i in family.items[c]) for c, part in rule.part_of().items()}
    counts = {p: sum(sizes[c] >= request.min_per_class for c in rule.parts[p]) for p in ("train", "test")}
    return all(counts[part] >= request.ways or not rule.parts[part] for part in counts)


def _by_class(classes: int, request: FamilyRequest) -> bool:
    wanted = [share for share in request.fractions if share > 0]
    if request.split == "class":
        return classes >= len(wanted)
    return request.split is None and all(round(classes * share) >= request.ways for share in wanted)


def _deal(
    family: Family, usable: Sequence[str], parts: Sequence[str | None], request: FamilyRequest
) -> dict[str, tuple[str, ...]]:
    """Classes by part: those whose photographs lie in one part belong to it, the others are dealt."""
    given = family.data_set.given if family.column == family.data_set.usual else {}
    if given:
        split = split_classes(
            usable,
            given={p: [c for c in names if c in usable] for p, names in given.items()},
            fractions=request.fractions,
            seed=request.seed,
        )
        return split.parts
    bound: dict[str, list[str]] = {part: [] for part in PARTS}
    free: list[str] = []
    for name in usable:
        part, count = Counter(parts[i] for i in family.items[name]).most_common(1)[0]
        nested = part is not None and count >= NESTED * len(family.items[name])
        (bound[part] if nested and part else free).append(name)
    shares = _shares(request)
    if len(free) >= sum(share > 0 for share in shares.values()):
        dealt = split_classes(free, fractions=request.fractions, seed=request.seed).parts
    else:
        dealt = {p: [c for c in free if _hashed(f"{request.seed}:{c}", shares) == p] for p in PARTS}
    return {part: tuple(sorted([*bound[part], *dealt[part]])) for part in PARTS}


def _roles(names: Sequence[str], request: FamilyRequest) -> dict[str, Part]:
    """The part of each family that is in one part only."""
    held, validation = _matching(names, request.hold_out), _matching(names, request.validation)
    if both := sorted(held & validation):
        raise ValueError(f"{both[0]} is both held out and for validation; keep it in one of them")
    roles: dict[str, Part] = {}
    if request.split == "family":
        rest = [name for name in names if name not in held | validation]
        if len(rest) < 3:
            raise ValueError(f'split="family" divides families and there are {len(rest)}; expected three or more')
        dealt = split_classes(rest, fractions=request.fractions, seed=request.seed).parts
        roles = {name: part for part in RAREST_FIRST for name in dealt[part]}
    for name in names:
        if name in held | validation:
            roles[name] = "test" if name in held else "val"
    return roles


def _shares(request: FamilyRequest) -> dict[str, float]:
    return dict(zip(PARTS, request.fractions, strict=True))


def _matching(names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"{pattern!r} fits no family; there are {', '.join(names)}")
        found |= fitting
    return found


def _data_sets(families: Sequence[Family]) -> list[DataSet]:
    return list(dict.fromkeys(f.data_set for f in families))


def _hashed(key: str, shares: Mapping[str, float]) -> str:
    """A part by chance, in the proportion of the shares: of the key alone, so data that is added moves nothing."""
    at = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * sum(shares.values())
    for part in RAREST_FIRST:
        at -= shares.get(part, 0)
        if at < 0:
            return part
    return next(part for part in reversed(RAREST_FIRST) if part in shares)
