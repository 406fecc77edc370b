"""What a bridge takes of folders and repositories of diffusers: the prompt, the schedule, other channels."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import bbdm
from bbdm.bridges import BrownianBridge
from bbdm.files.checkpoint import load_codec
from bbdm.files.diffusers_folders import autoencoder_folder
from bbdm.files.pretrained import find_pretrained, pretrained, read_pretrained
from tests.files.test_pretrained import save

REPOSITORY = "someone/pictures"


def save_text(folder: Path, width: int = 12) -> CLIPTextModel:
    """A pipeline's text encoder with random weights, and a tokenizer of four words."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        f"{folder / 'vocab.json'}", f"{folder / 'merges.txt'}", model_max_length=77
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(3)
    encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=4, num_attention_heads=2, **sizes, **ends)
    ).eval()
    encoder.save_pretrained(folder / "text_encoder")
    return encoder


def save_autoencoder(folder: Path) -> None:
    """With random weights, of latents of four channels."""
    blocks: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    AutoencoderKL(**blocks, shift_factor=0.1).save_pretrained(folder)


def test_the_prompt_is_what_the_encoder_makes_of_no_text(tmp_path: Path) -> None:
    """As Stable Diffusion has it: the first token, and the end up to 77; the last layer, after its norm."""
    save(tmp_path, DDPMScheduler(), "text")
    encoder = save_text(tmp_path)
    with torch.no_grad():
        expected = encoder(torch.tensor([[0] + 76 * [1]])).last_hidden_state
    network, _ = pretrained(tmp_path, BrownianBridge())
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(network.prompt, expected, rtol=1e-5, atol=1e-6)


def test_without_an_encoder_of_clip_a_line_says_that_it_is_zeros(
    tmp_path: Path, caplog: Any
) -> None:
    save(tmp_path / "alone", DDPMScheduler(), "text")
    save(tmp_path / "xl", DDPMScheduler(), "SDXL")
    save_text(tmp_path / "xl")
    save(tmp_path / "other", DDPMScheduler(), "text")
    save_text(tmp_path / "other")
    settings = tmp_path / "other" / "text_encoder" / "config.json"
    settings.write_text(settings.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    lines = []
    for name in ("alone", "other", "xl"):
        network, _ = pretrained(tmp_path / name, BrownianBridge())
        assert network.prompt.shape == (1, 77, 12)
        assert not network.prompt.any()
        assert not network.pooled.any()
        lines.append([record.message for record in caplog.records])
        caplog.clear()
    assert len(lines[0]) == len(lines[1]) == 1
    assert lines[0][0].endswith("alone has no text encoder of CLIP: it is shown zeros")
    assert lines[2] == []


def test_text_encoders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, DDPMScheduler(), "text")
    save_text(tmp_path, 8)
    with pytest.raises(ValueError, match="its tokens have 8 numbers, and the network takes 12"):
        pretrained(tmp_path, BrownianBridge())
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*text_encoder as a text encoder"):
        pretrained(tmp_path, BrownianBridge())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(
            ModuleNotFoundError,
            match=r"the text encoder in .* needs transformers, which is not installed",
        ):
            pretrained(tmp_path, BrownianBridge())
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"text_encoder must hold weights as \.safetensors"):
        pretrained(tmp_path, BrownianBridge())


# the network, its settings, and what is said of them
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "fourier": (
        "pixels",
        {"time_embedding_type": "fourier"},
        "must be 'positional', got 'fourier'",
    ),
    "learned": (
        "pixels",
        {"time_embedding_type": "learned"},
        "must be 'positional', got 'learned'",
    ),
    "skips": (
        "pixels",
        {"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]},
        "no skip blocks, got SkipUpBlock2D",
    ),
    "centred": ("pixels", {"center_input_sample": True}, "center_input_sample is for pictures in"),
    "classes": (
        "pixels",
        {"class_embed_type": "timestep"},
        "the network must have no classes, got 'timestep'",
    ),
    "additions": (
        "text",
        {"addition_embed_type": "image"},
        "must be 'text_time' or unset, got 'image'",
    ),
    "guidance": (
        "text",
        {"time_cond_proj_dim": 256},
        "time_cond_proj_dim must be unset, got 256: a bridge does not",
    ),
    "projections": ("text", {"encoder_hid_dim": 768}, "encoder_hid_dim must be unset, got 768"),
    "projected": (
        "text",
        {"encoder_hid_dim_type": "image_proj"},
        "encoder_hid_dim_type must be unset, got 'image_pro",
    ),
    "concatenated": (
        "text",
        {"class_embeddings_concat": True},
        "class_embeddings_concat must be unset, got True",
    ),
    "places": (
        "text",
        {"attention_type": "gated"},
        "attention_type must be 'default', got 'gated'",
    ),
    "widths": (
        "text",
        {"cross_attention_dim": [12, 8]},
        r"cross_attention_dim must be one number, got \[12, 8\]",
    ),
    "refiner": (
        "SDXL",
        {"projection_class_embeddings_input_dim": 5 * 4 + 12},
        "must be shown 6 sizes of a picture",
    ),
    "nine": (
        "text",
        {"in_channels": 9},
        "must predict what it is shown, and is shown 9 channels and predicts 4",
    ),
    "another": (
        "text",
        {"_class_name": "UNet3DConditionModel"},
        "must be one of .*, got 'UNet3DConditionModel'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_no_bridge_can_start_from_are_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    """Before their weights are read."""
    name, changes, reason = REFUSED[case]
    save(tmp_path, DDPMScheduler(), name)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    next((tmp_path / "unet").glob("*.safetensors")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"cannot read .*unet as a pretrained network: .*{reason}"):
        pretrained(tmp_path, BrownianBridge())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler())
    path = next((tmp_path / "unet").glob("*.safetensors"))
    state = load_file(path)
    state.pop("conv_out.bias")
    save_file(state, path)
    with pytest.raises(ValueError, match=r"its weights lack conv_out\.bias"):
        pretrained(tmp_path, BrownianBridge())


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def test_a_networks_own_folder_has_its_schedule_beside_it_or_in_it(tmp_path: Path) -> None:
    save(tmp_path / "pipeline", DDPMScheduler(prediction_type="v_prediction"))
    expected, bridge = pretrained(tmp_path / "pipeline", BrownianBridge())
    part = tmp_path / "pipeline" / "unet"
    own = shutil.copytree(part, tmp_path / "own")
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no .*own.scheduler.scheduler_config\.json: the network's",
    ):
        pretrained(own, BrownianBridge())
    shutil.copy(tmp_path / "pipeline" / "scheduler" / "scheduler_config.json", own)
    for folder in (part, own):
        network, changed = pretrained(folder, BrownianBridge())
        assert network.config == expected.config
        assert changed == bridge
        assert same(network, expected)


class Hub:
    """Stands for huggingface_hub, with one repository; calls must fit the signature of its function."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.downloads: set[str] = set()

    def snapshot_download(self, name: str, allow_patterns: list[str], **where: Any) -> str:
        inspect.signature(DOWNLOAD).bind(name, allow_patterns=allow_patterns, **where)
        assert name == REPOSITORY
        files = [
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        ]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            self.downloads.add(file)
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / file, self.cache / file)
        return f"{self.cache}"


DOWNLOAD = huggingface_hub.snapshot_download


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "repository", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_repository_is_fetched_without_pickles_and_other_parts(hub: Hub) -> None:
    save(hub.folder, DDPMScheduler(), "text")
    save_text(hub.folder)
    for name in ("vocab.json", "merges.txt"):
        (hub.folder / name).rename(hub.folder / "tokenizer" / name)
    weights = hub.folder / "unet" / "diffusion_pytorch_model.safetensors"
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        shutil.copy(weights, weights.with_name(name))
    for name in ("safety_checker/model.safetensors", "pictures.ckpt", "unet/run.py"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"1 / 0")
    expected, _ = bbdm.pretrained(hub.folder, BrownianBridge())
    network, _ = bbdm.pretrained(REPOSITORY, BrownianBridge())
    assert same(network, expected)
    parts = {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    }
    text = {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt"}
    tokenizer = {
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
    }
    assert hub.downloads == parts | text | tokenizer


def test_weights_in_half_precision_alone_are_read(hub: Hub) -> None:
    """Of network, text encoder and autoencoder, in a folder and in a repository."""
    network = save(hub.folder, DDPMScheduler(), "text")
    encoder = save_text(hub.folder)
    for name in ("vocab.json", "merges.txt"):
        (hub.folder / name).rename(hub.folder / "tokenizer" / name)
    save_autoencoder(hub.folder / "vae")
    expected, _ = bbdm.pretrained(hub.folder, BrownianBridge())
    parts: dict[str, Any] = {
        "unet": network,
        "text_encoder": encoder,
        "vae": load_codec(hub.folder / "vae").module,
    }
    for name, module in parts.items():
        for path in (hub.folder / name).glob("*.safetensors"):
            path.unlink()
        module.half().save_pretrained(hub.folder / name, variant="fp16")
        assert [path.suffixes for path in (hub.folder / name).glob("*.safetensors")] == [
            [".fp16", ".safetensors"]
        ]
    for start in (hub.folder, REPOSITORY):
        network, _ = bbdm.pretrained(start, BrownianBridge())
        torch.testing.assert_close(
            network.state_dict(), expected.state_dict(), rtol=2e-3, atol=2e-3
        )
        assert network.prompt.dtype == torch.float32
    weights = load_codec(hub.folder / "vae").module.state_dict()
    assert all(
        torch.equal(value, parts["vae"].state_dict()[key].float()) for key, value in weights.items()
    )
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in hub.downloads


def test_repositories_of_something_else(hub: Hub) -> None:
    """A large network that no bridge can start from is not fetched; a model of bbdm is for its own reader."""
    (hub.folder / "transformer").mkdir(parents=True)
    (hub.folder / "transformer" / "config.json").write_text(
        '{"_class_name": "FluxTransformer2DModel"}'
    )
    (hub.folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"large")
    with pytest.raises(
        ValueError, match=r"the network must be one of UNet2DModel.*, got 'FluxTransformer2DModel'"
    ):
        pretrained(REPOSITORY, BrownianBridge())
    assert hub.downloads == {"transformer/config.json"}
    shutil.rmtree(hub.folder)
    shutil.rmtree(hub.cache)
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text('{"format": "bbdm"}')
    assert find_pretrained(REPOSITORY) is None
    with pytest.raises(
        FileNotFoundError,
        match="someone/pictures has no network: a folder with unet or transformer",
    ):
        pretrained(REPOSITORY, BrownianBridge())


def test_slices_with_neighbours_begin_at_the_slice_itself(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler(), "grey")
    network, _, _ = read_pretrained(tmp_path, BrownianBridge(), 3, 1, None, endpoint=(1,))
    source = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.endpoint(source), source[:, 1:2])


def test_latents_of_other_autoencoders_are_refused(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler())
    assert autoencoder_folder(tmp_path) is None
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(
        ValueError, match="is of latents of vqvae, which is not read: only those of vae"
    ):
        autoencoder_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"latents_mean": [0.1] * 4},
            "latents_mean of .*vae must be unset: latents are scaled by scaling_factor alone",
        ),
        ({"latents_std": [2.0] * 4}, "latents_std of .*vae must be unset"),
        ({"_class_name": "AutoencoderTiny"}, "vae must be an AutoencoderKL, got AutoencoderTiny"),
    ],
)
def test_autoencoders_of_another_scale_are_refused(
    changes: Any, reason: str, tmp_path: Path
) -> None:
    save(tmp_path, DDPMScheduler(), "text")
    save_autoencoder(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    assert autoencoder_folder(tmp_path) == config.parent
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ValueError, match=reason):
        autoencoder_folder(tmp_path)


def velocity(network: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.double()(x, torch.tensor([-2.0, 0.3]).double(), {"source": y})


def save_rounded(folder: Path, scheduler: Any, name: str) -> None:
    """A network whose first and last weights are multiples of 3/64, with exact sums and thirds in float32."""
    network = save(folder, scheduler, name)
    with torch.no_grad():
        for layer in (network.conv_in, network.conv_out):
            for parameter in layer.parameters():
                parameter.copy_(3 * (parameter * 64 / 3).round() / 64)
    network.save_pretrained(folder / "unet")


SCHEDULERS: dict[str, Any] = {
    "epsilon": DDPMScheduler(),
    "sample": DDPMScheduler(prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_grey_target_is_shown_repeated_and_predicted_averaged(name: str, tmp_path: Path) -> None:
    """The adapted network's estimate is the average of the estimate of the repeated picture, in float64."""
    save_rounded(tmp_path, SCHEDULERS[name], "pixels")
    colour, _ = pretrained(tmp_path, BrownianBridge(), source_channels=2)
    grey, _ = pretrained(tmp_path, BrownianBridge(), source_channels=2, channels=1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 2, 8, 8, generator=generator, dtype=torch.float64)
    expected = velocity(colour, x.expand(-1, 3, -1, -1), y).mean(dim=1, keepdim=True)
    torch.testing.assert_close(velocity(grey, x, y), expected, rtol=1e-11, atol=1e-11)


def test_colours_of_a_grey_network_are_shown_averaged(tmp_path: Path) -> None:
    """The estimate of a grey picture, repeated, is the grey network's, repeated."""
    save_rounded(tmp_path, DDPMScheduler(), "grey")
    grey, _ = pretrained(tmp_path, BrownianBridge(), source_channels=1)
    colour, _ = pretrained(tmp_path, BrownianBridge(), source_channels=1, channels=3)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.zeros_like(x)
    outputs = velocity(colour, x.expand(-1, 3, -1, -1), y)
    torch.testing.assert_close(
        outputs, velocity(grey, x, y).expand(-1, 3, -1, -1), rtol=1e-11, atol=1e-11
    )


def test_other_channels_have_new_layers_and_a_line_says_which(tmp_path: Path, caplog: Any) -> None:
    own = save(tmp_path, DDPMScheduler())
    network, _ = pretrained(tmp_path, BrownianBridge(), source_channels=4, channels=13)
    line = "the network has 3 channels, and targets 13: its first and last layers, conv_in and conv_out, are new"
    assert [record.message for record in caplog.records] == [line]
    module: Any = network.module
    assert module.conv_in.weight.shape[1] == 17
    assert module.conv_out.weight.shape[0] == 13
    assert torch.equal(
        module.mid_block.resnets[0].conv1.weight, own.mid_block.resnets[0].conv1.weight
    )
    assert (
        velocity(network, torch.zeros(2, 13, 8, 8).double(), torch.zeros(2, 4, 8, 8).double())
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("name", ["DiT", "text"])
def test_other_latent_channels_are_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler(), name)
    (tmp_path / "vae").mkdir()
    with pytest.raises(
        ValueError, match="is of latents of 4 channels, got 3: they stay as they are"
    ):
        pretrained(tmp_path, BrownianBridge(), channels=3)
