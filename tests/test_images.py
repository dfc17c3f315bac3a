"""Pictures of every mode are read as shown, prepared without a colour lost, and refused in one sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.images import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, ImagePreparation, load_image

WRONG = (InputError, jaxtyping.TypeCheckError)  # the shape checker of the tests may speak first


def picture(height: int = 12, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_sentence(error: pytest.ExceptionInfo[InputError], path: Path) -> None:
    message = str(error.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
    assert ";" in message, "the way out is missing"


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_are_read_to_the_byte(tmp_path: Path, suffix: str) -> None:
    expected = picture()
    path = tmp_path / f"goal.{suffix}"
    Image.fromarray(expected).save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = load_image(path)
    np.testing.assert_array_equal(found, expected)
    found[0, 0] = 0  # the caller owns it


def test_suffix_does_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "goal.png"
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path, format="JPEG")
    assert np.abs(load_image(path).astype(int) - (200, 30, 30)).max() < 6


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_shows_white_grey_and_black(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((6, 9), np.uint8)
    grey[:, 3:6], grey[:, 6:] = (0 if mode == "1" else 100), 255
    path = tmp_path / ("goal.tiff" if mode in ("CMYK", "I", "F") else "goal.png")
    if mode in ("I;16", "I"):
        Image.fromarray(grey.astype({"I;16": np.uint16, "I": np.int32}[mode]) * 257).save(path)
    elif mode == "F":
        Image.fromarray(grey.astype(np.float32) / 255).save(path)
    elif mode == "CMYK":
        Image.fromarray(np.repeat(grey[:, :, None], 3, 2)).convert("CMYK").save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    with Image.open(path) as written:
        assert written.mode == mode
    np.testing.assert_array_equal(load_image(path), np.repeat(grey[:, :, None], 3, axis=2))


def test_bytes_in_32_bit_numbers_are_refused_for_their_white_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "goal.tiff")
    with pytest.raises(InputError, match="32-bit numbers below 256"):
        load_image(tmp_path / "goal.tiff")


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    np.testing.assert_array_equal(load_image(tmp_path / "ramp.png")[0, :, 1], np.arange(256))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[..., 1] = 200  # green everywhere, also where nothing is visible
    rgba[:, 2:4, 3], rgba[:, 4:, 3] = 51, 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    found = load_image(tmp_path / "rgba.png")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 5].tolist() == [0, 200, 0]
    np.testing.assert_allclose(found[0, 2], [204, 244, 204], atol=1)  # 80 % white + 20 % green
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert load_image(tmp_path / "p.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """The stored pixels of a turned camera come back upright; expected turns after the EXIF standard."""
    upright = picture(6, 10)
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), upright)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    assert np.abs(load_image(path).astype(int) - (255, 0, 0)).max() < 4


# ---------------------------------------------------------------- refusing


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    for path, word in [
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        (write_bytes(tmp_path / "empty.png", b""), "is empty"),
        (tmp_path / "none.png" / "deeper.png", "does not exist"),
        (tmp_path / ("x" * 300 + ".png"), "cannot be read"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            load_image(path)
        one_sentence(error, path)


@pytest.mark.parametrize(
    "content",
    [
        b"goal: put the arm there\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x00",
        b"P6",
        b"\x80\x04K\x01.",
    ],
)
def test_no_picture_at_all(tmp_path: Path, content: bytes) -> None:
    path = write_bytes(tmp_path / "goal.png", content)
    with pytest.raises(InputError) as error:
        load_image(path)
    one_sentence(error, path)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "bmp", "tiff", "ppm", "webp", "gif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(picture(64, 64)).save(whole)
    content = whole.read_bytes()
    for part in (0.02, 0.3, 0.9):
        path = write_bytes(tmp_path / f"cut.{suffix}", content[: max(3, int(len(content) * part))])
        with pytest.raises(InputError) as error:
            load_image(path)
        one_sentence(error, path)


def test_flipped_bytes_in_png(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(picture(64, 64)).save(whole)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = write_bytes(tmp_path / "flipped.png", bytes(content))
    with pytest.raises(InputError, match="damaged") as error:
        load_image(path)
    one_sentence(error, path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none: decoding it would fail differently."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 10_000, 30_000])
def test_too_large_is_refused_from_the_header(tmp_path: Path, side: int) -> None:
    path = write_bytes(tmp_path / "huge.png", png_header(side, side))
    with pytest.raises(InputError, match="64 megapixels") as error:
        load_image(path)
    one_sentence(error, path)


def test_largest_allowed_passes_the_size_check(tmp_path: Path) -> None:
    assert MAX_PIXELS == 8192 * 8192
    path = write_bytes(tmp_path / "big.png", png_header(8192, 8192))
    with pytest.raises(InputError, match="damaged"):  # it went on to decode, and found nothing there
        load_image(path)


def test_float_without_a_known_white_is_refused(tmp_path: Path) -> None:
    for name, top in [("bright", 255.0), ("nan", np.nan)]:
        path = tmp_path / f"{name}.tiff"
        Image.fromarray(np.full((4, 4), top, np.float32)).save(path)
        with pytest.raises(InputError, match="outside") as error:
            load_image(path)
        one_sentence(error, path)


# ---------------------------------------------------------------- preparing


def test_golden_numbers_and_channel_order() -> None:
    """Hand-computed: (x / 255 - mean) / std of ImageNet."""
    image = np.broadcast_to(np.array([255, 0, 51], np.uint8), (1, 4, 4, 3))
    prepared = ImagePreparation(4).prepare(image)
    assert prepared.shape == (1, 3, 4, 4) and prepared.dtype == torch.float32 and prepared.is_contiguous()
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    torch.testing.assert_close(prepared[0, :, 1, 2], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resample", ["bilinear", "area"])
@pytest.mark.parametrize("aspect", [1.0, 1.35, None])
@pytest.mark.parametrize("shape", [(16, 16), (37, 91), (90, 40), (5, 7), (1, 1)])
def test_a_red_picture_stays_red(shape: tuple[int, int], aspect: float | None, resample: str) -> None:
    preparation = ImagePreparation(16, aspect, resample=resample)
    red = np.broadcast_to(np.array([250, 12, 3], np.uint8), (2, *shape, 3))
    shown = preparation.unprepare(preparation.prepare(red))
    assert shown.shape == (2, 16, 16, 3)
    assert torch.equal(shown, torch.tensor([250, 12, 3], dtype=torch.uint8).expand_as(shown))


@pytest.mark.parametrize("resample", ["bilinear", "area"])
def test_grey_stays_grey(resample: str) -> None:
    grey = picture(33, 47)[..., :1].repeat(3, axis=2)[None]
    preparation = ImagePreparation(16, 1.0, resample=resample)
    shown = preparation.unprepare(preparation.prepare(grey))
    assert torch.equal(shown[..., 0], shown[..., 1]) and torch.equal(shown[..., 0], shown[..., 2])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    n=st.integers(1, 5),
    aspect=st.sampled_from([1.0, None]),
)
def test_right_size_is_untouched_to_the_bit(seed: int, size: int, n: int, aspect: float | None) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    preparation = ImagePreparation(size, aspect)
    prepared = preparation.prepare(images)
    np.testing.assert_array_equal(preparation.unprepare(prepared).numpy(), images)
    for index in range(n):  # one picture alone (planning) and among others (training) are the same bits
        assert torch.equal(preparation.prepare(images[index : index + 1])[0], prepared[index])
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    plain = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(prepared, plain, atol=2e-6, rtol=0)


def test_numpy_torch_and_odd_memory_are_the_same() -> None:
    images = picture(24, 30)[None].repeat(2, 0)
    preparation = ImagePreparation(16, 1.35)
    expected = preparation.prepare(images)
    assert torch.equal(expected, preparation.prepare(torch.from_numpy(images)))
    assert torch.equal(expected, preparation.prepare(np.ascontiguousarray(images[:, ::-1])[:, ::-1]))
    frozen = images.copy()
    frozen.flags.writeable = False
    assert torch.equal(expected, preparation.prepare(frozen))


def test_crop_of_vjepa_2_ac() -> None:
    """DROID's 180 x 320 frames at aspect 1.35: 243 columns from column 38 on, all rows."""
    preparation = ImagePreparation(256, 1.35)
    assert preparation.crop(180, 320) == (0, 38, 180, 243)
    assert preparation.crop(256, 256) == (33, 0, 190, 256)
    columns = np.zeros((1, 180, 320, 3), np.uint8)
    columns[:, :, :38] = columns[:, :, 38 + 243 :] = 255  # all that must be cut away
    assert preparation.unprepare(preparation.prepare(columns)).max() == 0


@given(height=st.integers(32, 5000), width=st.integers(32, 5000), aspect=st.floats(0.05, 20))
def test_crop_is_central_largest_and_inside(height: int, width: int, aspect: float) -> None:
    top, left, kept_height, kept_width = ImagePreparation(8, aspect).crop(height, width)
    assert 1 <= kept_height <= height and 1 <= kept_width <= width
    assert kept_height == height or kept_width == width
    assert abs((height - kept_height) - 2 * top) <= 1 and abs((width - kept_width) - 2 * left) <= 1
    assert abs(kept_width - kept_height * aspect) <= 0.5 * max(1, aspect) + 1e-9


def test_shrinking_is_antialiased() -> None:
    """Stripes two pixels wide shrunk fourfold are grey; plain bilinear sampling would see only white."""
    stripes = np.broadcast_to((np.arange(64) % 4 // 2 == [[0], [1]]).repeat(32, 0) * 255, (64, 64))
    images = np.repeat(np.roll(stripes, 1, axis=1)[None, :, :, None], 3, axis=3).astype(np.uint8)
    for resample in ("bilinear", "area"):
        preparation = ImagePreparation(16, resample=resample)
        shown = preparation.unprepare(preparation.prepare(images))[:, 2:6, 1:-1].float()
        assert (shown - 127.5).abs().max() < 8


def test_area_is_the_mean_of_each_footprint() -> None:
    images = picture(32, 32)[None]
    preparation = ImagePreparation(8, resample="area", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = (
        torch.from_numpy(images).float().view(1, 8, 4, 8, 4, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2) / 255
    )
    torch.testing.assert_close(preparation.prepare(images), expected, atol=1e-6, rtol=0)


def test_orientation_survives() -> None:
    """The upper left corner stays up and left, at any size."""
    images = np.zeros((1, 60, 60, 3), np.uint8)
    images[:, :30, :30, 0], images[:, 30:, :30, 1] = 255, 255
    shown = ImagePreparation(12).unprepare(ImagePreparation(12).prepare(images))[0]
    assert shown[1, 1].tolist() == [255, 0, 0] and shown[10, 1].tolist() == [0, 255, 0]
    assert shown[1, 10].tolist() == [0, 0, 0]


@pytest.mark.parametrize("resample", ["bilinear", "area"])
def test_empty_batch(resample: str) -> None:
    for side in (8, 20):
        assert ImagePreparation(8, resample=resample).prepare(
            np.zeros((0, side, side, 3), np.uint8)
        ).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 0, 8, 3), np.uint8),
    ],
)
def test_wrong_batches_are_refused(images: np.ndarray) -> None:
    with pytest.raises(WRONG):
        ImagePreparation(8).prepare(images)


def test_nan_is_loud() -> None:
    with pytest.raises(NotFiniteError):
        ImagePreparation(4).unprepare(torch.full((1, 3, 4, 4), torch.nan))


def test_dict_round_trip_and_validation() -> None:
    preparation = ImagePreparation(96, None, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "area")
    values = preparation.to_dict()
    assert ImagePreparation.from_dict(values) == preparation
    assert ImagePreparation.from_dict({**values, "crop_aspect": 1}).crop_aspect == 1.0
    for change in [
        {"size": 0}, {"size": 1.5}, {"size": "big"}, {"size": True}, {"crop_aspect": -1.0},
        {"crop_aspect": "wide"},
        {"mean": [0.1, 0.2]}, {"mean": None}, {"std": [1, 1, 0]}, {"std": [1, 1, float("nan")]},
        {"resample": "bilinaer"}, {"colour": "rgb"},
    ]:  # fmt: skip
        with pytest.raises(InputError):
            ImagePreparation.from_dict({**values, **change})
    with pytest.raises(InputError, match="did you mean 'bilinear'"):
        ImagePreparation.from_dict({**values, "resample": "bilinaer"})
    with pytest.raises(InputError, match="exactly"):
        ImagePreparation.from_dict({key: value for key, value in values.items() if key != "mean"})
