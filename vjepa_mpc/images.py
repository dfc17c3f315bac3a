"""Pictures on their way into a model: read from any common file, cropped, resized, normalised.

`load_image` turns a file into the uint8 [H, W, 3] that a camera gives. `ImagePreparation` turns such
pictures into what an encoder sees; training and planning call the very same function, and it is
stored with the model, so that a goal photograph is prepared exactly as the training pictures were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError, unknown_name

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 64 * 1024 * 1024
RESAMPLE = ("area", "bilinear")
CONTRAST = ("dataset", "picture")
FLAT = 4 / 255  # added to a picture's own deviation, so that an even one is not blown up into noise
# Pillow recognises formats by content, not by suffix. Left out: EPS (would start Ghostscript), TGA (takes
# any bytes for a picture), and rarities with fragile readers that no goal picture comes in.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def load_image(path: Path | str) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture file as sRGB bytes [H, W, 3], upright, in the order red, green, blue.

    Takes grey, palette, 1-bit, 16-bit (scaled, not clipped), float in [0, 1], CMYK and transparent
    pictures. Transparency is laid on white, as image viewers and printed pages show it: the goal is then
    what its author saw, not the arbitrary colours a drawing program leaves under transparent pixels.
    EXIF orientation is applied. Of an animation the first frame is read.

    Raises `InputError` for a path that is missing, a folder, empty, no picture, damaged, or has more than
    64 megapixels (read from the header, before anything is decoded).
    """
    path = Path(path)
    _check_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns above 89 megapixels; `_decode` refuses earlier
        return _decode(path)


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name one picture file in it.")
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path of the picture.")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; save the picture to disk and name that file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); save the picture again.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions."
        ) from error


def _decode(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height} pixels")
            return _to_rgb(image, path)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "more pixels than are safe to decode") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture in a format that can be read; save it as PNG or JPEG (HEIC too)."
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        raise InputError(f"{path} is a damaged picture ({error}); save or download it again.") from error


def _too_large(path: Path, found: str) -> InputError:
    limit = MAX_PIXELS // 2**20
    return InputError(f"{path} has {found}, the limit is {limit} megapixels; scale it down first.")


def _to_rgb(image: Image.Image, path: Path) -> UInt8[np.ndarray, "height width 3"]:
    from PIL import Image, ImageOps

    image.seek(0)
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        if upright.mode == "I" and np.asarray(upright).max() < 256:
            raise InputError(f"{path} holds 32-bit numbers below 256, whose white is unknown; save it as an 8-bit PNG.")
        grey = _deep_grey(np.asarray(upright), path)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _deep_grey(values: np.ndarray, path: Path) -> UInt8[np.ndarray, "height width"]:
    """Bring 16-bit integers [0, 65535] or floats [0, 1] to bytes; Pillow's own conversion would clip them.

    The range is that of the format, never that of this picture's content, so that two pictures of one
    scene stay comparable.
    """
    top = 1.0 if np.issubdtype(values.dtype, np.floating) else 65535.0
    scaled = values.astype(np.float32)
    if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= top):
        raise InputError(
            f"{path} holds {values.dtype} values outside [0, {top:g}], white is unknown; save it as PNG."
        )
    return np.rint(scaled * np.float32(255.0 / top)).astype(np.uint8)


@dataclass(frozen=True)
class ImagePreparation:
    """How uint8 pictures become a model's input; part of the model, saved with it.

    `size`: side of the model's square input, pixels. `crop_aspect`: width / height of the largest central
    crop, which is then squashed to `size` x `size`; None keeps the whole picture (V-JEPA 2-AC: 1.35 at
    size 256; square simulators: 1.0). `mean`, `std`: per channel (red, green, blue), of pixels in [0, 1].
    `resample`: "bilinear" (with an antialiasing filter when shrinking) or "area" (the mean over each
    target pixel's footprint). `contrast`: "dataset" normalises by `mean` and `std`; "picture" by the
    picture's own mean (per channel) and deviation (over all), so that light and overall colour matter less.
    """

    size: int
    crop_aspect: float | None = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resample: str = "bilinear"
    contrast: str = "dataset"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"Image preparation needs a size of at least 1 pixel, got {self.size}.")
        aspect = self.crop_aspect
        if aspect is not None and not (math.isfinite(aspect) and aspect > 0):
            raise InputError(f"The crop's aspect must be a positive width/height or none, got {aspect}.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(
                f"Image mean {self.mean} and std {self.std} must be finite, and the std positive."
            )
        if self.resample not in RESAMPLE:
            raise unknown_name("image resampling", self.resample, RESAMPLE)
        if self.contrast not in CONTRAST:
            raise unknown_name("contrast", self.contrast, CONTRAST)

    def prepare(
        self,
        images: UInt8[np.ndarray, "n height width 3"] | UInt8[Tensor, "n height width 3"],
        device: torch.device | str | None = None,
    ) -> Float32[Tensor, "n 3 {self.size} {self.size}"]:
        """Crop, resize and normalise a batch; the result is on `device` (default: where `images` are).

        Bytes are moved, not floats, and everything after that runs on the device. Pictures that are
        `size` x `size` once cropped are not resampled: x -> (x / 255 - mean) / std is all that happens
        to them. Raises `InputError` for anything but uint8 [n, H, W, 3].
        """
        pixels = self._pixels(_as_batch(images).to(device=device))
        if self.contrast == "picture":
            pixels = pixels.div_(255)
            deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
            return (pixels - pixels.mean(dim=(2, 3), keepdim=True)) / (deviation + FLAT)
        scale, offset = self._affine(pixels.device)
        return pixels.mul_(scale).add_(offset)  # `pixels` is ours: `to(float32)` copied the bytes

    def deviation(
        self, images: UInt8[np.ndarray, "n height width 3"] | UInt8[Tensor, "n height width 3"]
    ) -> Float32[Tensor, "n"]:
        """How much there is to see: the deviation of each picture's pixels about their channel's mean, cropped and
        resized, of 1 from black to white. A picture of one colour has 0."""
        pixels = self._pixels(_as_batch(images)).div_(255)
        return (pixels - pixels.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()

    def grain(
        self, images: UInt8[np.ndarray, "n height width 3"] | UInt8[Tensor, "n height width 3"]
    ) -> Float32[Tensor, "n"]:
        """How little neighbouring pixels have to do with each other, cropped and resized: the root mean square of
        their differences over that of pixels drawn at random from the picture. About 1 for noise, less for whatever
        has surfaces; 0 for a picture of one colour."""
        pixels = self._pixels(_as_batch(images)).div_(255)
        spread = (pixels - pixels.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
        steps = (pixels.diff(dim=2).square().mean(dim=(1, 2, 3)) + pixels.diff(dim=3).square().mean(dim=(1, 2, 3))) / 2
        return (steps / (2 * spread).clamp(min=1e-12)).sqrt()

    def _pixels(self, batch: UInt8[Tensor, "n height width 3"]) -> Float32[Tensor, "n 3 s s"]:
        """Cropped and resized, still from 0 to 255."""
        top, left, height, width = self.crop(batch.shape[1], batch.shape[2])
        cropped = batch[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
        pixels = cropped.contiguous().to(torch.float32)  # channels first while a pixel is still one byte
        return pixels if (height, width) == (self.size, self.size) else self._resize(pixels)

    def unprepare(self, prepared: Float32[Tensor, "n 3 height width"]) -> UInt8[Tensor, "n height width 3"]:
        """Undo the normalisation: the bytes the model sees, for showing. Exact for unresampled pictures.

        Values beyond black or white are clipped; NaN raises `NotFiniteError`, and a preparation by the
        picture's own contrast, which forgets the original, `InputError`.
        """
        if self.contrast == "picture":
            raise InputError("A picture prepared by its own contrast cannot be undone; show the original.")
        if not bool(torch.isfinite(prepared).all()):
            raise NotFiniteError("A prepared picture holds NaN or infinity.", prepared)
        scale, offset = self._affine(prepared.device)
        return (
            ((prepared - offset) / scale)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            .permute(0, 2, 3, 1)
            .contiguous()
        )

    def crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The central crop (top, left, height, width), pixels, of a `height` x `width` picture.

        The largest one of the wanted aspect, rounded and centred as V-JEPA 2-AC's training does.
        """
        aspect = self.crop_aspect
        if aspect is None:
            return 0, 0, height, width
        if width > height * aspect:
            kept_height, kept_width = height, max(1, round(height * aspect))
        else:
            kept_height, kept_width = max(1, round(width / aspect)), width
        kept_height, kept_width = min(kept_height, height), min(kept_width, width)
        return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width

    def _resize(self, pixels: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 3 s s"]:
        if pixels.shape[0] == 0:  # the antialiased kernel refuses an empty batch
            return pixels.new_empty((0, 3, self.size, self.size))
        target = (self.size, self.size)
        if self.resample == "area":
            return torch.nn.functional.interpolate(pixels, target, mode="area")
        return torch.nn.functional.interpolate(pixels, target, mode="bilinear", antialias=True)

    def _affine(self, device: torch.device) -> tuple[Float32[Tensor, "3 1 1"], Float32[Tensor, "3 1 1"]]:
        """(scale, offset) with prepared = byte * scale + offset: one pass over the pixels, not three."""
        mean = torch.tensor(self.mean, dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(3, 1, 1)
        return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`; `from_dict` gives back an equal preparation."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImagePreparation:
        """Read what `to_dict` wrote; every entry must be there, for a default would be a silent guess."""
        expected = {entry.name for entry in fields(cls)}
        if set(values) != expected:
            raise InputError(
                f"Image preparation needs exactly {', '.join(sorted(expected))}, got "
                f"{', '.join(sorted(map(str, values))) or 'nothing'}; restore the model's config.json."
            )
        try:
            size, aspect = values["size"], values["crop_aspect"]
            if isinstance(size, bool) or int(size) != size:
                raise ValueError(f"size {size!r} is not a whole number")
            aspect = None if aspect is None else float(aspect)
            mean, std = _triple(values["mean"]), _triple(values["std"])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Image preparation is not readable ({error}); restore the model's config.json."
            ) from error
        return cls(int(size), aspect, mean, std, str(values["resample"]), str(values["contrast"]))


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _as_batch(images: np.ndarray | Tensor) -> UInt8[Tensor, "n height width 3"]:
    """Check a batch and share its memory as a tensor."""
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise InputError(
            f"Pictures must have shape [n, height, width, 3] (channels last), got {list(images.shape)}."
        )
    if images.dtype not in (np.uint8, torch.uint8):
        raise InputError(f"Pictures must be uint8 in [0, 255], got {images.dtype}; they are normalised here.")
    if isinstance(images, Tensor):
        return images
    # torch takes no negative strides, and warns of read-only memory, which a memory-mapped cache is
    return torch.from_numpy(np.require(images, requirements=("C", "W")))
