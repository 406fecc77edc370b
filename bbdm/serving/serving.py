"""Serving a network over HTTP: Ray Serve runs replicas of a sampler, and gathers requests into batches.

A request passes two deployments. :class:`Door`, of which there is one, checks it, decodes the picture, and
waits for the result. :class:`Replica` translates batches. Ray Serve holds the queue between them, which the
door bounds: what it does not accept it refuses at once, so that nobody waits to be refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import prometheus_client
import torch
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bbdm.base.scripts import termination
from bbdm.pictures.images import to_png
from bbdm.serving.batching import Item, Made, translate_together
from bbdm.serving.connection import room_for, threads_for
from bbdm.serving.requests import (
    FAILED,
    RequestError,
    ServeConfig,
    Served,
    check_bytes,
    check_headers,
    read_picture,
    read_query,
)

log = logging.getLogger(__name__)
NAME = "bbdm"
RETRY_AFTER = range(3, 9)  # seconds, drawn, so that all who were refused do not come back at once
BODY_SECONDS = 30  # for a request's body to arrive
MOST_ATTEMPTS = 3  # at a picture whose replica died; the result is the same
BATCHES = 2  # of each replica: one that runs, and the next
AT_THE_DOOR = 10_000  # requests at a time: more would wait, also those that are refused and those for the health
FLUSH_SECONDS = 1.0  # for the last responses to pass the proxy


class Replica:
    """A sampler, which translates batches."""

    def __init__(self, config: ServeConfig, threads: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        self.sampler = config.sampler(config.model, device)
        self.settings = {"batch_size": config.max_batch_size, **config.call}
        batching: Any = self.translate  # with the methods that serve.batch gave it
        batching.set_max_batch_size(config.max_batch_size)
        batching.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)

    @serve.batch
    async def translate(self, items: list[Item]) -> list[Made | RequestError]:
        """Translate pictures that arrived together, of any solvers, steps and sizes."""
        return await asyncio.to_thread(translate_together, self.sampler, items, **self.settings)


class Door:
    """Checks requests and answers them."""

    def __init__(self, replicas: DeploymentHandle, served: Served) -> None:
        self.replicas = replicas
        self.served = served
        config = served.config
        self.most = config.replicas * BATCHES * config.max_batch_size + config.max_queued  # that may be open
        self.closing = False
        self.open = 0  # translations that were begun and not answered
        self.registry = prometheus_client.CollectorRegistry()
        here: Any = {"registry": self.registry}
        self.requests = prometheus_client.Counter("bbdm_requests", "Requests to translate.", ["status"], **here)
        self.seconds = prometheus_client.Histogram("bbdm_seconds", "Seconds of translated requests.", **here)
        sizes = [2**power for power in range(9)]
        self.batches = prometheus_client.Histogram(
            "bbdm_batch_pictures", "Pictures in a request's batch.", buckets=sizes, **here
        )
        waiting = prometheus_client.Gauge("bbdm_open_requests", "Requests that are not answered yet.", **here)
        waiting.set_function(lambda: self.open)

    async def __call__(self, request: Request) -> Response:
        """The response to a request."""
        routes = {"/": ("POST", self.translate), "/health": ("GET", self.health), "/metrics": ("GET", self.metrics)}
        if request.url.path not in routes:
            return PlainTextResponse("POST a picture to /; see also /health and /metrics\n", 404)
        method, route = routes[request.url.path]
        if request.method != method:
            return PlainTextResponse(f"{request.url.path} takes {method}\n", 405, {"Allow": method})
        return await route(request)

    async def health(self, request: Request) -> Response:
        """Whether requests are accepted."""
        return PlainTextResponse("closing\n", 503) if self.closing else PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(prometheus_client.generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def translate(self, request: Request) -> Response:
        """The result of a picture."""
        began = time.perf_counter()
        self.open += 1
        try:
            response = await self._translated(request)
        except RequestError as error:
            later = {"Retry-After": str(random.choice(RETRY_AFTER))} if error.status == 503 else None
            response = PlainTextResponse(f"{error}\n", error.status, later)
        except Exception:
            log.exception(FAILED)
            response = PlainTextResponse(f"{FAILED}\n", 500)
        finally:
            self.open -= 1
        self.requests.labels(response.status_code).inc()
        if response.status_code == 200:
            self.seconds.observe(time.perf_counter() - began)
        return response

    async def _translated(self, request: Request) -> Response:
        if self.closing:
            raise RequestError(503, "the server is closing")
        if self.open > self.most:
            raise RequestError(503, "all replicas are busy, and the queue is full")
        check_headers(request.headers.items(), self.served)
        solver, steps, seed = read_query(request.query_params.multi_items(), self.served)
        try:
            data = await asyncio.wait_for(self._body(request), BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the picture did not arrive within {BODY_SECONDS} seconds") from error
        image = await asyncio.to_thread(read_picture, data, self.served)
        made = await self._made(Item(np.asarray(image), solver, steps, seed))
        self.batches.observe(made.batch)
        file = await asyncio.to_thread(lambda pixels: to_png(Image.fromarray(pixels)), made.pixels)
        return Response(file, media_type="image/png", headers={"X-Seed": str(seed)})

    async def _body(self, request: Request) -> bytes:
        """A request's body, of which no more is read than is taken."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            check_bytes(len(data), self.served)
        return bytes(data)

    async def _made(self, item: Item, attempts: int = MOST_ATTEMPTS) -> Made:
        """The result of a replica, or of another where it dies."""
        try:
            made = await self.replicas.translate.remote(item)
        except RayActorError:
            if attempts == 1:
                raise
            return await self._made(item, attempts - 1)
        if isinstance(made, RequestError):
            raise made
        return made

    async def close(self) -> None:
        """Accept nothing more, and wait until all that was accepted is answered."""
        self.closing = True
        while self.open:
            await asyncio.sleep(0.05)


def application(served: Served, threads: int, gpu: bool) -> serve.Application:
    """The two deployments."""
    config = served.config
    replica = serve.deployment(
        num_replicas=config.replicas,
        max_ongoing_requests=BATCHES * config.max_batch_size,
        ray_actor_options={"num_cpus": threads, "num_gpus": int(gpu)},
    )(Replica)
    door = serve.deployment(max_ongoing_requests=AT_THE_DOOR, ray_actor_options={"num_cpus": 0})(Door)
    return door.bind(replica.bind(config, threads), served)


def run(served: Served, ready: Callable[[str], object] = print) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, and answer what was accepted.

    Ray is connected to the cluster. ``ready`` is called with a line of text when requests are accepted.

    Raises:
        OSError: the port cannot be listened on.
        ValueError: the cluster has no room for the replicas, or its Serve listens elsewhere or has an
            application in our place.
    """
    config = served.config
    port = _port(config)
    threads = config.threads or threads_for(config.replicas)
    room, gpu = room_for(threads)
    if room < config.replicas:
        raise ValueError(f"replicas must be at most {room}, for which there is room, got {config.replicas}")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with termination() as stopped:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        try:
            door = serve.run(application(served, threads, gpu), name=NAME)
            ready(f"serving {config.model} on http://{config.host}:{port}")
            with suppress(KeyboardInterrupt):
                while not stopped():
                    time.sleep(0.1)
            door.close.remote().result()
            time.sleep(FLUSH_SECONDS)
        finally:
            if config.address is None:
                serve.shutdown()
            else:  # others may use the Serve of a cluster that ran before
                serve.delete(NAME)


def _port(config: ServeConfig) -> int:
    """The port to listen on: that of the cluster's Serve if it runs already, else one that is free."""
    client = _get_global_client(raise_if_no_controller_running=False)  # no public function knows the address
    if client is None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((config.host, config.port))
            return listener.getsockname()[1]
    host, port = client.http_config.host, client.http_config.port
    if config.host != host or config.port not in (0, port):
        asked = f"{config.host}:{config.port}"
        raise ValueError(f"host and port must be those of the cluster's Serve, {host}:{port}, got {asked}")
    for name, details in client.get_serve_details()["applications"].items():
        if name == NAME or details["route_prefix"] == "/":
            raise ValueError(f"Serve must have no application {NAME!r} or at the route /, got {name!r} there")
    return port
