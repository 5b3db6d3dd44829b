"""Embedded few-shot benchmark: episodes that sort images of letters by character, typeface, orientation or defect.

Every image has all four attributes. An episode's *family* is the attribute its labels stand for; the other three are
nuisances, drawn independently of the class from pools of two or three values. Nothing but the labelled support says
which attribute counts: it is the one whose values differ between all classes. Images of an episode also share
document conditions (:class:`~mtl.data.embedded.scans.Document`) that the shipped backbone was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from mtl.data.embedded.glyph_drawing import MEAN, STD, Attributes, draw_images, load_bank
from mtl.data.embedded.glyph_names import class_names
from mtl.data.embedded.glyphs import SPLITS, Split, load_scripts
from mtl.data.embedded.scans import ANGLES, DEFECTS, STYLES, Document
from mtl.data.own.ranges import IntOrRange, as_range
from mtl.episode import Episode, Examples
from mtl.tools.identity import digest

FAMILIES = ("character", "typeface", "orientation", "defect")
# Fewest and most values of a nuisance in an episode; always fewer than ways, so that the label stands out.
POOL = (2, 3)


@dataclass(frozen=True)
class Plan:
    """An episode before it is drawn: attributes of its images, ordered by class, and the seed of the pixels."""

    family: str
    ways: int
    shots: int
    support: Attributes
    query: Attributes
    pixel_seed: int


@dataclass(frozen=True)
class Pools:
    """The values an episode draws from, support and query apart; the label attribute's pool has ``ways`` values.

    ``typeface`` holds rows (file, style). Where the two sides may share values both fields hold the same array.
    """

    character: tuple[np.ndarray, np.ndarray]
    typeface: tuple[np.ndarray, np.ndarray]
    orientation: tuple[np.ndarray, np.ndarray]
    defect: tuple[np.ndarray, np.ndarray]


class GlyphTasks:
    """Endless episodes of one split, each a function of ``(seed, split, index)`` alone.

    Support and query never share a typeface in the character and orientation families, nor a character in the typeface
    and defect families. Within an episode all characters come from one script. Examples are ordered by class.

    Args:
        split: ``"train"``, ``"val"``, ``"test"``, or ``"pretrain"`` for the letters the backbone has seen.
        ways: classes per episode, or ``(low, high)``, both included, drawn per episode.
        shots: support images per class, or a range.
        queries: query images per class.
        families: which attributes to sort by; episode ``i`` takes family ``i % len(families)``.
        seed: any non-negative integer.

    Raises:
        ValueError: for an unknown split or family, or more ways than the split has classes in some family.
    """

    def __init__(
        self,
        split: Split,
        *,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 10,
        families: tuple[str, ...] = FAMILIES,
        seed: int = 0,
    ) -> None:
        self.split: Split = split
        self.ways, self.shots = as_range("ways", ways, 2), as_range("shots", shots, 1)
        self.queries, self.families, self.seed = as_range("queries", queries, 1)[0], tuple(families), seed
        available = classes(split)
        for family in self.families:
            if family not in available:
                raise ValueError(f"families={families!r}: {family!r} is not one of {', '.join(FAMILIES)}")
            if self.ways[1] > available[family]:
                raise ValueError(
                    f"ways={ways}: the {family} family of split {split!r} has {available[family]} classes per episode; "
                    f"ask for at most that many ways or leave {family!r} out of families"
                )
        if not self.families:
            raise ValueError(f"families=(): name at least one of {', '.join(FAMILIES)}")

    def identity(self) -> dict[str, Any]:
        """Settings and the letters that there are; see :class:`~mtl.episode.Identified`."""
        return {
            "kind": "GlyphTasks",
            "split": self.split,
            "ways": list(self.ways),
            "shots": list(self.shots),
            "queries": self.queries,
            "families": list(self.families),
            "seed": self.seed,
            "letters": digest(load_scripts(self.split)),
        }

    def sample(self, index: int) -> Episode:
        """Episode number ``index`` (``>= 0``); images ``(1, examples, 1, 32, 32)``, one task."""
        plan = self.plan(index)
        support, query = self._draw(plan)
        return Episode(_examples(support, plan.ways), _examples(query, plan.ways), plan.ways, families=(plan.family,))

    def read(self, index: int) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
        """Class names, support images and queries of episode ``index``; see :meth:`mtl.ClassTasks.read`."""
        plan = self.plan(index)
        names = class_names(self.split, plan.family, plan.support, plan.shots)
        support, query = ([as_picture(image) for image in images] for images in self._draw(plan))
        return names, support, query

    def _draw(self, plan: Plan) -> tuple[Tensor, ...]:
        """Images ``(examples, 1, 32, 32)`` of the support set and of the queries."""
        generator = Generator().manual_seed(plan.pixel_seed)
        document = Document.draw(generator)
        sides = zip(plan.support.columns(), plan.query.columns(), strict=True)
        images = draw_images(self.split, Attributes(*map(np.concatenate, sides)), document, generator)
        return images.split([plan.ways * plan.shots, plan.ways * self.queries])

    def plan(self, index: int) -> Plan:
        """Attributes of the images of episode ``index``, without drawing them."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        family = self.families[index % len(self.families)]
        ways, shots = (int(rng.integers(low, high + 1)) for low, high in (self.ways, self.shots))
        pools = self._pools(family, ways, rng)
        support = _assign(pools, 0, family, ways, shots, rng)
        query = _assign(pools, 1, family, ways, self.queries, rng)
        return Plan(family, ways, shots, support, query, pixel_seed=int(rng.integers(2**62)))

    def _pools(self, family: str, ways: int, rng: np.random.Generator) -> Pools:
        """Draw what may appear on either side; see the class docstring for what the sides must not share."""
        fewest, most = (min(size, ways - 1) for size in POOL)
        size = {a: ways if a == family else int(rng.integers(fewest, most + 1)) for a in FAMILIES}
        sides = 2 if family in ("typeface", "defect") else 1
        characters = self._characters(family, size["character"] * sides, rng)
        styles = rng.permutation(len(STYLES[self.split]))
        files = rng.integers(load_bank(self.split).files[characters[0]], size=len(styles))
        typefaces = np.stack([files, styles], 1)
        k, t = size["character"], size["typeface"]
        apart = family in ("character", "orientation")
        turns = rng.permutation(len(ANGLES[self.split]))[: size["orientation"]]
        defects = rng.permutation(len(DEFECTS[self.split]))[: size["defect"]]
        return Pools(
            character=(characters[:k], characters[-k:]),
            typeface=(typefaces[:t], typefaces[t : 2 * t] if apart else typefaces[:t]),
            orientation=(turns, turns),
            defect=(defects, defects),
        )

    def _characters(self, family: str, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` distinct characters of one script that has as many; readable upright if the label is orientation."""
        bank = load_bank(self.split)
        usable = bank.orientable if family == "orientation" else np.ones_like(bank.orientable)
        counts = np.bincount(bank.script[usable])
        script = rng.choice(np.flatnonzero(counts >= n))
        return rng.permutation(np.flatnonzero(usable & (bank.script == script)))[:n]


def classes(split: Split) -> dict[str, int]:
    """Most classes an episode of each family can have."""
    per_script = np.bincount(load_bank(split).script)
    return {
        "character": int(per_script.max()),
        "typeface": len(STYLES[split]),
        "orientation": len(ANGLES[split]),
        "defect": len(DEFECTS[split]),
    }


def as_picture(image: Tensor) -> Image.Image:
    """``(1, 32, 32)`` as a network reads it, to a grey picture."""
    return Image.fromarray((255 * (image[0] * STD + MEAN)).round().clamp(0, 255).to(torch.uint8).numpy())


def _assign(pools: Pools, side: int, family: str, ways: int, each: int, rng: np.random.Generator) -> Attributes:
    """``each`` images per class: class ``i`` takes value ``i`` of the label attribute, the rest is drawn at random."""
    drawn = {}
    for attribute in FAMILIES:
        pool = getattr(pools, attribute)[side]
        value = np.repeat(np.arange(ways), each) if attribute == family else rng.integers(len(pool), size=ways * each)
        drawn[attribute] = pool[value]
    file, style = drawn["typeface"].T
    return Attributes(drawn["character"], file, style, drawn["orientation"], drawn["defect"])


def _examples(images: Tensor, ways: int) -> Examples:
    return Examples(images[None], torch.arange(ways).repeat_interleave(len(images) // ways)[None])
