"""Films are read as PyAV decodes them, and open no other file; what is written keeps times and sound."""

from pathlib import Path

import av
import numpy as np
import pytest

from bbdm.pictures import header, read
from bbdm.pictures.formats import pyav
from tests.films import decoded, moving, times, write_film

ALL = slice(None)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_frames_are_those_of_pyav_in_any_order(suffix: str, tmp_path: Path):
    path = write_film(tmp_path / f"a{suffix}", moving(40))
    frames = decoded(path)
    head = header(path)
    assert head.shape == (3, 40, 16, 16)
    assert head.geometry.kept["seconds"] == pytest.approx(1 / 12)
    assert (np.moveaxis(np.asarray(read(path)), 0, -1) == frames).all()
    for index in (39, 2, 3, 20, 19, 0):
        window = read(path, (slice(index, index + 1), slice(2, 9), ALL))
        assert (np.moveaxis(np.asarray(window), 0, -1)[0] == frames[index, 2:9]).all()


def test_a_film_that_a_telephone_turned_is_upright(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=12)
        video.height, video.width = 16, 24
        video.pix_fmt = "yuv444p"
        video.set_display_rotation(90)
        for frame in moving(3, 16, 24):
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode(None))
    assert header(path).shape == (3, 3, 24, 16)
    upright = np.rot90(decoded(path), 1, axes=(1, 2))
    assert (np.moveaxis(np.asarray(read(path)), 0, -1) == upright).all()


def test_a_film_that_changes_is_read_anew(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", moving(3))
    before = np.asarray(read(path))
    write_film(path, 255 - moving(5))
    assert before.shape[1] == 3
    assert (np.moveaxis(np.asarray(read(path)), 0, -1) == decoded(path)).all()


def test_each_process_has_a_decoder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Forked workers share the place in a file that is open: one would read where the other has been."""
    path = write_film(tmp_path / "a.mp4", moving(12))
    frames = decoded(path)
    head = header(path)
    opened: list[Path] = []
    original = pyav.opened
    monkeypatch.setattr(pyav, "opened", lambda path: opened.append(path) or original(path))
    for process in (1, 2, 1):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        window = read(head, (slice(7, 8), ALL, ALL))
        assert (np.moveaxis(np.asarray(window), 0, -1)[0] == frames[7]).all()
    assert opened == [path, path]


def test_films_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A training reads single frames of many films in random order: each is opened again, and no more."""
    heads = [
        header(write_film(tmp_path / f"{number}.mp4", moving(6))) for number in range(2 * pyav.OPEN)
    ]
    monkeypatch.setattr(
        pyav, "index_of", lambda path: pytest.fail("a film is looked through again")
    )
    for number in (0, 7, 3, 5, 0):
        assert read(heads[number], (slice(2, 3), ALL, ALL)).shape == (3, 1, 16, 16)


def test_what_is_no_film_is_refused(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", moving(20))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(
        ValueError, match=r"cannot read the picture .*a\.mp4: it is damaged, or no film"
    ):
        header(path)
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        audio = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate = 44100
        output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    with pytest.raises(ValueError, match="it has no stream of video"):
        header(tmp_path / "sound.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_playlists_and_scripts_open_no_other_file(suffix: str, tmp_path: Path):
    secret = write_film(tmp_path / "secret.mp4", moving(3))
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "sdp": f"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{secret}\n",
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_text(text)
        with pytest.raises(ValueError, match="it is damaged, or no film of its suffix"):
            header(path)


def after_sound(path: Path) -> list[float]:
    """When each frame is shown, in seconds from the first sound: Matroska moves both, to begin at 0."""
    with av.open(str(path)) as film:
        first = min(
            float(packet.pts * packet.time_base)
            for packet in film.demux(audio=0)
            if packet.pts is not None
        )
    return [time - first for time in times(path)]


@pytest.mark.parametrize(("exact", "name"), [(False, "b.mp4"), (False, "b.mkv"), (True, "b.mkv")])
def test_a_film_of_results_keeps_times_and_sound(exact: bool, name: str, tmp_path: Path):
    source = write_film(tmp_path / "a.mp4", moving(24, 48, 63), rate=12, sound=True)
    results = 255 - moving(24, 48, 63)
    pyav.write_film(tmp_path / name, list(results), source, exact)
    film = decoded(tmp_path / name)
    assert after_sound(tmp_path / name) == pytest.approx(after_sound(source), abs=0.002)
    with av.open(str(tmp_path / name)) as written, av.open(str(source)) as original:
        ours = sum(packet.size for packet in written.demux(audio=0))
        theirs = sum(packet.size for packet in original.demux(audio=0))
    assert ours == theirs
    if exact:
        assert (film == results).all()
    else:
        assert film.shape == (24, 48, 64, 3)  # an even width: the last column is there twice
        assert np.abs(film[:, :, :63].astype(int) - results).mean() < 5
