"""The commands of the app, of a server and of many machines: settings alone, without torch or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bbdm.base import demo
from bbdm.base.scripts import Command
from bbdm.base.settings import position, setting
from bbdm.files.header import read_header
from bbdm.translation.config import OF_SEQUENCES, NetworkConfig, TranslateConfig

if TYPE_CHECKING:
    from bbdm.sampling.sampler import BridgeSampler

LOOPBACK = "127.0.0.1"
AT_ONCE = 32  # of the largest files: what a server holds where nobody said how much


@dataclass(frozen=True, kw_only=True)
class ShowConfig(NetworkConfig):
    """A network that is shown at an address, and the most that a picture may take.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "address"

    model: Path = position("a checkpoint, a folder or a name on the Hub")
    host: str = setting(LOOPBACK, "address to listen on; 0.0.0.0 for all")
    port: int = setting(8000, "port to listen on; 0 for a free one", least=0)
    max_steps: int = setting(
        50, "steps of a picture; for more, a request gets the status 422", least=1
    )
    max_pixels: int = setting(
        2**20, "of a picture, padded for the network; a larger one gets the status 422", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 65535:
            raise ValueError(f"port must be at most 65535, got {self.port}")

    def open(self, device: str) -> BridgeSampler:
        """The sampler of the network, of photographs and without conditions, else ValueError."""
        from bbdm.data.spec import check_eight_bit
        from bbdm.files.repository import find_checkpoint
        from bbdm.networks.arrays import check_pictures
        from bbdm.networks.conditions import DIRECTION

        sampler = self.sampler(find_checkpoint(self.model), device)
        what = f"the {self.HEADING}"
        check_eight_bit(sampler.pictures, what)
        check_pictures(sampler.axes, what)
        sampler.window_grid(self)  # refused now, and not when a picture comes
        others: list[str] = []
        for name in sampler.unet.network_config.each:
            if name != DIRECTION or not sampler.direction:
                others.append(name)
        names = ", ".join(others)
        if names:
            raise ValueError(
                f"{what} is for networks without conditions, and this one has {names}: use bbdm translate"
            )
        calls = len(sampler.table)
        if calls > self.max_steps:
            raise ValueError(
                f"max_steps must be at least the {calls} steps of {sampler.solver!r}, got {self.max_steps}"
            )
        return sampler


@dataclass(frozen=True, kw_only=True)
class Serve(Command, ShowConfig):
    """Serve a network over HTTP: bbdm serve MODEL [flags].

    POST a picture (BMP, JPEG, PNG, WebP) to /translate, and get its translation as PNG. The query takes
    solver, steps and seed:
    curl --data-binary @drawing.png 'http://127.0.0.1:8000/translate?steps=20&seed=0' -o result.png
    """

    HEADING: ClassVar[str] = "server"
    ENDS_BY_INTERRUPT: ClassVar[bool] = True
    FIRST: ClassVar[str] = "host port solver steps"

    max_batch_size: int = setting(8, "pictures in a batch", least=1)
    max_queued: int = setting(
        64, "requests that wait for a replica; one more gets the status 503", least=1
    )
    max_bytes: int = setting(
        8 * 2**20, "of a picture's file; a larger one gets the status 413", least=1
    )
    max_total_bytes: int | None = setting(
        None,
        f"of the files of all requests that are not answered; one more gets the status 503; {AT_ONCE} times "
        "max_bytes if unset",
        least=1,
    )
    body_timeout: float = setting(
        30.0, "seconds for a picture's file to arrive; a later one gets the status 408", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_bytes < self.max_bytes:
            raise ValueError(
                f"max_total_bytes must be at least max_bytes {self.max_bytes}, got {self.max_total_bytes}"
            )

    @property
    def opening(self) -> str:
        """Which network, and that it takes a while."""
        return (
            f"starting a server of {read_header(self.model)}; its address follows when it answers"
        )

    @property
    def total_bytes(self) -> int:
        """The most bytes of the files of all requests that are not answered."""
        return AT_ONCE * self.max_bytes if self.max_total_bytes is None else self.max_total_bytes


@dataclass(frozen=True, kw_only=True)
class App(Command, ShowConfig):
    """Translate pictures in the browser: bbdm app MODEL [flags].

    MODEL is a checkpoint, a folder that save_pretrained wrote, or a name on the Hub. Without any, the page
    shows the bundled networks. It is at http://127.0.0.1:7860, and fetches nothing from the internet.
    """

    HEADING: ClassVar[str] = "app"
    ENDS_BY_INTERRUPT: ClassVar[bool] = True
    FIRST: ClassVar[str] = "host port device solver steps max_steps max_pixels"

    model: Path = position(
        "a checkpoint, a folder or a name on the Hub; the bundled ones if left out", demo.FOLDER
    )
    port: int = setting(7860, "port to listen on", least=1)
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    max_steps: int = setting(200, "network calls for one result", least=1)
    max_pixels: int = setting(2**25, "of a picture, by its header", least=1)

    @property
    def opening(self) -> str:
        """Which network, and that it takes a while."""
        network = "the bundled networks" if self.model == demo.FOLDER else read_header(self.model)
        return f"starting the app of {network}; its address follows when it answers"


@dataclass(frozen=True, kw_only=True)
class TranslateRay(Command, TranslateConfig):
    """Translate pictures on many machines: bbdm translate-ray SOURCES RESULTS CHECKPOINT [flags].

    SOURCES is a folder of pictures, RESULTS a folder outside of it, at the same paths on all machines: on a
    shared disk, or a bucket that is mounted. Results are those of bbdm translate folder, and the same command
    makes what is missing.

    Raises:
        ValueError: a number below 1, or settings that contradict each other.
    """

    HEADING: ClassVar[str] = "cluster"
    HIDDEN: ClassVar[frozenset[str]] = frozenset(
        {"split", "device", "maps", "intervals", "outside", *OF_SEQUENCES}
    )
    FIRST: ClassVar[str] = (
        "data_dir output_dir model solver steps num_samples seed image_size batch_size threads address overwrite"
    )

    dataset: str = "folder"  # pictures alone
    data_dir: str = position("a folder of pictures", metavar="SOURCES")
    output_dir: Path | None = position("the folder of the results", metavar="RESULTS")
    threads: int = setting(1, "cores of a worker; one has a GPU where there are GPUs", least=1)
    address: str | None = setting(
        None, "of a running cluster, such as auto; one on this machine if unset"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.dtype is None:
            raise ValueError(
                "compile needs dtype: workers that chose one by timing could choose different ones"
            )

    @property
    def opening(self) -> str:
        """Of what, with which network and by how many steps."""
        network = read_header(self.model)
        return f"translating {self.data_dir} by Ray with {network}{network.calls(self.solver, self.steps)}"
