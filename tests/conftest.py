"""Small things that several test files build: pictures on disk, and networks small enough for a CPU."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from bbdm import demo, solvers
from bbdm.base.atomic import locked
from bbdm.base.registry import Registry
from bbdm.bridges import BRIDGES, ABridge, Bridge
from bbdm.data.examples import Example
from bbdm.data.kinds import CONDITION_KINDS
from bbdm.data.pairs import Pairs
from bbdm.data.rows import DATASETS, read_rows
from bbdm.data.spec import Spec
from bbdm.evaluation.metrics import METRICS
from bbdm.networks.config import FACTORIES, OWN, UNETS, UNetConfig
from bbdm.networks.dit import DiT
from bbdm.networks.unet import UNet
from bbdm.pictures import formats
from bbdm.pictures.formats.libraries import SUFFIXES
from bbdm.training.callbacks import Callback
from bbdm.training.config import BridgeConfig, TrainConfig
from bbdm.training.trainer import Trainer

ROOT = Path(__file__).parent.parent

settings.register_profile("shared machine", deadline=None)  # a busy machine is no failure
settings.load_profile("shared machine")

TINY: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "head_channels": 8,
    "num_groups": 4,
    "num_res_blocks": 1,
}

SIZE = 8  # of small pictures
BRIDGE = ABridge(num_steps=50)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder that all processes of a session share, in the variable BBDM_TESTS."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["BBDM_TESTS"] = str(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    os.environ["HF_DATASETS_CACHE"] = f"{os.environ['BBDM_TESTS']}/datasets"


@pytest.fixture(scope="session")
def inductor() -> None:
    """PyTorch's compiler, whose commands take a space in a path for the end of the path."""
    for folder in (tempfile.gettempdir(), os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")):
        if " " in folder:
            pytest.skip(f"PyTorch's compiler cannot work below a path with a space, {folder}")


@pytest.fixture(autouse=True)
def same_draws(request: pytest.FixtureRequest) -> None:
    """What a test draws is the same whatever ran before, of torch and of its module's ``RANDOM``."""
    torch.manual_seed(0)
    if (generator := getattr(request.module, "RANDOM", None)) is not None:
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test leaves the number of threads as it was, whatever the commands that it runs set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_names() -> Iterator[None]:
    """What a test registers under a name is forgotten at its end."""
    tables: list[dict[str, Any]] = [FACTORIES, METRICS, SUFFIXES]
    registries: list[Registry[Any]] = [
        BRIDGES,
        solvers.SOLVERS,
        OWN,
        DATASETS,
        CONDITION_KINDS,
        formats.LIBRARIES,
    ]
    tables += [
        vars(registry)[field] for registry in registries for field in ("_things", "_origins")
    ]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


MakePairs = Callable[..., Pairs]
MakeTrainer = Callable[..., Trainer]
MakeUNet = Callable[..., UNet]
SavePicture = Callable[..., Path]


def tiny_unet(seed: int = 0, **settings: Any) -> UNet:
    """A tiny network whose zero-initialised layers are random too."""
    torch.manual_seed(seed)
    unet = UNet(**{**TINY, **settings})
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet


def tiny_dit(seed: int = 0, **settings: Any) -> DiT:
    """The same of transformers, in evaluation mode."""
    torch.manual_seed(seed)
    dit = DiT(**{"width": 16, "depth": 2, "heads": 2, "patch": 2, **settings})
    for parameter in dit.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return dit.eval()


@pytest.fixture(scope="session")
def make_unet() -> MakeUNet:
    """make_unet(seed=0, **settings): see :func:`tiny_unet`."""
    return tiny_unet


def export_once(name: str, checkpoint: Callable[[Path], Path], *flags: str) -> Path:
    """An export that the first of a session's processes makes that asks for it; no test may change it."""
    from tests.onnx.exports import export

    folder = Path(os.environ["BBDM_TESTS"]) / name
    with locked(folder):
        if not (folder / "done").exists():
            export(checkpoint(folder / "bridge.pt"), folder / "onnx", *flags)
            (folder / "done").touch()
    return folder / "onnx"


@pytest.fixture(scope="session")
def exported(shared_folder: None) -> Path:
    """An export of a tiny network by 4 calls of sde-dpm2m; its checkpoint is ``bridge.pt`` beside it."""
    from tests.onnx.exports import checkpoint

    return export_once("exported", checkpoint, "--solver", "sde-dpm2m", "--steps", "4")


@pytest.fixture(scope="session")
def bundled_export(shared_folder: None) -> Path:
    """The bundled network in float16, as the docs export it. It takes half a minute: for nightly tests."""
    return export_once("bundled", lambda _: demo.WEIGHTS, "--dtype", "fp16")


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo preset with a network of a few thousand parameters."""
    monkeypatch.setitem(UNETS, "demo", UNetConfig(condition_channels=3, **TINY))


def noise(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """A picture of random colours."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def save_random_pairs(
    folder: Path, train: int, validation: int, save: SavePicture, size: int = 16
) -> Path:
    """A data set edge2shoes of random pairs; returns the folder."""
    for index in range(train + validation):
        place = folder / ("train" if index < train else "val") / f"{index:02d}.png"
        save(place, noise(index, 2 * size, size))
    return folder


@pytest.fixture(scope="session")
def save_picture() -> SavePicture:
    """save_picture(path, image, **options): writes the picture, nearly without loss, and makes its folder."""

    def save(path: Path, image: Image.Image, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lossless = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}.get(
            path.suffix, {}
        )
        image.save(path, **lossless, **options)
        return path

    return save


def load_pairs(dataset: str, data_dir: str, split: str = "train", **spec: Any) -> Pairs:
    """A data set by its layout, with the settings of a :class:`~bbdm.data.spec.Spec`."""
    return Pairs(read_rows(dataset, data_dir, split), Spec(**spec))


@pytest.fixture(scope="session")
def make_pairs(save_picture: SavePicture) -> MakePairs:
    """make_pairs(folder, count, height=SIZE): pairs of noise, and the same turned upside down in negative."""

    def make(folder: Path, count: int, height: int = SIZE) -> Pairs:
        generator = np.random.default_rng(0)
        for index in range(count):
            source = generator.integers(0, 256, (height, SIZE, 3), dtype=np.uint8)
            save_picture(folder / "A" / f"{index}.png", Image.fromarray(source))
            save_picture(folder / "B" / f"{index}.png", Image.fromarray(255 - source[::-1]))
        return load_pairs("paired", f"{folder}/A,{folder}/B", size=SIZE)

    return make


@pytest.fixture
def make_trainer(make_unet: MakeUNet, make_pairs: MakePairs, tmp_path: Path) -> MakeTrainer:
    """Makes trainers of 2 epochs of 2 steps on 4 pairs, unless the arguments say otherwise.

    ``further`` are other arguments of the trainer, and ``config`` those of its settings.
    """
    pairs = make_pairs(tmp_path / "pairs", 4)

    def make(
        folder: str = "run",
        unet: UNet | None = None,
        bridge: Bridge = BRIDGE,
        validation: Pairs | None = None,
        train: Pairs | None = None,
        callbacks: Sequence[Callback] = (),
        kind: type[BridgeConfig] = TrainConfig,
        further: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Trainer:
        settings = kind(**{"epochs": 2, "batch_size": 2, **config})
        unet = make_unet(condition_channels=3) if unet is None else unet
        train = pairs if train is None else train
        about = {"callbacks": callbacks, **(further or {})}
        return Trainer(unet, bridge, settings, train, validation, tmp_path / folder, **about)

    return make


@pytest.fixture
def pairs(make_pairs: MakePairs, tmp_path: Path) -> Pairs:
    """Those of make_trainer."""
    return make_pairs(tmp_path / "pairs", 4)


def sweep(values: Iterable[Any], daily: Collection[Any]) -> list[Any]:
    """Values for ``parametrize``, marked nightly unless ``daily``; a tuple has a value for each name."""
    rows = ((value, value if isinstance(value, tuple) else (value,)) for value in values)
    return [
        pytest.param(*row, marks=() if value in daily else pytest.mark.nightly)
        for value, row in rows
    ]


def wait_until(done: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for what another process or thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} seconds: {what}"
        time.sleep(0.005)


def relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of a difference, as a share of that of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two networks have the same weights and buffers, to the bit."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items()
    )


def batch_of(pairs: Pairs, count: int) -> Example:
    """The first pairs as a batch, with values in [-1, 1]."""
    source, target = (
        torch.stack(side) for side in zip(*(pairs[i] for i in range(count)), strict=True)
    )
    return Example(source, target)


def metrics_of(trainer: Trainer) -> list[dict[str, Any]]:
    """What a run wrote of its epochs."""
    return [
        json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()
    ]


def newest(trainer: Trainer) -> Path:
    """A run's newest checkpoint."""
    return next(iter(trainer.run_folder.checkpoints().values()))
