import copy
import functools
import json
import os
import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.files import checkpoint
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.restore import state_hash
from bbdm.networks.unet import UNet
from tests.conftest import MakeUNet
from tests.files.test_unpickling import Runs
from tests.networks.test_vqgan import tiny_vqgan

SUFFIXES = [".pt", ".safetensors"]
BRIDGE = ABridge(num_steps=50, c_lambda=1.5)
SMALL = {"model_channels": 4, "channel_mult": (1,), "head_channels": 4, "num_groups": 1}


@pytest.fixture(scope="module")
def files(make_unet: MakeUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small network, as good.pt and good.safetensors."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in SUFFIXES:
        unet, ema = (make_unet(seed, in_channels=1, out_channels=1, **SMALL) for seed in (0, 1))
        save_checkpoint(folder / f"good{suffix}", unet, BRIDGE, ema=ema)
    return folder


assert_same_state = partial(torch.testing.assert_close, rtol=0, atol=0)


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_weights_and_ema_are_bit_exact(self, suffix: str, make_unet: MakeUNet, tmp_path: Path) -> None:
        """Of one network as both too, as before the first update of the average."""
        unet = make_unet(0)
        for ema in (unet, make_unet(1)):
            save_checkpoint(tmp_path / f"a{suffix}", unet, BRIDGE, ema=ema)
            loaded = load_checkpoint(tmp_path / f"a{suffix}")
            assert_same_state(loaded.unet.weights, unet.state_dict())
            assert_same_state(loaded.unet.ema, ema.state_dict())
            assert (loaded.format, loaded.version, loaded.training) == ("bbdm", 1, None)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "bridge",
        [
            ABridge(500, 1 / 3, "noise"),
            BrownianBridge(200, 0.1, "displacement"),
            BrownianBridge.bbdm(100, schedule="sin"),
        ],
        ids=["abridge", "brownian", "bbdm"],
    )
    @pytest.mark.parametrize("size", [None, 8, (8, 16)])
    def test_settings(self, suffix: str, bridge: Bridge, size: Any, make_unet: MakeUNet, tmp_path: Path) -> None:
        unet = make_unet(in_channels=4, out_channels=2, condition_channels=1, dropout=0.1)
        save_checkpoint(tmp_path / f"a{suffix}", unet, bridge, image_size=size)
        loaded = load_checkpoint(tmp_path / f"a{suffix}")
        assert (loaded.bridge, loaded.image_size, loaded.unet.config) == (bridge, size, unet.config)
        assert loaded.unet.config.channel_mult == (1, 2)  # a tuple again, not a list
        assert not loaded.build_unet().training

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_half_weights_stay_half_on_disk_and_load_into_float32(self, suffix: str, make_unet: Any, tmp_path: Path):
        unet = make_unet().half()
        save_checkpoint(tmp_path / f"a{suffix}", unet, BRIDGE)
        loaded = load_checkpoint(tmp_path / f"a{suffix}")
        assert_same_state(loaded.unet.weights, unet.state_dict())
        assert_same_state(loaded.build_unet().state_dict(), unet.float().state_dict())

    def test_build_unet_picks_and_falls_back(self, make_unet: MakeUNet, tmp_path: Path) -> None:
        unet, ema = make_unet(0), make_unet(1)
        save_checkpoint(tmp_path / "both.pt", unet, BRIDGE, ema=ema)
        save_checkpoint(tmp_path / "weights.pt", unet, BRIDGE)
        both, weights = load_checkpoint(tmp_path / "both.pt"), load_checkpoint(tmp_path / "weights.pt")
        content = torch.load(tmp_path / "both.pt", weights_only=True)
        content["unet"]["weights"] = None
        torch.save(content, tmp_path / "ema.pt")
        averaged = load_checkpoint(tmp_path / "ema.pt")

        assert_same_state(both.build_unet().state_dict(), ema.state_dict())
        assert_same_state(both.build_unet(ema=False).state_dict(), unet.state_dict())
        assert weights.unet.ema is None
        assert_same_state(weights.build_unet(ema=True).state_dict(), unet.state_dict())
        assert_same_state(averaged.build_unet(ema=False).state_dict(), ema.state_dict())

    def test_training_state_of_plain_values(self, make_unet: MakeUNet, tmp_path: Path) -> None:
        training: dict[str, Any] = {
            "random": torch.get_rng_state(),
            "values": [True, None, -3, 2.5, "text", b"bytes", b"", (1, (2,)), {1, 2}, frozenset({"a"}), 2**70],
            "nested": {7: {"half": torch.ones(2).bfloat16(), "flag": torch.tensor(True), "none": torch.empty(0, 3)}},
        }
        save_checkpoint(tmp_path / "a.pt", make_unet(), BRIDGE, training=training)
        loaded = load_checkpoint(tmp_path / "a.pt").training
        assert loaded is not None
        assert loaded["values"] == training["values"]
        assert_same_state({"random": loaded["random"]}, {"random": training["random"]})
        assert_same_state(loaded["nested"][7], training["nested"][7])


class TestCodecReference:
    """A file with training state refers to its codec by the SHA-256 of the weights."""

    @pytest.fixture
    def codec(self) -> Codec:
        statistics = LatentStatistics((0.1,) * 3, (2.0,) * 3, (-0.1,) * 3, (0.5,) * 3)
        return VQGANCodec(tiny_vqgan()).with_statistics(statistics)

    @pytest.fixture
    def path(self, codec: Codec, make_unet: MakeUNet, tmp_path: Path) -> Path:
        save_checkpoint(tmp_path / "step.pt", make_unet(), BRIDGE, codec=codec, training={"step": 1})
        return tmp_path / "step.pt"

    def test_holds_no_weights(self, codec: Codec, path: Path, make_unet: MakeUNet) -> None:
        save_checkpoint(path.with_name("whole.pt"), make_unet(), BRIDGE, codec=codec)
        save_checkpoint(path.with_name("without.pt"), make_unet(), BRIDGE, training={"step": 1})
        whole, without = (path.with_name(name).stat().st_size for name in ("whole.pt", "without.pt"))
        weights = sum(value.numel() * value.element_size() for value in codec.state_dict().values())
        assert whole > without + weights
        assert path.stat().st_size < without + 2000
        stored = torch.load(path, weights_only=True)["codec"]
        assert stored == {**codec.config(), "sha256": state_hash(codec.state_dict())}

    def test_needs_the_codec(self, codec: Codec, path: Path, make_unet: MakeUNet) -> None:
        """The one given is built with the statistics of the file."""
        loaded = load_checkpoint(path)
        assert_same_state(loaded.build_unet().state_dict(), make_unet().state_dict())
        assert loaded.codec is not None
        digest = loaded.codec.digest()[:8]
        message = rf"only the SHA-256 of its codec's weights, {digest}\.\.\.: pass the codec, load_checkpoint\("
        with pytest.raises(IncompleteFileError, match=message):
            loaded.build_codec()
        built = load_checkpoint(path, codec=VQGANCodec(tiny_vqgan())).build_codec()
        assert built is not None
        assert built.statistics == codec.statistics
        assert_same_state(built.state_dict(), codec.state_dict())
        with pytest.raises(ValueError, match=r"another codec was given than .*, which the file refers to"):
            load_checkpoint(path, codec=VQGANCodec(tiny_vqgan(seed=1)))

    @pytest.mark.parametrize("value", ["", 3, None])
    def test_a_hash_that_is_no_text(self, value: Any, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        content["codec"]["sha256"] = value
        torch.save(content, path)
        check_refused(path, "the codec's sha256 must be text, got")


def test_what_is_not_saved(make_unet: MakeUNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training state needs a \.pt file, got .*a\.safetensors"):
        save_checkpoint(tmp_path / "a.safetensors", make_unet(), BRIDGE, training={"epoch": 1})
    for name in ("a.ckpt", "a", "a.pt.bak"):
        with pytest.raises(ValueError, match=rf"ends in \.pt or \.safetensors, got .*{name}"):
            save_checkpoint(tmp_path / name, make_unet(), BRIDGE)
    assert list(tmp_path.iterdir()) == []


class TestAtomicity:
    @pytest.mark.parametrize(
        ("suffix", "writer"), [(".pt", "torch.save"), (".safetensors", "safetensors.torch.save_file")]
    )
    def test_failed_write_changes_nothing(
        self, suffix: str, writer: str, make_unet: MakeUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where there was no file, and over an old one."""

        def fill_the_disk(*arguments: Any, **_: Any) -> None:
            file = arguments[1]
            Path(file if isinstance(file, Path) else file.name).write_bytes(b"half of a file")
            raise OSError(28, "No space left on device")

        path, before = tmp_path / f"a{suffix}", {}
        for _ in range(2):
            before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
            with monkeypatch.context() as patch:
                patch.setattr(writer, fill_the_disk)
                with pytest.raises(OSError, match="No space left"):
                    save_checkpoint(path, make_unet(1), BRIDGE)
            assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
            save_checkpoint(path, make_unet(0), BRIDGE)
        assert [*before] == [path.name]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
    def test_a_full_disk_gets_its_room_back(self, make_unet: MakeUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """The half-written file is closed while the error is still held."""
        monkeypatch.setattr("bbdm.files.weights.write_atomically", lambda _, content: content(Path("/dev/full")))
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_checkpoint(tmp_path / "a.pt", make_unet(), BRIDGE)
        assert caught.value.filename == "/dev/full"
        opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        assert "/dev/full" not in opened

    def test_makes_the_folder_and_leaves_one_file(self, make_unet: MakeUNet, tmp_path: Path) -> None:
        for _ in range(2):
            save_checkpoint(tmp_path / "new" / "a.pt", make_unet(), BRIDGE)
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.pt"]


def check_refused(path: Path, reason: str) -> None:
    """The error names the file, says what is wrong, and does not advise to let the file run code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=reason) as caught:
            load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read {path} as a checkpoint: ")
    assert message.split("as a checkpoint: ")[1].strip(), "no reason given"
    for advice in ("weights_only", "do those steps", "trusted source"):
        assert advice not in message


class TestDamagedFile:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("kept", [0, 1, 100, 0.1, 0.5, 0.9, -1], ids=lambda kept: f"first-{kept}")
    def test_truncated(self, suffix: str, kept: float, files: Path, tmp_path: Path) -> None:
        content = (files / f"good{suffix}").read_bytes()
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
        check_refused(path, ".")
        other = tmp_path / f"a{SUFFIXES[suffix == SUFFIXES[0]]}"
        other.write_bytes(content)
        check_refused(other, ".")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "content",
        [
            b"the weights are on the other disk\n" * 20,
            torch.Generator().manual_seed(0).get_state().numpy().tobytes()[:600],
            pickle.dumps({"format": "bbdm"}, protocol=2),
            b"\x80\x02t.",
            b"<!DOCTYPE html><html>404</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        ],
        ids=["text", "bytes", "plain-pickle", "broken-pickle", "web-page", "lfs-pointer"],
    )
    def test_something_else(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        check_refused(path, r": (?!missing entry \d)")  # a byte of the file is not an entry

    @pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "inside-a-good-file"])
    def test_code_in_it_does_not_run(self, kind: str, files: Path, tmp_path: Path) -> None:
        marker, path = tmp_path / "marker", tmp_path / "a.pt"
        payload = Runs(open, str(marker), "w")
        if kind == "pickle":
            path.write_bytes(pickle.dumps(payload, protocol=2))
        elif kind == "inside-a-good-file":
            torch.save({**torch.load(files / "good.pt", weights_only=True), "training": payload}, path)
        else:
            torch.save({"format": "bbdm", "unet": payload}, path, _use_new_zipfile_serialization=kind == "zip")
        assert not marker.exists()
        check_refused(path, ".")
        assert not marker.exists()
        if kind != "pickle":  # the payload would have run
            torch.load(path, weights_only=False)
            assert marker.exists()

    def test_safetensors_without_a_hash_are_accepted(self, files: Path, tmp_path: Path) -> None:
        with safe_open(files / "good.safetensors", framework="pt") as file:
            metadata = {"bbdm": file.metadata()["bbdm"]}
        tensors = safetensors.torch.load_file(files / "good.safetensors")
        safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata)
        assert_same_checkpoint(load_checkpoint(tmp_path / "a.safetensors"), load_checkpoint(files / "good.safetensors"))

    def test_a_hash_whose_name_is_damaged(self, files: Path, tmp_path: Path) -> None:
        content = (files / "good.safetensors").read_bytes()
        damaged = bytearray(content.replace(b'"sha256"', b'"sh!256"'))
        damaged[-1] ^= 1
        (tmp_path / "a.safetensors").write_bytes(damaged)
        check_refused(tmp_path / "a.safetensors", "its settings or weights have changed")

    def test_a_small_file_takes_no_memory(self, tmp_path: Path) -> None:
        """A call that would allocate a gigabyte, and a storage that is deflated to a thousandth."""
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R.")
        tracemalloc.start()
        check_refused(tmp_path / "a.pt", "a builtins.bytearray with no UNets")
        save_checkpoint(tmp_path / "b.pt", UNet(in_channels=1, out_channels=1, **SMALL), BRIDGE)
        with (
            zipfile.ZipFile(tmp_path / "b.pt") as stored,
            zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as deflated,
        ):
            for name in stored.namelist():
                deflated.writestr(name, stored.read(name))
        check_refused(tmp_path / "c.pt", "is compressed|entries that overlap")
        assert tracemalloc.get_traced_memory()[1] < 1e8
        tracemalloc.stop()

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_torch_load_is_not_used(self, suffix: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "load", None)
        load_checkpoint(files / f"good{suffix}").build_unet()


def assert_same_checkpoint(got: Checkpoint, wanted: Checkpoint) -> None:
    for state in ("weights", "ema"):
        assert_same_state(getattr(got.unet, state), getattr(wanted.unet, state))
    assert (got.unet.config, got.bridge, got.codec) == (wanted.unet.config, wanted.bridge, wanted.codec)


Edit = Callable[[dict[str, Any]], Any]


def put(*keys_and_value: Any) -> Edit:
    """An edit that sets content[key]...[key] = value."""
    *keys, last, value = keys_and_value

    def edit(content: dict[str, Any]) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return edit


def drop(key: str) -> Edit:
    return lambda content: content.pop(key)


BAD_CONTENT: dict[str, tuple[Edit, str]] = {
    "other-format": (put("format", "other"), "it is a 'other', not a checkpoint"),
    "newer-version": (put("version", 2), r"version 2 is newer .*\(1\): update bbdm"),
    "version-of-text": (put("version", "1"), "."),
    "no-version": (drop("version"), "missing entry 'version'"),
    "no-bridge": (drop("bridge"), "missing entry 'bridge'"),
    "no-unet": (drop("unet"), "missing entry 'unet'"),
    "codec-without-weights": (put("codec", []), "."),
    "codec-is-text": (put("codec", "vqgan"), "."),
    "unknown-bridge": (
        put("bridge", "kind", "slerp"),
        r"kind must be one of \['abridge', 'brownian', .*\], got 'slerp'",
    ),
    "bridge-without-kind": (put("bridge", {"num_steps": 50}), "kind must be one of .*, got None"),
    "bridge-of-text": (put("bridge", "abridge"), "."),
    "bridge-value": (put("bridge", "num_steps", 1), "num_steps must be an integer of at least 2, got 1"),
    "bridge-setting": (put("bridge", "speed", 3), "speed"),
    "unet-value": (put("unet", "config", "dropout", 2.0), r"dropout must be in \[0, 1\), got 2"),
    "unet-value-type": (put("unet", "config", "model_channels", "wide"), "."),
    "unet-value-fraction": (put("unet", "config", "model_channels", 4.0), "model_channels must be of integers, got 4"),
    "unet-of-fractions": (put("unet", "config", "channel_mult", [1.0]), r"channel_mult must be of integers, got \(1.0"),
    "unet-too-large": (put("unet", "config", "model_channels", 2**40), "no network of such sizes"),
    "unet-larger-than-its-weights": (put("unet", "config", "model_channels", 8), r"of another shape: .*\(wanted \(8"),
    "unet-too-deep": (put("unet", "config", "num_res_blocks", 10**9), "tensors, for 1000000000 blocks"),
    "image-size": (put("image_size", "large"), "image_size must be an integer or .*, got 'large'"),
    "image-size-of-three": (put("image_size", [8, 8, 8]), r"image_size must be an integer or .*, got \[8, 8, 8\]"),
    "image-size-of-nothing": (put("image_size", [8, 0]), "image_size must be at least 1"),
    "unet-is-a-list": (put("unet", []), "."),
    "config-is-a-list": (put("unet", "config", []), "."),
}


class TestBadContent:
    @pytest.mark.parametrize(("edit", "reason"), BAD_CONTENT.values(), ids=BAD_CONTENT)
    def test_pt(self, edit: Edit, reason: str, files: Path, tmp_path: Path) -> None:
        content = torch.load(files / "good.pt", weights_only=True)
        edit(content)
        torch.save(content, tmp_path / "a.pt")
        check_refused(tmp_path / "a.pt", reason)

    @pytest.mark.parametrize(("edit", "reason"), BAD_CONTENT.values(), ids=BAD_CONTENT)
    def test_safetensors(self, edit: Edit, reason: str, files: Path, tmp_path: Path) -> None:
        with safe_open(files / "good.safetensors", framework="pt") as file:
            content = json.loads(file.metadata()["bbdm"])
        edit(content)
        tensors = safetensors.torch.load_file(files / "good.safetensors")
        safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"bbdm": json.dumps(content)})
        check_refused(tmp_path / "a.safetensors", reason)

    def test_files_of_someone_else(self, tmp_path: Path) -> None:
        for content in ([1, 2], {"a": torch.ones(2)}, torch.ones(2), None):
            torch.save(content, tmp_path / "a.pt")
            check_refused(tmp_path / "a.pt", "wanted: a checkpoint, module or network of sde-bbdm")
        safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
        check_refused(tmp_path / "a.safetensors", "metadata has no 'bbdm' entry")

    def test_tensors_that_share_their_storage(self, files: Path, tmp_path: Path) -> None:
        """A small file that would build a network many times its size."""
        content = torch.load(files / "good.pt", weights_only=True)
        state = content["unet"]["weights"]
        shared = torch.zeros(max(value.numel() for value in state.values()))
        content["unet"] |= {"weights": {k: shared[: v.numel()].view(v.shape) for k, v in state.items()}, "ema": None}
        torch.save(content, tmp_path / "a.pt")
        check_refused(tmp_path / "a.pt", r"its tensors are of \d+ numbers, and only \d+ are stored")

    @pytest.mark.parametrize(
        ("training", "reason"),
        [
            ({"a": torch.float32}, "it holds a torch.float32, which is no plain value"),
            ({"a": BRIDGE}, r"it holds a bbdm\.bridges\.brownian\.ABridge"),
            (functools.reduce(lambda inner, _: [inner, inner], range(40), []), "hold each other many times"),
        ],
        ids=["dtype", "object", "doubling-lists"],
    )
    def test_training_that_is_no_plain_value(self, training: Any, reason: str, files: Path, tmp_path: Path) -> None:
        torch.save({**torch.load(files / "good.pt", weights_only=True), "training": training}, tmp_path / "a.pt")
        check_refused(tmp_path / "a.pt", reason)

    def test_weights_that_do_not_fit_the_settings(self, files: Path) -> None:
        loaded = load_checkpoint(files / "good.pt")
        assert loaded.unet.ema is not None
        del loaded.unet.ema["out.2.bias"]
        with pytest.raises(ValueError, match=r"checkpoint's weights do not fit the network: missing: out\.2\.bias$"):
            loaded.build_unet()

    @pytest.mark.parametrize(
        ("weights", "message"),
        [([1, 2], "weights"), ({"out.2.bias": 3.0}, "weights"), (None, "neither weights nor their moving average")],
        ids=["list", "numbers", "none"],
    )
    def test_weights_that_are_no_tensors(self, weights: Any, message: str, files: Path, tmp_path: Path) -> None:
        content = torch.load(files / "good.pt", weights_only=True)
        content["unet"] |= {"weights": weights, "ema": None}
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "a.pt").build_unet()
        with safe_open(files / "good.safetensors", framework="pt") as file:
            metadata = {"bbdm": file.metadata()["bbdm"]}
        safetensors.torch.save_file({}, tmp_path / "a.safetensors", metadata)
        check_refused(tmp_path / "a.safetensors", "neither weights nor their moving average")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arguments_that_agree_are_fine_and_others_are_refused(suffix: str, files: Path, tmp_path: Path) -> None:
    assert load_checkpoint(files / f"good{suffix}", num_steps=50, c_lambda=1.5).bridge == BRIDGE
    with pytest.raises(ValueError, match=rf"good{suffix} .*num_steps=60 .* num_steps=50"):
        load_checkpoint(files / f"good{suffix}", num_steps=60)
    with pytest.raises(ValueError, match=rf"good{suffix} .*c_lambda=2\.0 .* c_lambda=1\.5"):
        load_checkpoint(files / f"good{suffix}", c_lambda=2.0)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint {tmp_path}"):
        load_checkpoint(tmp_path / f"gone{suffix}")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder, and a checkpoint is a file$"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=f"{files} is a folder, and a checkpoint is a file: it has good.pt, good"):
        load_checkpoint(files)


def test_saving_does_not_touch_the_network(make_unet: MakeUNet, tmp_path: Path) -> None:
    unet = make_unet().train()
    before = copy.deepcopy(unet.state_dict())
    checkpoint.save_checkpoint(tmp_path / "a.safetensors", unet, BRIDGE)
    assert unet.training
    assert_same_state(unet.state_dict(), before)
    convolution = unet.get_parameter("input_blocks.1.0.in_layers.2.weight")
    assert convolution.is_contiguous(memory_format=torch.channels_last)
