"""Small films for tests: written by PyAV, of frames that are known."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3)


def moving(count: int = 10, height: int = 16, width: int = 16) -> Frames:
    """A square that moves over a gradient, by a pixel in each frame."""
    rows, columns = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[..., 0] = 240 * rows // height
    frames[..., 1] = 180 * columns // width
    frames[..., 2] = 128
    for index in range(count):
        frames[index, 4:9, index : index + 5] = (230, 40, 40)
    return frames


def write_film(path: Path, frames: Frames, rate: int = 12, sound: bool = False) -> Path:
    """A film of frames in H.264, with a silent stream of sound where that is wanted."""
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=rate)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv444p"
        audio: Any = output.add_stream("aac", rate=44100) if sound else None
        for frame in frames:
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode(None))
        if audio is not None:
            silence = np.zeros((2, 1024), np.float32)
            for number in range(len(frames) * 44100 // rate // 1024):
                sounds = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
                sounds.sample_rate = 44100
                sounds.pts = number * 1024
                output.mux(audio.encode(sounds))
            output.mux(audio.encode(None))
    return path


def decoded(path: Path) -> Frames:
    """(T, H, W, 3) of a film, by PyAV's own loop."""
    with av.open(str(path)) as film:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])


def times(path: Path) -> list[float]:
    """When each frame is shown, in seconds."""
    with av.open(str(path)) as film:
        return [float(frame.time) for frame in film.decode(video=0)]
