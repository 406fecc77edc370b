"""The command bbdm train. In Python, ``Train.of(preset=...)`` has the defaults of a preset."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from bbdm.base.settings import from_command, setting
from bbdm.base.sizes import number_of
from bbdm.bridges import BRIDGES, Bridge, Density, Objective, from_config
from bbdm.cli.start import StartCommand, find_base, find_step, load_autoencoder, say_what_is_read
from bbdm.cli.training import report
from bbdm.data.config import DataConfig
from bbdm.data.rows import UNPAIRED
from bbdm.data.spec import read_named
from bbdm.networks.arrays import check_pictures
from bbdm.networks.config import DITS, OWN, UNETS, DiTConfig, UNetConfig, WrappedConfig
from bbdm.pictures.images import Size, read_size
from bbdm.training.config import TrainConfig, UnpairedConfig
from bbdm.training.presets import PRESET_SETTINGS, PRETRAINED_SETTINGS, UNPAIRED_SETTINGS

if TYPE_CHECKING:
    from bbdm.codec import Codec
    from bbdm.data.pairs import Pairs
    from bbdm.data.trained import Origin
    from bbdm.execution.processes import Processes
    from bbdm.files.content import Checkpoint
    from bbdm.networks.base import Network
    from bbdm.training.trainer import Trainer

SourceAs = Literal["concat", "none"]
PRESETS: Mapping[str, Any] = ChainMap[str, Any](cast(Any, OWN), DITS, UNETS)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # bridges that are another with settings
    "bbdm": ("brownian", {"schedule": "linear"}),
    "flow": ("brownian", {"max_variance": 0.0, "objective": "displacement"}),
}
BRIDGE_NAMES: Mapping[str, Any] = ChainMap(VARIANTS, cast(Any, BRIDGES))  # for its keys
# of two sets without pairs: as in UNPAIRED_SETTINGS, or unset
FIXED_OF_SETS = (
    "bridge",
    "loss",
    "source_as",
    "direction",
    "conditions",
    "slices",
    "cache_latents",
)
OBJECTIVES = (*get_args(Objective), "scaled")  # the last is I2SB's


@dataclass(frozen=True, kw_only=True)
class Train(StartCommand, DataConfig, UnpairedConfig):
    """Train a bridge: bbdm train edge2shoes DATA OUTPUT_MODEL [flags].

    If it ends early, the same command resumes.

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    HEADING: ClassVar[str] = "bridge"
    PAIRS: ClassVar[bool] = False
    DECIDING: ClassVar[str] = "preset"
    FIRST: ClassVar[str] = (
        "preset epochs batch_size image_size crop source_values target_values device ckpt_path overwrite"
    )

    preset: str = setting("paper", "paper, demo, small, few, or others", choices=PRESETS)
    time_steps: int | None = setting(
        None,
        "T of the bridge; 1000, of goub 100, if unset",
        "-t",
        "--t",
        "--num_steps",
        metavar="T",
    )
    c_lambda: float = setting(2.0, "noise scale of the A-Bridge", "-l")
    bridge: str = setting("abridge", "the path from source to target", choices=BRIDGE_NAMES)
    objective: str | None = setting(
        None, "what the network predicts; the bridge's own if unset", choices=OBJECTIVES
    )
    density: Density = setting("uniform", "of training times")
    spread: float | None = setting(
        None, "of targets less sources, in [-1, 1]; measured if unset and it counts"
    )
    eps: float | None = setting(
        None,
        "variance of the path between two sets; that of their values if unset",
        group="unpaired",
    )
    image_size: Size | None = setting(
        256, "side, or HxW, that pictures are resized to", parse=read_size
    )
    channels: Literal[1, 3] | None = setting(
        None, "1 for grey pictures; 3 if unset, or the autoencoder's", group="network"
    )
    source_as: SourceAs | None = setting(
        None, "how the network sees the source; the preset's if unset", group="network"
    )
    drop: dict[str, float] | None = setting(
        None,
        "NAME:SHARE with commas: examples that lack the condition",
        parse=lambda text: {
            k: float(v) for k, v in read_named(text, "it is written as NAME:SHARE", ":").items()
        },
        group="network",
    )
    best: bool = setting(
        False,
        "OUTPUT_MODEL has the weights of the lowest validation loss, not the last",
        group="run",
    )
    gradient_checkpointing: bool = setting(
        False, "less memory for a third more compute", group="network"
    )
    cache_latents: Path | None = setting(
        None, "folder of latents: they are computed once", group="latents"
    )
    normalize_latents: bool = setting(False, "to mean 0 and spread 1, as BBDM can", group="latents")

    @property
    def caches(self) -> list[Path]:
        """The folders of what is computed once, which all processes must see."""
        return (
            super().caches if self.cache_latents is None else [*super().caches, self.cache_latents]
        )

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the preset, and of a training without pairs."""
        defaults = dict(PRESET_SETTINGS.get(values.get("preset", "paper"), {}))
        if values.get("dataset") == UNPAIRED:
            defaults |= UNPAIRED_SETTINGS
        step = find_step(values)
        say_what_is_read(values.get("init_from"), values)
        if step is not None or find_base(values.get("init_from"), values.get("config")) is not None:
            defaults |= PRETRAINED_SETTINGS
        return defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_pretrained:
            self._take_codec()
        elif self.lora is not None:
            raise ValueError(
                f"lora needs init_from, a folder with a network that diffusers saved; got {self.init_from}"
            )
        self._check_sets()
        self._check_latents()
        if self.gradient_checkpointing and self.preset in OWN:
            raise ValueError(
                f"gradient_checkpointing is of the networks of this library, got --preset {self.preset}"
            )
        if self.init_from and self.ckpt_path:
            raise ValueError(
                "init_from and ckpt_path exclude each other: one begins a run, the other resumes one"
            )
        if self.config and not self.init_from:
            raise ValueError("config is of the network that init_from names, and there is none")

    @property
    def opening(self) -> str:
        """On what, which network, and for how long."""
        network = f"preset {self.preset}"
        if self.is_pretrained:
            network = f"the network of {self.name}"
        length = number_of(self.epochs, "epoch")
        if self.max_steps is not None:
            length = number_of(self.max_steps, "step")
        return f"training {self.output_model} on {self.data_dir}: {network}, {length}"

    def _take_codec(self) -> None:
        """Train in the latents of a pretrained network's autoencoder, where it has one, at their own scale.

        Raises:
            ValueError: a setting does not go with a pretrained network.
        """
        if self.objective != "denoiser":
            raise ValueError(
                f"objective must be 'denoiser' of a pretrained network, got {self.objective!r}"
            )
        if self.dataset == UNPAIRED:
            got = "got a network of diffusion models"
            raise ValueError(f"init_from must be a checkpoint for the data set {UNPAIRED!r}, {got}")
        if self.normalize_latents:
            raise ValueError(
                "normalize_latents would make the noise of a pretrained network another one"
            )
        if self.source_as == "none":
            raise ValueError("source_as must be concat: a pretrained network sees the source")
        if self.vqgan_path is None:
            object.__setattr__(self, "vqgan_path", self.autoencoder())

    def _check_sets(self) -> None:
        """Raise ValueError where settings of two sets without pairs are wrong, or are given for pairs."""
        if self.dataset != UNPAIRED:
            of_sets = self.named & {"eps", "pairing_steps", "simulation_steps"}
            if of_sets:
                raise ValueError(
                    f"{min(of_sets)} is of the data set {UNPAIRED!r}, got {self.dataset!r}"
                )
            return
        if self.eps is not None and not 0 < self.eps < inf:
            raise ValueError(f"eps must be a positive number, got {self.eps}")
        for name in FIXED_OF_SETS:
            value = getattr(self, name)
            wanted = UNPAIRED_SETTINGS.get(name)
            if value != wanted:
                raise ValueError(
                    f"{name} must be {wanted} for the data set {UNPAIRED!r}, got {value}"
                )

    def _check_latents(self) -> None:
        """Raise ValueError where settings of latents lack an autoencoder, or those of pictures have one."""
        if self.vqgan_path is None:
            if self.cache_latents or self.normalize_latents:
                raise ValueError(
                    "cache_latents and normalize_latents need vqgan_path, the autoencoder"
                )
            if self.preset.startswith("lbbdm"):
                raise ValueError(
                    f"--preset {self.preset} is of latents: it needs --vqgan_path, the autoencoder"
                )
            return
        check_pictures(PRESETS[self.preset].axes, "vqgan_path")
        if self.channels:
            raise ValueError(
                "channels are of pictures that are trained on: with vqgan_path, the autoencoder's"
            )
        if self.slices and self.slices.neighbours:
            raise ValueError(
                "neighbours of slices are of pictures, and vqgan_path of latents: leave one out"
            )

    def build_bridge(self) -> Bridge:
        """The bridge that the flags name; what they leave open, and a uniform density, is its own default."""
        kind, settings = VARIANTS.get(self.bridge, (self.bridge, {}))
        settings = {"kind": kind, **settings}
        if self.time_steps is not None:
            settings["num_steps"] = self.time_steps
        # which the network's range of noise levels belongs to
        if self.objective not in (None, "denoiser"):
            settings["objective"] = self.objective
        if kind == "abridge":
            settings["c_lambda"] = self.c_lambda
        if self.density != "uniform":
            settings["density"] = self.density
        return from_config(settings)

    def build(self, team: Processes, folder: Path, resumed: Checkpoint | None) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.training import initial
        from bbdm.training.bridge import BridgeTask
        from bbdm.training.callbacks import Callback, Forecast
        from bbdm.training.trainer import Trainer
        from bbdm.training.unpaired import UnpairedTask

        codec = None
        if self.vqgan_path is not None:
            codec = load_autoencoder(self.vqgan_path).placed(team.device, torch.float32)
        pairs, validation = self._pairs(team, codec, resumed)
        torch.manual_seed(self.seed)
        statistics: dict[str, Any] = {}
        origin: Origin | None = None
        callbacks: list[Callback] = []
        network: Any  # which may have gradient_checkpointing
        if self.is_pretrained:
            if "preset" in self.named:
                report(
                    team,
                    f"the network is that of {self.name}, and preset {self.preset} only gives defaults",
                )
            network, bridge, origin = self.pretrained(
                team, pairs, codec, resumed, self.build_bridge()
            )
            callbacks = [Forecast()]
        else:
            network = self._network(pairs, codec)
            bridge = self.build_bridge()
        if self.gradient_checkpointing:
            network.gradient_checkpointing = True
        if resumed is not None:
            statistics = resumed.bridge.statistics
        elif self.init_from is not None and not self.is_pretrained:
            trained = initial.load_trained(
                self.init_from, self.time_steps or 1000, self.c_lambda, self.config
            )
            statistics = trained.bridge.statistics
            origin = trained.origin
            copied = initial.copy_weights(network, trained)
            if copied.widened is not None:
                what = f"{copied.widened} is shown more than in {self.init_from}"
                report(team, f"{what}: weights of new channels begin as zeros")
            if copied.initialised:
                names = ", ".join(copied.initialised)
                report(
                    team,
                    f"{self.init_from} has no weights that fit {names}: they stay as initialised",
                )
        if codec is not None:
            pairs, codec = self._latents(team, pairs, codec, resumed)
        if self.spread is not None:
            statistics = {**statistics, "spread": self.spread}
        bridge = self._fitted(
            team, replace(bridge, **statistics), network, pairs, codec, bool(statistics), resumed
        )
        task = BridgeTask
        kind = TrainConfig
        if self.dataset == UNPAIRED:
            task = UnpairedTask
            kind = UnpairedConfig
        config = from_command(kind, self)
        trainer = Trainer(
            network, bridge, config, pairs, validation, folder, codec, team, callbacks, task=task
        )
        trainer.origin = origin
        return trainer

    def save(self, trainer: Trainer) -> float:
        """See :meth:`TrainingCommand.save`; with ``best``, of the best validation where there is one."""
        if self.best and trainer.best is None:
            report(
                trainer.processes, "best has no validation to go by: the weights are the last ones"
            )
        if not self.best or trainer.best is None:
            return super().save(trainer)
        if trainer.processes.first:
            trainer.run_folder.save_best(self.output_model)
        return trainer.best["step"] / trainer.steps_per_epoch

    def _pairs(
        self, team: Processes, codec: Codec | None, resumed: Checkpoint | None
    ) -> tuple[Pairs, Pairs | None]:
        """The training pairs and those for validation, in the channels that are trained on."""
        channels = self.channels or 3
        if codec is not None:
            channels = codec.image_channels
        known = None if resumed is None else resumed.unet.config
        return self.load_pairs(
            self.image_size, channels, team, PRESETS[self.preset].axes, known=known
        )

    def _network(self, pairs: Pairs, codec: Codec | None) -> Network:
        """The network of the preset, for the channels and the conditions of pairs, as initialised."""
        channels = pairs.channels
        source_channels = pairs.source_channels
        if codec is not None:
            channels = source_channels = codec.channels
        endpoint = pairs.spec.endpoint(pairs.source_channels, pairs.channels)
        conditions = replace(pairs.further, drop=self.drop or {}).settings()
        return build_network(
            self.preset, channels, source_channels, self.source_as, endpoint=endpoint, **conditions
        )

    def _latents(
        self, team: Processes, pairs: Pairs, codec: Codec, resumed: Checkpoint | None
    ) -> tuple[Pairs, Codec]:
        """Pairs as latents, where they are cached, and the codec with their statistics, where it has them."""
        from bbdm.data.latents import LatentDataset, measure

        progress = self.shown and team.first
        latents = pairs
        if self.cache_latents is not None:
            with team.first_before_others():  # the others find what the first caches
                latents = LatentDataset(pairs, codec, self.cache_latents, self.flip, progress)
        if self.normalize_latents:
            statistics = None
            if resumed is not None and resumed.codec is not None:
                statistics = resumed.codec.statistics
            codec = codec.with_statistics(
                statistics or measure(latents, codec, self.flip, progress=progress)
            )
        return latents, codec

    def _fitted(
        self,
        team: Processes,
        bridge: Any,  # of two sets a BrownianBridge
        network: Network,
        pairs: Pairs,
        codec: Codec | None,
        known: bool,
        resumed: Checkpoint | None,
    ) -> Bridge:
        """The bridge with statistics of the pairs, measured where they count and are not known."""
        from bbdm.training import initial
        from bbdm.training.unpaired import between_sets

        if self.dataset != UNPAIRED:
            if known or not initial.used(bridge):
                return bridge
            bridge = initial.fitted(bridge, network, pairs, codec, team.device)
            report_statistics(team, bridge.statistics)
            return bridge
        if resumed is not None:
            # of another bridge, the resume refuses it
            variance = getattr(resumed.bridge, "max_variance", 1.0)
            return replace(bridge, max_variance=variance if self.eps is None else self.eps / 2)
        bridge = between_sets(initial.fitted(bridge, network, pairs, codec, team.device), self.eps)
        if self.spread is not None:
            bridge = replace(bridge, spread=self.spread)
        report_statistics(team, {**bridge.statistics, "eps": 2 * bridge.max_variance})
        return bridge


def report_statistics(team: Processes, statistics: Mapping[str, float]) -> None:
    """Print what was measured of the pairs."""
    report(
        team, f"measured: {', '.join(f'{name} {value:g}' for name, value in statistics.items())}"
    )


def build_network(
    preset: str,
    channels: int,
    source_channels: int,
    source_as: SourceAs | None = None,
    **settings: Any,
) -> Network:
    """The network of a preset for targets and sources of numbers of channels, with further settings.

    ``source_as`` None is the preset's choice, and a network always sees a source of other channels.

    Raises:
        ValueError: ``source_as`` is none, and the source has other channels.
    """
    from bbdm.networks.base import Wrapped
    from bbdm.networks.dit import DiT
    from bbdm.networks.unet import UNet

    config = PRESETS[preset]
    same = source_channels == channels
    if source_as == "none" and not same:
        raise ValueError(
            f"source_as 'none' needs sources of {channels} channels as targets, got {source_channels}"
        )
    is_shown = bool(config.condition_channels) if source_as is None else source_as == "concat"
    settings["condition_channels"] = source_channels if is_shown or not same else 0
    if isinstance(config, UNetConfig):
        settings |= {"in_channels": channels, "out_channels": channels}
    else:
        settings["channels"] = channels
    kinds: dict[type[Any], type[Any]] = {UNetConfig: UNet, DiTConfig: DiT, WrappedConfig: Wrapped}
    return kinds[type(config)].from_config(replace(config, **settings))


main = Train.main
