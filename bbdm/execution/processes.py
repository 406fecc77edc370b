"""The processes of a run: one, or several of a launcher such as torchrun, on one node or more."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bbdm.base.atomic import temporary_name
from bbdm.execution.device import find_device

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")

PATIENCE = timedelta(hours=12)  # how long to wait for another process; a process that dies ends all


def started() -> int:
    """The number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_on_each_gpu() -> None:
    """Replace this process by one for each GPU, where there are several, which torchrun starts."""
    count = torch.cuda.device_count()
    if started() == 1 and count == 0:
        print("there is no GPU here: one process works on the CPU")
    if started() == 1 and count > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        os.execv(sys.executable, [sys.executable, *torchrun, *sys.orig_argv[1:]])


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them."""

    device: torch.device
    rank: int = 0
    count: int = 1
    accelerator: Accelerator | None = None  # of several processes

    @classmethod
    def join(cls, device: str | None = None) -> Processes:
        """This process among those that were started; several on GPUs have one each.

        ``device`` None is CUDA where there is a GPU, else the CPU.

        Raises:
            ValueError: there is no such device here, or several processes were started and accelerate is
                missing.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if started() == 1:
            return cls(find_device(device))
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise ValueError("several processes need accelerate: pip install '.[train]'") from error
        cpu = torch.device(device).type == "cpu"
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        # without a GPU, accelerate runs each process alone
        if accelerator.num_processes != started():
            raise ValueError(
                f"device {device!r} cannot be used here by {started()} processes: is there no GPU?"
            )
        return cls(
            accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def parallel(self, network: Any) -> Any:
        """The network, with gradients averaged over all processes in backward."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def alone(self, network: Any) -> AbstractContextManager[None]:
        """A context in which backward does not average gradients; a later backward does."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(network)

    def sum(self, value: float) -> float:
        """The sum of all processes' values, in each process."""
        if self.accelerator is None:  # no device waits, or must have float64
            return value
        return float(self.total(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, in each process."""
        if self.accelerator is None:
            return value
        return self.accelerator.reduce(value, "sum")  # pyright: ignore[reportReturnType]  (a tensor of a tensor)

    def gather(self, value: Value) -> list[Value]:
        """All processes' values, in order of rank, in each process. Values must be picklable."""
        if self.accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def check_shared(self, folder: Path) -> None:
        """Raise ValueError unless all processes see what the first writes to a folder, which need not exist.

        The first process may be on another node when they start again, so nodes need a disk that they share.
        """
        if self.accelerator is None:
            return
        folder = folder.absolute()
        above = folder
        while not above.is_dir():
            above = above.parent
        file = above / self.gather(temporary_name("seen"))[0]
        if self.first:
            file.touch()
        self.wait()
        seen = self.gather((platform.node(), file.exists()))
        if self.first:
            file.unlink()
        blind = {node for node, sees in seen if not sees}
        if blind:
            nodes = ", ".join(sorted(blind))
            raise ValueError(
                f"{folder} must be on a disk that all nodes share: it is not seen on {nodes}"
            )

    def first_before_others(self) -> AbstractContextManager[None]:
        """A context that the other processes enter after the first has left it."""
        return nullcontext() if self.accelerator is None else self.accelerator.main_process_first()

    def leave(self) -> None:
        """Leave the group of processes. Nothing else may hold a network of :meth:`parallel` any longer."""
        if self.accelerator is not None:
            # a network of parallel() that outlives the group hangs when it is freed
            self.accelerator.free_memory()
            self.accelerator.end_training()
