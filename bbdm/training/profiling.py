"""A callback that measures the phases of a training step."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule
from tqdm.auto import tqdm

from bbdm.training.callback import Callback
from bbdm.training.run_folder import TRACE

WAIT, WARMUP, RECORDED = 15, 5, 8  # optimizer steps: before the recording, to warm it up, and in it
OPERATORS = 12  # number of operators printed


class Profile(Callback):
    """Prints the time of each phase of a step and the slowest operators, and writes a trace to the folder.

    Some steps are recorded, which slows them, after others to warm up. On a GPU, the time of a phase is that
    of starting its work, beside which that of its kernels is shown. Only the first process is measured.
    """

    def __init__(self) -> None:
        self.phases: dict[str, None] = {}  # their names in order
        self.recording: profile | None = None

    def begin(self, trainer: Any) -> None:
        """Raise ValueError where fewer steps are left than a profile needs."""
        needed, left = WAIT + WARMUP + RECORDED, trainer.total_steps - trainer.step
        if left < needed:
            raise ValueError(f"a profile takes {needed} optimizer steps, and {left} are left")
        if trainer.processes.first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.device.type == "cuda" else [])]
            steps = schedule(wait=WAIT, warmup=WARMUP, active=RECORDED, repeat=1)
            ready = partial(self._report, trainer)
            self.recording = profile(activities=activities, schedule=steps, on_trace_ready=ready)
            self.recording.start()
            trainer.task.phase = self._phase

    def after_step(self, trainer: Any, loss: float) -> None:
        """Begin and end the recording."""
        if self.recording is not None:
            self.recording.step()

    def end(self, trainer: Any) -> None:
        """Stop recording, also if the run ends during it."""
        if self.recording is not None:
            trainer.task.phase = nullcontext
            self.recording.stop()

    def _phase(self, name: str) -> record_function:
        self.phases[name] = None
        return record_function(name)

    def _report(self, trainer: Any, recording: profile) -> None:
        trainer.task.phase = nullcontext
        path, gpu = trainer.folder / TRACE, trainer.device.type == "cuda"
        recording.export_chrome_trace(str(path))
        operators = recording.key_averages()
        found = {each.key: each for each in operators if each.device_type.name == "CPU"}
        steps = found["ProfilerStep*"]
        step, pairs = steps.cpu_time_total / steps.count / 1e6, trainer.config.batch_size  # seconds
        tqdm.write(f"{steps.count} steps of {pairs} pairs, {1e3 * step:.1f} ms each, {pairs / step:.1f} images/s")
        times = {name: found[name].cpu_time_total / steps.count / 1e6 for name in self.phases if name in found}
        for name, seconds in {**times, "rest": step - sum(times.values())}.items():
            kernels = found[name].device_time_total / steps.count / 1e3 if gpu and name in found else 0
            shown = f", {kernels:8.1f} ms on the GPU" if kernels else ""
            tqdm.write(f"{name:20} {1e3 * seconds:8.1f} ms {100 * seconds / step:5.1f} %{shown}")
        tqdm.write("the slowest operators:")
        order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
        tqdm.write(operators.table(order, row_limit=OPERATORS, max_name_column_width=60))
        tqdm.write(f"{path} shows all of these steps in https://ui.perfetto.dev")
