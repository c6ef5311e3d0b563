"""Pixels that can be read are used, what was decided for odd formats is said, and all else is named with its reason."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, features

from sagan.config import DataConfig
from sagan.data import decoding, prepared
from sagan.data.decoding import relaxed_pillow_limits, to_square
from sagan.data.prepared import Prepared, open_prepared
from sagan.data.sources import find_source

GREY = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
ODD = {
    "greyscale": (Image.fromarray((GREY >> 8).astype(np.uint8)), {"greyscale"}),
    "CMYK": (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), {"CMYK"}),
    "16-bit": (Image.fromarray(GREY), {"16-bit"}),
    "transparent": (Image.new("RGBA", (40, 40), (0, 0, 0, 0)), {"transparent"}),
    "small": (Image.new("RGB", (20, 60), (9, 8, 7)), {"small"}),
    "ordinary": (Image.new("RGB", (40, 32), (9, 8, 7)), set()),
}
ORIENTATION = 0x0112


def noise(seed: int = 0, size: tuple[int, int] = (36, 44)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((8, 8)).resize(size)


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def square(content: bytes, resolution: int = 32) -> tuple[NDArray[np.uint8], set[str]]:
    with relaxed_pillow_limits(), Image.open(io.BytesIO(content)) as image:
        return to_square(image, resolution)


def prepare(root: Path, files: dict[str, bytes], cache: Path) -> Prepared:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return open_prepared(find_source(DataConfig(name="folder", resolution=32), root), 32, cache)


def test_odd_pictures_become_rgb_are_counted_by_kind_and_show_what_they_showed() -> None:
    for picture, kinds in ODD.values():
        pixels, found = to_square(picture, 32)
        assert pixels.shape == (3, 32, 32) and found == kinds <= decoding.KINDS.keys()
    assert (to_square(ODD["transparent"][0], 32)[0] == 255).all(), "what is transparent is white"
    assert (to_square(ODD["CMYK"][0], 32)[0].reshape(3, -1).mean(1) == [255, 0, 0]).all()
    eight_bits, sixteen = to_square(ODD["greyscale"][0], 32)[0], to_square(ODD["16-bit"][0], 32)[0]
    assert np.abs(eight_bits.astype(int) - sixteen).max() <= 1


FORMS: dict[str, Callable[[Image.Image, Image.Exif], bytes]] = {
    "PNG": lambda image, exif: stored(image, "PNG", exif=exif),
    "TIFF": lambda image, exif: stored(image, "TIFF", exif=exif),
    "compressed TIFF": lambda image, exif: stored(image, "TIFF", exif=exif, compression="tiff_lzw"),
    "WebP": lambda image, exif: stored(image, "WEBP", exif=exif, lossless=True),
    "16-bit PNG": lambda image, exif: stored(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG", exif=exif
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_a_camera_took_on_its_side_stand_upright_in_every_format(form: str, orientation: int) -> None:
    lying, exif = noise().convert("L").convert("RGB"), Image.Exif()
    exif[ORIENTATION] = orientation
    lying.getexif()[ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(lying)
    assert (upright.size == lying.size) == (orientation < 5)
    found, kinds = square(FORMS[form](lying, exif))
    assert (found == to_square(upright, 32)[0]).all() and kinds <= {"16-bit"}


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_no_damaged_byte_of_the_exif_data_costs_the_pixels(form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x011A] = 6, 300.0
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)  # of the GPS
    content, block = stored(noise(), form, exif=exif), exif.tobytes().removeprefix(b"Exif\0\0")
    start, upright = content.index(block), square(content)[0]
    turned = [np.rot90(upright, turns, (1, 2)) for turns in range(4)]
    turned += [pixels[:, :, ::-1] for pixels in turned]
    missed, reported = 0, 0
    for place in range(start, start + len(block)):
        for value in (0x00, 0x7F, 0xFF):
            pixels, kinds = square(content[:place] + bytes([value]) + content[place + 1 :])
            assert any(np.abs(pixels.astype(int) - wanted).max() <= 1 for wanted in turned)
            reported += "EXIF" in kinds
            missed += np.abs(pixels.astype(int) - upright).max() > 1 and not kinds
    assert reported > 10 and missed < 30, "missed: another tag or number in the place of the orientation"


def test_exif_data_that_pillow_cannot_write_anew_are_read() -> None:
    """Damaged tags at which ImageOps.exif_transpose raised struct.error and TypeError, as loading a TIFF did."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x011A], exif[0x010E] = 6, 300.0, "a picture"
    jpeg, tiff = stored(noise(), "JPEG", exif=exif), stored(noise(), "TIFF", exif=exif)
    for intact, damaged in ((b"\x01\x0e\0\x02", b"\x01\0\0\x02"), (b"\x01\x1a\0\x05", b"\x01\x1a\0\x01")):
        assert intact in jpeg
        pixels, kinds = square(jpeg.replace(intact, damaged, 1))
        assert (pixels == square(jpeg)[0]).all() and not kinds
    twice = exif.tobytes().replace(b"Exif\0\0", b"Exif\0\0Exif\0\0", 1)
    assert (square(stored(noise(), "JPEG", exif=twice))[0] == square(jpeg)[0]).all(), "the header may stand there twice"
    pixels, kinds = square(tiff.replace(b"\x12\x01\x03\0", b"\x12\x01\x02\0", 1))  # the orientation is a text
    assert (pixels == square(stored(noise(), "TIFF"))[0]).all() and kinds == {"EXIF"}


def test_twelve_bits_in_sixteen_come_out_as_bright_as_they_are(tmp_path: Path) -> None:
    """One scale for all pictures of a folder: what is dark in one stays dark beside another that is bright."""
    bright = GREY >> 4
    assert 2**11 < bright.max() < 2**12
    pictures = {"a dark.png": bright // 16, "bright.png": bright}
    files = {name: stored(Image.fromarray(pixels), "PNG") for name, pixels in pictures.items()}
    found = prepare(tmp_path / "twelve", files, tmp_path / "cache")
    eight_bits = to_square(Image.fromarray((bright / 4095 * 255).astype(np.uint8)), 32)[0].astype(int)
    dark, light = found.images[np.arange(2)].numpy().astype(int)  # type: ignore[index]
    assert np.abs(light - eight_bits).max() <= 1
    assert np.abs(dark - eight_bits / 16).max() <= 2
    assert found.warnings[0].startswith("2 images are greyscale of 16 bits; they use 12 of them, so 0 to 4,095 became")


def test_sixteen_bits_of_colour_and_integers_without_a_range_are_told(tmp_path: Path) -> None:
    raw = np.full((40, 40, 3), 0x80FF, dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    png = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", bytes([0, 0, 0, 40, 0, 0, 0, 40, 16, 2, 0, 0, 0])), (b"IDAT", zlib.compress(rows)),
                       (b"IEND", b"")):  # fmt: skip
        png += len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    pixels, kinds = square(png)
    assert (pixels == 0x80).all() and kinds == {"16-bit colour"}
    for values in (np.full((40, 40), 70_000, np.int32), np.full((40, 40), 0.5, np.float32)):
        with pytest.raises(ValueError, match="have no agreed range"):
            square(stored(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_animations_and_stacks_the_first_is_taken_and_it_is_said(form: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    content = stored(first, form, save_all=True, append_images=[second])
    pixels, kinds = square(content)
    assert np.abs(pixels.astype(int) - square(stored(first, "PNG"))[0]).max() < 3 and kinds == {"frames"}
    assert square(stored(first, form))[1] == set()
    found = prepare(tmp_path / "moving", {f"a.{form.lower()}": content}, tmp_path / "cache")
    assert found.warnings == ("1 images have several frames or pages; the first was taken",)


def test_a_picture_of_200_megapixels_is_read_and_one_of_more_than_2_to_the_29_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_MAX_UNREADABLE", 0.5)
    large = Image.new("1", (20_000, 10_000), 1)
    files = {"large.png": stored(large, "PNG"), "small.png": stored(noise(), "PNG")}
    found = prepare(tmp_path / "pictures", files, tmp_path / "cache")
    assert len(found.labels) == 2 and not any("cannot be read" in said for said in found.warnings)
    header = bytearray(files["large.png"][:33])  # the signature and the first chunk, with the size in it
    header[16:24] = (40_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    found = prepare(tmp_path / "pictures", {"large.png": bytes(header) + files["large.png"][33:]}, tmp_path / "cache")
    assert "large.png (more than 536,870,912 pixels)" in found.warnings[-1]


def test_a_long_text_in_a_png_costs_nothing_and_the_limits_of_pillow_are_left_as_they_were() -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "x" * 2**21, zip=True)
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(stored(noise(), "PNG", pnginfo=about)))
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    assert (square(stored(noise(), "PNG", pnginfo=about))[0] == square(stored(noise(), "PNG"))[0]).all()
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK) == before


def originals() -> list[bytes]:
    """A small picture in eight formats, with texts, EXIF data and a second frame where the format has them."""
    exif, about = Image.Exif(), PngImagePlugin.PngInfo()
    exif[ORIENTATION], exif[0x011A], exif[0x010E] = 6, 300.0, "a picture"
    about.add_text("Comment", "a picture", zip=True)
    image = noise()
    found = [
        stored(image, "JPEG", exif=exif, progressive=True),
        stored(image, "PNG", exif=exif, pnginfo=about),
        stored(image, "BMP"),
        stored(image, "GIF", save_all=True, append_images=[noise(1)], comment=b"a picture"),
        stored(image, "WEBP", exif=exif),
        stored(image, "TIFF", exif=exif, compression="tiff_lzw"),
        stored(image, "PPM"),
    ]
    return [*found, stored(image, "AVIF", exif=exif) if features.check("avif") else stored(image, "TGA")]


def mutated(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """With some bytes changed, cut out, doubled or exchanged for those of another file, or without its end."""
    way, damaged = rng.integers(5), bytearray(content)
    # Half of the places lie in the first bytes, which hold sizes, types and offsets.
    one, two = sorted(rng.integers(0, len(damaged) if rng.random() < 0.5 else min(200, len(damaged)), 2).tolist())
    if way == 0:
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(one, len(damaged))] = rng.integers(256)
    elif way == 1:
        damaged[one] = rng.choice([0x00, 0x7F, 0x80, 0xFF])
    elif way == 2:
        del damaged[one : two + 1]
    elif way == 3:
        damaged[one:one] = damaged[one : two + 1] if rng.random() < 0.5 else other[one : two + 1]
    else:
        del damaged[two:]
    return bytes(damaged)


def test_no_mutated_file_ends_a_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """2,000 files of eight formats: each is kept or named with a reason, and Pillow prints nothing."""
    monkeypatch.setattr(prepared, "_MAX_UNREADABLE", 1.0)
    rng, intact = np.random.default_rng(0), originals()
    endings = ("jpg", "png", "bmp", "gif", "webp", "tif", "ppm", "png")
    files = {f"intact{kind}.{ending}": intact[kind] for kind, ending in enumerate(endings)}
    for number in range(2000):
        kind = number % len(intact)
        files[f"{number}.{endings[kind]}"] = mutated(intact[kind], intact[rng.integers(len(intact))], rng)
    reported: list[str] = []
    monkeypatch.setattr(
        prepared, "_left_out", lambda *given: [reported.extend(why for c in given[2] for why in c.unreadable)] and []
    )
    found = prepare(tmp_path / "mutated", files, tmp_path / "cache")
    assert len(found.labels) + len(reported) == len(files)
    assert 200 < len(reported) < 1800, "mutations are neither all harmless nor all fatal"
    assert all(why.endswith(")") and " (" in why and "\n" not in why and len(why) < 130 for why in reported)
    assert not any(why.startswith("intact") for why in reported)
    printed = capfd.readouterr().err  # the C library of TIFF prints a line of its own here and there
    assert not any(word in printed for word in ("Traceback", "Warning", "samples per pixel"))
