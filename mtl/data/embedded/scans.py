"""How a letter becomes a scan: typeface styles, orientations, defects and document conditions as batched tensor ops.

Every table below is split four ways without overlap, so that a class of a test episode is new in whichever attribute
the episode sorts by. Images hold *ink*, 0 is paper and 1 is ink, until :meth:`Document.apply` turns it into a picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mtl.data.embedded.glyphs import BOX, MASTER, SPLITS, Split

SIDE = 32  # side of an episode's image
LETTER = 22.0  # longest side of an unstretched letter in it: a turned square of this side still fits

# ------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Style:
    """Changes to the outlines of a font file: indices into :data:`SLANTS`, :data:`WEIGHTS` and :data:`WIDTHS`."""

    slant: int
    weight: int
    width: int


SLANTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # horizontal shift per unit of height
WEIGHTS = ("thin", "regular", "heavy", "hollow")
WIDTHS = (0.55, 0.8, 1.15)  # horizontal stretch

STYLES: dict[Split, tuple[Style, ...]] = {
    # A Latin square: every slant, weight and width occurs in every split, every combination in one.
    split: tuple(
        Style(i, j, k)
        for i, j, k in itertools.product(range(len(SLANTS)), range(len(WEIGHTS)), range(len(WIDTHS)))
        if (i + j + k) % 4 == part
    )
    for part, split in enumerate(SPLITS)
}

_FIRST_ANGLE: dict[Split, float] = {"pretrain": 0.0, "train": 22.5, "val": 11.25, "test": 33.75}
ANGLES: dict[Split, tuple[float, ...]] = {
    split: tuple(first + 45.0 * k for k in range(8)) for split, first in _FIRST_ANGLE.items()
}
"""Counter-clockwise turns in degrees."""


@dataclass(frozen=True)
class Defect:
    """One kind of scan defect at one setting; what ``a`` and ``b`` mean depends on the kind, see :data:`SETTINGS`."""

    kind: str
    a: float
    b: float


def _around(turn: float, *others: float) -> tuple[tuple[float, float], ...]:
    """Seven directions over ``turn`` degrees, second parameter cycling through ``others``."""
    return tuple((turn * i / 7, others[i % len(others)]) for i in range(7))


SETTINGS: dict[str, tuple[tuple[float, float], ...]] = {
    "stripes": _around(180, 4.0, 6.5),  # angle in degrees, period in pixels
    "scratches": _around(180, 2, 4),  # angle, number of lines
    "shadow": _around(360, 14.0),  # direction, reach in pixels
    "ghost": _around(360, 6.0),  # direction, distance in pixels
    "dropout": _around(180, 6.0, 10.0),  # angle, period of erased bands
    "speckle": ((0.05, 1), (0.12, 2), (0.2, 1), (0.2, 2), (0.1, 1), (0.06, 2), (0.3, 1)),  # density, grain in pixels
    "blots": ((2, 2.0), (6, 2.0), (1, 7.0), (2, 4.0), (12, 1.5), (4, 4.0), (3, 5.5)),  # number, radius
    "halftone": ((0, 3.0), (45, 4.0), (20, 5.0), (45, 5.5), (0, 4.5), (20, 3.5), (0, 6.0)),  # angle, period
}
_SETTING_OF: dict[Split, tuple[int, ...]] = {"pretrain": (0, 3), "train": (1, 5), "val": (4,), "test": (2, 6)}
DEFECTS: dict[Split, tuple[Defect, ...]] = {
    split: tuple(Defect(kind, *SETTINGS[kind][i]) for kind in SETTINGS for i in chosen)
    for split, chosen in _SETTING_OF.items()
}

# ----------------------------------------------------------------------------------------------------------- geometry


def weights(masters: Tensor) -> Tensor:
    """Bitmaps ``(n, 64, 64)`` uint8 in every stroke weight of :data:`WEIGHTS`, ``(n, weights, 64, 64)`` uint8."""
    fat = _dilate(_dilate(masters))
    # Not a full erosion: hairlines of serif faces are two pixels wide and would vanish.
    thin = (0.4 * masters + 0.6 * (255 - _dilate(255 - masters))).byte()
    return torch.stack([thin, masters, fat, fat - masters], 1)


def _dilate(masters: Tensor) -> Tensor:
    return F.max_pool2d(masters[:, None].float(), 3, 1, 1)[:, 0].byte()


def place(masters: Tensor, slant: Tensor, width: Tensor, degrees: Tensor, generator: Generator) -> Tensor:
    """Letters in their style and orientation, with a small jitter of position and size.

    Args:
        masters: ``(n, 64, 64)`` uint8, stroke weight applied.
        slant: ``(n,)`` values of :data:`SLANTS`.
        width: ``(n,)`` values of :data:`WIDTHS`.
        degrees: ``(n,)`` counter-clockwise turns.

    Returns:
        ``(n, 1, 32, 32)`` ink in [0, 1].
    """
    n = len(masters)
    zoom = 1 + 0.08 * _signed(n, generator)
    shift = 1.5 * 2 / SIDE * _signed((n, 2), generator)  # up to 1.5 pixels
    # grid_sample wants output -> input: undo the shift, the turn and the zoom, then the slant and the stretch.
    scale = (BOX / LETTER) * (SIDE / MASTER) / zoom
    c, s = scale * torch.deg2rad(degrees).cos(), scale * torch.deg2rad(degrees).sin()
    top = torch.stack([(c + slant * s) / width, (slant * c - s) / width], 1)
    linear = torch.stack([top, torch.stack([s, c], 1)], 1)  # (n, 2, 2)
    # Sampled at twice the resolution and averaged: sampled directly, thin strokes would alias.
    ink = _resample(masters[:, None].float() / 255, linear, -linear @ shift[:, :, None], 2 * SIDE)
    return F.avg_pool2d(ink, 2)


def _resample(images: Tensor, linear: Tensor, offset: Tensor, side: int) -> Tensor:
    """Pixel ``p`` of the result shows ``images`` at ``linear p + offset``, in coordinates from -1 to 1.

    ``F.affine_grid`` does the same through a batched matrix product, at ten times the cost on a CPU.
    """
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    columns, rows = linear[:, :, 0], linear[:, :, 1]
    grid = (
        columns[:, None, None] * axis[None, None, :, None]
        + (rows[:, None] * axis[None, :, None] + offset[:, None, :, 0])[:, :, None]
    )
    return F.grid_sample(images, grid, align_corners=False)


# ------------------------------------------------------------------------------------------------------------ defects

Apply = Callable[[Tensor, Tensor, Tensor, Generator], Tensor]
_Y, _X = torch.meshgrid(torch.arange(SIDE) - SIDE / 2 + 0.5, torch.arange(SIDE) - SIDE / 2 + 0.5, indexing="ij")


def _uniform(shape: int | tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _signed(shape: int | tuple[int, ...], generator: Generator) -> Tensor:
    return 2 * _uniform(shape, generator) - 1


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _along(degrees: Tensor) -> Tensor:
    """Pixel coordinate along a direction, ``(n, 1, 32, 32)``, 0 at the centre."""
    turn = _each(torch.deg2rad(degrees))
    return turn.cos() * _X + turn.sin() * _Y


def _wave(degrees: Tensor, period: Tensor, generator: Generator) -> Tensor:
    """A wave in [0, 1] of random phase."""
    phase = _each(_uniform(len(degrees), generator))
    return 0.5 + 0.5 * torch.sin(2 * math.pi * (_along(degrees) / _each(period) + phase))


def _over(ink: Tensor, more: Tensor) -> Tensor:
    """Ink on top of ink; both in [0, 1]."""
    return ink + more * (1 - ink)


def stripes(ink: Tensor, angle: Tensor, period: Tensor, generator: Generator) -> Tensor:
    return _over(ink, 0.4 * _wave(angle, period, generator))


def scratches(ink: Tensor, angle: Tensor, number: Tensor, generator: Generator) -> Tensor:
    where = 13 * _signed((4, len(ink)), generator)
    lines = torch.stack([(1.2 - (_along(angle) - _each(w)).abs()).clamp(0, 1) for w in where])
    wanted = (torch.arange(4)[:, None] < number).view(4, -1, 1, 1, 1)
    return _over(ink, 0.7 * (lines * wanted).amax(0))


def shadow(ink: Tensor, direction: Tensor, reach: Tensor, generator: Generator) -> Tensor:
    reach = _each(reach * (1 + 0.2 * _signed(len(ink), generator)))
    return _over(ink, 0.65 * ((_along(direction) - SIDE / 2 + reach) / reach).clamp(0, 1))


def ghost(ink: Tensor, direction: Tensor, distance: Tensor, generator: Generator) -> Tensor:
    turn = torch.deg2rad(direction)
    offset = torch.stack([turn.cos(), turn.sin()], 1) * distance[:, None] * 2 / SIDE
    copy = _resample(ink, torch.eye(2).expand(len(ink), 2, 2), -offset[:, :, None], SIDE)
    return _over(ink, _each(0.35 + 0.1 * _uniform(len(ink), generator)) * copy)


def dropout(ink: Tensor, angle: Tensor, period: Tensor, generator: Generator) -> Tensor:
    return ink * (1 - 0.75 * (6 * (_wave(angle, period, generator) - 0.6)).clamp(0, 1))


def speckle(ink: Tensor, density: Tensor, grain: Tensor, generator: Generator) -> Tensor:
    fine = _uniform((len(ink), 1, SIDE, SIDE), generator)
    coarse = F.interpolate(fine[:, :, : SIDE // 2, : SIDE // 2], scale_factor=2.0)
    chance = torch.where(_each(grain) > 1, coarse, fine)
    return _over(ink, 0.6 * (chance < _each(density)).float())


def blots(ink: Tensor, number: Tensor, radius: Tensor, generator: Generator) -> Tensor:
    most = 12
    x, y = (14 * _signed((2, len(ink), most), generator)).view(2, len(ink), most, 1, 1)
    edge = radius.view(-1, 1, 1, 1) - ((_X - x) ** 2 + (_Y - y) ** 2).sqrt()
    wanted = (torch.arange(most) < number[:, None]).view(len(ink), most, 1, 1)
    return _over(ink, 0.65 * ((edge + 0.5).clamp(0, 1) * wanted).amax(1, keepdim=True))


def halftone(ink: Tensor, angle: Tensor, period: Tensor, generator: Generator) -> Tensor:
    dots = _wave(angle, period, generator) * _wave(angle + 90, period, generator)
    return _over(ink * (0.4 + 0.6 * dots.sqrt()), 0.35 * dots)


KINDS: dict[str, Apply] = {
    f.__name__: f for f in (stripes, scratches, shadow, ghost, dropout, speckle, blots, halftone)
}


def damage(ink: Tensor, defects: list[Defect], generator: Generator) -> Tensor:
    """Give image ``i`` defect ``i``; ``(n, 1, 32, 32)`` in and out."""
    out = torch.empty_like(ink)
    for kind, apply in KINDS.items():
        rows = [i for i, d in enumerate(defects) if d.kind == kind]
        if rows:
            a, b = torch.tensor([[defects[i].a, defects[i].b] for i in rows]).T
            out[rows] = apply(ink[rows], a, b, generator)
    return out


# ------------------------------------------------------------------------------------------------ document conditions


@dataclass(frozen=True)
class Document:
    """Conditions that all images of an episode share, as pages of one document do.

    Args:
        inverted: white on black.
        contrast: ink minus paper, at most 1.
        slope: brightness change across the page; its direction is ``slope_angle`` in degrees.
        blur: standard deviation of a Gaussian, in pixels.
        noise: standard deviation of independent pixel noise.
        skew: degrees by which the page lay askew; added to every orientation.
    """

    inverted: bool = False
    contrast: float = 1.0
    slope: float = 0.0
    slope_angle: float = 0.0
    blur: float = 0.0
    noise: float = 0.02
    skew: float = 0.0

    @staticmethod
    def draw(generator: Generator) -> Document:
        """A random document; the defaults of the class are the clean page of pretraining."""
        u = _uniform(7, generator).tolist()
        return Document(
            inverted=u[0] < 0.5,
            contrast=0.55 + 0.45 * u[1],
            slope=0.3 * u[2],
            slope_angle=360 * u[3],
            blur=0.75 * u[4],
            noise=0.02 + 0.04 * u[5],
            skew=10 * u[6] - 5,
        )

    def apply(self, ink: Tensor, generator: Generator) -> Tensor:
        """Ink ``(n, 1, 32, 32)`` to pixels of the same shape in [0, 1]."""
        light = ink if self.inverted else 1 - ink
        light = 0.5 + self.contrast * (light - 0.5)
        light = light + self.slope / SIDE * _along(torch.tensor([self.slope_angle]))
        light = _gaussian(light, self.blur)
        return (light + self.noise * torch.randn(light.shape, generator=generator)).clamp(0, 1)


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return images
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))
