"""Episodes of the Omniglot protocol from the embedded letters: a class is a character, turned or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from mtl.data.embedded.glyph_drawing import MEAN, STD, any_typeface, load_bank, typeset
from mtl.data.embedded.glyphs import SPLITS, Split, load_scripts
from mtl.data.embedded.scans import SIDE, Document
from mtl.data.own.class_tasks import EpisodeIndices
from mtl.data.own.ranges import at_least
from mtl.episode import Episode
from mtl.tools.identity import digest

CROPPED = 28  # side of an image: Omniglot's habit; a letter is at most 22 long and 1.5 off the centre
JITTER = 10.0  # degrees by which an image is turned besides, at most


class CharacterTasks:
    """Endless episodes of telling letters apart, each a function of ``(seed, split, index)`` alone.

    The protocol that few-shot papers follow with Omniglot (arXiv 1606.04080, 1703.03400): classes are characters of
    all scripts of the split together, and each quarter turn of a character is a class of its own. Images of a class
    differ in typeface, noise, and a little in size, position and angle. The splits share neither scripts nor shapes
    (:mod:`mtl.data.embedded.glyphs`). There are 86, 62 and 160 characters to train on, validate and test with,
    which make 320, 218 and 604 classes; Omniglot has 1623 characters.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``, or ``"pretrain"`` for Latin letters.
        ways: classes per episode, at least 2.
        shots, queries: support and query images per class, at least 1.
        rotations: whether turned characters are classes of their own. Those that look alike when turned never are.
        seed: which sequence of episodes, at least 0.

    Raises:
        ValueError: for an unknown split, or numbers outside their ranges.
    """

    def __init__(
        self, split: Split, *, ways: int = 5, shots: int = 1, queries: int = 5, rotations: bool = True, seed: int = 0
    ) -> None:
        self.split: Split = split
        self.ways, self.seed = at_least(2, "ways", ways), at_least(0, "seed", seed)
        self.shots, self.queries = at_least(1, "shots", shots), at_least(1, "queries", queries)
        orientable = load_bank(split).orientable
        turns = np.where(orientable, 4 if rotations else 1, 1)
        self.classes = np.array([(c, turn) for c, n in enumerate(turns) for turn in range(n)])
        if ways > len(self.classes):
            raise ValueError(
                f"ways={ways}: split {split!r} has {len(self.classes)} classes; ask for at most that many"
                + ("" if rotations else ", or for rotations, which make about four of one")
            )

    def identity(self) -> dict[str, Any]:
        """Settings and the letters that there are; see :class:`~mtl.episode.Identified`."""
        names = ("split", "ways", "shots", "queries", "seed")
        settings = {name: getattr(self, name) for name in names}
        return {"kind": "CharacterTasks"} | settings | {"letters": digest(load_scripts(self.split), self.classes)}

    def sample(self, index: int) -> Episode:
        """Episode number ``index`` (``>= 0``); images ``(1, examples, 1, 28, 28)``, one task."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), at_least(0, "index", index)])
        drawn = self.classes[rng.choice(len(self.classes), self.ways, replace=False)]
        support, query = (self._images(drawn.repeat(n, 0), rng) for n in (self.shots, self.queries))
        places = EpisodeIndices(self.ways, list(range(len(support))), list(range(len(query))))
        return places.episode(support, query, "characters")

    def _images(self, drawn: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One normalised image per row (character, turn), each in a typeface of its own."""
        generator = Generator().manual_seed(int(rng.integers(2**62)))
        character, turn = drawn.T
        file, style = any_typeface(self.split, character, rng)
        degrees = torch.from_numpy(90.0 * turn + rng.uniform(-JITTER, JITTER, len(drawn))).float()
        page = Document().apply(typeset(self.split, character, file, style, degrees, generator), generator)
        edge = (SIDE - CROPPED) // 2
        return (page[:, :, edge:-edge, edge:-edge] - MEAN) / STD
