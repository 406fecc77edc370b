"""Serving a network over HTTP: Ray Serve runs replicas of a sampler, and gathers requests into batches.

A request passes two deployments. :class:`Front`, of which there is one, reads it and waits for the result.
:class:`Replica` decodes, translates and encodes pictures. Ray Serve holds the queue between them, and refuses
at once what is more than it takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import fastapi
import numpy as np
import numpy.typing as npt
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from bbdm import solvers
from bbdm.base.scripts import termination
from bbdm.data.spec import check_eight_bit
from bbdm.networks.arrays import check_pictures
from bbdm.networks.conditions import DIRECTION, Direction
from bbdm.pictures import images
from bbdm.pictures.formats import UnknownFormatError
from bbdm.sampling.options import Options
from bbdm.serving.config import ServeConfig

log = logging.getLogger(__name__)
FORMATS = ("PNG", "JPEG", "WEBP")
FAILED = "the picture could not be translated"
RETRY_AFTER = range(3, 9)  # seconds, drawn, so that all who were refused do not come back at once
ATTEMPTS = 3  # at a picture whose replica died; the result is the same
BATCHES = 2  # of each replica: one that runs, and the next
AT_THE_FRONT = 10_000  # requests at a time: more would wait, also those that are refused and those for the health
FLUSH_SECONDS = 1.0  # for the last responses to pass the proxy
Answer = tuple[int, Any]  # HTTP's status, with a result or why there is none
Pixels = npt.NDArray[np.uint8]  # (H, W) or (H, W, 3)


@dataclass(frozen=True)
class Facts:
    """The network that is served, and what a request may ask for."""

    name: str
    channels: int  # of pictures
    stride: int  # heights and widths are padded to multiples of it
    image_size: images.Size | None  # of training pictures
    solver: str  # of requests that name none
    steps: dict[str, int]  # of requests that name none, by solver
    max_steps: int
    max_pixels: int  # of a padded picture
    max_bytes: int  # of its file


class Query(BaseModel, extra="forbid"):
    """What a request's query may say."""

    solver: solvers.Solver | None = None
    steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    direction: Direction | None = None


class Item(NamedTuple):
    """A picture to translate, and how."""

    pixels: Pixels
    solver: str | None
    steps: int | None
    seed: int
    direction: Direction | None = None  # of a network of two


def facts(config: ServeConfig) -> Facts:
    """The network that is served, and what a request may ask for.

    Raises:
        ValueError: the network cannot be used, or requests that name no steps would take too many.
    """
    sampler = replace(config, compile=False).sampler(config.model, "cpu")
    check_eight_bit(sampler.pictures, "the server")
    check_pictures(sampler.axes, "the server")
    sampler.window_grid(config)  # before a request fails
    others = [name for name in sampler.unet.network_config.each if name != DIRECTION or not sampler.direction]
    if names := ", ".join(others):
        raise ValueError(f"the server is for networks without conditions, and this one has {names}: use bbdm translate")
    name, own = sampler.solver, len(sampler.table)
    if own > config.max_steps:
        raise ValueError(f"max_steps must be at least the {own} steps of {name!r}, got {config.max_steps}")
    steps = {name: own}
    for each in solvers.choices(sampler.bridge, sampler.calls):
        with suppress(ValueError):  # it does not take the settings' steps
            steps[each] = len(sampler._plan(Options(solver=each)).table)
    shapes, most = sampler._shapes, (config.max_steps, config.max_pixels, config.max_bytes)
    return Facts(config.model.name, shapes.source_channels, max(shapes.stride), sampler.image_size, name, steps, *most)


def decode(data: bytes, known: Facts) -> Pixels:
    """A picture, upright, in the network's channels. Its size is checked before it is decoded.

    Raises:
        HTTPException: 415, it is not PNG, JPEG or WebP; 422, it has too many pixels; 400, it cannot be
            decoded.
    """

    def check_size(width: int, height: int) -> None:
        if (height + -height % known.stride) * (width + -width % known.stride) > known.max_pixels:
            bound = f"at most {known.max_pixels} pixels, with sides padded to multiples of {known.stride}"
            raise HTTPException(422, f"a picture must have {bound}; got {width} x {height}")

    try:
        image = images.open_image(data, "of the request", FORMATS, check_size)
        return np.asarray(images.convert(image, known.channels))
    except UnknownFormatError as error:
        raise HTTPException(415, str(error)) from error
    except ValueError as error:
        bomb = isinstance(error.__cause__, Image.DecompressionBombError)
        raise HTTPException(422 if bomb else 400, str(error)) from error


def translate_together(sampler: Any, items: list[Item], **settings: Any) -> list[Pixels | Answer]:
    """Translate pictures: those of one solver, steps, direction and size in one batch, others apart.

    ``settings`` are further arguments of the sampler's calls.
    An error of some is theirs alone: a ValueError with the status 422, any other with 500, and logged.
    """
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.pixels.shape, item.solver, item.steps, item.direction), []).append(index)
    answers: dict[int, Pixels | Answer] = {}
    for (_, solver, steps, direction), indices in groups.items():
        sources, seeds = [items[i].pixels for i in indices], [items[i].seed for i in indices]
        try:
            way = sampler if direction is None else sampler.towards(direction)
            results = way(sources, seeds, solver=solver, steps=steps, **settings)
            answers |= zip(indices, results, strict=True)
        except ValueError as error:
            answers |= dict.fromkeys(indices, (422, str(error)))
        except Exception:  # such as a lack of memory for pictures of this size
            log.exception("%d pictures could not be translated", len(indices))
            answers |= dict.fromkeys(indices, (500, FAILED))
    return [answers[index] for index in range(len(items))]


class Replica:
    """A sampler, which translates pictures that arrive together."""

    def __init__(self, config: ServeConfig, known: Facts, threads: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        self.known, self.sampler = known, config.sampler(config.model, device)
        self.settings = {"batch_size": config.max_batch_size, **config.call}
        batching: Any = self.batch  # with the methods that serve.batch gave it
        batching.set_max_batch_size(config.max_batch_size)
        batching.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)

    async def translate(self, data: bytes, *how: Any) -> Answer:
        """The result of a picture's file, as PNG; ``how`` are solver, steps, seed and direction."""
        try:
            result = await self.batch(Item(await asyncio.to_thread(decode, data, self.known), *how))
        except HTTPException as error:
            return error.status_code, error.detail
        if isinstance(result, tuple):
            return result
        return 200, await asyncio.to_thread(lambda: images.to_png(Image.fromarray(result)))

    @serve.batch
    async def batch(self, items: list[Item]) -> list[Any]:
        """The results of pictures that arrived together; see :func:`translate_together`."""
        return await asyncio.to_thread(translate_together, self.sampler, items, **self.settings)


class Front:
    """Reads requests, sends pictures to replicas, and answers."""

    def __init__(self, replicas: DeploymentHandle, known: Facts) -> None:
        self.replicas, self.known = replicas, known
        self.open, self.closing = 0, False  # translations that are not answered, and whether others are refused

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of Ray Serve's ingress."""
        app = FastAPI(title="bbdm", docs_url=None, redoc_url=None)  # pages that load scripts from elsewhere
        app.get("/health")(self.health)
        app.get("/model")(self.model)
        app.post("/translate", response_class=Response)(self.translate)
        app.exception_handler(RequestValidationError)(unreadable)
        return app

    async def health(self) -> Response:
        """Whether requests are accepted."""
        return PlainTextResponse("closing\n", 503) if self.closing else PlainTextResponse("ok\n")

    async def model(self) -> Facts:
        """The network, and what a request may ask for."""
        return self.known

    async def translate(self, request: Request, query: Annotated[Query, fastapi.Query()]) -> Response:
        """The translation of a picture."""
        seed = secrets.randbelow(2**32) if query.seed is None else query.seed
        steps = query.steps or self.known.steps.get(query.solver or self.known.solver, 0)
        if steps > self.known.max_steps:
            raise HTTPException(422, f"steps must be at most {self.known.max_steps}, got {steps}")
        data = await self.body(request)
        if self.closing:
            raise HTTPException(503, "the server is closing")
        self.open += 1
        try:
            status, content = await self.sent(data, query.solver, query.steps, seed, query.direction)
        finally:
            self.open -= 1
        if status == 200:
            return Response(content, media_type="image/png", headers={"X-Seed": str(seed)})
        later = {"Retry-After": str(random.choice(RETRY_AFTER))} if status == 503 else None
        raise HTTPException(status, content, later)

    async def body(self, request: Request) -> bytes:
        """A picture's file, of which no more is read than is taken."""
        data, most = bytearray(), self.known.max_bytes
        too_large = HTTPException(413, f"a picture's file must be at most {most} bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > most:
                raise too_large
        return bytes(data)

    async def sent(self, *request: Any) -> Answer:
        """The answer of a replica, or of another where it dies."""
        for attempt in range(ATTEMPTS):
            try:
                return await self.replicas.translate.remote(*request)
            except BackPressureError:
                return 503, "all replicas are busy, and the queue is full"
            except RayActorError:
                log.warning("a replica died, attempt %d of %d", attempt + 1, ATTEMPTS)
        return 500, FAILED

    async def close(self) -> None:
        """Accept nothing more, and wait until all that was accepted is answered."""
        self.closing = True
        while self.open:
            await asyncio.sleep(0.05)


async def unreadable(request: Request, error: Any) -> Response:
    """The first defect of a query, in a sentence."""
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}, got {str(first['input'])[:20]!r}"}, 422)


def application(config: ServeConfig, known: Facts, machine: Mapping[str, float]) -> serve.Application:
    """The two deployments.

    Raises:
        ValueError: the machine has no room for the replicas.
    """
    cores, cards = int(machine["CPU"]), machine.get("GPU", math.inf)
    threads = config.threads or max(1, cores // config.replicas)
    if (room := min(cores // threads, cards)) < config.replicas:
        raise ValueError(f"replicas must be at most {room}, the room for threads={threads}, got {config.replicas}")
    replica = serve.deployment(
        num_replicas=config.replicas,
        max_ongoing_requests=BATCHES * config.max_batch_size,
        max_queued_requests=config.max_queued,
        ray_actor_options={"num_cpus": threads, "num_gpus": int("GPU" in machine)},
    )(Replica)
    front = serve.deployment(max_ongoing_requests=AT_THE_FRONT, ray_actor_options={"num_cpus": 0})
    return front(serve.ingress()(Front)).bind(replica.bind(config, known, threads), known)


def run(config: ServeConfig, machine: Mapping[str, float]) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, and answer what was accepted.

    Ray is connected to the machine. A line says when requests are accepted.

    Raises:
        OSError: the port cannot be listened on.
        ValueError: the network cannot be used, or the machine has no room for the replicas.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        port = listener.getsockname()[1]
    deployments = application(config, facts(config), machine)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with termination() as stopped:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        try:
            front = serve.run(deployments, name="bbdm")
            print(f"serving {config.model} on http://{config.host}:{port}", flush=True)
            with suppress(KeyboardInterrupt):
                while not stopped():
                    time.sleep(0.1)
            front.close.remote().result()
            time.sleep(FLUSH_SECONDS)
        finally:
            serve.shutdown()
