"""One picture of a log, whatever its file format, as RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.errors import InputError, first_line

MAX_PIXELS = 100_000_000  # a larger picture is a broken or hostile header


def decode_picture(source: Path | io.BytesIO, name: str) -> UInt8[np.ndarray, "_ _ 3"]:
    """Decode one picture; `InputError`, beginning with `name`, when it is missing, damaged or absurdly large."""
    from PIL import Image

    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{name} claims {picture.width} x {picture.height} pixels")
            if picture.mode[0] in "IF":  # 16 or 32 bits: turned into bytes, nearly all of it would be white
                raise InputError(f"{name} holds depths or other numbers ({picture.mode}), not colours")
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"{name} is missing") from error
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is no picture that can be read ({first_line(error)})") from error
