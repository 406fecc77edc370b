"""The door of `bbdm serve`: what it answers, what it refuses, and what it leaves to others."""

import asyncio
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bbdm.serving.batching import Item, Made
from bbdm.serving.requests import RequestError, ServeConfig
from tests.serving.pictures import GOOD, SERVED


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
