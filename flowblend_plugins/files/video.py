"""Writing videos (with the encoder that PyAV brings along) and stills that players and browsers show."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OutputError, UsageError
from ..types import Foreign

if TYPE_CHECKING:
    from PIL.Image import Image

# Every browser plays H.264; builds of PyAV without it still have MPEG-4, which players show.
_ENCODERS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "mpeg4": {"qscale": "2"},
}


def video_encoder() -> str | None:
    """The encoder that :func:`write_mp4` uses here; ``None`` where PyAV was built without any of them."""
    import av

    return next((name for name in _ENCODERS if name in av.codecs_available), None)


def write_mp4(frames: ArrayLike, path: Path, fps: float = 8.0, min_side: int = 256) -> None:
    """Write frames as H.264 (else MPEG-4) in an mp4; the file appears whole or not at all.

    Args:
        frames: ``[F, H, W, 3]``, floats in 0..1 or uint8.
        path: where to write; its folder must exist.
        fps: frames a second.
        min_side: small videos are enlarged by a whole factor, without smoothing, until both sides have this many
            pixels, so that they can be watched.

    Raises:
        OutputError: the frames have another shape, there is no encoder, or the file cannot be written.
    """
    import av

    video = _as_bytes(frames, ("frames", "height", "width", "3"))
    encoder = video_encoder()
    if encoder is None:
        raise OutputError(f"PyAV has none of the encoders {', '.join(_ENCODERS)}. Install its wheel: pip install av")
    video = _enlarged(video, min_side)
    video = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]  # 4:2:0 halves both sides

    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = cast(Foreign, container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1000)))
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = _ENCODERS[encoder]
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_png(image: ArrayLike, path: Path, min_side: int = 256) -> None:
    """Write one still as PNG; the file appears whole or not at all.

    Args:
        image: ``[H, W, 3]``, floats in 0..1 or uint8.
        path: where to write; its folder must exist.
        min_side: as in :func:`write_mp4`.

    Raises:
        OutputError: the image has another shape, or the file cannot be written.
    """
    from PIL import Image

    pixels = _enlarged(_as_bytes(image, ("height", "width", "3"))[None], min_side)[0]
    partial = path.with_name(f".{path.name}.partial")
    try:
        Image.fromarray(pixels).save(partial, format="png")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_image(path: Path) -> Image:
    """An image file as RGB, as pipelines take it. Raises ``UsageError`` where it is none."""
    from PIL import Image as images

    try:
        return images.open(path).convert("RGB")
    except OSError as error:
        raise UsageError(f"{path} cannot be read as an image: {error}. Give a PNG or JPEG.") from error


def _as_bytes(pixels: ArrayLike, axes: tuple[str, ...]) -> NDArray[np.uint8]:
    array = np.asarray(pixels)
    if array.ndim != len(axes) or array.shape[-1] != 3 or 0 in array.shape:
        what = "a video" if "frames" in axes else "a still"
        raise OutputError(f"{what} of shape {array.shape} cannot be written: expected [{', '.join(axes)}].")
    if array.dtype != np.uint8:
        array = (np.clip(np.nan_to_num(array), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return array


def _enlarged(video: NDArray[np.uint8], min_side: int) -> NDArray[np.uint8]:
    """Enlarge by a whole factor, so that the shorter side of ``[F, H, W, 3]`` has at least ``min_side`` pixels."""
    factor = max(1, -(-min_side // min(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)
