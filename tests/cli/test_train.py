import argparse
import math
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import bbdm
from bbdm import cli
from bbdm.base import scripts
from bbdm.bridges import Bridge
from bbdm.cli import presets, setup, train, translate
from bbdm.data.config import Crops, Slices
from bbdm.data.degradations import Degradation
from bbdm.data.examples import BadPicturesError, Example
from bbdm.data.spec import Condition
from bbdm.files.content import NetworkState
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.pictures.values import Values
from bbdm.training import optimizers
from bbdm.training.config import TrainConfig
from bbdm.training.fine_tuning import FIRST
from bbdm.training.run_folder import RunFolder
from bbdm.training.trainer import Trainer
from bbdm.training.whitening import whiten
from tests.conftest import TINY, SavePicture, load_pairs, save_random_pairs, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan


def build_bridge(args: argparse.Namespace) -> Bridge:
    return setup.build_bridge(args.bridge, args.time_steps, args.c_lambda, args.objective, args.density)


DATA = ["edge2shoes", "DATA", "model.pt"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """Two training pairs and one validation pair, side by side."""
    return save_random_pairs(tmp_path_factory.mktemp("edges"), 2, 1, save_picture)


FLAGS: dict[str, tuple[str, Any]] = {  # each name of each flag, and what it gives
    "batch_size": ("-b 3; --batch_size 3", 3),
    "epochs": ("-e 7; --epochs 7", 7),
    "time_steps": ("-t 500; --t 500; --time_steps 500", 500),
    "c_lambda": ("-l 1.5; --c_lambda 1.5", 1.5),
    "learning_rate": ("-lr 2e-5; --learning_rate 2e-5", 2e-5),
    "image_size": ("--image_size 64x128", (64, 128)),
    "channels": ("--channels 1", 1),
    "source_as": ("--source_as concat", "concat"),
    "preset": ("--preset bbdm", "bbdm"),
    "ckpt_path": ("--ckpt_path run/step_00000500.pt", Path("run/step_00000500.pt")),
    "device": ("--device meta", "meta"),
    "overwrite": ("--overwrite", True),
    "save_every": ("--save_every 9", 9),
    "keep": ("--keep 3", 3),
    "loss": ("--loss huber", "huber"),
    "optimizer": ("--optimizer adamw", "adamw"),
    "weight_decay": ("--weight_decay 0.1", 0.1),
    "grad_accumulation": ("--grad_accumulation 4", 4),
    "grad_clip": ("--grad_clip 1", 1.0),
    "lr_schedule": ("--lr_schedule plateau", "plateau"),
    "plateau_patience": ("--plateau_patience 9", 9),
    "ema_start": ("--ema_start 9", 9),
    "ema_every": ("--ema_every 9", 9),
    "show_verbose": ("--show_verbose", True),
    "experiment": ("--experiment run", Path("run")),
    "seed": ("--seed 5", 5),
    "direction": ("--direction BtoA", "BtoA"),
    "flip": ("--flip", True),
    "degrade": ("--degrade jpeg:5@7", Degradation("jpeg", 5, 7)),
    "crop": ("--crop 96x64:8:0.5", Crops((96, 64), 8, 0.5)),
    "slices": ("--slices axial:1", Slices("axial", 1)),
    "conditions": (
        "--condition sar=image@-25:0,style=class,text=tokens",
        {
            "sar": Condition("image", Values(-25, 0, dtype="int16")),
            "style": Condition("class"),
            "text": Condition("tokens"),
        },
    ),
    "drop": ("--drop style:0.1,text:1e-2", {"style": 0.1, "text": 0.01}),
}


class TestParse:
    @pytest.mark.parametrize("name", FLAGS)
    def test_flag(self, name: str) -> None:
        written, value = FLAGS[name]
        for flags in (each.split() for each in written.split("; ")):
            assert getattr(train.parse([*DATA, *flags]), name) == value
            assert getattr(train.parse([*flags, *DATA]), name) == value

    def test_defaults_are_those_of_the_library(self) -> None:
        args = train.parse(DATA)
        assert {field.name: getattr(args, field.name) for field in fields(TrainConfig)} == vars(TrainConfig())
        assert build_bridge(args) == bbdm.ABridge()

    def test_every_network_has_a_preset_of_flags(self) -> None:
        assert presets.PRESET_SETTINGS.keys() == presets.PRESETS.keys()
        names = vars(train.parse(DATA)).keys()
        for flags in presets.PRESET_SETTINGS.values():
            assert flags.keys() <= names

    @pytest.mark.parametrize("preset", ["bbdm", "lbbdm-f4", "lbbdm-f8", "lbbdm-f16"])
    def test_presets_of_bbdm_are_its_templates(self, preset: str) -> None:
        """configs/Template-*.yaml of xuekt98/BBDM: Adam 1e-4, batches of 8, EMA, ReduceLROnPlateau."""
        args = train.parse([*DATA, "--preset", preset])
        assert (args.batch_size, args.optimizer, args.learning_rate, args.loss) == (8, "adam", 1e-4, "l1")
        assert (args.ema_decay, args.ema_start, args.ema_every) == (0.995, 30000, 8)
        assert (args.lr_schedule, args.plateau_patience) == ("plateau", 3000)
        plateau = optimizers.Plateau(3000)
        assert (plateau.factor, plateau.threshold, plateau.cooldown) == (0.5, 1e-4, 3000)
        assert optimizers.LOWEST_RATE == 5e-7

    @pytest.mark.parametrize("first", [True, False], ids=["preset-first", "preset-last"])
    def test_preset_sets_defaults_and_flags_win(self, first: bool) -> None:
        preset, explicit = ["--preset", "demo"], ["-b", "3", "--no-flip", "--loss", "l1"]
        args = train.parse([*DATA, *preset, *explicit] if first else [*DATA, *explicit, *preset])
        assert (args.batch_size, args.flip, args.loss) == (3, False, "l1")
        assert (args.image_size, args.epochs, args.lr_schedule) == (64, 50, "cosine")

    def test_flag_equal_to_the_plain_default_wins_too(self) -> None:
        args = train.parse([*DATA, "--preset", "demo", "--image_size", "256", "-b", "64"])
        assert (args.image_size, args.batch_size) == (256, 64)

    @pytest.mark.parametrize(
        "flags",
        [["--image_size", "64x"], ["--preset", "huge"], ["--loss", "l3"], ["--bridge", "slerp"], ["-b", "many"]],
        ids=lambda flags: flags[0],
    )
    def test_refuses(self, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            train.parse([*DATA, *flags])
        assert flags[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "bridge"),
    [
        (["-t", "100", "-l", "0.5"], bbdm.ABridge(100, 0.5)),
        (["--bridge", "brownian", "--objective", "noise"], bbdm.BrownianBridge(1000, objective="noise")),
        (["--bridge", "bbdm", "-t", "200"], bbdm.BrownianBridge.bbdm(200)),
        (["--preset", "bbdm"], bbdm.BrownianBridge.bbdm()),
    ],
    ids=["abridge", "brownian", "bbdm", "bbdm-preset"],
)
def test_build_bridge(flags: list[str], bridge: Any) -> None:
    assert build_bridge(train.parse([*DATA, *flags])) == bridge


@pytest.mark.parametrize(
    ("flags", "channels", "wanted"),
    [
        ([], 3, (3, 3, 0)),
        (["--source_as", "concat"], 3, (3, 3, 3)),
        (["--preset", "demo"], 3, (3, 3, 3)),
        (["--preset", "demo", "--source_as", "none"], 3, (3, 3, 0)),
        (["--preset", "demo"], 1, (1, 1, 1)),
        (["--preset", "lbbdm-f8", "--source_as", "concat"], 4, (4, 4, 4)),
    ],
)
def test_build_network(flags: list[str], channels: int, wanted: tuple[int, int, int]) -> None:
    args = train.parse([*DATA, *flags])
    with torch.device("meta"):
        network = setup.build_network(args.preset, channels, args.source_as)
    assert (network.channels, network.channels, network.condition_channels) == wanted


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

    def test_demo_trains_and_the_output_samples(self, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "model.safetensors"
        train.main(self.arguments(data, output))
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
    def test_whitened_filters_are_where_training_begins(self, data: Path, tmp_path: Path) -> None:
        """With a learning rate of next to nothing, the weights are those at the beginning."""
        firsts = []
        for name, flags in (("plain", []), ("white", ["--whiten"])):
            output = tmp_path / f"{name}.pt"
            train.main(self.arguments(data, output, "-lr", "1e-12", "--warmup_steps", "0", *flags))
            firsts.append(bbdm.load_checkpoint(output).build_unet(ema=False))
        plain, white = firsts
        whiten(plain, load_pairs("edge2shoes", str(data), size=16))
        torch.testing.assert_close(plain.state_dict(), white.state_dict())

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
        monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
        train.main(self.arguments(data, tmp_path / "model.pt", "--init_from", str(trained)))
        loaded, wanted = bbdm.load_checkpoint(tmp_path / "model.pt").unet, average.state_dict()
        for state in (loaded.weights, loaded.ema):
            assert state
            widened = state.pop(FIRST)
            assert torch.equal(widened, torch.cat([wanted[FIRST], torch.zeros_like(wanted[FIRST])], dim=1))
            assert all(torch.equal(value, wanted[key]) for key, value in state.items())
        message = capsys.readouterr().out
        assert f"trained.pt: {FIRST} begins at zero for 3 new input channels" in message
        assert ("trained.pt: it was trained as ABridge(num_steps=60" in message) is not bare

    @pytest.mark.usefixtures("tiny_demo")
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--init_from a.pt --ckpt_path b.pt", "--init_from and --ckpt_path exclude each other"),
            ("--config bbdm", "--config is of the network that --init_from names"),
            ("--init_from a.pt --whiten", "--whiten is of networks that are not trained"),
            ("-vq v.pt --cache_latents a --cache_images b", "--cache_images and --cache_latents exclude each other"),
            ("--channels 1 -vq vqgan.pt", "with -vq, it is the autoencoder's"),
            ("--image_size 15", r"15.* multiple.* 2"),  # the tiny network halves once
            ("--experiment file", r"file is a file, and a folder is needed there"),
        ],
    )
    def test_what_is_refused(self, flags: str, message: str, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        with pytest.raises(ValueError, match=message):
            train.main(self.arguments(data, tmp_path / "model.pt", *flags.split()))

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("model", r"ends in \.pt or \.safetensors, got .*model"),
            ("model.ckpt", r"ends in \.pt or \.safetensors, got .*model\.ckpt"),
            ("file/model.pt", r"file is a file, and a folder is needed there"),
            ("folder.pt", r"folder\.pt is a folder, and a file is to be written there"),
        ],
    )
    def test_outputs_that_stop_before_any_work(self, output: str, message: str, data: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder.pt").mkdir()
        with pytest.raises(ValueError, match=message):
            train.main(self.arguments(data, tmp_path / output))
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
            with pytest.raises(BadPicturesError, match=r"^1 of 2 pairs of train:\n.*train/01\.png") as caught:
                train.main(self.arguments(pictures, tmp_path / "model.pt", "--check"))
        assert "--skip_bad" in scripts.hinted(caught.value, cli.HINTS)
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


class TestHints:
    """The last line of the script: the library's message, then the flags that help."""

    @pytest.fixture
    def place(self, finished: Path, tmp_path: Path, tiny_demo: None) -> Path:
        """A copy of it."""
        return Path(shutil.copytree(finished, tmp_path / "place"))

    def last_line(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
        capsys.readouterr()
        common = ["-e", "3", "--lr_schedule", "constant"]
        with pytest.raises(SystemExit) as caught:
            scripts.run(
                lambda: train.main(TestMain.arguments(data, place / "model.pt", *common, *flags)), hints=cli.HINTS
            )
        return f"{capsys.readouterr().err}{caught.value.code}"

    def test_other_settings(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = ["--loss", "l1", "-e", "1"]
        line = self.last_line(data, place, capsys, *other)
        assert "was trained with loss=l2: resume with the same, or begin anew in another folder" in line
        assert line.endswith("; --overwrite starts anew, and --experiment gives another folder")
        train.main(TestMain.arguments(data, place / "model.pt", *other, "--overwrite"))
        run = place / "model.run"
        assert sorted(path.name for path in run.glob("step_*")) == ["step_00000001.pt"]
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
        assert not (run / "epoch_0003.png").exists()

    def test_an_earlier_checkpoint(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        back = ["--ckpt_path", str(place / "model.run" / "step_00000002.pt"), "--experiment", str(place / "model.run")]
        line = self.last_line(data, place, capsys, *back)
        assert "holds a run of 3 steps already, and this one would begin at 2" in line
        end = "; so does the command without --ckpt_path; --overwrite deletes it, --experiment gives another folder"
        assert line.endswith(end)
        back += ["--overwrite", "-e", "3", "--lr_schedule", "constant"]
        train.main(TestMain.arguments(data, place / "back.pt", *back))
        assert_same(*(bbdm.load_checkpoint(place / name).unet for name in ("back.pt", "model.pt")))

    def test_damaged_checkpoints(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in (place / "model.run").glob("step_*.pt"):
            path.write_bytes(b"")
        line = self.last_line(data, place, capsys)
        assert line.endswith("can be read: all 2 are damaged; --overwrite starts the run anew")

    def test_a_folder_in_use(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = RunFolder(place / "model.run", keep=2)
        other.begin(3, {})
        line = self.last_line(data, place, capsys)
        other.end()
        assert line.endswith("model.run: each needs a folder of its own; --experiment gives another folder")

    def test_another_space_or_preset(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bbdm.save_vqgan(place / "vqgan.pt", tiny_vqgan())
        line = self.last_line(data, place, capsys, "-vq", str(place / "vqgan.pt"))
        end = (
            "where it began: without a codec; -vq gives the autoencoder, and --normalize_latents normalises its latents"
        )
        assert line.endswith(end)
        line = self.last_line(data, place, capsys, "-vq", str(place / "vqgan.pt"), "--preset", "lbbdm-f8")
        assert "preset lbbdm-f8 takes 4 channels, and this autoencoder's latents have 3" in line
        assert line.endswith("; --preset names the network")

    def test_weights_of_another_network(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bbdm.save_checkpoint(place / "other.pt", tiny_unet(model_channels=16), bbdm.ABridge())
        flags = ["--init_from", str(place / "other.pt"), "--overwrite"]
        line = self.last_line(data, place, capsys, *flags)
        assert re.search(r"other\.pt: only \d+ of \d+ weights fit", line)
        assert line.endswith("; --preset names the network of this run")

    def test_divergence(self, data: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
        monkeypatch.setattr(Trainer, "train_step", lambda *_: math.nan)
        line = self.last_line(data, place, capsys, "-e", "4")
        assert re.search(r"Lower learning_rate or set grad_clip; .* resumes from step 3, which is saved in ", line)
        assert "; the flags of learning_rate and grad_clip are -lr and --grad_clip\n" in line
