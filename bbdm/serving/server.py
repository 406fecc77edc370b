"""Serving a network over HTTP: Ray Serve runs replicas of a sampler, and gathers requests into batches.

A request passes two deployments. :class:`Front`, of which there is one, reads it and waits for the result.
:class:`Replica` decodes, translates and encodes pictures. Ray Serve holds the queue between them, and refuses
at once what is more than it takes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import shlex
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import fastapi
import numpy as np
import numpy.typing as npt
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from PIL import Image
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from bbdm import __version__, solvers
from bbdm.base import demo
from bbdm.base.scripts import termination
from bbdm.networks.conditions import Direction
from bbdm.pictures import images
from bbdm.serving import uploads
from bbdm.serving.config import LOOPBACK, Serve

log = logging.getLogger(__name__)
# tries the server in a browser, and loads nothing from elsewhere
PAGE = Path(__file__).with_name("docs.html")
PICTURE = {"schema": {"type": "string", "format": "binary"}}
BODY = {"required": True, "content": {f"image/{kind.lower()}": PICTURE for kind in uploads.FORMATS}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the result, and its seed in the header X-Seed",
        "content": {"image/png": PICTURE},
    },
    503: {"description": "busy or closing: send it again"},
}
ANYWHERE = ("", "0.0.0.0", "::")  # addresses to listen on, and none to ask
# requests at a time: more would wait, also those that are refused and those for the health
AT_THE_FRONT = 10_000
Pixels = npt.NDArray[np.uint8]  # (H, W) or (H, W, 3)
Answer = tuple[int, Any]  # HTTP's status, with a result or a sentence that says why there is none


class Query(BaseModel, extra="forbid"):
    """What a request's query may say."""

    solver: solvers.Solver | None = Field(default=None, description="the network's own if left out")
    steps: int | None = Field(
        default=None, ge=1, description="network calls; the solver's own if left out"
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="one number, one picture; drawn if left out"
    )
    direction: Direction | None = Field(default=None, description="of a network of two directions")


def facts(config: Serve) -> dict[str, Any]:
    """The network that is served, and what a request may ask for; errors as of ``config.open``."""
    sampler = replace(config, compile=False).open("cpu")
    steps = {sampler.solver: len(sampler.table)}  # of requests that name none
    for solver, count in solvers.choices(sampler.bridge, sampler.calls).items():
        steps.setdefault(solver, count)
    return {
        "name": config.model.name,
        "image_size": sampler.image_size,
        "solver": sampler.solver,
        "steps": steps,
        "max_steps": config.max_steps,
        "max_pixels": config.max_pixels,
        "max_bytes": config.max_bytes,
        "max_total_bytes": config.total_bytes,
        "body_timeout": config.body_timeout,
    }


def decode(data: bytes, channels: int, stride: int, max_pixels: int) -> Pixels:
    """A picture, upright, of a number of channels.

    Raises:
        ValueError: by its header it has more pixels than ``max_pixels``, padded to multiples of ``stride``;
            it is of no format that is read; or it cannot be decoded.
    """
    picture = uploads.read(data, "of the request", max_pixels, stride)
    return np.asarray(images.convert(picture, channels))


def translate_together(
    sampler: Any, items: list[tuple[Pixels, Query]], **settings: Any
) -> list[Answer]:
    """Translate pictures: those of one size and of equal queries, but for seeds, in one batch, others apart.

    ``settings`` are further arguments of the sampler's calls. An error is of its batch alone.
    """
    groups: dict[Any, list[int]] = {}
    for index, (pixels, query) in enumerate(items):
        groups.setdefault((pixels.shape, query.solver, query.steps, query.direction), []).append(
            index
        )
    answers: dict[int, Answer] = {}
    for (_, solver, steps, direction), indices in groups.items():
        sources = [items[index][0] for index in indices]
        seeds = [items[index][1].seed for index in indices]
        try:
            way = sampler if direction is None else sampler.towards(direction)
            results = way(sources, seeds, solver=solver, steps=steps, **settings)
            answers |= {
                index: (200, result) for index, result in zip(indices, results, strict=True)
            }
        except ValueError as error:
            answers |= dict.fromkeys(indices, (422, str(error)))
        except Exception:  # such as a lack of memory for pictures of this size
            log.exception("%d pictures could not be translated", len(indices))
            answers |= dict.fromkeys(indices, (500, "the picture could not be translated"))
    return [answers[index] for index in range(len(items))]


class Replica:
    """A sampler, which translates pictures that arrive together."""

    def __init__(self, config: Serve, threads: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        self.sampler = config.open(device)
        shapes = self.sampler.shapes
        self.pictures = shapes.source_channels, max(shapes.stride), config.max_pixels
        self.settings = {"batch_size": config.max_batch_size, **config.call}
        batching: Any = self.batch  # with the methods that serve.batch gave it
        batching.set_max_batch_size(config.max_batch_size)

    async def translate(self, data: bytes, query: Query) -> Answer:
        """The result of a picture's file, as PNG."""
        try:
            pixels = await asyncio.to_thread(decode, data, *self.pictures)
        except ValueError as error:
            return 422, str(error)
        status, result = await self.batch((pixels, query))
        if status != 200:
            return status, result
        return status, await asyncio.to_thread(lambda: images.to_png(Image.fromarray(result)))

    @serve.batch(batch_wait_timeout_s=0.01)
    async def batch(self, items: list[tuple[Pixels, Query]]) -> list[Any]:
        """The answers of pictures that arrived together; see :func:`translate_together`."""
        return await asyncio.to_thread(translate_together, self.sampler, items, **self.settings)


class Front:
    """Reads requests, sends pictures to replicas, and answers.

    Args:
        replicas: the deployment of :class:`Replica`.
        known: the network and the limits, from :func:`facts`.

    Attributes:
        open: how many translations are not answered.
        held: the bytes of the files of requests that are not answered, also of those that still arrive.
        closing: whether further requests are refused.
    """

    def __init__(self, replicas: DeploymentHandle, known: dict[str, Any]) -> None:
        self.replicas = replicas
        self.known = known
        self.open = 0
        self.held = 0
        self.closing = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of Ray Serve's ingress."""
        # whose scripts are elsewhere
        app = FastAPI(title="bbdm", version=__version__, docs_url=None, redoc_url=None)
        app.get("/", include_in_schema=False)(self.root)
        app.get("/docs", include_in_schema=False)(self.docs)
        app.get("/health", response_class=PlainTextResponse)(self.health)
        app.get("/model")(self.model)
        body = {"requestBody": BODY}
        app.post("/translate", response_class=Response, responses=ANSWERS, openapi_extra=body)(
            self.translate
        )
        app.exception_handler(RequestValidationError)(unreadable)
        return app

    async def root(self) -> Response:
        """To the page that says what the server does."""
        return RedirectResponse("docs")

    async def docs(self) -> Response:
        """A page on which each request can be tried."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def model(self) -> dict[str, Any]:
        """The network's solvers, with the steps of each, and the limits of requests."""
        return self.known

    async def health(self) -> Response:
        """Whether requests are accepted."""
        return PlainTextResponse("closing\n", 503) if self.closing else PlainTextResponse("ok\n")

    async def translate(
        self, request: Request, query: Annotated[Query, fastapi.Query()]
    ) -> Response:
        """The translation of a picture."""
        steps = query.steps or self.known["steps"].get(query.solver or self.known["solver"], 0)
        max_steps = self.known["max_steps"]
        if steps > max_steps:
            raise HTTPException(422, f"steps must be at most {max_steps}, got {steps}")
        seed = secrets.randbelow(2**32) if query.seed is None else query.seed
        async with self.body(request) as data:
            if self.closing:
                raise HTTPException(503, "the server is closing")
            status, content = await self.ask(data, query.model_copy(update={"seed": seed}))
        if status == 200:
            return Response(content, media_type="image/png", headers={"X-Seed": str(seed)})
        if status == 503:
            raise busy(content)
        raise HTTPException(status, content)

    async def ask(self, data: bytes, query: Query) -> Answer:
        """The answer of a replica."""
        self.open += 1
        try:
            return await self.replicas.translate.remote(data, query)
        except BackPressureError:
            return 503, "all replicas are busy, and the queue is full"
        except RayActorError:
            return 503, "the replica of this picture died: send it again"
        finally:
            self.open -= 1

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A picture's file, whose bytes are held within the context.

        Raises:
            HTTPException: 413 if the file is too large, 408 if it does not arrive in time, and 503 if the
                server holds too many bytes of others.
        """
        declared = int(request.headers.get("content-length", 0))
        self.check_room(0, declared)  # at once: until then, the proxy keeps what arrives
        data = bytearray()
        seconds = self.known["body_timeout"]
        try:
            try:
                await asyncio.wait_for(self.read(request, data), seconds)
            except asyncio.TimeoutError:
                late = f"a picture's file must arrive within {seconds:g} seconds (body_timeout)"
                raise HTTPException(408, late, {"Connection": "close"}) from None
            yield bytes(data)
        finally:
            self.held -= len(data)

    async def read(self, request: Request, data: bytearray) -> None:
        """Read a picture's file into ``data``, and no more of it than is taken; errors as of :meth:`body`."""
        async for chunk in request.stream():
            self.check_room(len(data), len(chunk))
            data.extend(chunk)
            self.held += len(chunk)

    def check_room(self, size: int, more: int) -> None:
        """Raise HTTPException unless a file of ``size`` bytes may get ``more``."""
        max_bytes = self.known["max_bytes"]
        if size + more > max_bytes:
            raise HTTPException(
                413, f"a picture's file must be at most {max_bytes} bytes (max_bytes)"
            )
        if self.held + more > self.known["max_total_bytes"]:
            raise busy("other requests hold all bytes that the server takes (max_total_bytes)")

    async def close(self) -> None:
        """Accept nothing more, and wait until all that was accepted is answered."""
        self.closing = True
        while self.open:
            await asyncio.sleep(0.05)


def busy(reason: str) -> HTTPException:
    """The refusal of a request that may come again, a few seconds later."""
    return HTTPException(503, reason, {"Retry-After": f"{random.randint(3, 8)}"})


def unreadable(request: Request, error: Any) -> Response:
    """The first defect of a query, in a sentence."""
    first = error.errors()[0]
    return JSONResponse(
        {"detail": f"{first['loc'][-1]}: {first['msg']}, got {str(first['input'])[:20]!r}"}, 422
    )


def application(
    config: Serve, known: dict[str, Any], machine: Mapping[str, float]
) -> serve.Application:
    """The two deployments, with a replica for each GPU of the machine, or one; they share its cores."""
    cores = int(machine["CPU"])
    cards = int(machine.get("GPU", 0))
    replicas = max(1, min(cores, cards))
    threads = cores // replicas
    replica = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=2 * config.max_batch_size,  # a batch that runs, and the next
        max_queued_requests=config.max_queued,
        ray_actor_options={"num_cpus": threads, "num_gpus": int(cards > 0)},
    )(Replica)
    front = serve.deployment(max_ongoing_requests=AT_THE_FRONT, ray_actor_options={"num_cpus": 0})
    return front(serve.ingress()(Front)).bind(replica.bind(config, threads), known)


def ready(config: Serve, port: int) -> str:
    """What is said as soon as requests are accepted: where, and a command that sends a bundled drawing."""
    host = LOOPBACK if config.host in ANYWHERE else config.host
    if ":" in host:
        host = f"[{host}]"
    address = f"http://{host}:{port}"
    drawing = shlex.quote(f"@{min(demo.DRAWINGS.iterdir())}")
    return (
        f"serving {config.model} on {address}; Ctrl-C ends it\n"
        f"try it in a browser: {address}/docs\n"
        f"or by a command: curl --data-binary {drawing} '{address}/translate?seed=0' -o result.png"
    )


def run(config: Serve, machine: Mapping[str, float], started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, and answer what was accepted.

    Ray is connected to the machine. Lines say what is done until requests are accepted, and when they are.
    Then ``started`` is called.

    Raises:
        OSError: the port cannot be listened on.
        ValueError: the network cannot be used, or a setting is not for it.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        port = listener.getsockname()[1]
    deployments = application(config, facts(config), machine)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with termination() as stopped:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        print(f"loading {config.model}", flush=True)
        front = serve.run(deployments, name="bbdm")
        with suppress(KeyboardInterrupt):
            started()
            print(ready(config, port), flush=True)
            while not stopped():
                time.sleep(0.1)
        front.close.remote().result()
        # for the last responses to pass the proxy; the end of Ray ends it and all else
        time.sleep(1)
