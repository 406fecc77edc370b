"""Reading networks of diffusion models: folders that diffusers saved, and files of ADM. They run nothing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from bbdm.base.optional import package
from bbdm.bridges import Bridge
from bbdm.files import repository, schedules, weights
from bbdm.files.diffusers_folders import (
    CONFIG,
    NETWORK,
    PARTS,
    autoencoder_folder,
    check_weights,
    fetch,
    network_folder,
    pipeline_folder,
    read_json,
    read_settings,
    variant_of,
)
from bbdm.files.importers import adm
from bbdm.files.terms import read_base
from bbdm.networks.pretrained import TOKENS, Pretrained
from bbdm.networks.pretrained_config import (
    ADM,
    DIT,
    ENDS,
    PretrainedConfig,
    pooled_width,
)

Known = TypeVar("Known", bound=Bridge)
State = Mapping[str, torch.Tensor]

log = logging.getLogger(__name__)


def pretrained(
    path: str | os.PathLike[str],
    bridge: Known,
    source_channels: int = 3,
    channels: int | None = None,
    config: str | None = None,
) -> tuple[Pretrained, Known]:
    """A network that knows pictures, and a bridge with its objective and its range of noise levels.

    Args:
        path: a folder that diffusers saved: a pipeline's, with ``unet`` or ``transformer`` and ``scheduler``,
            or the network's own, with ``scheduler`` beside it; such a repository on the Hugging Face Hub,
            OWNER/NAME or OWNER/NAME@REVISION; or a file of guided diffusion.
        bridge: a bridge with noise.
        source_channels: the channels of sources, which the network sees beside the state.
        channels: the channels of targets; None for those of the network.
        config: the name of the settings that a file of guided diffusion leaves out: ``adm``, or
            ``adm-cosine`` for its other schedule; None for ``adm``.

    Returns:
        The network on the CPU in float32, and the bridge.

    Raises:
        FileNotFoundError: the folder lacks the network or its schedule.
        HubError: a repository's file cannot be fetched.
        ModuleNotFoundError: diffusers or, where there is a text encoder, transformers is not installed.
        ValueError: the network, its schedule or the bridge is none that go together, or the weights are a
            pickle.
    """
    network_path = find_pretrained(path, config)
    if network_path is None:
        wanted = f"a folder with {' or '.join(PARTS)}, or with {CONFIG}, that diffusers saved, or a file of ADM"
        raise FileNotFoundError(f"{path} has no network: {wanted} was expected")
    network, changed, notes = read_pretrained(
        network_path, bridge, source_channels, channels, config, name=path
    )
    for note in notes:
        log.warning(note)
    return network, changed


def find_pretrained(path: str | os.PathLike[str], config: str | None = None) -> Path | None:
    """Where a network of diffusion models is: a folder or a file; None where ``path`` is of something else.

    A name on the Hub is fetched: settings, safetensors, and what a tokenizer needs. For arguments and errors
    see :func:`pretrained`.
    """
    path = Path(path)
    match = repository.find(path)
    if match is not None:
        return fetch(match)
    if network_folder(path) is not None:
        return path
    if path.is_file() and (config in adm.SCHEDULES or adm.is_adm(path)):
        return path
    return None


def read_pretrained(
    path: Path,
    bridge: Known,
    source_channels: int,
    channels: int | None,
    config: str | None,
    endpoint: tuple[int, ...] | None = None,
    name: str | os.PathLike[str] | None = None,
) -> tuple[Pretrained, Known, list[str]]:
    """See :func:`pretrained`; and lines that say what was decided where something is missing or new.

    ``path`` is what :func:`find_pretrained` returned, which is not searched again.
    ``endpoint`` is as in :class:`~bbdm.networks.config.NetworkConfig`.
    ``name`` is what a user calls it, in place of ``path``.
    """
    notes: list[str] = []
    if path.is_file():
        with weights.opened(path, weights.FORMAT, "network of diffusion models") as content:
            settings, state = adm.read_adm(content, config)
        noise_range = schedules.noise_range(settings, {})
        prompt = None
        place = path
    else:
        if config is not None:
            raise ValueError(f"config={config} was given, and {path} has its own settings")
        settings, state, noise_range = _read_folder(path)
        prompt = _prompt(path, settings, notes)
        place = pipeline_folder(cast(Path, network_folder(path)))
    if channels is None:
        channels = settings.channels
    if channels != settings.channels:
        _check_channels(path, settings, channels)
    network = Pretrained(
        replace(_with_channels(settings, channels, source_channels), endpoint=endpoint)
    )
    network.base = read_base(place, name or path)
    if prompt is not None:
        network.prompt.copy_(prompt)
    ends = _ends(settings, state, channels, source_channels)
    if ends is None:
        network.new = ENDS[settings.architecture]
        differ = f"the network has {settings.channels} channels, and targets {channels}"
        notes.append(f"{differ}: its first and last layers, {' and '.join(network.new)}, are new")
        new = tuple(f"{name}." for name in network.new)
        ends = {
            key: value for key, value in network.module.state_dict().items() if key.startswith(new)
        }
    network.module.load_state_dict({**state, **ends})
    changed = replace(cast(Any, bridge), objective="denoiser", noise_range=noise_range)
    return network.eval(), cast(Known, changed), notes


def _read_folder(folder: Path) -> tuple[PretrainedConfig, State, tuple[float, float]]:
    """A network that diffusers saved, as it was: without a source."""
    place = cast(Path, network_folder(folder))
    architecture = str(read_settings(place)["_class_name"])
    check_weights(place)
    module_class = getattr(package("diffusers", "a pretrained network"), architecture)
    with weights.readable(place, "pretrained network"):
        schedule = schedules.read_schedule(place)
        prediction, log_levels = schedules.levels(schedule)
        module, report = module_class.from_pretrained(
            place,
            use_safetensors=True,
            variant=variant_of(place, NETWORK),
            torch_dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    arguments = {
        name: value for name, value in dict(module.config).items() if not name.startswith("_")
    }
    channels = arguments["in_channels"]
    stride = arguments.get("patch_size")  # of DiT
    if stride is None:
        stride = 2 ** (len(arguments["block_out_channels"]) - 1)
    config = PretrainedConfig(
        architecture=architecture,
        arguments_json=json.dumps(arguments, sort_keys=True),
        channels=channels,
        stride=stride,
        prediction=prediction,
        log_levels=log_levels,
        sigma_data=float(schedule.get("sigma_data", 0.5)),
    )
    return config, module.state_dict(), schedules.noise_range(config, schedule)


def _prompt(folder: Path, config: PretrainedConfig, notes: list[str]) -> torch.Tensor | None:
    """(1, TOKENS, D) what the pipeline's text encoder makes of no text; None for zeros, or without text.

    SDXL is shown zeros for no text. So are networks without an encoder, which a note says.
    """
    width = config.arguments.get("cross_attention_dim")
    if config.architecture != "UNet2DConditionModel" or not width or pooled_width(config.arguments):
        return None
    pipeline = pipeline_folder(cast(Path, network_folder(folder)))
    encoder = pipeline / "text_encoder"
    known = (encoder / CONFIG).is_file() and "CLIPTextModel" in read_json(encoder / CONFIG).get(
        "architectures", ()
    )
    if not known:
        notes.append(
            f"the network takes text, and {pipeline} has no text encoder of CLIP: it is shown zeros"
        )
        return None
    check_weights(encoder)
    transformers = package("transformers", f"the text encoder in {encoder}")
    with weights.readable(encoder, "text encoder"):
        options: dict[str, Any] = {"local_files_only": True}
        tokenizer = transformers.CLIPTokenizer.from_pretrained(pipeline / "tokenizer", **options)
        variant = variant_of(encoder, "model")
        model = transformers.CLIPTextModel.from_pretrained(
            encoder, use_safetensors=True, variant=variant, **options
        )
        model = model.float().eval()
        tokens = tokenizer(
            "", padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            prompt = model(tokens.input_ids).last_hidden_state
        if prompt.shape[-1] != width:
            raise ValueError(
                f"its tokens have {prompt.shape[-1]} numbers, and the network takes {width}"
            )
    return prompt


def _check_channels(path: Path, config: PretrainedConfig, channels: int) -> None:
    """Raise ValueError where a network of latents is to have others."""
    if config.architecture == DIT or autoencoder_folder(path) is not None:
        raise ValueError(
            f"{path} is of latents of {config.channels} channels, got {channels}: they stay as they are"
        )


def _with_channels(
    config: PretrainedConfig, channels: int, source_channels: int
) -> PretrainedConfig:
    """The settings of the network for the channels of targets, that sees a source beside them."""
    arguments = dict(config.arguments)
    if channels != config.channels:
        arguments["out_channels"] = channels
    if config.architecture == ADM:
        arguments["in_channels"] = channels
        arguments["condition_channels"] = source_channels
    else:
        arguments["in_channels"] = channels + source_channels
    text = json.dumps(arguments, sort_keys=True)
    return replace(
        config, arguments_json=text, channels=channels, condition_channels=source_channels
    )


def _ends(
    config: PretrainedConfig, state: State, channels: int, source_channels: int
) -> dict[str, torch.Tensor] | None:
    """The weights of the first layer and the last for other channels; None where there are none such.

    A grey picture enters a network of colours repeated, and what leaves is averaged; colours enter a grey one
    averaged, and what leaves is repeated. The source enters by zeros; biases of the first layer stay.
    """
    first, last = ENDS[config.architecture]
    enters = state[f"{first}.weight"]
    leaves = {key: state[key] for key in (f"{last}.weight", f"{last}.bias")}
    if channels != config.channels:
        if channels == 1:
            enters = enters.sum(dim=1, keepdim=True)
            leaves = {key: value.mean(dim=0, keepdim=True) for key, value in leaves.items()}
        elif config.channels == 1:
            enters = enters.repeat_interleave(channels, dim=1) / channels
            leaves = {
                key: value.repeat_interleave(channels, dim=0) for key, value in leaves.items()
            }
        else:
            return None
    source = enters.new_zeros(enters.shape[0], source_channels, *enters.shape[2:])
    return {f"{first}.weight": torch.cat([enters, source], dim=1), **leaves}
