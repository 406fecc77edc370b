"""The settings of a server and of the app. Nothing here needs torch or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from bbdm.base import demo
from bbdm.base.settings import check, position, setting
from bbdm.pictures import images
from bbdm.sampling.options import NetworkConfig, WindowOptions
from bbdm.translation.config import TranslateConfig

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(NetworkConfig):
    """Which network is served, where, and the most that it takes.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "server"

    model: Path = position("the weights", metavar="CHECKPOINT")
    host: str = setting(LOOPBACK, "address to listen on; 0.0.0.0 for all")
    port: int = setting(8000, "port to listen on; 0 for a free one", least=0)
    replicas: int = setting(1, "samplers, with a GPU each where there are GPUs", least=1)
    threads: int | None = setting(None, "cores of a replica; as many as each can have if unset", least=1)
    max_batch_size: int = setting(8, "pictures in a batch", least=1)
    batch_wait_ms: float = setting(10.0, "how long a batch that is not full waits for more, in milliseconds", least=0)
    max_queued: int = setting(64, "requests that wait for a replica; one more gets the status 503", least=1)
    max_bytes: int = setting(8 * 2**20, "of a picture's file; a larger one gets the status 413", least=1)
    max_pixels: int = setting(2**20, "of a picture, padded for the network; a larger one gets the status 422", least=1)
    max_steps: int = setting(50, "steps of a picture; for more, a request gets the status 422", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 65535:
            raise ValueError(f"port must be at most 65535, got {self.port}")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(TranslateConfig):
    """Which pictures a cluster translates, by which network, and how.

    Raises:
        ValueError: a number below 1, or settings that contradict each other.
    """

    HEADING: ClassVar[str] = "cluster"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"split", "device", "maps", "intervals"})

    dataset: str = "folder"  # pictures alone
    data_dir: str = position("a folder of pictures", metavar="SOURCES")
    output_dir: Path | None = position("the folder of the results", metavar="RESULTS")
    workers: int | None = setting(
        None, "samplers; one for each GPU, or for as many cores as threads, if unset", least=1
    )
    threads: int = setting(1, "cores of a worker", least=1)
    address: str | None = setting(None, "of a running cluster, such as auto; one on this machine if unset")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.dtype is None:
            raise ValueError("compile needs dtype: workers that chose one by timing could choose different ones")


@dataclass(frozen=True)
class AppConfig(WindowOptions):
    """Which networks are shown where, and what a visitor may ask for.

    Raises:
        ValueError: a number is out of range.
    """

    HEADING: ClassVar[str] = "app"

    model: Path = position("a checkpoint, a folder or a name on the Hub; the bundled ones if left out", demo.FOLDER)
    host: str = setting(LOOPBACK, "address to listen on; 0.0.0.0 for other machines")
    port: int = setting(7860, "port to listen on", least=1)
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    dtype: Literal["bf16", "fp16", "fp32"] | None = setting(
        None, "of the arithmetic; if unset the file's, and for the bundled photographs the faster"
    )
    compile: bool = setting(False, "faster after a minute of compiling for each new size and number of results")
    size: images.Size | None = setting(
        None,
        "side, or HxW, that sources are made to fit inside; if unset, as in training, and with windows as they are",
        parse=images.read_size,
    )
    max_results: int = setting(8, "results of one source", least=1)
    max_steps: int = setting(200, "network calls for one result", least=1)
    max_files: int = setting(50, "sources in one batch", least=1)
    max_pixels: int = setting(2**24, "height x width of a source, after it was made to fit", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        if self.port > 65535:
            raise ValueError(f"port must be at most 65535, got {self.port}")

    @property
    def bundled(self) -> bool:
        """Whether the bundled networks are shown."""
        return self.model == demo.FOLDER
