"""Samplers in actors of a cluster, and the calls that they are sent."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from bbdm.base.atomic import file_sha256
from bbdm.base.scripts import StoppedError
from bbdm.files.hub import find_checkpoint
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import room_for

MOST_FRUITLESS = 3  # attempts in a row that make nothing: Ray notices a lost machine after some 10 seconds
Key = TypeVar("Key", bound=Hashable)


class Call(NamedTuple):
    """A call of a worker's method, which returns a number of values; the last is small, and the driver's."""

    arguments: tuple[Any, ...]
    returned: int = 1


class Workers:
    """Actors of a cluster. One that is lost is not started again: its machine may never come back.

    Args:
        kind: the class of the actors.
        task: what they are built with.
        config: how many there are, and of how many cores.
        at_once: calls of each at a time.
    """

    def __init__(self, kind: type[Any], task: Any, config: ClusterConfig, at_once: int = 1) -> None:
        import ray

        room, gpu = room_for(config.threads)
        self.count = min(room, config.workers or room)
        actor: Any = ray.remote(kind)
        actor = actor.options(num_cpus=config.threads, num_gpus=int(gpu), max_concurrency=at_once)
        self._all = [actor.remote(task) for _ in range(self.count)]
        # One that waits for its machine is sent nothing yet: others may be done with all before
        self._sent: dict[Any, Any] = {each.__ray_ready__.remote(): (each, None) for each in self._all * at_once}
        self._idle: list[Any] = []
        self._last: dict[Hashable, Any] = {}  # the worker of each key, which may hold what the next call reads

    def run(self, method: str, calls: Mapping[Key, Call]) -> Iterator[tuple[Key, list[Any], Any]]:
        """Send calls to workers that are idle; those of a lost worker to others.

        Yields:
            The key of a call, references to all values but the last, and the last, as calls are done.

        Raises:
            RayActorError: all workers are lost.
            RayError: a call failed, or what it reads was lost.
        """
        import ray
        from ray.exceptions import RayActorError

        waiting = dict(calls)
        missing = len(waiting)
        while missing:
            while waiting and self._idle:
                worker = self._idle.pop()
                key = next((key for key in waiting if self._last.get(key) is worker), next(iter(waiting)))
                arguments, returned = waiting.pop(key)
                made = getattr(worker, method).options(num_returns=returned).remote(*arguments)
                *others, last = made if returned > 1 else [made]
                self._sent[last], self._last[key] = (worker, (key, others)), worker
            (last,), _ = ray.wait([*self._sent])
            worker, sent = self._sent.pop(last)
            try:
                value = ray.get(last)
            except RayActorError:
                if sent is not None:
                    waiting[sent[0]] = calls[sent[0]]
                if not self._sent and not self._idle:
                    raise
                continue
            self._idle.append(worker)
            if sent is not None:
                missing -= 1
                yield *sent, value

    def close(self) -> None:
        """End the actors."""
        import ray

        for worker in self._all:
            ray.kill(worker)


def what_was_lost(error: Exception) -> str:
    """Why a cluster's calls can be tried again: workers, machines or objects were lost.

    Raises:
        StoppedError: the network's file, a picture or a disk cannot be used.
        Exception: the error itself, a defect that would come again.
    """
    from ray.exceptions import RayError, RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ValueError | OSError):
        raise StoppedError(f"{cause}; results that were made are kept") from error
    if not isinstance(cause, RayError):
        raise error
    return str(cause)


def load_sampler(config: ClusterConfig, sha256: str) -> BridgeSampler:
    """The sampler of a worker, on its GPU or on the cores that it has.

    Raises:
        ValueError: the network's file is not the driver's.
    """
    model = find_checkpoint(config.model)
    if file_sha256(model) != sha256:
        raise ValueError(f"{config.model} differs from machine to machine")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(config.threads)
    return config.sampler(model, device)
