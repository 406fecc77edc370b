"""`bbdm serve` without a cluster: what it answers, and what it refuses."""

import asyncio
import re
import shlex
import socket
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import httpx
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from bbdm import ABridge, BridgeSampler, cli, demo, save_checkpoint
from bbdm.serving.config import Serve
from tests.conftest import SavePicture, noise, save_random_pairs, tiny_unet
from tests.files.test_pretrained import save
from tests.serving.conftest import GOOD, HOSTILE, HOSTILE_NAMES, encoded, png_of, same, tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray, when it is imported
    from bbdm.serving import cluster, server
    from bbdm.serving.server import Query, decode, facts, translate_together

FACTS = {
    "solver": "dpm2m",
    "steps": {"dpm2m": 10, "fast": 199, "mean": 1},
    "max_steps": 20,
    "max_bytes": 4096,
}
FACTS |= {"max_total_bytes": 8192, "body_timeout": 30.0}


def client(
    translate: Callable[..., Any], known: dict[str, Any] = FACTS
) -> tuple[server.Front, httpx.AsyncClient]:
    """The front, with a function in place of replicas, and a client of it."""
    replicas: Any = SimpleNamespace(translate=SimpleNamespace(remote=translate))
    front = server.Front(replicas, known)
    transport = httpx.ASGITransport(front.__serve_build_asgi_app__(), raise_app_exceptions=False)
    return front, httpx.AsyncClient(transport=transport, base_url="http://bbdm")


def test_each_request_gets_its_own_picture(
    checkpoint: Path, sampler: BridgeSampler, monkeypatch: pytest.MonkeyPatch
):
    """Of several solvers, steps and sizes at once, by windows: each is what a sampler makes of it alone."""
    limits: Any = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=16))
    monkeypatch.setattr(server.serve, "get_replica_context", lambda: limits)
    config = Serve(model=checkpoint, window=8)
    options: list[dict[str, Any]] = [
        {},
        {"steps": 3},
        {"solver": "ddim", "steps": 2},
        {"solver": "mean"},
    ]
    pictures = [noise(i, *((16, 16), (24, 8))[i // 4 % 2]) for i in range(12)]

    async def ask() -> list[httpx.Response]:
        _, http = client(server.Replica(config, 1).translate, facts(config))
        requests = [
            http.post("/translate", params={**options[i % 4], "seed": i}, content=encoded(picture))
            for i, picture in enumerate(pictures)
        ]
        return await asyncio.gather(
            *requests, http.post("/translate", content=GOOD), http.get("/model")
        )

    *replies, model = asyncio.run(ask())
    for i, (reply, picture) in enumerate(zip(replies, [*pictures, noise(0)], strict=True)):
        assert reply.status_code == 200
        seed = int(reply.headers["x-seed"])
        assert seed == i or i == 12  # which is drawn
        assert same(reply.content, sampler(picture, seed, window=8, **options[i % 4])[0])
    about = model.json()
    assert (about["name"], about["image_size"], about["solver"]) == ("c.pt", 16, "dpm2m")
    assert (about["steps"]["mean"], about["steps"]["ancestral"], about["max_steps"]) == (1, 100, 50)


def test_a_step_of_lora_is_served_beside_its_base(
    tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the final weights are; from another working directory than the run's."""
    monkeypatch.chdir(tmp_path)
    save_random_pairs(Path("data"), 2, 0, save_picture)
    save(Path("pixels"), DDPMScheduler())
    flags = "--init_from pixels --lora 2 --image_size 16 -b 2 --max_steps 1 --device cpu"
    cli.run("train", ["edge2shoes", "data", "out.pt", *flags.split()])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    replica = Serve(model=Path("../out.run/step_00000001.pt"), steps=2).open("cpu")
    ((status, result),) = translate_together(replica, [(np.asarray(noise(0)), Query(seed=1))])
    assert status == 200
    expected = BridgeSampler.from_checkpoint("../out.pt", steps=2)(noise(0), seed=1)
    assert same(Image.fromarray(result), expected[0])


def test_a_request_says_the_direction(tmp_path: Path):
    unet = tiny_unet(condition_channels=3, classes={"direction": ("AtoB", "BtoA")})
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(tmp_path / "c.pt", unet, ABridge(num_steps=50), steps=2)
    assert facts(Serve(model=tmp_path / "c.pt"))["solver"] == "dpm2m"
    sampler, picture = BridgeSampler.from_checkpoint(tmp_path / "c.pt"), np.asarray(noise(0))
    ways = [None, "BtoA", "AtoB"]
    answers = translate_together(sampler, [(picture, Query(seed=3, direction=way)) for way in ways])
    for (status, result), way in zip(answers, ways, strict=True):
        assert status == 200
        alone = np.asarray(sampler(picture, 3, direction=way or "AtoB"), dtype=int)
        assert np.abs(alone - np.asarray(result)).max() <= 1  # two of the three are one batch
    alone = BridgeSampler(tiny_unet(condition_channels=3), ABridge(num_steps=50))
    refused = translate_together(alone, [(picture, Query(seed=3, direction="BtoA"))])
    assert refused == [(422, "this network has one direction, got 'BtoA'")]


def test_pictures_that_are_translated_alike_are_a_batch(caplog: pytest.LogCaptureFixture):
    """Of solver, steps and size; an error is of its batch alone."""
    batches: list[list[int]] = []

    def sampler(sources: list[Any], seeds: list[int], solver: Any, **_: Any) -> list[Any]:
        batches.append(seeds)
        if sources[0].shape[0] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if solver == "fast":
            raise ValueError("why")
        return sources

    kinds: list[Any] = [
        ((16, 16), "ddim", 2),
        ((16, 16), "ddim", 3),
        ((8, 24), "ddim", 2),
        ((16, 16), "fast", None),
    ]
    items = [
        (np.asarray(noise(i, *size)), Query(solver=solver, steps=steps, seed=i))
        for i, (size, solver, steps) in enumerate(kinds * 2)
    ]
    outputs = translate_together(sampler, items)
    assert batches == [[0, 4], [1, 5], [2, 6], [3, 7]]
    for i, (output, (pixels, _)) in enumerate(zip(outputs, items, strict=True)):
        assert (
            output
            == (
                (200, output[1]),
                (200, output[1]),
                (500, "the picture could not be translated"),
                (422, "why"),
            )[i % 4]
        )
        assert i % 4 > 1 or output[1] is pixels
    assert "CUDA out of memory" in caplog.text


async def refusal(http: httpx.AsyncClient, status: int, *words: str, **request: Any) -> None:
    """That a request gets a status and one sentence with some words."""
    reply = await http.post("/translate", **request)
    detail = reply.json()["detail"]
    assert (reply.status_code, [word for word in words if word not in detail]) == (status, []), (
        detail
    )
    assert "\n" not in detail
    assert "Traceback" not in detail


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_good_picture_is_refused(name: str):
    replica: Any = SimpleNamespace(pictures=(3, 8, 4096), batch=None)  # which is not reached

    async def translate(data: bytes, query: Query) -> tuple[int, Any]:
        return await server.Replica.translate(replica, data, query)

    asyncio.run(refusal(client(translate)[1], 422, content=HOSTILE[name]))


def test_pictures_are_read_and_a_bomb_is_not():
    """10 MB of zeros in 10 KB; and a thin one, of 8 x 4096 where padded."""
    for kind in ("bmp", "png", "jpeg", "webp"):
        pixels = decode(encoded(Image.new("L", (16, 32), 99), kind), 3, 8, 16 * 32)
        assert pixels.shape == (32, 16, 3)
        assert abs(int(pixels.mean()) - 99) <= 1
    limit = r"^the picture of the request may have at most 4096 pixels \(max_pixels\), .* multiples of 8; got"
    advice = "the commands bbdm restore and bbdm translate --window take larger ones$"
    for width, height in ((4000, 2500), (1, 4096)):
        with pytest.raises(
            ValueError, match=rf"{limit} height x width {height} x {width}: {advice}"
        ):
            decode(png_of(width, height, bytes(10**7)), 3, 8, 4096)
    with pytest.raises(ValueError, match=f"{limit} height x width 20000 x 20000: {advice}"):
        decode(png_of(20_000, 20_000, bytes(10**7)), 3, 8, 4096)


def test_queries_and_bodies_are_checked():
    async def chunks() -> Any:
        for _ in range(5):
            yield bytes(1000)

    async def ask() -> None:
        _, http = client(AsyncMock(return_value=(200, GOOD)))
        queries = {
            "steps=21": "steps 20 21",
            "solver=fast": "steps 20 199",
            "steps=1e1": "steps 1e1",
            "steps=0": "steps 0",
        }
        queries |= {
            f"seed={seed}": f"seed {seed[:20]}" for seed in (str(2**63), "9" * 5000, "-1", "1.5")
        }
        queries |= {"solver=../dpm2m": "solver dpm2m ../dpm2m", "model=x": "model"}
        for query, words in queries.items():
            await refusal(http, 422, *words.split(), content=GOOD, params=httpx.QueryParams(query))
        for query in ("steps=20", "solver=mean", f"seed={2**63 - 1}"):
            assert (await http.post(f"/translate?{query}", content=GOOD)).status_code == 200
        bodies: list[tuple[Any, ...]] = [
            (bytes(4097), {}),
            (chunks(), {}),
            (b"", {"content-length": "9" * 18}),
        ]
        for content, headers in bodies:
            await refusal(http, 413, "4096 bytes", content=content, headers=headers)
        for method, path, status in (
            ("PUT", "/translate", 405),
            ("POST", "/health", 405),
            ("GET", "/redoc", 404),
        ):
            assert (await http.request(method, path)).status_code == status

    asyncio.run(ask())


def test_the_root_leads_to_a_page_that_loads_nothing_from_elsewhere():
    """It tries the requests of openapi.json, which say that a picture is sent and comes back."""

    async def ask() -> None:
        _, http = client(AsyncMock(return_value=(200, GOOD)))
        page = await http.get("/", follow_redirects=True)
        assert (page.status_code, page.url.path, page.headers["content-type"]) == (
            *(200, "/docs", "text/html; charset=utf-8"),
        )
        assert re.findall(r"(?:src|href)=[\"']?([^\"' >]+)", page.text) == [
            "data:,",
            "openapi.json",
            "openapi.json",
        ]
        assert "//" not in re.sub(r"^ *//.*|; // .*", "", page.text)  # but for comments
        about = (await http.get("/openapi.json")).json()
        assert {*about["paths"]} == {"/translate", "/model", "/health"}
        translate = about["paths"]["/translate"]["post"]
        assert {*translate["requestBody"]["content"]} == {
            "image/bmp",
            "image/jpeg",
            "image/png",
            "image/webp",
        }
        assert "image/png" in translate["responses"]["200"]["content"]
        described = {each["name"]: each["description"] for each in translate["parameters"]}
        assert {*described} == {"solver", "steps", "seed", "direction"}

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]")],
)
def test_a_ready_server_says_its_address_and_a_command(host: str, asked: str):
    first, page, command = server.ready(Serve(model=Path("c.pt"), host=host), 8123).splitlines()
    assert first == f"serving c.pt on http://{asked}:8123; Ctrl-C ends it"
    assert page == f"try it in a browser: http://{asked}:8123/docs"
    words = shlex.split(command.partition(": ")[2])
    assert words[:2] == ["curl", "--data-binary"]
    assert Path(words[2].removeprefix("@")).is_file()
    assert words[3:] == [f"http://{asked}:8123/translate?seed=0", "-o", "result.png"]


def test_a_body_that_comes_too_slowly_is_not_waited_for():
    async def slow() -> AsyncIterator[bytes]:
        yield GOOD[:10]
        await asyncio.sleep(60)

    async def ask() -> None:
        front, http = client(AsyncMock(return_value=(200, GOOD)), {**FACTS, "body_timeout": 0.1})
        reply = await http.post("/translate", content=slow())
        assert (reply.status_code, reply.headers["connection"], front.held) == (408, "close", 0)
        assert (
            reply.json()["detail"]
            == "a picture's file must arrive within 0.1 seconds (body_timeout)"
        )
        assert (await http.post("/translate", content=GOOD)).status_code == 200

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_bodies_of_all_requests_have_one_bound():
    """Of those that wait for a replica, and of those that still arrive."""

    async def ask() -> None:
        free = asyncio.Event()

        async def translate(data: bytes, query: Query) -> tuple[int, Any]:
            await free.wait()
            return 200, data

        async def halting() -> AsyncIterator[bytes]:
            yield bytes(3000)
            await free.wait()
            yield bytes(1000)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield bytes(100)

        front, http = client(translate)
        bodies: list[Any] = [bytes(4096), halting()]
        accepted = [asyncio.create_task(http.post("/translate", content=body)) for body in bodies]
        while front.held < 7096:
            await asyncio.sleep(0)
        arriving = asyncio.create_task(http.post("/translate", content=bytes(1000)))
        while front.held < 8096:
            await asyncio.sleep(0)
        for body in (bytes(200), chunks()):
            reply = await http.post("/translate", content=body)
            assert (reply.status_code, "max_total_bytes" in reply.text) == (503, True)
            assert int(reply.headers["retry-after"]) > 0
        assert (await http.get("/health")).status_code == 200
        accepted[1].cancel()  # a client that goes away
        await asyncio.gather(accepted[1], return_exceptions=True)
        assert front.held == 5096
        free.set()
        assert [(await each).status_code for each in (accepted[0], arriving)] == [200, 200]
        assert front.held == 0
        assert (await http.post("/translate", content=bytes(4096))).status_code == 200

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_no_name_in_a_request_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    before = tree(tmp_path)

    async def ask() -> None:
        replica: Any = SimpleNamespace(pictures=(3, 8, 4096), batch=None)  # which is not reached

        async def translate(data: bytes, query: Query) -> tuple[int, Any]:
            return await server.Replica.translate(replica, data, query)

        _, http = client(translate)
        for name in HOSTILE_NAMES:
            assert (
                await http.post("/translate", params={"path": name}, content=GOOD)
            ).status_code == 422
            form = {"file": (name, GOOD, "image/png")}
            # a form is no picture
            assert (await http.post("/translate", files=form)).status_code == 422

    asyncio.run(ask())
    assert tree(tmp_path) == before


def test_what_replicas_do_not_take_or_lose():
    """A full queue and a dead replica are 503 at once; nothing of a defect is seen."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    full = BackPressureError(num_queued_requests=64, max_queued_requests=64)
    for error, status, words in (
        (full, 503, "queue is full"),
        (RayActorError(), 503, "died: send it again"),
        (RuntimeError("secret"), 500, "Internal Server Error"),
    ):
        front, http = client(AsyncMock(side_effect=error))
        reply = asyncio.run(http.post("/translate", content=GOOD))
        assert (reply.status_code, words in reply.text, front.open) == (status, True, 0)
        assert ("retry-after" in reply.headers) == (status == 503)


def test_a_closing_server_answers_what_it_accepted():
    async def slow() -> AsyncIterator[bytes]:
        yield GOOD[:10]
        await asyncio.sleep(60)

    async def ask() -> None:
        free = asyncio.Event()

        async def translate(data: bytes, query: Query) -> tuple[int, Any]:
            await free.wait()
            return 200, data

        front, http = client(translate)
        assert (await http.get("/health")).text == "ok\n"
        accepted = asyncio.create_task(http.post("/translate", content=GOOD))
        while not front.open:
            await asyncio.sleep(0)
        # its body is not waited for
        reading = asyncio.create_task(http.post("/translate", content=slow()))
        closed = asyncio.create_task(front.close())
        await asyncio.sleep(0.2)
        assert (closed.done(), reading.done()) == (False, False)
        await refusal(http, 503, "closing", content=GOOD)
        assert (await http.get("/health")).status_code == 503
        free.set()
        assert (await accepted).content == GOOD
        await closed
        reading.cancel()

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_a_network_is_checked_before_it_is_served(checkpoint: Path, tmp_path: Path):
    ways = {"direction": ("AtoB", "BtoA")}
    for name, classes in (("one.pt", {}), ("two.pt", ways)):
        unet = tiny_unet(condition_channels=3, classes={"style": 2, **classes})
        save_checkpoint(tmp_path / name, unet, ABridge(num_steps=50))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"window": 15}, "window must be a multiple of the network's stride 2, got 15"),
        ({"max_steps": 9}, "max_steps must be at least the 10 steps of 'dpm2m', got 9"),
        *(
            ({"model": tmp_path / each}, "networks without conditions, .* has style:")
            for each in ("one.pt", "two.pt")
        ),
        ({"port": 65536}, "port must be at most 65535, got 65536"),
        (
            {"max_bytes": 9, "max_total_bytes": 8},
            "max_total_bytes must be at least max_bytes 9, got 8",
        ),
        ({"body_timeout": 0.5}, "body_timeout must be at least 1, got 0.5"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            facts(Serve(**{"model": checkpoint, **settings}))
    known = facts(Serve(model=checkpoint, steps=2, max_bytes=10))
    assert (known["max_bytes"], known["max_total_bytes"], known["body_timeout"]) == (10, 320, 30)
    steps = known["steps"]
    assert (steps["dpm2m"], steps["mean"], steps["ddim"], steps["ancestral"]) == (2, 1, 10, 100)


@pytest.mark.parametrize(
    ("machine", "outcome"),
    [
        ({"CPU": 8.0}, (1, 8, 0)),
        ({"CPU": 8.0, "GPU": 2.0}, (2, 4, 1)),
        ({"CPU": 7.0, "GPU": 2.0}, (2, 3, 1)),
        ({"CPU": 1.0, "GPU": 2.0}, (1, 1, 1)),
    ],
)
def test_each_gpu_has_a_replica(machine: dict[str, float], outcome: Any):
    front: Any = server.application(Serve(model=Path("c.pt")), FACTS, machine)._bound_deployment
    replica = front.init_args[0]._bound_deployment
    actor = replica.ray_actor_options
    assert (replica.num_replicas, actor["num_cpus"], actor["num_gpus"]) == outcome
    assert (replica.max_ongoing_requests, replica._deployment_config.max_queued_requests) == (
        16,
        64,
    )


def test_a_port_that_is_taken_is_named_before_the_network_is_read():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        server.run(
            Serve(model=Path("c.pt"), port=other.getsockname()[1]), {"CPU": 1.0}, lambda: None
        )


def test_a_missing_network_is_said_before_ray_starts(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint missing\.pt"):
        cluster.serve(Serve(model=Path("missing.pt")))
    assert "Ray" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["app", "serve"])
def test_an_interrupt_is_the_usual_end_of_what_serves(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bbdm.serving.app.build", interrupted)
    monkeypatch.setattr("bbdm.serving.cluster.connected", interrupted)
    cli.run(command, [str(demo.WEIGHTS)])
    assert "interrupted" not in capsys.readouterr().err
