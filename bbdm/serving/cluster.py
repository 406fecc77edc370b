"""Ray: joining a cluster or starting one on this machine, and translating a folder of pictures there.

A result is written whole or not at all, and its seeds follow from its name. So what a lost worker had made is
there, and Ray gives the rest to another one, which skips what is there with a line that says what made it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from bbdm.base import scripts
from bbdm.base.progress import counted
from bbdm.data.names import RowName
from bbdm.data.rows import BadPicturesError
from bbdm.files.repository import find_checkpoint
from bbdm.files.weights import check_is_file
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import LOOPBACK, Serve, TranslateRay
from bbdm.translation.record import Lines
from bbdm.translation.results import Job, missing, paths_of
from bbdm.translation.translator import Translator

if TYPE_CHECKING:
    from typing_extensions import Self

Driver = tuple[TranslateRay, Translator, Mapping[str, Any]]  # and the settings of its results


@contextmanager
def connected(address: str | None = None) -> Iterator[list[Mapping[str, float]]]:
    """Within the context, Ray is connected to a cluster; its workers import what ``bbdm --import`` did.

    It yields the resources of each machine. ``address`` is that of a running cluster, such as ``auto`` or
    ``ray://HEAD:10001``; None starts one on this machine, which listens on the loopback alone, without
    dashboard and usage statistics.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        # on Linux too: no other machine may join
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # as where nobody chose, of which Ray warns
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    words = [*scripts.imported]
    if words:
        options["runtime_env"] = {
            "worker_process_setup_hook": lambda: scripts.import_modules(words)
        }
    import ray

    if address is None:
        with daemons_in_a_session_of_their_own():
            ray.init(address="local", **options)
    else:
        ray.init(address=address, **options)
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextmanager
def daemons_in_a_session_of_their_own() -> Iterator[None]:
    """Within the context, the processes that Ray starts get a session apart from the command.

    A signal to the command's process group, as of ``timeout`` and of supervisors, would otherwise end Ray
    while the command still answers requests. Ray's processes end with the command in any case.
    """
    from ray._private import services

    popen = getattr(services, "ConsolePopen", None)
    if popen is None or os.name == "nt":
        yield
        return

    def start(
        command: Any, preexec_fn: Callable[[], None], **options: Any
    ) -> subprocess.Popen[bytes]:
        def before() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, Starting.SIGNALS)
            preexec_fn()

        process = popen(command, preexec_fn=before, start_new_session=True, **options)
        Starting.sessions.append(process.pid)
        return process

    services.ConsolePopen = start
    try:
        yield
    finally:
        services.ConsolePopen = popen


class Starting:
    """The start of a server: SIGTERM and SIGINT end the process and all that Ray started, with the status 0.

    Python's handlers do not run while Ray starts, and Ray's own handler of SIGTERM prints a stack. So a
    thread waits for the signals, which are blocked elsewhere. It is a context, which :meth:`end` leaves
    early. On systems without ``sigtimedwait``, signals are as they were.
    """

    SIGNALS: ClassVar = (signal.SIGTERM, signal.SIGINT)
    sessions: ClassVar[list[int]] = []  # process groups of Ray's daemons

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Self:
        if hasattr(signal, "sigtimedwait"):
            signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """From now on, signals go to the handlers of this process."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)

    def _wait(self) -> None:
        """End everything when a signal comes."""
        while not self._ended.is_set():
            if signal.sigtimedwait(self.SIGNALS, 0.1) is None:
                continue
            for session in self.sessions:
                with suppress(ProcessLookupError):
                    os.killpg(session, signal.SIGKILL)
            os._exit(0)


def serve(config: Serve) -> None:
    """Serve a network on this machine until a signal; see :func:`bbdm.serving.server.run`."""
    check_is_file(find_checkpoint(config.model), "checkpoint")  # before Ray takes its time
    print("starting Ray on this machine, which may take a minute", flush=True)
    with Starting() as starting, connected() as (machine,):
        # which imports Ray, after the environment says where it listens
        from bbdm.serving import server

        server.run(config, machine, starting.end)


def translate(config: TranslateRay) -> None:
    """Make missing results; print what cannot be read, and how many results there are.

    Raises:
        BadPicturesError: pictures cannot be read, without ``skip_bad``; all others are made.
        StoppedError: a worker cannot go on, such as with a full disk.
        ValueError, OSError: the network, the pictures or the cluster cannot be used, or the folder holds
            results of other settings.
    """
    sources = Path(config.data_dir).resolve()
    folder = config.folder.resolve()
    if sources.is_relative_to(folder) or folder.is_relative_to(sources):
        raise ValueError(f"results must be outside of the sources, got {sources} and {folder}")
    config = replace(config, data_dir=str(sources), output_dir=folder)
    translator = Translator(replace(config, device="cpu", compile=False), independent=True)
    names = translator.files.names
    bad = translator.bad

    def write(sampler: BridgeSampler, jobs: Sequence[Job], lines: Lines, *_: Any) -> None:
        # a picture once, also where several samples of it are jobs
        indices = {names[job.index]: job.index for job in jobs}
        rows: list[dict[str, str]] = []
        for name, index in indices.items():
            rows.append({"name": name, "source": str(translator.dataset.rows[index]["source"])})
        alone = translator.files.alone or sampler.window_grid(config) is not None
        batch_size = 1 if alone else config.batch_size
        done = outcomes((config, translator, lines.settings), rows, batch_size)
        for name, error in counted(done, "translating", len(rows), "pictures", translator.verbose):
            if error:
                bad[indices[name]] = error

    jobs, existing, _ = translator.run(config.solver, config.steps, folder, write)
    if bad and not config.skip_bad:
        others = f"{len(bad)} of {len(names)} pictures; the others are translated, and skip_bad leaves them out"
        raise BadPicturesError(f"{next(iter(bad.values()))} ({others})")
    for reason in bad.values():
        print(f"left out: {reason}")
    results = {*paths_of(jobs)}
    kept = len(results & existing)
    others = f", and {kept} that were there" if kept else ""
    print(f"{len(results) - kept} results in {folder}{others}")


def outcomes(
    driver: Driver, rows: Sequence[Mapping[str, str]], at_once: int
) -> Iterator[tuple[str, str]]:
    """The name of each picture (``name``, ``source``) as it is done, and why it has no result, or nothing."""
    if not rows:
        return
    config = driver[0]
    with connected(config.address) as machines:
        import ray.data
        from ray.exceptions import RayError

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        room = int(max(machine.get("CPU", 0) for machine in machines))
        if room < config.threads:
            raise ValueError(
                f"threads must be at most the {room} cores of a machine, got {config.threads}"
            )
        cores = int(sum(machine.get("CPU", 0) for machine in machines))
        cards = int(sum(machine.get("GPU", 0) for machine in machines))
        workers = min(cards or cores // config.threads, len(rows))
        blocks = max(workers, math.ceil(len(rows) / at_once))
        data = ray.data.from_items([*rows], override_num_blocks=blocks)
        results = data.map_batches(
            Worker,
            fn_constructor_args=(partial(ray.get, ray.put(driver)),),
            batch_size=at_once,
            num_cpus=config.threads,
            num_gpus=1 if cards else 0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        try:
            for row in results.iter_rows():
                yield str(row["name"]), str(row["error"])
        except RayError as error:
            cause: Any = getattr(error, "cause", None) or error
            if not isinstance(cause, ValueError | OSError | RayError):
                raise
            raise scripts.StoppedError(f"{cause}; results that were made are kept") from error


class Worker:
    """The driver's engine, which ``fetch`` returns, in a process of its own: on its GPU, or on its cores."""

    def __init__(self, fetch: Callable[[], Driver]) -> None:
        config, translator, settings = fetch()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(config.threads)
        self.engine = translator.on(replace(config, device=device))
        self.sampler = self.engine.sampler(config.solver, config.steps)
        self.lines = Lines(config.folder, settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the results of pictures (``name``, ``source``) that do not exist yet: ``name``, ``error``.

        Raises:
            ValueError: a name leads out of the folder of results.
        """
        names = [RowName(name) for name in batch["name"]]
        rows: list[dict[str, Any]] = []
        for name, path in zip(names, batch["source"], strict=True):
            rows.append({"name": name, "source": Path(path)})
        try:
            engine = self.engine.of_rows(rows)
            engine.write_results(
                self.sampler, self._missing(engine.plan(engine.config.folder)), self.lines
            )
            reasons = engine.bad
        except BadPicturesError as error:  # of all of them
            reasons = dict.fromkeys(range(len(names)), str(error))
        errors = [reasons.get(index, "") for index in range(len(names))]
        return {"name": np.array(names), "error": np.array(errors)}

    def _missing(self, jobs: Sequence[Job]) -> list[Job]:
        """What of jobs is not there, or is of a worker that was lost before it said what made it."""
        there = [path for path in paths_of(jobs) if path.exists()]
        if there:
            known = self.lines.known()
            for path in there:
                if path not in known:
                    path.unlink(missing_ok=True)
        return missing(jobs)
