"""Writing a video file that players and browsers show, with the encoder that PyAV brings along."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OutputError

# Any browser plays H.264; builds of PyAV without it still have MPEG-4, which players show.
_ENCODERS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "mpeg4": {"qscale": "2"},
}


def video_encoder() -> str | None:
    """The encoder that :func:`write_mp4` uses here; ``None`` where PyAV was built without any of them."""
    import av

    return next((name for name in _ENCODERS if name in av.codecs_available), None)


def write_mp4(frames: Any, path: Path, fps: float = 8.0, min_side: int = 256) -> None:
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

    video = np.asarray(frames)
    if video.ndim != 4 or video.shape[-1] != 3 or video.shape[0] == 0:
        raise OutputError(f"a video of shape {video.shape} cannot be written: expected [frames, height, width, 3].")
    if video.dtype != np.uint8:
        video = (np.clip(np.nan_to_num(video), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    encoder = video_encoder()
    if encoder is None:
        raise OutputError(f"PyAV has none of the encoders {', '.join(_ENCODERS)}. Install its wheel: pip install av")
    factor = max(1, -(-min_side // min(video.shape[1:3])))
    video = video.repeat(factor, axis=1).repeat(factor, axis=2)
    video = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]  # 4:2:0 halves both sides

    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream: Any = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1000))
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
