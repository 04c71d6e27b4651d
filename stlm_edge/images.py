"""Decoding and resizing of image files, shared by training, evaluation, calibration and prediction on all devices.

Needs numpy and Pillow only. An image that cannot be read exactly is refused with an error that names the file.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from stlm_edge.errors import UsageError

PREPROCESSING = "exif-upright, rgb, antialiased-bilinear (Pillow), v1"
SIXTEEN_BIT = "round(value / 257)"
MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"])

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow formats that cameras and tools write
_UPRIGHT = {  # EXIF 2.3, tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


def load(source: str | Path | Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Return an image as the network's input: uint8, size×size×3, RGB.

    `source` is a file, a Pillow image, or an array: H×W×3 uint8 (RGB), H×W uint8 (grey) or H×W uint16 (grey).
    Raises UsageError for anything else and for a file that `read_image` refuses.
    """
    if isinstance(source, np.ndarray):
        return resize(_of_array(source), size)
    if isinstance(source, Image.Image):
        return resize(_rgb(_decoded(source, "the image"), "the image"), size)
    return resize(read_image(source), size)


def read_image(path: str | Path) -> Image.Image:
    """Read an image file, rotated by its EXIF orientation, as 8-bit RGB at its own size.

    Alpha is ignored. 16-bit grey is scaled from its full range (SIXTEEN_BIT); 16-bit colour keeps its high bytes. Of a
    multi-image JPEG (MPO), as phones write it, the first image is read.

    Raises UsageError for a file that is missing, empty, truncated, not an image, animated or multi-page, larger than
    MAX_PIXELS (checked in the header, before decoding), or in a colour space other than grey and RGB.
    """
    return _rgb(_read(Path(path)), str(path))


def read_mask(path: str | Path, size: int, image_size: tuple[int, int]) -> np.ndarray:
    """Read a ground-truth mask, resized by nearest neighbour: bool, size×size, true where the value is not zero.

    `image_size` is the width and height of the image it belongs to; a mask of another size raises UsageError.
    """
    image = _read(Path(path))
    if image.size != image_size:
        raise UsageError(
            f"{path}: the mask is {image.width}×{image.height} but its image is "
            f"{image_size[0]}×{image_size[1]}; expected equal sizes"
        )
    values = np.asarray(image if image.mode.startswith("I") else _rgb(image, str(path)))
    marked = values.any(axis=2) if values.ndim == 3 else values != 0
    return np.asarray(Image.fromarray(marked).resize((size, size), Image.Resampling.NEAREST))


def list_images(folder: str | Path) -> list[Path]:
    """Return a folder's visible image files, sorted by name. Raises UsageError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a folder of images")
    files = sorted(path for path in folder.iterdir() if is_image(path))
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"{folder}: no images in it; expected files that end in {suffixes}")
    return files


def is_image(path: Path) -> bool:
    """Return whether a path is a visible file with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Resize an RGB image to uint8, size×size×3 (Pillow, antialiased bilinear), ignoring its aspect ratio."""
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def _read(path: Path) -> Image.Image:
    """Return the decoded, upright image in its own colour mode."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected an image")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty (0 bytes); expected an image, copy it from the camera again")
    # An open file, not a name: Pillow would memory-map an uncompressed TIFF by name and scramble a rotated one.
    with path.open("rb") as file:
        try:
            with warnings.catch_warnings():  # Pillow warns of large images below MAX_PIXELS
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(str(path), "far") from None
        except Image.UnidentifiedImageError:
            raise UsageError(
                f"{path}: not a readable image; expected an intact file of the formats {' '.join(_FORMATS)}"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises many types for a damaged header
            raise _damaged(str(path), error) from None
        return _decoded(image, str(path))


def _decoded(image: Image.Image, name: str) -> Image.Image:
    if not (image.width and image.height):
        raise UsageError(f"{name}: {image.width}×{image.height} pixels; expected at least one")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width}×{image.height},")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UsageError(f"{name}: animated or multi-page; expected a single image, save one frame as a file")
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception as error:  # likewise for damaged pixels
        raise _damaged(name, error) from None
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise UsageError(f"{name}: 32-bit or signed grey; expected 8-bit or unsigned 16-bit grey, save it as such")
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image.copy()
    upright.info = {}  # otherwise the orientation is applied twice when this image is loaded or saved
    return upright


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("1", "L", "RGBX", "YCbCr"):
        return image.convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA"):
        return image.convert("RGBA").convert("RGB")
    if image.mode.startswith("I"):
        return _of_array(np.asarray(image).astype(np.uint16))
    raise UsageError(f"{name}: colour mode {image.mode}; expected grey or RGB, save it as an RGB or grey PNG or JPEG")


def _of_array(array: np.ndarray) -> Image.Image:
    grey = array.ndim == 2
    colour = array.ndim == 3 and array.shape[2] == 3
    if not ((grey and array.dtype in (np.uint8, np.uint16)) or (colour and array.dtype == np.uint8)):
        raise UsageError(
            f"array of shape {array.shape} and type {array.dtype}; expected H×W×3 uint8 (RGB), H×W uint8 (grey) or "
            "H×W uint16 (grey)"
        )
    if not array.size:
        raise UsageError(f"array of shape {array.shape}; expected at least one pixel")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # SIXTEEN_BIT; 257 is odd, so no ties
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _too_large(name: str, size: str) -> UsageError:
    return UsageError(f"{name}: {size} more than {MAX_PIXELS:,} pixels; scale the image down or crop it first")


def _damaged(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"{name}: truncated or damaged ({error}); expected an intact image, copy it from the camera again"
    )
