"""Checkpoints of our own: what comes back, how they are written, and damaged or edited ones."""

import errno
import json
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint, save_vqgan
from bbdm.files.weights import described
from tests.conftest import MakeUNet
from tests.networks.test_vqgan import tiny_vqgan

SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
BRIDGE = ABridge(num_steps=50, c_lambda=1.5)
SMALL = {"model_channels": 4, "channel_mult": (1,), "head_channels": 4, "num_groups": 1}
GONE = object()
assert_same_state = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture(scope="module")
def files(make_unet: MakeUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small network, as good.pt and good.safetensors."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in (".pt", ".safetensors"):
        unet, ema = (make_unet(seed, in_channels=1, out_channels=1, **SMALL) for seed in (0, 1))
        save_checkpoint(folder / f"good{suffix}", unet, BRIDGE, ema=ema, solver="ddim", steps=3)
    return folder


def edited(path: Path, folder: Path, keys: str, value: Any) -> Path:
    """A copy of a file with another value of content[key]...[key], which a function makes of the old one."""
    *above, last = keys.split("/")
    if path.suffix == ".pt":
        content, tensors = torch.load(path, weights_only=True), None
    else:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["bbdm"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    inner = reduce(getitem, above, content)
    inner[last] = value(inner[last]) if callable(value) else value
    if value is GONE:
        del inner[last]
    path = folder / f"a{path.suffix}"
    if tensors is None:
        torch.save(content, path)
    else:
        safetensors.torch.save_file(tensors, path, described("bbdm", json.dumps(content), tensors))
    return path


def refused(path: Path, reason: str) -> None:
    """The error names the file, and does not advise to let the file run code."""
    with pytest.raises(ValueError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"cannot read {path} as a checkpoint: ")
    assert not [
        advice
        for advice in ("weights_only=False", "do those steps", "trusted")
        if advice in str(caught.value)
    ]


@SUFFIXES
@pytest.mark.parametrize(
    ("bridge", "size"),
    [
        (ABridge(500, 1 / 3, "noise"), None),
        (BrownianBridge(200, 0.1, "displacement"), 8),
        (BrownianBridge(100, schedule="sin"), (8, 16)),
    ],
    ids=["abridge", "brownian", "bbdm"],
)
def test_round_trip(
    suffix: str, bridge: Bridge, size: Any, make_unet: MakeUNet, tmp_path: Path
) -> None:
    """To the bit, also of one network as both, as before the first update of the average."""
    settings: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 2,
        "condition_channels": 1,
        "dropout": 0.1,
    }
    unet, path = make_unet(0, **settings), tmp_path / f"a{suffix}"
    for ema in (unet, make_unet(1, **settings)):
        save_checkpoint(
            path, unet, bridge, ema=ema, image_size=size, solver="ddim", timesteps=[bridge.top, 3]
        )
        loaded = load_checkpoint(path)
        assert (loaded.defaults.solver, loaded.defaults.timesteps) == ("ddim", [bridge.top, 3])
        assert (loaded.bridge, loaded.image_size, loaded.unet.config) == (bridge, size, unet.config)
        assert (loaded.training, loaded.build_unet().training) == (None, False)
        assert_same_state(loaded.build_unet().state_dict(), ema.state_dict())
        assert_same_state(loaded.build_unet(ema=False).state_dict(), unet.state_dict())


def test_one_of_weights_and_average_is_enough(files: Path, tmp_path: Path) -> None:
    for name in ("weights", "ema"):
        kept = load_checkpoint(edited(files / "good.pt", tmp_path, f"states/{name}", GONE))
        assert_same_state(
            kept.build_unet(ema=True).state_dict(), kept.build_unet(ema=False).state_dict()
        )


def test_training_state_of_plain_values(make_unet: MakeUNet, tmp_path: Path) -> None:
    """In a file without checksums, as torch writes them where its user has asked for that."""
    values = [True, None, -3, 2.5, "text", (1, (2,)), {1, 2}, 2**70]
    tensors = {
        "half": torch.ones(2).bfloat16(),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 3),
    }
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(
            tmp_path / "a.pt",
            make_unet(),
            BRIDGE,
            training={"values": values, "nested": {7: tensors}},
        )
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.training is not None
    assert loaded.training["values"] == values
    assert_same_state(loaded.training["nested"][7], tensors)
    assert_same_state(loaded.unet.weights, make_unet().state_dict())


def test_what_is_not_written(make_unet: MakeUNet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    large = make_unet()
    torch.nn.init.constant_(next(large.parameters()), 1e5)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("a.pth", {}, r"ends in \.pt or \.safetensors, got .*a\.pth"),
        ("a.safetensors", {"training": {"step": 1}}, r"training state needs a \.pt"),
        ("file/a.pt", {}, "file is a file, and a folder is needed there"),
        ("a.pt", {"solver": "euler"}, "solver must be one of"),
        ("a.pt", {"solver": "ddim", "steps": 2000}, r"steps must be an integer in \[1, 50\]"),
        ("a.pt", {"dtype": "int8"}, r"dtype must be a floating-point dtype such as .*, got 'int8'"),
        ("a.pt", {"dtype": "fp16"}, r"has values beyond the range of torch\.float16"),
    ]
    for name, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path / name, large, BRIDGE, **settings)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("suffix", "writer"), [(".pt", "torch.save"), (".safetensors", "safetensors.torch.save_file")]
)
def test_a_write_that_fails_leaves_the_old_file(
    suffix: str, writer: str, make_unet: MakeUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(_: Any, file: Any, *__: Any) -> None:
        (file.write if hasattr(file, "write") else file.write_bytes)(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "new" / f"a{suffix}"
    save_checkpoint(path, make_unet(0), BRIDGE)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(writer, fill_the_disk)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, make_unet(1), BRIDGE)
    assert path.read_bytes() == before
    save_checkpoint(path, make_unet(1), BRIDGE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert_same_state(load_checkpoint(path).unet.weights, make_unet(1).state_dict())


def shared(states: dict[str, dict[str, torch.Tensor]]) -> Any:
    """A small file that would build a network many times its size."""
    zeros = torch.zeros(max(value.numel() for state in states.values() for value in state.values()))
    return {
        n: {k: zeros[: v.numel()].view(v.shape) for k, v in state.items()}
        for n, state in states.items()
    }


EDITS: list[tuple[str, Any, str]] = [
    ("format", "other", "it is a 'other', not a checkpoint"),
    ("version", 2, r"version 2 is newer .*\(1\)"),
    ("bridge", GONE, "missing entry 'bridge'"),
    ("bridge/kind", "slerp", r"kind must be one of .*'abridge', .*'slerp'"),
    ("bridge/num_steps", 1, "num_steps must be an integer of at least 2, got 1"),
    ("unet/kind", "vit", "network kind must be one of .*, got 'vit'"),
    ("unet/config/dropout", 2.0, r"dropout must be in \[0, 1\), got 2"),
    ("unet/config/channel_mult", [1.0], r"channel_mult .*integers, got \(1.0"),
    ("unet/config/model_channels", 2**40, "no network of such sizes"),
    ("unet/config/model_channels", 8, r"of another shape: .*\(wanted \(8"),
    ("unet/config/num_res_blocks", 10**9, "tensors, for 1000000000 blocks"),
    ("image_size", "large", "image_size .*'large'"),
    ("steps", 10**9, r"steps must be an integer in \[1, 50\] for"),
    ("timesteps", [5], "steps or timesteps, not both"),
    ("solver", GONE, "steps and timesteps of a network are those of its solver"),
    ("calls", True, "calls must be a positive integer, got True"),
    ("run", 3, "run and record must be texts, got 3 and ''"),
    ("record", 3, "run and record must be texts, got '' and 3"),
]
PT_EDITS: list[tuple[str, Any, str]] = [
    ("states/weights", {"out.2.bias": 3.0}, "weights are no state dict"),
    ("states", {}, "neither weights nor their moving average"),
    ("states/ema/out.2.bias", GONE, r"missing: out\.2\.bias$"),
    ("states", shared, r"bytes, and only \d+ are stored"),
    ("training", {"a": BRIDGE}, "more than plain values"),
]


@pytest.mark.parametrize(
    ("suffix", "keys", "value", "reason"),
    [(".pt", *row) for row in EDITS + PT_EDITS] + [(".safetensors", *row) for row in EDITS],
)
def test_content_that_cannot_be(
    suffix: str, keys: str, value: Any, reason: str, files: Path, tmp_path: Path
) -> None:
    refused(edited(files / f"good{suffix}", tmp_path, keys, value), reason)


@pytest.mark.parametrize(
    ("run", "expected"),
    [("/runs/one", Path("/runs/one")), ("//host/share", None), (r"\\host\share", None)],
)
@SUFFIXES
def test_a_file_names_its_run_and_no_share_of_a_network(
    suffix: str, run: str, expected: Path | None, files: Path, tmp_path: Path
) -> None:
    """A stranger's file would make Windows log in at his host."""
    path = edited(files / f"good{suffix}", tmp_path, "run", run)
    assert load_checkpoint(path).origin == (path, expected, None)


@SUFFIXES
def test_arguments_that_agree_are_fine_and_others_are_refused(
    suffix: str, files: Path, tmp_path: Path
) -> None:
    path = files / f"good{suffix}"
    assert load_checkpoint(path, num_steps=50, c_lambda=1.5).bridge == BRIDGE
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_steps": 60}, r"num_steps=60 .* num_steps=50"),
        ({"c_lambda": 2.0}, r"c_lambda=2\.0 .* c_lambda=1\.5"),
        ({"config": "ddbm-diode-256"}, "config=ddbm-diode-256 .* describes its network itself"),
        ({"codec": VQGANCodec(tiny_vqgan())}, "trained in image space"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=rf"good{suffix} .*{message}"):
            load_checkpoint(path, **arguments)
    other = tmp_path / f"a{'.pt' if suffix != '.pt' else '.safetensors'}"
    other.write_bytes(path.read_bytes())
    refused(other, "expected|header|Header")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint {tmp_path}"):
            load_checkpoint(tmp_path / f"gone{suffix}")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder, and a checkpoint is a file$"):
        load_checkpoint(tmp_path)
    save_vqgan(tmp_path / "v.pt", tiny_vqgan())
    content = torch.load(tmp_path / "v.pt", weights_only=True)
    unet = {"kind": "vqgan", "config": content["config"]}
    torch.save(
        {**content, "format": "bbdm", "unet": unet, "bridge": BRIDGE.config(), "codec": None},
        tmp_path / "b.pt",
    )
    refused(tmp_path / "b.pt", "network kind must be one of .*, got 'vqgan'")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "metadata has no 'bbdm' entry")
