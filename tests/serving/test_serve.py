"""`bbdm serve` in a process of its own: clients, overload, deaths, hostile requests, shared clusters."""

import asyncio
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from bbdm import BridgeSampler, demo
from tests.conftest import ROOT, wait_until
from tests.serving.pictures import GOOD, HOSTILE, encoded, picture, png_of

pytestmark = pytest.mark.nightly
CHUNKS = object()  # stands for 2 MB in chunks, without a length


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


def test_a_server_by_windows(start: Callable[..., Server], checkpoint: Path):
    server = start("--window", "8", "--steps", "2")
    reply = server.ask("POST", "/?seed=0", encoded(picture(0)))
    by_windows, whole = (expected(checkpoint, 1, steps=2, window=window)[0] for window in (8, None))
    assert is_right(reply, by_windows)
    assert not is_right(reply, whole)


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


def test_refusals_and_health_with_200_clients(start: Callable[..., Server], capsys: pytest.CaptureFixture[str]):
    """While a network runs for long. They come within 3 seconds, and ask again when they were told to."""
    server = start("--max_steps", "1000")
    body = encoded(picture(0, (128, 128)))
    calm = sorted(asyncio.run(asked(server.port, "GET /health"))[1] for _ in range(51))[25]
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
    assert max(refused) < max(1, 100 * calm)  # a busy machine is calm too
    assert sorted(healthy)[int(0.95 * len(healthy))] < max(0.2, 20 * calm)
    assert max(healthy) < max(1, 100 * calm)  # as all arrive


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
    wait_until(lambda: len(server.replicas()) == 2, "another replica", 60)
    after = server.replicas()
    assert max(before) in after
    assert min(before) not in after


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
