"""`bbdm serve` without a cluster: what it answers, what it refuses, and what it leaves to others."""

import asyncio
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.serving.config import ServeConfig
from bbdm.serving.requests import FAILED, Facts, Item, decode, facts, translate_together
from tests.conftest import noise, tiny_unet
from tests.serving.pictures import FACTS, GOOD, HOSTILE, SIZE, encoded, png_of


@pytest.fixture(scope="module")
def serving() -> Any:
    from bbdm.serving import serving

    return serving


def client(serving: Any, known: Facts, translate: Callable[..., Any]) -> tuple[Any, httpx.AsyncClient]:
    """The front, with a function in place of replicas, and a client of it."""
    replicas: Any = SimpleNamespace(translate=SimpleNamespace(remote=translate))
    front = serving.Front(replicas, known)
    transport = httpx.ASGITransport(front.__serve_build_asgi_app__())
    return front, httpx.AsyncClient(transport=transport, base_url="http://bbdm")


async def echo(data: bytes, *how: Any) -> tuple[int, Any]:
    return 200, data


def test_each_request_gets_its_own_picture(serving: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Of several solvers, steps and sizes at once; a picture is what a sampler makes of it alone."""
    limits: Any = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=16))
    monkeypatch.setattr(serving.serve, "get_replica_context", lambda: limits)
    config = ServeConfig(model=checkpoint, batch_wait_ms=100)
    known, sampler = facts(config), BridgeSampler.from_checkpoint(checkpoint)
    options: list[dict[str, Any]] = [
        *({}, {"steps": 3}, {"solver": "ddim", "steps": 2}, {"solver": "sde-dpm2m", "steps": 3}),
        *({"solver": "mean"}, {"solver": "ancestral"}),
    ]
    pictures = [noise(i, *((16, 16), (24, 8))[i // 6 % 2]) for i in range(18)]

    async def ask() -> list[httpx.Response]:
        _, http = client(serving, known, serving.Replica(config, known, 1).translate)
        requests = [
            http.post("/translate", params={**options[i % 6], "seed": i}, content=encoded(picture))
            for i, picture in enumerate(pictures)
        ]
        return await asyncio.gather(*requests, http.post("/translate", content=GOOD), http.get("/model"))

    *replies, drawn, model = asyncio.run(ask())
    for i, reply in enumerate(replies):
        assert (reply.status_code, reply.headers["x-seed"]) == (200, str(i))
        alone = sampler(pictures[i], i, **options[i % 6])[0]
        got = Image.open(io.BytesIO(reply.content))
        assert np.abs(np.asarray(got, int) - np.asarray(alone, int)).max() <= 1
    again = sampler(noise(0), int(drawn.headers["x-seed"]))[0]
    assert np.abs(np.asarray(Image.open(io.BytesIO(drawn.content)), int) - np.asarray(again, int)).max() <= 1
    about = model.json()
    assert (about["name"], about["image_size"], about["solver"]) == ("c.pt", 16, "dpm2m")
    assert (about["steps"]["mean"], about["steps"]["ancestral"], about["max_steps"]) == (1, 50, 50)


def test_pictures_that_are_translated_alike_are_a_batch():
    batches: list[list[int]] = []

    def sampler(sources: list[Any], seeds: list[int], **_: Any) -> list[Any]:
        batches.append(seeds)
        return sources

    kinds = [((16, 16), "ddim", 2), ((16, 16), "ddim", 3), ((24, 8), "ddim", 2), ((16, 16), None, None)]
    items = [Item(np.asarray(noise(i, *size)), *how, seed=i) for i, (size, *how) in enumerate(kinds * 2)]
    outputs = translate_together(sampler, items)
    assert batches == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert all(output is item.pixels for output, item in zip(outputs, items, strict=True))


def test_a_lack_of_memory_fails_the_pictures_of_one_size(caplog: pytest.LogCaptureFixture):
    def sampler(sources: list[Any], seeds: list[int], solver: Any, **_: Any) -> list[Any]:
        if sources[0].shape[0] > SIZE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if solver is not None:
            raise ValueError("why")
        return sources

    items = [Item(np.asarray(noise(0, SIZE, height)), None, None, 0) for height in (SIZE, 2 * SIZE, 8)]
    good, bad, other, refused = translate_together(sampler, [*items, items[0]._replace(solver="fast")])
    assert good is items[0].pixels
    assert other is items[2].pixels
    assert (bad, refused) == ((500, FAILED), (422, "why"))
    assert "CUDA out of memory" in caplog.text


async def refusal(http: httpx.AsyncClient, status: int, *words: str, **request: Any) -> None:
    """That a request gets a status and one sentence with some words."""
    reply = await http.post("/translate", **request)
    detail = reply.json()["detail"]
    assert (reply.status_code, [word for word in words if word not in detail]) == (status, []), detail
    assert "\n" not in detail
    assert "Traceback" not in detail


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_good_picture_is_refused(name: str, serving: Any):
    data, status = HOSTILE[name]
    replica: Any = SimpleNamespace(known=FACTS, batch=None)  # which is not reached

    async def translate(data: bytes, *how: Any) -> tuple[int, Any]:
        return await serving.Replica.translate(replica, data, *how)

    asyncio.run(refusal(client(serving, FACTS, translate)[1], status, content=data))


def test_pictures_are_read_and_a_bomb_is_not():
    """10 MB of zeros in 10 KB."""
    for kind in ("png", "jpeg", "webp"):
        pixels = decode(encoded(Image.new("L", (SIZE, 2 * SIZE), 99), kind), FACTS)
        assert pixels.shape == (2 * SIZE, SIZE, 3)
        assert abs(int(pixels.mean()) - 99) <= 1
    with pytest.raises(Exception, match=r"at most 4096 pixels, .* multiples of 8; got 4000 x 2500"):
        decode(png_of(4000, 2500, bytes(10**7)), FACTS)


def test_queries_and_bodies_are_checked(serving: Any):
    async def chunks() -> Any:
        for _ in range(5):
            yield bytes(1000)

    async def ask() -> None:
        _, http = client(serving, FACTS, echo)
        queries: list[tuple[Any, ...]] = [
            *(({"steps": "21"}, "steps", "20", "21"), ({"solver": "fast"}, "steps", "20", "199")),
            *(({"steps": value}, "steps", value) for value in ("-1", "1e1", "x", "0")),
            *(({"seed": value}, "seed", value[:20]) for value in (str(2**63), "9" * 5000, "-1", "1.5")),
            *(({"solver": "../dpm2m"}, "solver", "dpm2m", "../dpm2m"), ({"model": "x"}, "model")),
        ]
        for query, *words in queries:
            await refusal(http, 422, *words, content=GOOD, params=query)
        for query in ({"steps": "20"}, {"solver": "mean"}, {"seed": str(2**63 - 1)}):
            assert (await http.post("/translate", content=GOOD, params=query)).status_code == 200
        bodies: list[tuple[Any, ...]] = [(bytes(4097), {}), (chunks(), {}), (b"", {"content-length": "9" * 18})]
        for content, headers in bodies:
            await refusal(http, 413, "4096 bytes", content=content, headers=headers)
        for method, path, status in (("PUT", "/translate", 405), ("POST", "/health", 405), ("GET", "/docs", 404)):
            assert (await http.request(method, path)).status_code == status

    asyncio.run(ask())


def test_a_body_that_does_not_come_is_not_waited_for(serving: Any, monkeypatch: pytest.MonkeyPatch):
    async def slow() -> Any:
        yield GOOD[:10]
        await asyncio.sleep(60)

    monkeypatch.setattr(serving, "BODY_SECONDS", 0.1)
    asyncio.run(refusal(client(serving, FACTS, echo)[1], 408, "0.1 seconds", content=slow()))


def test_what_replicas_do_not_take_or_lose(serving: Any):
    """A full queue is 503 at once; a dead replica's picture is another's; nothing of a defect is shown."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    full = BackPressureError(num_queued_requests=64, max_queued_requests=64)
    for errors, status, words in (
        ([full], 503, "queue is full"),
        ([RayActorError()] * 2, 200, ""),
        ([RayActorError()] * 3, 500, FAILED),
        ([RuntimeError("secret")], 500, FAILED),
    ):
        left = list(errors)

        async def translate(data: bytes, *how: Any, left: list[Any] = left) -> tuple[int, Any]:
            if left:
                raise left.pop()
            return 200, data

        async def ask(translate: Any = translate) -> httpx.Response:
            return await client(serving, FACTS, translate)[1].post("/translate", content=GOOD)

        reply = asyncio.run(ask())
        assert (reply.status_code, left) == (status, [])
        assert reply.content == GOOD if status == 200 else reply.json()["detail"].endswith(words)
        assert ("retry-after" in reply.headers) == (status == 503)


def test_a_closing_server_answers_what_it_accepted(serving: Any):
    async def ask() -> None:
        free = asyncio.Event()

        async def translate(data: bytes, *how: Any) -> tuple[int, Any]:
            await free.wait()
            return 200, data

        front, http = client(serving, FACTS, translate)
        assert (await http.get("/health")).text == "ok\n"
        accepted = asyncio.create_task(http.post("/translate", content=GOOD))
        while not front.open:
            await asyncio.sleep(0)
        closed = asyncio.create_task(front.close())
        await asyncio.sleep(0.2)
        assert not closed.done()
        await refusal(http, 503, "closing", content=GOOD)
        assert (await http.get("/health")).status_code == 503
        assert "bbdm_open_requests 1.0" in (await http.get("/metrics")).text
        free.set()
        assert (await accepted).content == GOOD
        await closed

    asyncio.run(ask())


def test_a_network_is_checked_before_it_is_served(checkpoint: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "c.pt", tiny_unet(condition_channels=3, classes={"style": 2}), ABridge(num_steps=50))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": checkpoint, "window": 15}, "window must be a multiple of the network's stride 2, got 15"),
        ({"model": checkpoint, "max_steps": 9}, "max_steps must be at least the 10 steps of 'dpm2m', got 9"),
        ({"model": tmp_path / "c.pt"}, "without conditions, and this one has style"),
        ({"model": checkpoint, "port": 65536}, "port must be at most 65535, got 65536"),
        *(({"model": checkpoint, name: 0}, f"{name} must be at least 1") for name in ("replicas", "max_queued")),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            facts(ServeConfig(**settings))
    steps = facts(ServeConfig(model=checkpoint, steps=2)).steps
    assert (steps["dpm2m"], steps["mean"], "ancestral" in steps) == (2, 1, False)


@pytest.mark.parametrize(
    ("nodes", "settings", "outcome"),
    [
        ([(8, 0)], {}, (8, 0)),
        ([(8, 0), (8, 0)], {"replicas": 3}, (4, 0)),
        ([(8, 2), (8, 1), (64, 0)], {"replicas": 3}, (4, 1)),
        ([(8, 0)], {"threads": 3, "replicas": 3}, "at most 2, the room for threads=3, got 3"),
        ([(8, 1)], {"replicas": 2}, "at most 1"),
        ([(2, 0)], {"threads": 3}, "at most 0"),
    ],
)
def test_replicas_have_room(
    nodes: Any, settings: dict[str, Any], outcome: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
):
    alive = [
        {"Alive": True, "Resources": {"CPU": float(c), **({"GPU": float(gpus)} if gpus else {})}} for c, gpus in nodes
    ]
    lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*alive, lost])
    config = ServeConfig(model=Path("c.pt"), **settings)
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome):
            serving.application(config, FACTS)
        return
    bound = serving.application(config, FACTS)._bound_deployment.init_args[0]._bound_deployment
    actor = bound.ray_actor_options
    assert (actor["num_cpus"], actor["num_gpus"]) == outcome
    assert (bound.max_ongoing_requests, bound._deployment_config.max_queued_requests) == (16, 64)


@pytest.mark.parametrize(("address", "ended"), [(None, "shutdown"), ("auto", "delete bbdm")])
def test_an_error_leaves_nothing_and_spares_others(address: Any, ended: str, serving: Any, monkeypatch: Any):
    calls: list[str] = []

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no replica started")

    ends = {"shutdown": lambda: calls.append("shutdown"), "delete": lambda name: calls.append(f"delete {name}")}
    monkeypatch.setattr(serving, "find_port", lambda _: 8000)
    monkeypatch.setattr(serving, "application", lambda *_: None)
    monkeypatch.setattr(serving, "serve", SimpleNamespace(start=lambda **_: None, run=fail, **ends))
    with pytest.raises(RuntimeError, match="no replica started"):
        serving.run(ServeConfig(model=Path("c.pt"), address=address), replace(FACTS))
    assert calls == [ended]


def test_a_cluster_that_serves_keeps_its_address_and_applications(serving: Any, monkeypatch: pytest.MonkeyPatch):
    applications = {"other": {"route_prefix": "/other"}}
    listening = SimpleNamespace(host="127.0.0.1", port=8123)
    http = SimpleNamespace(http_config=listening, get_serve_details=lambda: {"applications": applications})
    monkeypatch.setattr(serving, "_get_global_client", lambda **_: http)

    def port(**settings: Any) -> int:
        return serving.find_port(ServeConfig(model=Path("c.pt"), address="auto", **settings))

    assert port(port=0) == port(port=8123) == 8123
    for settings, got in (({"port": 8000}, "127.0.0.1:8000"), ({"host": "0.0.0.0", "port": 0}, "0.0.0.0:0")):
        with pytest.raises(ValueError, match=f"those of the cluster's Serve, 127.0.0.1:8123, got {got}"):
            port(**settings)
    for name, route in (("bbdm", "/x"), ("default", "/")):
        applications[name] = {"route_prefix": route}
        with pytest.raises(ValueError, match=f"no application 'bbdm' or at the route /, got '{name}' there"):
            port(port=0)
        del applications[name]
