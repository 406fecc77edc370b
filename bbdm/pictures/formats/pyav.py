"""Films by PyAV: the first stream of video as a picture (C, T, H, W) of 8-bit colours, and films written.

The demuxer is fixed by the suffix, so that no playlist under a film's name opens other files. A decoder stays
open between reads, since frames are mostly read one after the other.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.picture import PHOTOGRAPH, Geometry, Header

DEMUXERS = {".mp4": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
OPTIONS = {"protocol_whitelist": "file", "enable_drefs": "0", "use_absolute_path": "0"}
OPEN = 4  # films whose decoders stay open
KEPT = 16  # frames of a film that are kept: those around a frame, as long as they are read again
USUAL_RATE = 25  # frames a second of a film that does not say it
QUALITY = "16"  # of H.264, its constant rate factor: errors of a few levels

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Index:
    """Where the frames of a film are, which is read once.

    Args:
        times: when each frame is shown, in units of ``time_base``.
        time_base: the seconds of a unit.
        size: (height, width) of a frame, upright.
        turns: by 90 degrees that make a frame upright, as a telephone says.
        rate: frames a second; None where the film does not say it.
    """

    times: Sequence[int]
    time_base: Fraction
    size: tuple[int, int]
    turns: int
    rate: Fraction | None


class Film:
    """A film that is open, whose frames are decoded.

    Args:
        path: the file of the film.
        index: where its frames are.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self._container = opened(path)
        self._stream = _video(self._container)
        self._stream.thread_type = "AUTO"
        self._times = index.times
        self._turns = index.turns
        self._lock = threading.Lock()
        self._index_of = {time: number for number, time in enumerate(index.times)}
        self._has_times = path.suffix.lower() != ".avi"  # whose frames have none of their own
        self._kept: OrderedDict[int, Pixels] = OrderedDict()  # by index
        self._frames: Any = None  # decoded one after the other
        self._next = 0  # the index of the frame that they come to

    def frame(self, index: int) -> Pixels:
        """(H, W, 3) of the frame at an index.

        Raises:
            ValueError: it cannot be decoded.
        """
        with self._lock:
            if index not in self._kept:
                self._decode(index)
            if index not in self._kept:
                self._frames = None
                raise ValueError(f"its frame {index} cannot be decoded")
            self._kept.move_to_end(index)
            return self._kept[index]

    def _decode(self, last: int) -> None:
        """Decode up to the frame at an index: on from the last one, or from the key frame before it."""
        if self._frames is None or not self._next <= last <= self._next + KEPT:
            self._next = 0
            self._container.seek(
                self._times[last] if self._has_times else 0, stream=self._stream, backward=True
            )
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            index = self._next
            if self._has_times:
                index = self._index_of.get(frame.pts, index)
            self._next = index + 1
            if index > last - KEPT:
                self._kept[index] = self._upright(frame.to_ndarray(format="rgb24"))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            if index >= last:
                return

    def _upright(self, pixels: Pixels) -> Pixels:
        """Pixels (H, W, 3) turned as the film says."""
        if not self._turns:
            return pixels
        return np.rot90(pixels, self._turns)


def opened(path: Path) -> Any:
    """A container of PyAV, whose format is that of the suffix; OSError or ValueError where it is damaged."""
    av = optional.package("av", "reading films")
    try:
        return av.open(str(path), format=DEMUXERS[path.suffix.lower()], options=dict(OPTIONS))
    except av.error.FFmpegError as error:
        raise ValueError(f"it is damaged, or no film of its suffix: {error.strerror}") from error


def _video(container: Any) -> Any:
    """The first stream of video; ValueError where there is none."""
    streams = container.streams.video
    if not streams:
        raise ValueError("it has no stream of video")
    return streams[0]


def index_of(path: Path) -> Index:
    """The index of a film, of which all packets are looked at and one frame is decoded."""
    with opened(path) as container:
        stream = _video(container)
        packets = container.demux(stream)
        times = sorted(
            packet.pts for packet in packets if packet.pts is not None and not packet.is_discard
        )
        if not times:
            raise ValueError("its stream of video has no frames")
        container.seek(times[0], stream=stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("its first frame cannot be decoded")
        turns = round(first.rotation / 90) % 4
        size = (first.height, first.width)
        if turns % 2:
            size = (first.width, first.height)
        return Index(times, stream.time_base, size, turns, stream.average_rate)


@lru_cache(OPEN)
def _film(path: Path, index: Index, process: int) -> Film:
    """The open film of an index, each process its own: forked ones share the place in a file that is open."""
    return Film(path, index)


def header(path: Path) -> Header:
    """The header of a film: (3, T, H, W) of uint8, and in its geometry the seconds from frame to frame."""
    index = index_of(path)
    kept: dict[str, Any] = {}
    if index.rate:
        kept["seconds"] = float(1 / index.rate)
    geometry = Geometry(format=PHOTOGRAPH, kept=kept)
    shape = (3, len(index.times), *index.size)
    return Header(path, shape, np.dtype(np.uint8), geometry, windowed=True, stored=index)


def read(header: Header, window: windows.Window) -> Pixels:
    """(3, *W) of a window of a film."""
    source = _film(header.path, header.stored, os.getpid())
    moments, rows, columns = window
    if moments.stop - moments.start == 1:
        return source.frame(moments.start)[rows, columns].transpose(2, 0, 1)[:, None]
    shape = (*windows.lengths(window), 3)
    values = np.empty(shape, np.uint8)
    for place, number in enumerate(range(moments.start, moments.stop)):
        values[place] = source.frame(number)[rows, columns]  # while it is in the processor's cache
    return values.transpose(3, 0, 1, 2)


def write_film(path: Path, frames: Iterable[Pixels], source: Path, exact: bool) -> None:
    """Write a film with the times and the sound of another one.

    H.264 needs even sides: the last row or column is repeated where a side is odd. FFV1 keeps all values.

    Args:
        path: of the film, with the suffix of its container.
        frames: (H, W, 3) for each frame of the source, in order.
        source: the film that times and sound are of.
        exact: whether values are kept to the bit, in FFV1.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: the source is no film.
    """
    av = optional.package("av", "writing films")
    timing = index_of(source)
    with (
        opened(source) as original,
        av.open(str(path), "w", format=MUXERS[path.suffix.lower()]) as output,
    ):
        video = output.add_stream("ffv1" if exact else "libx264", rate=timing.rate or USUAL_RATE)
        video.codec_context.time_base = timing.time_base
        video.pix_fmt = "bgr0" if exact else "yuv420p"
        if not exact:
            video.options = {"crf": QUALITY}
        sounds: dict[int, Any] = {}
        for stream in original.streams.audio:
            sounds[stream.index] = output.add_stream_from_template(stream)
        for time, array in zip(timing.times, frames, strict=True):
            shown = array if exact else _with_even_sides(array)
            if not video.codec_context.is_open:
                video.height, video.width = shown.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
            frame.pts = time
            frame.time_base = timing.time_base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sounds:
            for packet in original.demux(*original.streams.audio):
                if packet.dts is not None:  # an empty one ends the stream
                    packet.stream = sounds[packet.stream.index]
                    output.mux(packet)


def _with_even_sides(array: Pixels) -> Pixels:
    """Pixels (H, W, 3) with the last row or column twice where their number is odd."""
    height, width, _ = array.shape
    return np.pad(array, [(0, height % 2), (0, width % 2), (0, 0)], "edge")
