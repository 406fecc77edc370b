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
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import fastapi
import prometheus_client
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from bbdm.base.scripts import termination
from bbdm.pictures.images import to_png
from bbdm.serving.config import ServeConfig
from bbdm.serving.connection import machines
from bbdm.serving.requests import FAILED, Answer, Facts, Item, Query, decode, translate_together

log = logging.getLogger(__name__)
NAME = "bbdm"
RETRY_AFTER = range(3, 9)  # seconds, drawn, so that all who were refused do not come back at once
BODY_SECONDS = 30  # for a request's body to arrive
ATTEMPTS = 3  # at a picture whose replica died; the result is the same
BATCHES = 2  # of each replica: one that runs, and the next
AT_THE_FRONT = 10_000  # requests at a time: more would wait, also those that are refused and those for the health
FLUSH_SECONDS = 1.0  # for the last responses to pass the proxy


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
        """The result of a picture's file, as PNG; ``how`` are solver, steps and seed."""
        try:
            result = await self.batch(Item(await asyncio.to_thread(decode, data, self.known), *how))
        except HTTPException as error:
            return error.status_code, error.detail
        if isinstance(result, tuple):
            return result
        return 200, await asyncio.to_thread(lambda: to_png(Image.fromarray(result)))

    @serve.batch
    async def batch(self, items: list[Item]) -> list[Any]:
        """The results of pictures that arrived together; see :func:`translate_together`."""
        return await asyncio.to_thread(translate_together, self.sampler, items, **self.settings)


class Front:
    """Reads requests, sends pictures to replicas, and answers."""

    def __init__(self, replicas: DeploymentHandle, known: Facts) -> None:
        self.replicas, self.known = replicas, known
        self.open, self.closing = 0, False  # translations that are not answered, and whether others are refused
        self.registry = prometheus_client.CollectorRegistry()
        here: Any = {"registry": self.registry}
        self.requests = prometheus_client.Counter("bbdm_requests", "Requests to translate.", ["status"], **here)
        self.seconds = prometheus_client.Histogram("bbdm_seconds", "Seconds of translated requests.", **here)
        prometheus_client.Gauge("bbdm_open_requests", "Not answered yet.", **here).set_function(lambda: self.open)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of Ray Serve's ingress."""
        app = FastAPI(title="bbdm", docs_url=None, redoc_url=None)  # pages that load scripts from elsewhere
        app.get("/health")(self.health)
        app.get("/model")(self.model)
        app.post("/translate", response_class=Response)(self.translate)
        app.get("/metrics")(self.metrics)
        app.exception_handler(RequestValidationError)(unreadable)
        return app

    async def health(self) -> Response:
        """Whether requests are accepted."""
        return PlainTextResponse("closing\n", 503) if self.closing else PlainTextResponse("ok\n")

    async def model(self) -> Facts:
        """The network, and what a request may ask for."""
        return self.known

    async def metrics(self) -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(prometheus_client.generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def translate(self, request: Request, query: Annotated[Query, fastapi.Query()]) -> Response:
        """The translation of a picture."""
        began, seed = time.perf_counter(), secrets.randbelow(2**32) if query.seed is None else query.seed
        self.open += 1
        try:
            steps = query.steps or self.known.steps.get(query.solver or self.known.solver, 0)
            if steps > self.known.max_steps:
                raise HTTPException(422, f"steps must be at most {self.known.max_steps}, got {steps}")
            status, content = await self.sent(await self.body(request), query.solver, query.steps, seed)
        except HTTPException as error:
            status, content = error.status_code, error.detail
        except Exception:
            log.exception(FAILED)
            status, content = 500, FAILED
        finally:
            self.open -= 1
        self.requests.labels(status).inc()
        if status == 200:
            self.seconds.observe(time.perf_counter() - began)
            return Response(content, media_type="image/png", headers={"X-Seed": str(seed)})
        later = {"Retry-After": str(random.choice(RETRY_AFTER))} if status == 503 else None
        return JSONResponse({"detail": content}, status, later)

    async def body(self, request: Request) -> bytes:
        """A picture's file, of which no more is read than is taken."""
        if self.closing:
            raise HTTPException(503, "the server is closing")
        data, most = bytearray(), self.known.max_bytes
        too_large = HTTPException(413, f"a picture's file must be at most {most} bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large

        async def read() -> None:
            async for chunk in request.stream():
                data.extend(chunk)
                if len(data) > most:
                    raise too_large

        try:
            await asyncio.wait_for(read(), BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise HTTPException(408, f"the picture did not arrive within {BODY_SECONDS} seconds") from error
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


def application(config: ServeConfig, known: Facts) -> serve.Application:
    """The two deployments.

    Raises:
        ValueError: the cluster has no room for the replicas.
    """
    nodes = machines()
    threads = config.threads or max(1, int(max(n["CPU"] for n in nodes)) // math.ceil(config.replicas / len(nodes)))
    room = sum(int(min(node.get("CPU", 0) // threads, node.get("GPU", math.inf))) for node in nodes)
    if room < config.replicas:
        raise ValueError(f"replicas must be at most {room}, the room for threads={threads}, got {config.replicas}")
    replica = serve.deployment(
        num_replicas=config.replicas,
        max_ongoing_requests=BATCHES * config.max_batch_size,
        max_queued_requests=config.max_queued,
        ray_actor_options={"num_cpus": threads, "num_gpus": int("GPU" in nodes[0])},
    )(Replica)
    front = serve.deployment(max_ongoing_requests=AT_THE_FRONT, ray_actor_options={"num_cpus": 0})
    return front(serve.ingress()(Front)).bind(replica.bind(config, known, threads), known)


def run(config: ServeConfig, known: Facts, ready: Callable[[str], object] = print) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, and answer what was accepted.

    Ray is connected to the cluster. ``ready`` is called with a line of text when requests are accepted.

    Raises:
        OSError: the port cannot be listened on.
        ValueError: the cluster has no room for the replicas, or its Serve listens elsewhere or has an
            application in our place.
    """
    port, deployments = find_port(config), application(config, known)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with termination() as stopped:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        try:
            front = serve.run(deployments, name=NAME)
            ready(f"serving {config.model} on http://{config.host}:{port}")
            with suppress(KeyboardInterrupt):
                while not stopped():
                    time.sleep(0.1)
            front.close.remote().result()
            time.sleep(FLUSH_SECONDS)
        finally:
            if config.address is None:
                serve.shutdown()
            else:  # others may use the Serve of a cluster that ran before
                serve.delete(NAME)


def find_port(config: ServeConfig) -> int:
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
