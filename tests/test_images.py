"""Images are read exactly, or refused with one line that names the file."""

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stlm_edge import images
from stlm_edge.errors import UsageError


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)


def png_header(path: Path, width: int, height: int) -> Path:
    """Write an otherwise valid 8-bit grey PNG with the given size in its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        images.read_image(path)
    line = str(caught.value)
    assert line.startswith(str(path)), "names the file"
    assert "\n" not in line
    return line


def test_resize_is_pillows_antialiased_bilinear(colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(colours).resize((32, 32), Image.Resampling.BILINEAR))
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(colours),
        colours,
        colours[::1, ::-1][:, ::-1],
    ):
        loaded = images.load(source, 32)
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, expected)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    assert abs(images.load(stripes, 32).astype(int) - 127).max() <= 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied_once(orientation, kind, tmp_path):
    upright = np.zeros((30, 50), np.uint8)
    upright[:10, :20], upright[:10, 20:], upright[10:, :20] = 250, 150, 80
    stored = {  # EXIF 2.3: where the stored image's first row and column lie in the upright one
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{kind}", exif=exif, lossless=True)
    read = images.read_image(tmp_path / f"a.{kind}")
    assert np.array_equal(np.asarray(read)[..., 0], upright)
    assert np.array_equal(images.load(read, 32), images.load(tmp_path / f"a.{kind}", 32)), "and only once"


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big_endian.tif", "a.pgm"])
def test_16_bit_grey_keeps_its_full_range(name, tmp_path):
    values = np.linspace(0, 65535, 30 * 20).astype(np.uint16).reshape(20, 30)
    if name == "big_endian.tif":
        Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes()).save(tmp_path / name)
    elif name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    expected = np.rint(values / 257).astype(np.uint8)
    assert (expected.min(), expected.max()) == (0, 255)
    read = np.asarray(images.read_image(tmp_path / name))
    assert all(np.array_equal(read[..., channel], expected) for channel in range(3))
    assert np.array_equal(images.load(values, 16), images.load(tmp_path / name, 16)), "arrays are read as files are"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_colour_modes_become_rgb_and_alpha_is_ignored(mode, colours, tmp_path):
    original = Image.fromarray(colours).convert(mode)
    expected = np.asarray(original.convert("RGB"))
    if mode in ("LA", "RGBA"):
        original.putalpha(0)
    Image.Image.save(original, tmp_path / "a.png")
    assert np.array_equal(np.asarray(images.read_image(tmp_path / "a.png")), expected)


def test_transparent_palette_image_is_read_without_warning(colours, tmp_path):
    original = Image.fromarray(colours).quantize(8)
    original.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = images.read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read), np.asarray(original.convert("RGB")))


def test_too_large_image_is_refused_before_decoding(tmp_path, monkeypatch):
    bomb = png_header(tmp_path / "bomb.png", 30_000, 30_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "more than 100,000,000 pixels; scale the image down" in error_of(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "30000×30000, more than 100,000,000 pixels" in error_of(bomb)


def test_large_images_cause_no_pillow_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "11000×10000, more than 100,000,000 pixels" in error_of(png_header(tmp_path / "a.png", 11_000, 10_000))
        assert "truncated or damaged" in error_of(png_header(tmp_path / "b.png", 9_900, 10_000))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "a.webp"])
def test_truncated_image_is_refused(name, colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert "expected an intact" in error_of(tmp_path / name)


def test_damaged_files_raise_only_usage_errors(colours, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.tif", "a.gif", "a.webp"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(colours).save(tmp_path / name, **({} if name == "a.gif" else {"exif": exif}))
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 300), size=3):
                damaged[at] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(UsageError):
                    assert images.load(tmp_path / name, 32).shape == (32, 32, 3)


def test_cmyk_is_refused(colours, tmp_path):
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.jpg")
    assert "colour mode CMYK; expected grey or RGB" in error_of(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_animated_image_is_refused(name, colours, tmp_path):
    frames = [Image.fromarray(np.roll(colours, shift, axis=1)) for shift in (0, 9)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert "animated or multi-page" in error_of(tmp_path / name)


def test_first_image_of_multi_image_jpeg_is_read(colours, tmp_path):
    photograph, preview = Image.fromarray(colours), Image.fromarray(colours[::2, ::2])
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert images.read_image(tmp_path / "a.jpg").size == (60, 40)


def test_zero_size_is_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    assert "the file is empty (0 bytes)" in error_of(tmp_path / "empty.png")
    assert "not a readable image" in error_of(png_header(tmp_path / "flat.png", 0, 7))
    with pytest.raises(UsageError, match=r"array of shape \(0, 7\); expected at least one pixel"):
        images.load(np.zeros((0, 7), np.uint8), 32)
    with pytest.raises(UsageError, match="the image: 7×0 pixels; expected at least one"):
        images.load(Image.new("RGB", (7, 0)), 32)


def test_text_named_png_and_missing_files_are_refused(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    assert "not a readable image; expected an intact file" in error_of(tmp_path / "note.png")
    assert "no such file; expected an image" in error_of(tmp_path / "gone.png")
    assert "no such file; expected an image" in error_of(tmp_path)


def test_32_bit_grey_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "a.tif")
    assert "32-bit or signed grey; expected 8-bit or unsigned 16-bit grey" in error_of(tmp_path / "a.tif")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    assert "colour mode F; expected grey or RGB" in error_of(tmp_path / "f.tif")


@pytest.mark.parametrize("array", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8)), np.zeros((8, 8, 3), np.uint16)])
def test_unsupported_arrays_are_refused(array):
    with pytest.raises(
        UsageError, match=r"array of shape .* expected H×W×3 uint8 \(RGB\), H×W uint8 \(grey\) or H×W uint16"
    ):
        images.load(array, 32)


def test_mask_is_true_where_not_zero_and_resized_by_nearest_neighbour(tmp_path):
    marked = np.zeros((40, 60), bool)
    marked[10:20, 30:45] = True
    expected = np.asarray(Image.fromarray(marked).resize((32, 32), Image.Resampling.NEAREST))
    for number, values in enumerate((marked, marked * np.uint8(255), marked * np.uint8(1), marked * np.uint16(1))):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        mask = images.read_mask(tmp_path / f"{number}.png", 32, (60, 40))
        assert mask.dtype == bool
        assert np.array_equal(mask, expected)


def test_mask_of_different_size_is_refused(tmp_path):
    Image.new("L", (60, 41)).save(tmp_path / "a_mask.png")
    with pytest.raises(UsageError, match=r"a_mask\.png.*60×41.*60×40"):
        images.read_mask(tmp_path / "a_mask.png", 32, (60, 40))


def test_list_images_returns_only_images_sorted_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "._b.png", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images.list_images(tmp_path)] == ["a.JPG", "b.png", "c.tiff"]


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="gone: no such folder; expected a folder of images"):
        images.list_images(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"no images in it; expected files that end in .bmp .gif .jpeg"):
        images.list_images(tmp_path)
