"""`bbdm serve`: checks of requests every day, a server on this machine every night."""

import asyncio
import http.client
import io
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, demo, save_checkpoint
from bbdm.cli import serve
from bbdm.serving.batching import Item, Made, translate_together
from bbdm.serving.requests import (
    FAILED,
    HEADER_BYTES,
    RequestError,
    ServeConfig,
    Served,
    check_headers,
    facts,
    read_picture,
    read_query,
)
from tests.conftest import ROOT, noise, tiny_unet

SIZE = 16
STRIDE = 8
SERVED = Served(
    ServeConfig(model=Path("c.pt"), max_bytes=4096, max_pixels=64 * 64, max_steps=20), 3, STRIDE, "dpm2m", 10
)


def picture(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    return noise(seed, *size)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file whose header claims a size, with compressed rows of its own."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = encoded(picture())
CHUNKS = object()  # stands for 2 MB in chunks, without a length
HOSTILE: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 415),
    "text": (b"hello", 415),
    "zip": (b"PK\x03\x04" + bytes(100), 415),
    "gif": (encoded(picture(), "gif"), 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "truncated": (GOOD[: len(GOOD) // 2], 400),
    "truncated jpeg": (encoded(picture(), "jpeg")[:-200], 400),
    "signature alone": (GOOD[:8], 415),
    "damaged": (GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:], 400),
    "bomb": (png_of(50000, 50000, bytes(1000)), 400),
    "more pixels than Pillow takes": (png_of(2**31 - 1, 2**31 - 1, b""), 400),
    "thin": (png_of(1, 4096, bytes(2 * 4096)), 422),  # 8 x 4096 where padded
    "no pixels": (png_of(8, 8, b""), 400),
    "float": (encoded(Image.new("F", (8, 8)), "tiff"), 415),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_good_picture_is_refused(name: str):
    data, status = HOSTILE[name]
    with pytest.raises(RequestError) as caught:
        read_picture(data, SERVED)
    assert caught.value.status == status, caught.value


def test_pictures_are_read_and_a_bomb_is_not():
    """10 MB of zeros in 10 KB."""
    for kind in ("png", "jpeg", "webp"):
        read = read_picture(encoded(Image.new("L", (SIZE, 2 * SIZE), 99), kind), SERVED)
        assert (read.mode, read.size) == ("RGB", (SIZE, 2 * SIZE))
        assert abs(int(np.asarray(read).mean()) - 99) <= 1
    began = time.process_time()
    with pytest.raises(RequestError, match=r"at most 4096 pixels, .* multiples of 8; got 4000 x 2500"):
        read_picture(png_of(4000, 2500, bytes(10**7)), SERVED)
    assert time.process_time() - began < 1


def test_queries_are_checked():
    assert read_query([("solver", "ddim"), ("seed", "7")], SERVED) == ("ddim", 10, 7)
    assert read_query([("steps", "3"), ("seed", "0")], SERVED) == ("dpm2m", 3, 0)
    *unset, drawn = read_query([], SERVED)
    assert unset == [None, None]
    assert 0 <= drawn < 2**32
    for given, message in (
        (("steps", "21"), r"steps must be an integer from 1 to 20, got '21'"),
        (("steps", "-1"), "steps must be an integer"),
        (("steps", "1e1"), "steps must be an integer"),
        (("steps", "٣"), "steps must be an integer"),
        (("seed", str(2**63)), "seed must be an integer from 0"),
        (("seed", "9" * 5000), "seed must be an integer from 0"),
        (("solver", "../dpm2m"), r"solver must be one of .*dpm2m.*; got '\.\./dpm2m'"),
        (("model", "x"), "the query takes solver, steps, seed, each once; got 'model'"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            read_query([given], SERVED)
        assert caught.value.status == 422
    with pytest.raises(RequestError, match="each once; got 'seed'"):
        read_query([("seed", "1"), ("seed", "2")], SERVED)


def test_headers_are_checked():
    check_headers([("content-length", "4096"), ("host", "x")], SERVED)
    for header, status in (
        (("Content-Length", "4097"), 413),
        (("content-length", "9" * 30), 413),
        (("content-length", "-1"), 400),
        (("x", "y" * HEADER_BYTES), 431),
    ):
        with pytest.raises(RequestError) as caught:
            check_headers([header], SERVED)
        assert caught.value.status == status


def test_settings_are_checked():
    assert serve.parse(["c.pt"]).host == "127.0.0.1"
    for flag in ("--replicas", "--max_batch_size", "--max_queued", "--max_bytes", "--max_pixels", "--max_steps"):
        with pytest.raises(ValueError, match=f"{flag[2:]} must be at least 1, got 0"):
            serve.parse(["c.pt", flag, "0"])
    for port, message in (("-1", "at least 0, got -1"), ("65536", "at most 65535, got 65536")):
        with pytest.raises(ValueError, match=f"port must be {message}"):
            serve.parse(["c.pt", "--port", port])


def test_requests_of_several_kinds_are_not_mixed():
    """Each picture is what a sampler makes of it alone, with its own solver, steps and seed."""
    sampler = BridgeSampler(tiny_unet(condition_channels=3), ABridge(num_steps=50))
    kinds = [("ddim", 2), ("sde-dpm2m", 3), (None, None), ("ancestral", 3), ("ddim", 2), ("ddim", 3)]
    shapes = [(16, 16), (24, 8)]
    items = [Item(np.asarray(picture(i, shapes[i % 2])), *kinds[i % 6], seed=i) for i in range(12)]
    made = translate_together(sampler, items, 8)
    batches: list[int] = []
    for item, result in zip(items, made, strict=True):
        if isinstance(result, RequestError):
            assert (item.solver, result.status) == ("ancestral", 422)
            assert "ancestral" in str(result)
            continue
        alone = sampler([item.pixels], seed=item.seed, solver=item.solver, steps=item.steps)[0]
        assert np.abs(result.pixels.astype(int) - alone.astype(int)).max() <= 1
        batches.append(result.batch)
    assert batches == [4, 2, 2, 4, 2] * 2


def test_pictures_by_windows_are_those_of_the_sampler(tmp_path: Path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, tiny_unet(condition_channels=3), ABridge(num_steps=50))
    config = serve.parse([str(path), "--window", "16", "--margin", "2", "--steps", "2"])
    sampler = config.sampler(path, "cpu")
    source = picture(0, (24, 40))
    (made,) = translate_together(sampler, [Item(np.asarray(source), None, None, 5)], 8, **config.windows)
    assert isinstance(made, Made)
    for window, same in ((16, True), (None, False)):
        alone = sampler(source, seed=5, window=window, margin=2)[0]
        assert (np.abs(made.pixels.astype(int) - np.asarray(alone, int)).max() <= 1) == same
    with pytest.raises(ValueError, match="window must be a multiple of the network's stride 2, got 15"):
        facts(serve.parse([str(path), "--window", "15"]))


def test_a_lack_of_memory_fails_the_pictures_of_one_size(caplog: pytest.LogCaptureFixture):
    def sampler(sources: list[Any], **_: Any) -> list[Any]:
        if sources[0].shape[0] > SIZE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sources

    pictures = [np.asarray(picture(size=(SIZE, height))) for height in (SIZE, 2 * SIZE, 8)]
    made = translate_together(sampler, [Item(pixels, None, None, 0) for pixels in pictures], 8)
    good, bad, other = made
    assert isinstance(good, Made)
    assert isinstance(other, Made)
    assert isinstance(bad, RequestError)
    assert (bad.status, str(bad)) == (500, FAILED)
    assert "CUDA out of memory" in caplog.text


@pytest.fixture
def serving() -> Any:
    from bbdm.serving import serving

    return serving


def posted() -> Any:
    """A request with a good picture."""
    from starlette.requests import Request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": GOOD}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"host", b"x")]}
    return Request(scope, receive)


@pytest.mark.parametrize("status", [422, 500])
def test_the_door_answers_with_the_status_of_a_picture(status: int, serving: Any):
    async def translate(_: Item) -> RequestError:
        return pickle.loads(pickle.dumps(RequestError(status, "why")))

    replicas: Any = SimpleNamespace(translate=SimpleNamespace(remote=translate))
    response = asyncio.run(serving.Door(replicas, SERVED)(posted()))
    assert (response.status_code, response.body) == (status, b"why\n")


def test_the_door_refuses_more_than_it_accepts_at_once(serving: Any):
    """While all that it accepted wait: two batches of each replica, and the queue."""
    config = ServeConfig(model=Path("c.pt"), replicas=2, max_batch_size=2, max_queued=3)

    async def visits() -> tuple[list[Any], Any]:
        waiting = asyncio.Event()

        async def translate(item: Item) -> Made:
            await waiting.wait()
            return Made(item.pixels, 1)

        replicas: Any = SimpleNamespace(translate=SimpleNamespace(remote=translate))
        door = serving.Door(replicas, replace(SERVED, config=config))
        accepted = [asyncio.ensure_future(door(posted())) for _ in range(2 * 2 * 2 + 3)]
        await asyncio.sleep(0)  # until each has begun
        refused = await door(posted())
        waiting.set()
        return await asyncio.gather(*accepted), refused

    accepted, refused = asyncio.run(visits())
    assert [response.status_code for response in accepted] == [200] * 11
    assert (refused.status_code, refused.body) == (503, b"all replicas are busy, and the queue is full\n")
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("address", "ended"), [(None, "shutdown"), ("auto", "delete bbdm")])
def test_an_error_leaves_nothing_and_spares_others(address: Any, ended: str, serving: Any, monkeypatch: Any):
    calls: list[str] = []

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no replica started")

    ends = {"shutdown": lambda: calls.append("shutdown"), "delete": lambda name: calls.append(f"delete {name}")}
    ray_serve = SimpleNamespace(start=lambda **_: None, run=fail, **ends)
    monkeypatch.setattr(serving, "_port", lambda _: 8000)
    monkeypatch.setattr(serving, "room_for", lambda _: (1, False))
    monkeypatch.setattr(serving, "application", lambda *_: None)
    monkeypatch.setattr(serving, "serve", ray_serve)
    with pytest.raises(RuntimeError, match="no replica started"):
        serving.run(replace(SERVED, config=ServeConfig(model=Path("c.pt"), threads=1, address=address)))
    assert calls == [ended]


def test_a_cluster_that_serves_keeps_its_address_and_applications(serving: Any, monkeypatch: pytest.MonkeyPatch):
    applications = {"other": {"route_prefix": "/other"}}
    listening = SimpleNamespace(host="127.0.0.1", port=8123)
    client = SimpleNamespace(http_config=listening, get_serve_details=lambda: {"applications": applications})
    monkeypatch.setattr(serving, "_get_global_client", lambda **_: client)

    def port(**settings: Any) -> int:
        return serving._port(ServeConfig(model=Path("c.pt"), address="auto", **settings))

    assert port(port=0) == port(port=8123) == 8123
    for settings, got in (({"port": 8000}, "127.0.0.1:8000"), ({"host": "0.0.0.0", "port": 0}, "0.0.0.0:0")):
        with pytest.raises(ValueError, match=f"those of the cluster's Serve, 127.0.0.1:8123, got {got}"):
            port(**settings)
    for name, route in (("bbdm", "/x"), ("default", "/")):
        applications[name] = {"route_prefix": route}
        with pytest.raises(ValueError, match=f"no application 'bbdm' or at the route /, got '{name}' there"):
            port(port=0)
        del applications[name]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """`bbdm serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def family(self) -> list[psutil.Process]:
        """The process, and all that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def memory(self) -> int:
        """Resident bytes of the family."""
        return sum(each.memory_info().rss for each in self.family())

    def replicas(self) -> set[int]:
        """The processes that hold a sampler."""
        titles = {each.pid: " ".join(each.cmdline()) for each in self.family()}
        return {pid for pid, title in titles.items() if re.search(r"ServeReplica:\w+:Replica\b", title)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "c.pt"
    save_checkpoint(path, tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=SIZE)
    return path


def launch(checkpoint: Path, *flags: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """`bbdm serve` in a process of its own."""
    command = [sys.executable, "-m", "bbdm", "serve", str(checkpoint), "--port", "0", "--threads", "1", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Callable[..., Server]]:
    """start(*flags, checkpoint=that of a tiny network): a server that is ready."""
    started: list[Server] = []

    def start(*flags: str, checkpoint: Path = checkpoint) -> Server:
        process = launch(checkpoint, *flags)
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.fullmatch(r"serving .* on http://127\.0\.0\.1:(\d+)\n", line)
        assert port is not None, line
        started.append(Server(process, int(port[1])))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()


def expected(checkpoint: Path, count: int, **call: Any) -> list[np.ndarray[Any, Any]]:
    """What one process makes of pictures 0, 1, ... with the seeds 0, 1, ..."""
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    return [np.asarray(sampler(picture(i), seed=i, **call)[0], dtype=int) for i in range(count)]


def is_right(reply: Reply, wanted: np.ndarray[Any, Any]) -> bool:
    made = np.asarray(Image.open(io.BytesIO(reply.body)), dtype=int)
    return made.shape == wanted.shape and int(np.abs(made - wanted).max()) <= 1


@pytest.mark.nightly
@pytest.mark.parametrize("batch", [1, 8])
def test_clients_get_their_pictures(batch: int, start: Callable[..., Server], capsys: pytest.CaptureFixture[str]):
    """16 clients for a minute, with two kinds of requests, of the bundled network; times are printed."""
    server = start("--max_batch_size", str(batch), "--batch_wait_ms", "50", "--steps", "5", checkpoint=demo.WEIGHTS)
    paths = sorted(demo.DRAWINGS.glob("*.png"))
    bodies = [path.read_bytes() for path in paths]
    kinds: list[tuple[str, dict[str, Any]]] = [("", {"steps": 5}), ("&steps=3", {"steps": 3})]
    alone = BridgeSampler.from_checkpoint(demo.WEIGHTS)
    wanted = [
        [np.asarray(alone(path, seed=i, **call)[0], dtype=int) for i, path in enumerate(paths)] for _, call in kinds
    ]
    until = time.monotonic() + float(os.environ.get("SECONDS_OF_LOAD", "60"))

    def client(number: int) -> list[float]:
        """The seconds of each request."""
        seconds: list[float] = []
        while time.monotonic() < until:
            index, kind = (number + len(seconds)) % len(paths), len(seconds) % 2
            began = time.monotonic()
            reply = server.ask("POST", f"/?seed={index}{kinds[kind][0]}", bodies[index])
            seconds.append(time.monotonic() - began)
            assert reply.status == 200
            assert reply.headers["x-seed"] == str(index)
            assert is_right(reply, wanted[kind][index])
        return seconds

    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        seconds = sorted(second for seconds in pool.map(client, range(16)) for second in seconds)
    rate = len(seconds) / (time.monotonic() - began)
    half, worst = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    with capsys.disabled():
        print(f"\nbatches of {batch}: {rate:.2f} requests a second, p50 {half:.2f} s, p99 {worst:.2f} s")
    metrics = server.ask("GET", "/metrics").body.decode()
    assert f'bbdm_requests_total{{status="200"}} {len(seconds)}.0' in metrics
    single = re.search(r'bbdm_batch_pictures_bucket\{le="1\.0"\} (\S+)', metrics)
    assert single is not None
    assert (float(single[1]) < len(seconds)) == (batch > 1)
    assert server.ask("GET", "/health").body == b"ok\n"


@pytest.mark.nightly
def test_a_server_by_windows(start: Callable[..., Server], checkpoint: Path):
    server = start("--window", "8", "--steps", "2")
    reply = server.ask("POST", "/?seed=0", encoded(picture(0)))
    by_windows, whole = (expected(checkpoint, 1, steps=2, window=window)[0] for window in (8, None))
    assert is_right(reply, by_windows)
    assert not is_right(reply, whole)


@pytest.mark.nightly
def test_overload_is_answered_and_nothing_accepted_is_lost(start: Callable[..., Server], checkpoint: Path):
    server = start("--max_batch_size", "2", "--max_queued", "4")
    wanted = expected(checkpoint, 8, steps=40)

    def client(number: int) -> Reply:
        return server.ask("POST", f"/?seed={number % 8}&steps=40", encoded(picture(number % 8)))

    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(client, range(256)))
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} == {200, 503}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert all(is_right(reply, wanted[i % 8]) for i, reply in enumerate(replies) if reply.status == 200)
    assert server.ask("POST", "/", encoded(picture())).status == 200


async def asked(port: int, request: str, body: bytes = b"") -> tuple[int, float, int]:
    """The status of a request, its seconds, and those to wait then; without a thread for each client."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    seconds = time.monotonic() - began
    writer.close()
    later = re.search(r"retry-after: (\d+)", head)
    return int(head.split()[1]), seconds, int(later[1]) if later else 0


@pytest.mark.nightly
def test_refusals_and_health_with_200_clients(start: Callable[..., Server], capsys: pytest.CaptureFixture[str]):
    """While a network runs for long. They come within 3 seconds, and ask again when they were told to."""
    server = start("--max_steps", "1000")
    body = encoded(picture(0, (128, 128)))
    until = time.monotonic() + float(os.environ.get("SECONDS_OF_LOAD", "20"))
    refused: list[float] = []
    healthy: list[float] = []

    async def client(number: int) -> None:
        await asyncio.sleep(number * 3 / 200)
        while time.monotonic() < until:
            status, seconds, later = await asked(server.port, f"POST /?seed={number}&steps=49", body)
            assert (status, later > 0) in ((200, False), (503, True))
            if status == 503:
                refused.append(seconds)
                await asyncio.sleep(later)

    async def watch() -> None:
        while time.monotonic() < until:
            status, seconds, _ = await asked(server.port, "GET /health")
            assert status == 200
            healthy.append(seconds)
            await asyncio.sleep(0.1)

    async def load() -> None:
        clients = [asyncio.create_task(client(number)) for number in range(200)]
        await watch()
        for each in clients:  # those that were accepted wait for long
            each.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(ended, Exception):  # not CancelledError
                raise ended

    asyncio.run(load())
    with capsys.disabled():
        for name, each in (("refusals", sorted(refused)), ("health", sorted(healthy))):
            shares = ", ".join(f"{share:.0%} {each[int(share * len(each))]:.3f} s" for share in (0.5, 0.95))
            print(f"\n{len(each)} {name}: {shares}, latest {each[-1]:.3f} s")
    assert len(refused) >= 200 - 2 * 8 - 64
    assert max(refused) < 1
    assert sorted(healthy)[int(0.95 * len(healthy))] < 0.2
    assert max(healthy) < 1  # as all arrive


@pytest.mark.nightly
def test_pictures_of_a_replica_that_dies_are_made_by_another(start: Callable[..., Server], checkpoint: Path):
    """One of two is killed while both translate: all get their pictures, and a new one takes its place."""
    server = start("--replicas", "2", "--max_batch_size", "2")
    wanted = expected(checkpoint, 8, steps=40)
    before = server.replicas()
    assert len(before) == 2
    made: list[bool] = []

    def client(number: int) -> None:
        for index in range(8):
            reply = server.ask("POST", f"/?seed={index}&steps=40", encoded(picture(index)))
            made.append(reply.status == 200 and is_right(reply, wanted[index]))

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        while len(made) < 32:
            time.sleep(0.01)
        os.kill(min(before), signal.SIGKILL)
        assert len(made) < 96
        for each in clients:
            each.result()
    assert made == [True] * 128
    until = time.monotonic() + 60
    while len(after := server.replicas()) < 2:
        assert time.monotonic() < until
        time.sleep(0.5)
    assert max(before) in after
    assert min(before) not in after


@pytest.mark.nightly
def test_hostile_requests_are_refused_and_memory_stays(start: Callable[..., Server]):
    server = start("--max_bytes", "100000", "--max_pixels", "65536")
    paths = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/examples/serve.py"]
    queries = ["/?solver=../x", "/?steps=999999", "/?seed=-1", "/?path=/etc/passwd"]
    bodies = [data for name, (data, _) in HOSTILE.items() if name != "thin"]
    bodies += [png_of(8000, 8000, bytes(10**7)), bytes(200_000), bytes(10**7)]
    asked: list[tuple[str, str, Any, dict[str, str]]] = [
        *(("POST", "/", body, {}) for body in bodies),
        *((method, path, GOOD, {}) for path in paths for method in ("POST", "GET")),
        *(("POST", path, GOOD, {}) for path in queries),
        *((method, "/", GOOD, {}) for method in ("PUT", "DELETE", "PATCH", "GET")),
        ("POST", "/", GOOD, {"x": "y" * 30_000}),
        ("POST", "/", GOOD, {"x": "y" * 1_000_000}),
        ("POST", "/", GOOD, {"content-length": "99999999999"}),
        ("POST", "/", None, {}),
        ("POST", "/", CHUNKS, {}),
    ]

    def hostile(request: tuple[str, str, Any, dict[str, str]]) -> int:
        method, path, body, headers = request
        body = iter([bytes(1000)] * 2000) if body is CHUNKS else body
        try:
            return server.ask(method, path, body, headers).status
        except (ConnectionError, http.client.HTTPException):  # it closed the connection before all was sent
            return 499

    assert {hostile(request) // 100 for request in asked} == {4}
    assert server.ask("POST", "/", GOOD).status == 200
    before = server.memory()
    for index in range(200):
        assert hostile(asked[index % len(asked)]) // 100 == 4, asked[index % len(asked)][:2]
    assert server.ask("POST", "/", GOOD).status == 200
    assert server.memory() < before + 50e6


@pytest.mark.nightly
def test_sigterm_finishes_what_was_accepted(start: Callable[..., Server], checkpoint: Path):
    server = start("--max_batch_size", "2", "--max_steps", "2000")
    wanted = expected(checkpoint, 8, steps=49)
    replies: dict[int, Reply] = {}

    def client(number: int) -> None:
        replies[number] = server.ask("POST", f"/?seed={number}&steps=49", encoded(picture(number)))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while "bbdm_open_requests 8.0" not in server.ask("GET", "/metrics").body.decode() and len(replies) < 4:
        time.sleep(0.01)
    assert len(replies) < 8
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert [replies[number].status for number in range(8)] == [200] * 8
    assert all(is_right(replies[number], wanted[number]) for number in range(8))
    with pytest.raises(ConnectionError):
        server.ask("GET", "/health")


@pytest.mark.nightly
def test_ray_listens_on_the_loopback(start: Callable[..., Server]):
    """All but a port of each of the two deployments, for which Ray Serve has no setting."""
    every: list[Any] = [each for process in start().family() for each in process.net_connections("tcp")]
    here = {each.laddr for each in every if each.status == psutil.CONN_LISTEN}
    assert len(here) > 2
    assert len([place for place in here if not place.ip.endswith(("127.0.0.1", "::1"))]) <= 2


SHARED = """
import ray, sys
from pathlib import Path
from ray import serve
from bbdm.serving import serving
from bbdm.serving.connection import connected
from bbdm.serving.requests import ServeConfig

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    def __call__(self, _):
        return "other"

with connected(None):
    port = serving._port(ServeConfig(model=Path("c.pt"), port=0))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Other.bind(), name="other", route_prefix="/other")
    print(ray.get_runtime_context().gcs_address, port, flush=True)
    sys.stdin.read()
    print(*serve.status().applications)
"""


@pytest.mark.nightly
def test_a_shared_cluster_keeps_what_others_serve(start: Callable[..., Server], checkpoint: Path, monkeypatch: Any):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray replaces the loopback's address
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    command = [sys.executable, "-c", SHARED]  # threads of Ray Serve would stay in this process
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as shared:
        assert shared.stdout is not None
        address, port = shared.stdout.readline().split()
        for _ in range(2):  # the first leaves its place to the second
            server = start("--address", address)
            assert server.port == int(port)
            reply = server.ask("POST", "/?seed=0&steps=3", encoded(picture()))
            assert is_right(reply, expected(checkpoint, 1, steps=3)[0])
            for asked, message in (
                ("0", "no application 'bbdm' or at the route /, got 'bbdm' there"),
                ("1", f"those of the cluster's Serve, 127.0.0.1:{port}, got 127.0.0.1:1"),
            ):
                refused = launch(checkpoint, "--address", address, "--port", asked, stderr=subprocess.PIPE)
                assert message in refused.communicate(timeout=120)[1]
                assert refused.returncode == 1
            assert server.stop() == 0
            assert server.ask("GET", "/other").body == b"other"
        assert shared.communicate()[0] == "other\n"
