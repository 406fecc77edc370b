"""A callback that measures the phases of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from tqdm.auto import tqdm

from bbdm.training.callback import Callback
from bbdm.training.run_folder import TRACE

if TYPE_CHECKING:
    from bbdm.training.loop import Training

WARMUP, TIMED = 5, 20  # optimizer steps: to warm up, and timed by phase
TRACED = 3  # optimizer steps recorded by operator, of which the first warms up the recording
OPERATORS = 12  # number of operators printed


class Profile(Callback):
    """Prints the time of each phase of a step and the slowest operators, and writes a trace to the folder.

    After some steps to warm up, the phases of the next ones are timed; then a few are recorded, which slows
    them. On a GPU each phase waits for its work: nothing overlaps. Only the first process is measured.
    """

    def __init__(self) -> None:
        self.steps = 0  # since the run began
        self.seconds: dict[str, float] = defaultdict(float)  # of each phase, over the timed steps
        self.began = 0.0  # when the timed steps began
        self.recording: profile | None = None

    def begin(self, trainer: Training) -> None:
        """Raise ValueError where fewer steps are left than a profile needs."""
        needed, left = WARMUP + TIMED + TRACED, trainer.total_steps - trainer.step
        if left < needed:
            raise ValueError(f"a profile takes {needed} optimizer steps, and {left} are left")
        if trainer.processes.first:
            path, device = trainer.folder / TRACE, trainer.device.type
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
            steps = schedule(wait=WARMUP + TIMED, warmup=1, active=TRACED - 1, repeat=1)

            def ready(recording: profile) -> None:
                recording.export_chrome_trace(str(path))
                tqdm.write(f"the slowest operators of {TRACED - 1} steps, while they are recorded:")
                order = f"self_{device}_time_total"
                tqdm.write(recording.key_averages().table(order, OPERATORS, max_name_column_width=60))
                tqdm.write(f"{path} shows all of these steps in https://ui.perfetto.dev")

            self.recording = profile(activities=activities, schedule=steps, on_trace_ready=ready)
            self.recording.start()

    def after_step(self, trainer: Training, loss: float) -> None:
        """Begin and end what is timed and what is recorded."""
        if self.recording is None:
            return
        self.steps += 1
        if self.steps == WARMUP:
            self.began = time.perf_counter()
            trainer.task.phase = self._timed
        elif self.steps == WARMUP + TIMED:
            self._print_phases(time.perf_counter() - self.began, trainer.config.batch_size)
            trainer.task.phase = record_function
        elif self.steps == WARMUP + TIMED + TRACED:
            trainer.task.phase = nullcontext
        self.recording.step()

    def end(self, trainer: Training) -> None:
        """Stop recording, also if the run ends during it."""
        if self.recording is not None:
            self.recording.stop()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - began

    def _print_phases(self, total: float, batch_size: int) -> None:
        step = total / TIMED
        tqdm.write(f"{TIMED} steps of {batch_size} pairs, {1e3 * step:.1f} ms each, {batch_size / step:.1f} images/s")
        for name, seconds in [*self.seconds.items(), ("rest", total - sum(self.seconds.values()))]:
            tqdm.write(f"{name:20} {1e3 * seconds / TIMED:8.1f} ms {100 * seconds / total:5.1f} %")
