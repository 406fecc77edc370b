"""A callback that measures the parts of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm.auto import tqdm

from bbdm.training.callback import Callback, Run
from bbdm.training.run_folder import TRACE

WARMUP, TIMED, TRACED = 5, 20, 3  # optimizer steps: to warm up, timed by part, recorded by operator
OPERATORS = 12  # number of operators printed


class Profile(Callback):
    """Prints the time of each part of a step and the slowest operators, and writes a trace to the folder.

    After some steps to warm up, the parts of the next ones are timed; then a few are recorded, which slows
    them. On a GPU each part waits for its work: nothing overlaps. Only the first process is measured.
    """

    def __init__(self) -> None:
        self.steps = 0  # since the run began
        self.seconds: dict[str, float] = defaultdict(float)  # of each part, over the timed steps
        self.began = 0.0  # when the timed steps began
        self.recording: profile | None = None

    def begin(self, trainer: Run) -> None:
        """Raise ValueError where fewer steps are left than a profile needs."""
        left = trainer.config.epochs * trainer.steps_per_epoch - trainer.step
        if left < WARMUP + TIMED + TRACED:
            raise ValueError(f"a profile takes {WARMUP + TIMED + TRACED} optimizer steps, and {left} are left")

    def after_step(self, trainer: Run, loss: float) -> None:
        """Start and stop timing and recording."""
        if not trainer.processes.first:
            return
        self.steps += 1
        if self.steps == WARMUP:
            self.began = time.perf_counter()
            trainer.update.part = self._timed
        elif self.steps == WARMUP + TIMED:
            self._print_parts(time.perf_counter() - self.began, trainer.config.batch_size)
            trainer.update.part = record_function
            gpu = [ProfilerActivity.CUDA] if trainer.device.type == "cuda" else []
            self.recording = profile(activities=[ProfilerActivity.CPU, *gpu])
            self.recording.start()
        elif self.recording is not None and self.steps == WARMUP + TIMED + TRACED:
            trainer.update.part = nullcontext
            self.recording.stop()
            path = trainer.folder / TRACE
            self.recording.export_chrome_trace(str(path))
            self._print_operators(self.recording, trainer.device.type)
            tqdm.write(f"{path} shows all of these steps in https://ui.perfetto.dev")
            self.recording = None

    def end(self, trainer: Run) -> None:
        """Stop recording if the run ends during it."""
        if self.recording is not None:
            self.recording.stop()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - began

    def _print_parts(self, total: float, batch_size: int) -> None:
        step = total / TIMED
        tqdm.write(f"{TIMED} steps of {batch_size} pairs, {1e3 * step:.1f} ms each, {batch_size / step:.1f} images/s")
        rest = {"rest": total - sum(self.seconds.values())}
        for name, seconds in [*self.seconds.items(), *rest.items()]:
            tqdm.write(f"{name:20} {1e3 * seconds / TIMED:8.1f} ms {100 * seconds / total:5.1f} %")

    def _print_operators(self, recording: profile, device: str) -> None:
        def own(operator: FunctionEventAvg) -> float:
            return operator.self_device_time_total if device == "cuda" else operator.self_cpu_time_total

        operators = sorted(recording.key_averages(), key=own, reverse=True)
        total = sum(map(own, operators))
        tqdm.write(f"the slowest operators, of {1e-3 * total / TRACED:.1f} ms a step while they are recorded:")
        for operator in operators[:OPERATORS]:
            part = f"{1e-3 * own(operator) / TRACED:8.1f} ms {100 * own(operator) / total:5.1f} %"
            tqdm.write(f"{operator.key[:60]:60} {operator.count // TRACED:5} calls {part}")
