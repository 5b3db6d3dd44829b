"""Whatever people have is decoded by one function, the same way wherever they hand it over."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL
from PIL import Image, ImageOps

import mtl
from mtl.items import as_image

RAMP = np.arange(64, dtype=np.int64).reshape(8, 8) * 4  # 0 to 252
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1).astype(np.uint8)


def transparent(mode: str) -> Image.Image:
    image = Image.fromarray(np.dstack([COLOURS, RAMP.astype(np.uint8)]))
    return image.convert(mode)


def palette_with_a_hole() -> Image.Image:
    image = Image.fromarray(COLOURS).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def in_file(image: Image.Image, suffix: str) -> bool:
    """Whether this format can hold the image without loss."""
    kinds = {
        "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    }
    return image.mode in kinds[suffix] and (suffix == "png" or "transparency" not in image.info)


IMAGES = {
    "L": Image.fromarray(RAMP.astype(np.uint8)),
    "1": Image.fromarray(RAMP > 100),
    "RGB": Image.fromarray(COLOURS),
    "RGBA": transparent("RGBA"),
    "LA": transparent("LA"),
    "P": Image.fromarray(COLOURS).convert("P"),
    "P with transparency": palette_with_a_hole(),
    "CMYK": Image.fromarray(COLOURS).convert("CMYK"),
    "YCbCr": Image.fromarray(COLOURS).convert("YCbCr"),
    "16 bits": Image.fromarray((RAMP * 257).astype(np.uint16)),
    "32 bits, 16 in use": Image.fromarray((RAMP * 257).astype(np.int32)),
    "32 bits, 8 in use": Image.fromarray(RAMP.astype(np.int32)),
    "32 bits": Image.fromarray((RAMP * 2**23).astype(np.int32)),
    "float": Image.fromarray((RAMP / 255).astype(np.float32)),
    "LAB": Image.new("LAB", (8, 8), (90, 128, 128)),
    "RGBa": transparent("RGBA").convert("RGBa"),
    "La": transparent("LA").convert("La"),
    "PA": transparent("RGBA").convert("PA"),
    "HSV": Image.fromarray(COLOURS).convert("HSV"),
}
KEPT = ["L", "1", "RGB", "RGBA", "LA", "P", "P with transparency", "CMYK", "YCbCr", "16 bits", "32 bits, 16 in use"]


def read_before(image: Image.Image, mode: str) -> Image.Image:
    """The rule that ``open_images`` always had, for what it read right."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KEPT)
def test_images_that_were_read_right_are_read_the_same(kind, mode):
    assert np.array_equal(as_image(IMAGES[kind], mode), read_before(IMAGES[kind], mode))


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_the_same_in_memory_and_in_any_file(tmp_path, kind):
    image = IMAGES[kind]
    found = np.asarray(as_image(image))
    assert found.shape == (8, 8, 3)
    for suffix in ("png", "tif"):
        if in_file(image, suffix):
            path = tmp_path / f"image.{suffix}"
            image.save(path)
            for item in (path, str(path), path.read_bytes(), Image.open(path), io.BytesIO(path.read_bytes())):
                assert np.array_equal(as_image(item), found), (suffix, type(item))


@pytest.mark.parametrize("kind", ["16 bits", "32 bits, 16 in use", "32 bits, 8 in use", "32 bits", "float"])
def test_grey_values_keep_their_brightness(kind):
    assert np.array_equal(as_image(IMAGES[kind], "L"), RAMP)


def test_an_unsigned_tiff_goes_up_to_its_whole_range(tmp_path):
    """Pillow reads it as if it had a sign, so that bright pixels are negative."""
    signed = (RAMP * 2**24).astype(np.uint32).view(np.int32)
    Image.fromarray(signed).save(tmp_path / "a.tif")
    with_sign, without = (struct.pack("<HHLH", 339, 3, 1, sign) for sign in (2, 1))
    stored = (tmp_path / "a.tif").read_bytes()
    assert with_sign in stored
    (tmp_path / "a.tif").write_bytes(stored.replace(with_sign, without))
    assert np.array_equal(as_image(tmp_path / "a.tif", "L"), RAMP)


def arrays() -> dict[str, tuple[Any, np.ndarray]]:
    """Arrays and tensors, each with the bytes that it shows."""
    grey, colours = RAMP.astype(np.uint8), COLOURS
    repeated = np.repeat(grey[..., None], 3, -1)
    alpha = np.dstack([colours, grey])
    bits = RAMP > 100
    return {
        "uint8": (grey, repeated),
        "one channel": (grey[..., None], repeated),
        "colours": (colours, colours),
        "alpha": (alpha, np.asarray(read_before(Image.fromarray(alpha), "RGB"))),
        "grey and alpha": (np.dstack([grey, grey]), np.asarray(read_before(IMAGES["LA"].convert("LA"), "RGB")) * 0),
        "uint16": (RAMP.astype(np.uint16) * 257, repeated),
        "uint16 colours": (colours.astype(np.uint16) * 257, colours),
        "bool": (bits, np.repeat(bits[..., None], 3, -1) * np.uint8(255)),
        **{str(t.__name__): (colours.astype(t), colours) for t in (np.int32, np.int64, np.uint32, np.uint64, np.int16)},
        **{str(t.__name__): ((colours / 255).astype(t), colours) for t in (np.float16, np.float32, np.float64)},
        "strided": (colours[:, ::-1], colours[:, ::-1]),
        "tensor": (torch.from_numpy(colours).permute(2, 0, 1), colours),
        "grey tensor": (torch.from_numpy(grey), repeated),
        "one channel tensor": (torch.from_numpy(grey)[None], repeated),
        "float tensor": (torch.from_numpy(colours).permute(2, 0, 1) / 255, colours),
        "bfloat16 tensor": (torch.ones(3, 8, 8, dtype=torch.bfloat16), np.full((8, 8, 3), 255)),
        "int64 tensor": (torch.from_numpy(colours).permute(2, 0, 1).long(), colours),
        "graph": (torch.ones(3, 8, 8, requires_grad=True), np.full((8, 8, 3), 255)),
    }


@pytest.mark.parametrize("kind", [k for k in arrays() if k != "grey and alpha"])
def test_arrays_and_tensors(kind):
    item, shown = arrays()[kind]
    assert np.array_equal(as_image(item), shown)


def test_grey_and_alpha_array():
    item, _ = arrays()["grey and alpha"]
    assert np.array_equal(as_image(item), read_before(Image.fromarray(item), "RGB"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((3, 8, 8)), r"an array \(3, 8, 8\) of float64 .*channels are first here: array.transpose\(1, 2, 0\)"),
        (torch.zeros(8, 8, 3), r"a tensor \(8, 8, 3\) of .*channels are last here: tensor.permute\(2, 0, 1\)"),
        (np.zeros((2, 8, 8, 3)), r"expected \(height, width\)"),
        (np.zeros((0, 8)), r"expected \(height, width\)"),
        (RAMP.astype(float), r"values go from 0 to 252; floats go from 0 to 1"),
        (np.full((4, 4), np.nan), r"floats go from 0 to 1"),
        (-RAMP, r"values go from -252 to 0; integers go from 0 up"),
        (RAMP * 2**40, "integers go from 0 up"),
        (RAMP.astype(complex), "values are complex128"),
        (Image.fromarray((-RAMP).astype(np.int32)), r"values go from -252 to 0; integers go from 0 up"),
        (Image.fromarray(RAMP.astype(np.float32)), r"floats go from 0 to 1"),
        (b"no image", r"a file of 8 bytes cannot be decoded \(Pillow knows no such format\)"),
        (3.5, r"a float cannot be decoded \(expected a path, bytes, a PIL image"),
        (None, r"a NoneType cannot be decoded"),
        ("nowhere.png", r"^nowhere.png cannot be decoded \(No such file or directory\)$"),
        (".", r"^. cannot be decoded \(Is a directory\)$"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named_in_one_line(item, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_image(item)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    for item in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match=r"cut\.png cannot be decoded \(.*truncated"):
            as_image(item)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"whole\.png cannot be decoded \(Image size \(4096 pixels\) exceeds limit"):
        as_image(whole)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "avif", "jp2"])
def test_files_cut_anywhere_are_read_or_named(tmp_path, suffix):
    """And those with a wrong byte: never an error of another class, or of more than one line."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    path = tmp_path / f"image.{suffix}"
    try:
        Image.fromarray(noise).save(path)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    whole = path.read_bytes()
    spoilt = [whole[: len(whole) * i // 23] for i in range(23)]
    spoilt += [whole[:i] + b"\xff" + whole[i + 1 :] for i in range(0, len(whole), len(whole) // 23)]
    read = 0
    for content in spoilt:
        path.write_bytes(content)
        try:
            read += as_image(path).size == (24, 24)
        except ValueError as error:
            said = str(error)
            assert said.startswith(f"{path} cannot be decoded (")
            assert "\n" not in said
    assert read < len(spoilt)


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (30, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert as_image(tmp_path / "a.gif").getpixel((0, 0)) == (30, 30, 30)


def test_a_damaged_note_about_the_camera_spoils_no_image(tmp_path):
    IMAGES["RGB"].save(tmp_path / "a.png", exif=b"Exif\0\0" + b"no such note")
    assert np.array_equal(as_image(tmp_path / "a.png"), COLOURS)


def photographs(root: Path) -> list[Path]:
    """Files of all modes, one that lies on its side among them."""
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    IMAGES["RGB"].save(root / "0.png", exif=exif)
    for i, image in enumerate(IMAGES.values(), 1):
        suffix = "png" if in_file(image, "png") else "tif"
        if in_file(image, suffix):
            image.save(root / f"{i}.{suffix}")
    return sorted(root.iterdir())


@pytest.mark.filterwarnings("ignore:images in colour")
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_see_the_same_images_however_they_come(tmp_path, channels):
    backbone = mtl.load_backbone("test_resnet", pretrained=False, in_chans=channels, **SMALL)
    paths = photographs(tmp_path / "a")
    (tmp_path / "b").mkdir()
    Image.new("L", (8, 8), 200).save(tmp_path / "b" / "0.png")
    collection = mtl.open_images(tmp_path)
    expected = backbone.preprocess(collection.of_class("a"))
    assert len(expected) == len(paths) > 12
    for items in (paths, [*map(str, paths)], [p.read_bytes() for p in paths], [Image.open(p) for p in paths]):
        assert torch.equal(backbone.preprocess(items), expected)
    adapted = mtl.MetaLearner(backbone).adapt({"a": paths[:4], "b": paths[4:]}, steps=0)
    inputs = mtl.Inputs.of(expected[None])
    assert adapted.predict(paths) == [adapted.class_names[i] for i in adapted.predict(inputs)[0]]
