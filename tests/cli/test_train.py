"""`bbdm train` as a user runs it: flags, presets, refusals, and runs of networks too small to be good."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import bbdm
from bbdm import cli
from bbdm.base.settings import from_command
from bbdm.cli import train
from bbdm.data.config import Crops, Slices
from bbdm.data.degradations import Degradation
from bbdm.data.kinds import Condition
from bbdm.data.rows import BadPicturesError
from bbdm.networks.base import state_hash
from bbdm.networks.config import DITS, UNETS, UNetConfig
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.pictures.values import Values
from bbdm.training.config import TrainConfig
from bbdm.training.presets import PRESET_SETTINGS
from bbdm.training.trainer import Trainer
from tests.conftest import ROOT, TINY, load_pairs, noise, save_random_pairs, tiny_unet

FIRST = "input_blocks.0.0.weight"
DATA = ["edge2shoes", "DATA", "model.pt"]
NAMES = dict(zip(("dataset", "data_dir", "output_model"), DATA, strict=True))
CONDITIONS = {
    "sar": Condition("image", Values(-25, 0, dtype="int16")),
    "style": Condition("class"),
    "text": Condition("tokens"),
}
SHORT = {"batch_size": 3, "epochs": 7, "time_steps": 500, "c_lambda": 1.5, "learning_rate": 2e-5}
SHORT |= {"vqgan_path": Path("v.pt"), "use_multi_gpus": True}
FLAGS: list[tuple[str, dict[str, Any]]] = [  # each name of each flag, and what it gives
    ("-b 3 -e 7 -t 500 -l 1.5 -lr 2e-5 -vq v.pt -use_multi_gpus", SHORT),
    (
        "--batch_size 3 --epochs 7 --t 500 --c_lambda 1.5 --learning_rate 2e-5 --codec v.pt --use_multi_gpus",
        SHORT,
    ),
    (
        "--image_size 64x128 --ckpt_path run/s.pt",
        {"image_size": (64, 128), "ckpt_path": Path("run/s.pt")},
    ),
    ("--crop 96x64:8 --slices axial:1", {"crop": Crops((96, 64), 8), "slices": Slices("axial", 1)}),
    ("--degrade jpeg@7", {"degrade": Degradation("jpeg", 7)}),
    (
        "--condition sar=image@-25:0,style=class,text=tokens --drop style:0.1",
        {"conditions": CONDITIONS},
    ),
    (
        "--condition style=class,text=tokens --drop style:0.1,text:1e-2",
        {"drop": {"style": 0.1, "text": 0.01}},
    ),
    ("--channels 1 --source_as concat", {"channels": 1, "source_as": "concat"}),
    ("--preset demo", {"preset": "demo", **PRESET_SETTINGS["demo"]}),
    ("--preset demo -b 64 --loss l1 --no-flip", {"batch_size": 64, "loss": "l1", "flip": False}),
    (
        "-b 64 --no-flip --preset demo",
        {"batch_size": 64, "flip": False, "image_size": 64, "epochs": 50},
    ),
]


@pytest.mark.parametrize(
    ("written", "values"), FLAGS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_flags(written: str, values: dict[str, Any]) -> None:
    """Before the data and after it; the settings of a preset are defaults, wherever it stands."""
    commands = (
        train.Train.parse([*DATA, *written.split()]),
        train.Train.parse([*written.split(), *DATA]),
    )
    assert commands[0] == commands[1]
    assert values.items() <= vars(commands[0]).items()


FEW_CALLS = {
    "bridge": "brownian",
    "objective": "pinned",
    "density": "high",
    "loss": "l2",
    "precision": "bf16",
}
SMALL = {
    "image_size": 64,
    "batch_size": 16,
    "epochs": 50,
    "learning_rate": 4e-4,
    "flip": True,
    "precision": "bf16",
}
SMALL |= {"lr_schedule": "cosine", "warmup_steps": 200, "loss": "l2"}
MOVED = {"shift": 0.1, "turn": 15, "zoom": 0.15, "validate_every": 100, "best": True}
# sde-bbdm's README
ADAM = {"batch_size": 64, "learning_rate": 1e-4, "lr_schedule": "constant", "weight_decay": 0}
PAPER = {
    "bridge": "abridge",
    "c_lambda": 2,
    "epochs": 100,
    "loss": "l1",
    "precision": "fp32",
    **ADAM,
}
BBDM = {  # of the templates Template-BBDM.yaml and Template-LBBDM-f*.yaml of xuekt98/BBDM
    **{"bridge": "bbdm", "batch_size": 8, "learning_rate": 1e-4, "weight_decay": 0, "loss": "l1"},
    **{"lr_schedule": "plateau", "ema_decay": 0.995, "ema_start": 30000, "ema_every": 8},
}
DIT = {**PAPER, "loss": "l2", "precision": "bf16"}
PRESETS: dict[str, dict[str, Any]] = {  # others are of docs/training.md and docs/networks.md
    "paper": PAPER,
    "paper-pinned": {**ADAM, **FEW_CALLS, "ema_decay": 0.9999},
    "few": {
        **ADAM,
        **FEW_CALLS,
        "batch_size": 16,
        "max_steps": 2000,
        "warmup_steps": 50,
        "grad_clip": 1,
        **MOVED,
        "ema_decay": 0.99,
    },
    **dict.fromkeys(("bbdm", "lbbdm-f4", "lbbdm-f8", "lbbdm-f16"), BBDM),
    **dict.fromkeys(("dit-s", "dit-b", "dit-l"), DIT),
    "volume": {
        **FEW_CALLS,
        "channels": 1,
        "crop": Crops((64, 96, 96)),
        "batch_size": 2,
        "ema_decay": 0.999,
    },
    "demo": {**SMALL, **FEW_CALLS, "ema_decay": 0.9995},
    "small": {**SMALL, **FEW_CALLS, "ema_decay": 0.999},
    "demo-residual": {
        **SMALL,
        "bridge": "abridge",
        "objective": None,
        "density": "uniform",
        "ema_decay": 0.999,
    },
}


def test_each_preset_has_its_settings() -> None:
    assert PRESETS.keys() == {*UNETS, *DITS}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_ones_and_the_same_in_python(preset: str) -> None:
    latent = ["-vq", "v.pt"] if preset.startswith("lbbdm") else []
    command = train.Train.parse([*DATA, "--preset", preset, *latent])
    values: dict[str, Any] = {"vqgan_path": "v.pt"} if latent else {}
    assert command == train.Train.of(**NAMES, preset=preset, **values)
    settings = {name: getattr(command, name) for name in PRESETS[preset]}
    assert settings == PRESETS[preset]
    if preset == "paper":
        # those of Python without a command
        assert from_command(TrainConfig, command) == TrainConfig()
        assert (command.preview_every, command.save_every, command.keep) == (10, 500, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "folder"}, "'folder' has no targets: degrade makes sources"),
        ({"init_from": "a.pt", "ckpt_path": "b.pt"}, "init_from and ckpt_path exclude each other"),
        ({"config": "bbdm"}, "config is of the network that init_from names"),
        ({"vqgan_path": "v", "channels": 1}, "channels are of pictures .* vqgan_path"),
        ({"vqgan_path": "v", "slices": Slices("axial", 1)}, "neighbours of slices are of pictures"),
        ({"cache_latents": "a"}, "cache_latents and normalize_latents need vqgan_path"),
        ({"preset": "lbbdm-f4"}, "preset lbbdm-f4 is of latents: it needs --vqgan_path"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    """In Python as by the command."""
    with pytest.raises(ValueError, match=message):
        train.Train.of(**{**NAMES, **values})


@pytest.mark.parametrize(
    ("flags", "bridge"),
    [
        ("", bbdm.ABridge()),
        ("-t 100 -l 0.5", bbdm.ABridge(100, 0.5)),
        ("--bridge brownian --objective noise", bbdm.BrownianBridge(1000, objective="noise")),
        ("--bridge bbdm -t 200", bbdm.BrownianBridge(200, schedule="linear")),
        ("--preset bbdm", bbdm.BrownianBridge(schedule="linear")),
    ],
)
def test_the_bridge_of_flags(flags: str, bridge: Any) -> None:
    assert train.Train.parse([*DATA, *flags.split()]).build_bridge() == bridge
    with pytest.raises(
        ValueError, match=r"bridge 'ddbm-ve' does not take these settings: .*num_steps"
    ):
        train.Train.parse([*DATA, "--bridge", "ddbm-ve", "-t", "5"]).build_bridge()


@pytest.mark.parametrize(
    ("preset", "source_as", "channels", "expected"),
    [
        ("paper", None, (3, 3), (3, 0)),
        ("paper", "concat", (3, 3), (3, 3)),
        ("demo", "none", (1, 1), (1, 0)),
    ],
)
def test_the_network_of_a_preset(
    preset: str, source_as: Any, channels: tuple[int, int], expected: Any
) -> None:
    with torch.device("meta"):
        network = train.build_network(preset, *channels, source_as)
    assert (network.channels, network.condition_channels) == expected
    with pytest.raises(
        ValueError, match="source_as 'none' needs sources of 3 channels as targets, got 1"
    ):
        train.build_network(preset, 3, 1, "none")


def test_a_screen_of_help_has_what_a_first_training_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        train.Train.parse(["--help", "--preset", "demo"])
    lines = capsys.readouterr().out.splitlines()
    screen = " ".join(lines)
    first = "DATASET DATA_DIR OUTPUT_MODEL --preset --epochs --batch_size --image_size --crop --device --ckpt_path"
    assert all(
        word in screen
        for word in f"{first} --source_values --target_values --overwrite resumes".split()
    )
    assert "(default: 50)" in screen  # of the preset
    assert len(lines) <= 24


def test_a_run_is_shown_unless_it_is_to_be_quiet() -> None:
    for flags, shows in (([], True), (["--show_verbose"], "bar"), (["--quiet"], False)):
        assert train.Train.parse([*DATA, *flags]).shown == shows


COMMON = ["--lr_schedule", "constant", "--keep", "3"]


def words(output: str, *flags: str) -> list[str]:
    """Those of an epoch of one step on two pairs, unless flags say otherwise."""
    small = [
        "--preset",
        "demo",
        "--image_size",
        "16",
        "-b",
        "2",
        "-e",
        "1",
        "--device",
        "cpu",
        "-t",
        "50",
    ]
    return ["edge2shoes", "data", output, *small, *flags]


def fit(output: str, *flags: str) -> Any:
    """The trained network, with its average."""
    train.main(words(output, *flags))
    return bbdm.load_checkpoint(output).unet


def same(got: Any, wanted: Any) -> bool:
    """Whether weights and their average are equal bit for bit."""
    both = ((got.weights, wanted.weights), (got.ema, wanted.ema))
    return all(torch.equal(mine[key], theirs[key]) for mine, theirs in both for key in theirs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, save_picture: Any) -> Path:
    """Two training pairs and one validation pair in data/, and a run of 3 steps that gave model.pt."""
    folder = tmp_path_factory.mktemp("finished")
    save_random_pairs(folder / "data", 2, 1, save_picture)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setitem(UNETS, "demo", UNetConfig(condition_channels=3, **TINY))
        fit("model.pt", "-e", "3", *COMMON)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_demo: None) -> Path:
    """A copy of them, in which the test works."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("place")
class TestRuns:
    def test_the_output_samples_and_the_run_has_its_files(self, capsys: Any) -> None:
        fit("new.safetensors")
        assert (
            f"threads: {torch.get_num_threads()} (OMP_NUM_THREADS sets it"
            in capsys.readouterr().out
        )
        loaded = bbdm.load_checkpoint("new.safetensors")
        pairs = load_pairs("edge2shoes", "data", size=16)
        differences = torch.stack(
            [target - source for source, target in (pairs[i] for i in range(len(pairs)))]
        )
        assert loaded.bridge.spread == pytest.approx(
            differences.square().mean().sqrt().item(), rel=1e-4
        )
        known: dict[str, Any] = loaded.bridge.statistics
        assert loaded.bridge == bbdm.BrownianBridge(50, objective="pinned", density="high", **known)
        assert loaded.unet.config == UNETS["demo"]
        assert bbdm.BridgeSampler.from_checkpoint("new.safetensors", steps=2)([noise(0)], seed=0)[
            0
        ].size == (16, 16)
        written = {
            "config.json",
            "metrics.jsonl",
            "step_00000001.pt",
            "best.pt",
            "step_00000001.png",
        }
        assert written <= {file.name for file in Path("new.run").iterdir()}
        assert loaded.training is None  # of the run's own files alone
        assert bbdm.load_checkpoint("new.run/step_00000001.pt").training is not None

    def test_resumes_by_the_same_command_and_from_a_checkpoint(self, capsys: Any) -> None:
        """A finished run is written again; of another seed are other weights."""
        common, straight = ["--experiment", "run", *COMMON], bbdm.load_checkpoint("model.pt").unet
        fit("first.pt", *common)
        fit("resumed.pt", *common, "-e", "2")
        assert same(
            fit("resumed.pt", *common, "--ckpt_path", "run/step_00000002.pt", "-e", "3"), straight
        )
        assert same(fit("again.pt", *common, "-e", "3"), straight)
        assert "nothing is left to train: run has 3 epochs already" in capsys.readouterr().out
        assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
        assert not same(
            fit("other.pt", *COMMON, "--seed", "1"), bbdm.load_checkpoint("first.pt").unet
        )

    def test_begins_from_trained_weights(self, monkeypatch: Any, capsys: Any) -> None:
        bbdm.save_checkpoint("trained.pt", network := tiny_unet(2), bbdm.ABridge(num_steps=50))
        monkeypatch.setattr(
            Trainer, "fit", lambda trainer, *_, **__: trainer.network.gradient_checkpointing
        )
        loaded = fit("new.pt", "--init_from", "trained.pt", "--gradient_checkpointing")
        for state in (loaded.weights, loaded.ema):  # the first layer sees the source too
            assert [
                key for key, value in network.state_dict().items() if not value.equal(state[key])
            ] == [FIRST]
            # 3 channels of the state, then those of the source
            assert network.state_dict()[FIRST].equal(state[FIRST][:, :3])
            assert not state[FIRST][:, 3:].any()
        assert f"{FIRST} is shown more than in trained.pt" in capsys.readouterr().out

    def test_names_weights_that_do_not_fit(self, monkeypatch: Any, capsys: Any) -> None:
        bbdm.save_checkpoint(
            "trained.pt", tiny_unet(2, attention_resolutions=()), bbdm.ABridge(num_steps=50)
        )
        monkeypatch.setattr(Trainer, "fit", lambda *_, **__: True)
        fit("new.pt", "--init_from", "trained.pt")
        output = capsys.readouterr().out
        assert "trained.pt has no weights that fit" in output
        assert "they stay as initialised" in output

    def test_what_stops_before_any_work(self) -> None:
        Path("file").touch()
        for output, flags, message in (
            ("new.ckpt", [], r"ends in \.pt or \.safetensors, got .*new\.ckpt"),
            ("file/new.pt", [], r"file is a file, and a folder is needed there"),
            # the tiny network halves once
            ("new.pt", ["--image_size", "15"], r"15.* multiple.* 2"),
        ):
            with pytest.raises(ValueError, match=message):
                fit(output, *flags)
        assert not [*Path().glob("new*")]

    def test_grey_pictures_that_are_not_square(self) -> None:
        fit("new.pt", "--image_size", "16x24", "--channels", "1", "--source_as", "none")
        loaded = bbdm.load_checkpoint("new.pt")
        assert (loaded.image_size, loaded.unet.config.channels) == ((16, 24), 1)
        with Image.open("new.run/step_00000001.png") as preview:
            assert preview.size == (3 * (24 + 2) + 2, 16 + 2 * 2 + NAME_HEIGHT)

    def test_bad_pictures_are_found_before_the_first_step(
        self, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of validation always, of training with --check; what is left out is said."""
        Path("data/val/z.png").write_bytes(b"broken")
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", lambda *_: pytest.fail("an epoch began"))
            with pytest.raises(ValueError, match=r"cannot read the picture .*val/z\.png"):
                fit("new.pt")
            assert not Path("new.run").exists()
            Path("data/train/01.png").write_bytes(b"")
            message = r"^1 of 2 pairs of train \(skip_bad leaves them out\):\n.*train/01\.png"
            with pytest.raises(BadPicturesError, match=message):
                fit("new.pt", "--check")
        fit("new.pt", "--check", "--skip_bad", "-b", "1")
        printed = capsys.readouterr().out
        for name in ("train/01", "val/z"):
            assert re.search(
                rf"^left out: cannot read the picture .*/{name}\.png", printed, re.MULTILINE
            )

    def test_other_settings_and_an_earlier_checkpoint(self, capsys: Any) -> None:
        """The last line says what to do, in words that are arguments of Python and flags."""

        def last_line(*flags: str) -> str:
            with pytest.raises(SystemExit) as caught:
                cli.run("train", words("model.pt", "-e", "3", *COMMON, *flags))
            return f"{capsys.readouterr().err}{caught.value.code}"

        straight = bbdm.load_checkpoint("model.pt").unet
        back = ["--ckpt_path", "model.run/step_00000002.pt", "--experiment", "model.run"]
        assert re.search(
            "a run of 3 steps already, .* at 2.*no --ckpt_path.*overwrite.*experiment",
            last_line(*back),
            re.DOTALL,
        )
        assert same(fit("back.pt", *back, "--overwrite", "-e", "3", *COMMON), straight)
        other = ["--loss", "l1", "-e", "1"]
        assert re.search(
            r"trained with loss l2, now l1: resume with the same, .*\(--experiment\), or overwrite",
            last_line(*other),
        )
        fit("model.pt", *other, "--overwrite")
        assert sorted(path.name for path in Path("model.run").glob("step_*")) == [
            "step_00000001.png",
            "step_00000001.pt",
        ]
        assert len(Path("model.run/metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.nightly
def test_little_shared_memory_ends_in_one_line(save_picture: Any, tmp_path: Path) -> None:
    """Of 16 MB, as a container may have it, in a mount namespace of the command's own."""
    limited = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"',
        "sh",
    ]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*limited, "true"], check=False).returncode != 0
    ):
        pytest.skip("needs unshare, and the right to mount")
    data = save_random_pairs(tmp_path / "data", 64, 0, save_picture, 256)
    words = [
        "train",
        "edge2shoes",
        data,
        tmp_path / "model.pt",
        "--preset",
        "demo",
        "--image_size",
        "256",
    ]
    words += ["-b", "16", "-e", "1", "--workers", "4"]
    command = [*limited, sys.executable, "-m", "bbdm", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(
        r"^error: the shared memory is full, .*--workers 0.*--shm-size", done.stderr, re.MULTILINE
    )


@pytest.mark.usefixtures("place")
def test_the_best_weights_are_handed_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of best.pt, with the run that they are of; without validation pairs, the last ones."""
    # the second of which spoils what the first has learned
    for epochs, rate in (("1", "1e-4"), ("3", "1")):
        fit(
            "best.pt",
            "--best",
            "--ema_decay",
            "0",
            "--warmup_steps",
            "0",
            "-e",
            epochs,
            "-lr",
            rate,
        )
    assert "best.pt: weights after epoch 1; " in capsys.readouterr().out.splitlines()[-1]
    written, best = bbdm.load_checkpoint("best.pt"), bbdm.load_checkpoint("best.run/best.pt")
    assert state_hash(written.build_unet().state_dict()) == state_hash(
        best.build_unet().state_dict()
    )
    assert written.origin is not None
    assert written.origin.run == Path("best.run")
    shutil.rmtree("data/val")
    fit("last.pt", "--best")
    output = capsys.readouterr().out
    assert "best has no validation to go by: the weights are the last ones" in output
    assert "last.pt: weights after epoch 1; " in output
