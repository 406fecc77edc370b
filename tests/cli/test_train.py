import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import bbdm
from bbdm.base import scripts
from bbdm.base.settings import from_values
from bbdm.cli import train, translate
from bbdm.data.config import Crops, Slices
from bbdm.data.degradations import Degradation
from bbdm.data.examples import BadPicturesError, Example
from bbdm.data.spec import Condition
from bbdm.files.content import NetworkState
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.pictures.values import Values
from bbdm.training import task
from bbdm.training.config import TrainConfig
from bbdm.training.initial import FIRST
from bbdm.training.run_folder import RunFolder
from bbdm.training.trainer import Trainer
from tests.conftest import TINY, SavePicture, load_pairs, save_random_pairs, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

DATA = ["edge2shoes", "DATA", "model.pt"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """Two training pairs and one validation pair, side by side."""
    return save_random_pairs(tmp_path_factory.mktemp("edges"), 2, 1, save_picture)


FLAGS: list[tuple[str, dict[str, Any]]] = [  # each name of each flag, and what it gives
    ("-b 3; --batch_size 3", {"batch_size": 3}),
    ("-e 7; --epochs 7", {"epochs": 7}),
    ("-t 500; --t 500; --time_steps 500", {"time_steps": 500}),
    ("-l 1.5; --c_lambda 1.5", {"c_lambda": 1.5}),
    ("-lr 2e-5; --learning_rate 2e-5", {"learning_rate": 2e-5}),
    ("-vq v.pt; --vqgan_path v.pt", {"vqgan_path": Path("v.pt")}),
    ("-use_multi_gpus; --use_multi_gpus", {"use_multi_gpus": True}),
    ("--image_size 64x128", {"image_size": (64, 128)}),
    ("--ckpt_path run/step_00000500.pt", {"ckpt_path": Path("run/step_00000500.pt")}),
    ("--experiment run", {"experiment": Path("run")}),
    ("--crop 96x64:8", {"crop": Crops((96, 64), 8)}),
    ("--slices axial:1", {"slices": Slices("axial", 1)}),
    ("--degrade jpeg:5@7", {"degrade": Degradation("jpeg", 5, 7)}),
    (
        "--condition sar=image@-25:0,style=class,text=tokens --drop style:0.1,text:1e-2",
        {
            "conditions": {
                "sar": Condition("image", Values(-25, 0, dtype="int16")),
                "style": Condition("class"),
                "text": Condition("tokens"),
            },
            "drop": {"style": 0.1, "text": 0.01},
        },
    ),
    *((f"--{name} {value}", {name: value}) for name, value in {"channels": 1, "keep": 3, "seed": 5}.items()),
    *((f"--{name} {value}", {name: value}) for name, value in {"loss": "huber", "source_as": "concat"}.items()),
    ("--preset demo", {"preset": "demo", **train.PRESET_SETTINGS["demo"]}),
    ("--preset demo -b 64 --loss l1 --no-flip", {"batch_size": 64, "loss": "l1", "flip": False}),
    ("-b 64 --no-flip --preset demo", {"batch_size": 64, "flip": False, "image_size": 64, "epochs": 50}),
]


@pytest.mark.parametrize(("written", "values"), FLAGS, ids=lambda each: each if isinstance(each, str) else "")
def test_flags(written: str, values: dict[str, Any]) -> None:
    """Before the data and after it; the settings of a preset are defaults, wherever it stands."""
    for flags in (each.split() for each in written.split("; ")):
        commands = train.Train.parse([*DATA, *flags]), train.Train.parse([*flags, *DATA])
        assert commands[0] == commands[1]
        assert values.items() <= vars(commands[0]).items()


@pytest.mark.parametrize("preset", train.PRESETS)
def test_presets_are_the_same_in_python(preset: str) -> None:
    latent = ["-vq", "v.pt"] if preset.startswith("lbbdm") else []
    command = train.Train.parse([*DATA, "--preset", preset, *latent])
    values: dict[str, Any] = {"vqgan_path": "v.pt"} if latent else {}
    names = dict(zip(("dataset", "data_dir", "output_model"), DATA, strict=True))
    assert command == train.Train.of(**names, preset=preset, **values)
    assert train.PRESET_SETTINGS[preset].items() <= vars(command).items()
    if preset == "paper":
        assert from_values(TrainConfig, vars(command)) == TrainConfig()


@pytest.mark.parametrize("preset", ["bbdm", "lbbdm-f4", "lbbdm-f8", "lbbdm-f16"])
def test_presets_of_bbdm_are_its_templates(preset: str) -> None:
    """configs/Template-*.yaml of xuekt98/BBDM: Adam 1e-4, batches of 8, EMA, ReduceLROnPlateau."""
    args = train.Train.of(dataset="edge2shoes", data_dir="D", output_model="m.pt", preset=preset, vqgan_path="v.pt")
    assert (args.batch_size, args.optimizer, args.learning_rate, args.loss) == (8, "adam", 1e-4, "l1")
    assert (args.ema_decay, args.ema_start, args.ema_every) == (0.995, 30000, 8)
    assert (args.lr_schedule, args.plateau_patience) == ("plateau", 3000)
    plateau = task.Plateau(3000)
    assert (plateau.factor, plateau.threshold, plateau.cooldown) == (0.5, 1e-4, 3000)
    assert task.LOWEST_RATE == 5e-7


def test_a_screen_of_help_has_what_a_first_training_needs(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        train.Train.parse(["--help", "--preset", "demo"])
    lines = capsys.readouterr().out.splitlines()
    screen = " ".join(lines[:24])
    first = "DATASET DATA_DIR OUTPUT_MODEL --preset --epochs --batch_size --image_size --crop --device --ckpt_path"
    assert all(word in screen for word in f"{first} --source_values --target_values --overwrite resumes".split())
    assert "(default: 50)" in screen  # of the preset
    assert "training:" in lines[24:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "folder"}, "'folder' has no targets: degrade makes sources"),
        ({"init_from": "a.pt", "ckpt_path": "b.pt"}, "init_from and ckpt_path exclude each other"),
        ({"config": "bbdm"}, "config is of the network that init_from names"),
        ({"vqgan_path": "v", "cache_latents": "a", "cache_images": "b"}, "cache_images and cache_latents exclude"),
        ({"vqgan_path": "v", "channels": 1}, "channels are of pictures .* vqgan_path"),
        ({"vqgan_path": "v", "slices": Slices("axial", 1)}, "neighbours of slices are of pictures"),
        ({"cache_latents": "a"}, "cache_latents and normalize_latents need vqgan_path"),
        ({"normalize_latents": True}, "cache_latents and normalize_latents need vqgan_path"),
        ({"preset": "lbbdm-f4"}, "preset lbbdm-f4 is of latents: it needs vqgan_path"),
        ({"drop": {"stile": 0.1}}, r"drop must be of the conditions \(there are none\), got 'stile'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 3, "grad_accumulation": 2}, "batch_size 3 does not split into grad_accumulation=2"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    """In Python as by the command."""
    with pytest.raises(ValueError, match=message):
        train.Train.of(**{"dataset": "edge2shoes", "data_dir": "DATA", "output_model": "model.pt", **values})


@pytest.mark.parametrize(
    ("flags", "bridge"),
    [
        ([], bbdm.ABridge()),
        (["-t", "100", "-l", "0.5"], bbdm.ABridge(100, 0.5)),
        (["--bridge", "brownian", "--objective", "noise"], bbdm.BrownianBridge(1000, objective="noise")),
        (["--bridge", "bbdm", "-t", "200"], bbdm.BrownianBridge.bbdm(200)),
        (["--preset", "bbdm"], bbdm.BrownianBridge.bbdm()),
    ],
    ids=["default", "abridge", "brownian", "bbdm", "bbdm-preset"],
)
def test_build_bridge(flags: list[str], bridge: Any) -> None:
    args = train.Train.parse([*DATA, *flags])
    built = train.build_bridge(args.bridge, args.time_steps, args.c_lambda, args.objective, args.density)
    assert built == bridge


@pytest.mark.parametrize(
    ("preset", "source_as", "channels", "expected"),
    [
        ("paper", None, 3, (3, 0)),
        ("paper", "concat", 3, (3, 3)),
        ("demo", None, 3, (3, 3)),
        ("demo", "none", 3, (3, 0)),
        ("demo", None, 1, (1, 1)),
        ("lbbdm-f8", "concat", 4, (4, 4)),
    ],
)
def test_build_network(preset: str, source_as: Any, channels: int, expected: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = train.build_network(preset, channels, source_as)
    assert (network.channels, network.condition_channels) == expected


def assert_same(got: NetworkState, wanted: NetworkState) -> None:
    """Weights and their average are equal bit for bit."""
    for mine, theirs in ((got.weights, wanted.weights), (got.ema, wanted.ema)):
        assert mine is not None
        assert theirs is not None
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


class TestMain:
    @staticmethod
    def arguments(data: Path, output: Path, *flags: str) -> list[str]:
        common = ["--preset", "demo", "--image_size", "16", "-b", "2", "-e", "1", "--device", "cpu", "-t", "50"]
        return ["edge2shoes", str(data), str(output), *common, *flags]

    def test_demo_trains_and_the_output_samples(self, data: Path, tmp_path: Path, capsys: Any) -> None:
        output = tmp_path / "model.safetensors"
        train.main(self.arguments(data, output))
        assert f"threads: {torch.get_num_threads()} (OMP_NUM_THREADS sets it" in capsys.readouterr().out
        loaded = bbdm.load_checkpoint(output)
        pairs = load_pairs("edge2shoes", str(data), size=16)
        differences = torch.stack([target - source for source, target in (pairs[i] for i in range(len(pairs)))])
        assert loaded.bridge.spread == pytest.approx(differences.square().mean().sqrt().item(), rel=1e-4)
        known: dict[str, Any] = loaded.bridge.statistics
        assert loaded.bridge == bbdm.BrownianBridge(50, objective="pinned", density="high", **known)
        assert loaded.unet.config == UNETS["demo"]
        assert loaded.unet.weights
        assert loaded.unet.ema
        sampler = bbdm.BridgeSampler.from_checkpoint(output, steps=2)
        result = sampler(torch.zeros(1, 3, 16, 16), seed=0)
        assert result.shape == (1, 3, 16, 16)
        assert result.isfinite().all()
        run = tmp_path / "model.run"
        written = {"config.json", "metrics.jsonl", "step_00000001.pt", "best.pt", "epoch_0001.png"}
        assert written <= {file.name for file in run.iterdir()}
        assert loaded.training is None  # of the run's own files alone
        assert bbdm.load_checkpoint(run / "step_00000001.pt").training is not None

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize("named", [False, True], ids=["the same command", "--ckpt_path"])
    def test_resumes_from_a_checkpoint(self, named: bool, data: Path, tmp_path: Path) -> None:
        for name, cut in (("straight", False), ("resumed", True)):
            run = tmp_path / name
            flags = ["--experiment", str(run), "--lr_schedule", "constant"]
            if cut:
                train.main(self.arguments(data, tmp_path / "half.pt", *flags))
                flags += ["--ckpt_path", str(run / "step_00000001.pt")] if named else []
            train.main(self.arguments(data, tmp_path / f"{name}.pt", *flags, "-e", "2"))
        straight, resumed = (bbdm.load_checkpoint(tmp_path / f"{name}.pt").unet for name in ("straight", "resumed"))
        assert_same(resumed, straight)

    @pytest.mark.usefixtures("tiny_demo")
    def test_a_finished_run_is_written_again(self, data: Path, tmp_path: Path) -> None:
        outputs = [tmp_path / "model.pt", tmp_path / "again.pt"]
        for output in outputs:
            train.main(self.arguments(data, output, "--experiment", str(tmp_path / "run")))
        assert_same(*(bbdm.load_checkpoint(output).unet for output in outputs))
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize("bare", [False, True], ids=["checkpoint", "state-dict"])
    def test_begins_from_trained_weights(self, bare: bool, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
        """A file without a bridge is read as well, with the T and noise scale of the run."""
        trained = tmp_path / "trained.pt"
        network, average = tiny_unet(1), tiny_unet(2)
        if bare:
            torch.save(average.state_dict(), trained)
        else:
            bbdm.save_checkpoint(trained, network, bbdm.ABridge(60), ema=average)
        monkeypatch.setattr(Trainer, "fit", lambda *_, **__: True)
        train.main(self.arguments(data, tmp_path / "model.pt", "--init_from", str(trained)))
        loaded, expected = bbdm.load_checkpoint(tmp_path / "model.pt").unet, average.state_dict()
        for state in (loaded.weights, loaded.ema):
            assert state
            widened = state.pop(FIRST)
            assert torch.equal(widened, torch.cat([expected[FIRST], torch.zeros_like(expected[FIRST])], dim=1))
            assert all(torch.equal(value, expected[key]) for key, value in state.items())
        assert "stay as initialised" not in capsys.readouterr().out

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize(
        ("output", "flags", "message"),
        [
            ("model", "", r"ends in \.pt or \.safetensors, got .*model"),
            ("model.ckpt", "", r"ends in \.pt or \.safetensors, got .*model\.ckpt"),
            ("file/model.pt", "", r"file is a file, and a folder is needed there"),
            ("folder.pt", "", r"folder\.pt is a folder, and a file is to be written there"),
            ("model.pt", "--image_size 15", r"15.* multiple.* 2"),  # the tiny network halves once
            ("model.pt", "--experiment file", r"file is a file, and a folder is needed there"),
        ],
    )
    def test_what_stops_before_any_work(
        self, output: str, flags: str, message: str, data: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        Path("folder.pt").mkdir()
        with pytest.raises(ValueError, match=message):
            train.main(self.arguments(data, Path(output), *flags.split()))
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.pt"]

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize("source_as", ["concat", "none"])
    def test_grey_pictures_that_are_not_square(self, source_as: str, data: Path, tmp_path: Path) -> None:
        flags = ["--image_size", "16x24", "--channels", "1", "--source_as", source_as]
        train.main(self.arguments(data, tmp_path / "model.pt", *flags))
        assert bbdm.load_checkpoint(tmp_path / "model.pt").image_size == (16, 24)
        with Image.open(tmp_path / "model.run" / "epoch_0001.png") as preview:
            assert preview.size == (3 * (24 + 2) + 2, 16 + 2 * 2 + NAME_HEIGHT)
        translate.main(["edge2shoes", str(data), str(tmp_path / "model.pt"), str(tmp_path / "results"), "--steps", "2"])
        with Image.open(tmp_path / "results" / "02.png") as result:
            assert (result.size, result.mode) == ((24, 16), "L")

    @pytest.mark.usefixtures("tiny_demo")
    def test_seed_decides_the_weights(self, data: Path, tmp_path: Path) -> None:
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            train.main(self.arguments(data, tmp_path / f"{name}.pt", "--seed", seed))
        a, b, c = (
            bbdm.load_checkpoint(tmp_path / f"{name}.pt").build_unet().state_dict()["out.2.weight"] for name in "abc"
        )
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize(
        ("flags", "terminal", "shows"),
        [([], False, False), ([], True, True), (["--show_verbose"], False, True), (["--quiet"], True, False)],
    )
    def test_a_terminal_shows_the_run(
        self, flags: list[str], terminal: bool, shows: bool, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        train.main(self.arguments(data, tmp_path / "model.pt", *flags))
        assert ("epoch 1/1: loss" in capsys.readouterr().err) == shows

    @pytest.mark.usefixtures("tiny_demo")
    def test_bad_pictures_are_found_before_the_first_step(
        self, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of validation always, of training with --check; what is left out is said."""
        pictures = Path(shutil.copytree(data, tmp_path / "pictures"))
        (pictures / "val" / "z.png").write_bytes(b"broken")
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", lambda *_: pytest.fail("an epoch began"))
            with pytest.raises(ValueError, match=r"cannot read the picture .*val/z\.png"):
                train.main(self.arguments(pictures, tmp_path / "model.pt"))
            assert not (tmp_path / "model.run").exists()
            (pictures / "train" / "01.png").write_bytes(b"")
            with pytest.raises(
                BadPicturesError, match=r"^1 of 2 pairs of train \(skip_bad leaves them out\):\n.*train/01\.png"
            ):
                train.main(self.arguments(pictures, tmp_path / "model.pt", "--check"))
        train.main(self.arguments(pictures, tmp_path / "model.pt", "--check", "--skip_bad", "-b", "1"))
        printed = capsys.readouterr().out
        for name in ("train/01", "val/z"):
            assert re.search(rf"^left out: cannot read the picture .*/{name}\.png", printed, re.MULTILINE)

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize(
        ("epoch", "message"), [(0, "nothing is saved yet"), (1, "resumes from step 1, .* in .*run")]
    )
    def test_an_interruption_says_how_to_resume(
        self, epoch: int, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Trainer.train_step

        def interrupted(self: Trainer, batch: Example) -> float:
            if self.epoch == epoch:
                raise KeyboardInterrupt
            return step(self, batch)

        monkeypatch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=message):
            train.main(self.arguments(data, tmp_path / "model.pt", "-e", "3"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 steps."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(UNETS, "demo", UNetConfig(condition_channels=3, **TINY))
        train.main(TestMain.arguments(data, folder / "model.pt", "-e", "3", "--lr_schedule", "constant"))
    return folder


class TestRefusals:
    """The last line of the command says what to do, in words that are arguments of Python and flags."""

    @pytest.fixture
    def place(self, finished: Path, tmp_path: Path, tiny_demo: None) -> Path:
        """A copy of the finished run."""
        return Path(shutil.copytree(finished, tmp_path / "place"))

    def last_line(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
        capsys.readouterr()
        words = TestMain.arguments(data, place / "model.pt", "-e", "3", "--lr_schedule", "constant", *flags)
        with pytest.raises(SystemExit) as caught:
            scripts.run(lambda: train.main(words))
        return f"{capsys.readouterr().err}{caught.value.code}"

    def test_other_settings(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = ["--loss", "l1", "-e", "1"]
        line = self.last_line(data, place, capsys, *other)
        assert re.search(r"trained with loss=l2: resume with the same, .*\(experiment\), or overwrite this run", line)
        train.main(TestMain.arguments(data, place / "model.pt", *other, "--overwrite"))
        run = place / "model.run"
        assert sorted(path.name for path in run.glob("step_*")) == ["step_00000001.pt"]
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
        assert not (run / "epoch_0003.png").exists()

    def test_an_earlier_checkpoint(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        back = ["--ckpt_path", str(place / "model.run" / "step_00000002.pt"), "--experiment", str(place / "model.run")]
        line = self.last_line(data, place, capsys, *back)
        assert "holds a run of 3 steps already, and this one would begin at 2" in line
        assert re.search("no ckpt_path.*overwrite.*experiment", line)
        back += ["--overwrite", "-e", "3", "--lr_schedule", "constant"]
        train.main(TestMain.arguments(data, place / "back.pt", *back))
        assert_same(*(bbdm.load_checkpoint(place / name).unet for name in ("back.pt", "model.pt")))

    def test_damaged_checkpoints_and_a_folder_in_use(self, data: Path, place: Path, capsys: Any) -> None:
        other = RunFolder(place / "model.run", keep=2)
        with other.locked():
            assert "model.run: each needs a folder (experiment) of its own" in self.last_line(data, place, capsys)
        for path in (place / "model.run").glob("step_*.pt"):
            path.write_bytes(b"")
        assert "can be read: all 2 are damaged: overwrite the run" in self.last_line(data, place, capsys)

    def test_another_space_preset_or_network(self, data: Path, place: Path, capsys: Any) -> None:
        bbdm.save_vqgan(place / "vqgan.pt", tiny_vqgan())
        bbdm.save_checkpoint(place / "other.pt", tiny_unet(model_channels=16), bbdm.ABridge())
        latent = ["-vq", str(place / "vqgan.pt")]
        assert "where it began: without a codec (vqgan_path)" in self.last_line(data, place, capsys, *latent)
        line = self.last_line(data, place, capsys, *latent, "--preset", "lbbdm-f8")
        assert re.search("preset lbbdm-f8 takes 4 channels, .* have 3; preset must be one of", line)
        line = self.last_line(data, place, capsys, "--init_from", str(place / "other.pt"), "--overwrite")
        assert re.search(r"init_from: only \d+ of \d+ weights fit: they are of another network \(preset\)", line)

    def test_divergence(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
        monkeypatch.setattr(Trainer, "train_step", lambda *_: math.nan)
        line = self.last_line(data, place, capsys, "-e", "4")
        assert re.search(r"Lower learning_rate or set grad_clip; .* resumes from step 3, which is saved in ", line)
