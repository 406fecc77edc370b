"""Training between two sets without pairs: the rows, what is trained on what, and truths that are known."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm import DDBM, ABridge, BridgeSampler, BrownianBridge, Intervals, load_checkpoint, wrap
from bbdm.base.seeds import seed_of
from bbdm.bridges import Bridge
from bbdm.cli import distill, eval, train, translate
from bbdm.cli.eval import Calibrate
from bbdm.data.examples import Example
from bbdm.data.mapped import as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.networks.base import Network
from bbdm.networks.conditions import DIRECTIONS
from bbdm.training.bridge import VALIDATION_STEPS
from bbdm.training.config import UnpairedConfig
from bbdm.training.optimization import Optimization, over_examples
from bbdm.training.task import sample_seeds
from bbdm.training.unpaired import UnpairedTask, between_sets, energy_distance
from tests.conftest import MakeTrainer, SavePicture, noise, tiny_unet
from tests.training.launching import ALONE, TORCHRUN, assert_close, launch

WAYS: dict[str, Any] = {"classes": {"direction": DIRECTIONS}}
BRIDGE = BrownianBridge(objective="preconditioned")
SCALE = 1 / 8  # of numbers of unit variance: samplers take values in [-1, 1]
CPU = torch.device("cpu")


def a_task(network: Network, bridge: Bridge = BRIDGE, **config: Any) -> UnpairedTask:
    settings = {"batch_size": 4, "loss": "l2", "pairing_steps": 1, "simulation_steps": 4, **config}
    return UnpairedTask(network, bridge, UnpairedConfig(**settings))


@pytest.fixture
def sets(tmp_path: Path, save_picture: SavePicture) -> str:
    """Two folders of 6 and 4 pictures, and of 2 each to validate."""
    for letter, split, count in (
        ("A", "train", 6),
        ("B", "train", 4),
        ("A", "val", 2),
        ("B", "val", 2),
    ):
        for index in range(count):
            save_picture(
                tmp_path / letter / split / f"{letter}{index}.png",
                noise(index + 10 * (letter == "B"), 8, 8),
            )
    return f"{tmp_path}/A/{{split}},{tmp_path}/B/{{split}}"


@pytest.mark.parametrize("data_dir", ["A", "A,", "A,B,C", "A,B,mask=M"])
def test_two_sets_are_two_folders_without_columns(data_dir: str) -> None:
    with pytest.raises(
        ValueError, match=f"must be two folders, A,B, and no columns; got '{data_dir}'"
    ):
        read_rows("unpaired", data_dir)


def test_each_epoch_draws_orders_of_both(sets: str) -> None:
    """Of 6 and of 4 pictures: any meets any, and a seed's order is the same again."""
    rows: Any = read_rows("unpaired", sets)
    pairs = Pairs(rows, Spec(size=8, direction="both"))
    assert len(pairs) == 6
    epochs = [[rows.drawn(index, seed) for index in pairs.order(seed)(0, 6)] for seed in range(40)]
    for seed, epoch in enumerate(epochs):
        sources, targets = (
            Counter(row[side].path.stem for row in epoch) for side in ("source", "target")
        )
        assert sources == {f"A{i}": 1 for i in range(6)}
        assert sorted(targets.values()) == [1, 1, 2, 2]
        assert seed > 1 or [pairs.read(i, seed).name for i in range(6)] == [
            row["name"] for row in epoch
        ]
    assert epochs[0] == list(rows)
    assert (
        len({(row["source"].path, row["target"].path) for epoch in epochs for row in epoch}) == 24
    )


@pytest.mark.parametrize(
    ("bridge", "markov"),
    [
        (BrownianBridge(), True),
        (BRIDGE, True),
        *(
            (BrownianBridge(objective=objective), False)
            for objective in ("displacement", "pinned", "noise")
        ),
        (BrownianBridge(max_variance=0), False),
        (ABridge(), False),
        (ABridge(2, objective="noise"), False),  # whose one time is the top
        (DDBM("ve"), True),
    ],
)
def test_which_paths_forget_where_they_began(bridge: Bridge, markov: bool) -> None:
    """Of those, x_r given x_s and x0 does not depend on y: its covariance with y is that of x_s."""
    assert bridge.markov == markov
    if markov:
        s, r = 0.7 * bridge.top, 0.4 * bridge.top
        (a_s, b_s, v_s), (a_r, b_r, v_r) = (np.ravel(bridge.at(t)) for t in (s, r))
        kept = (v_r / v_s) ** 2 * a_s / a_r  # of the bridge's covariance of x_r and x_s
        assert b_r == pytest.approx(kept * b_s)


@pytest.mark.parametrize(
    ("settings", "bridge", "reason"),
    [
        (
            {},
            replace(BRIDGE, objective="pinned"),
            "objective 'residual' or 'preconditioned', .* got BrownianBridge",
        ),
        ({}, replace(BRIDGE, sigma_data=0.4), "one sigma_data and sigma_source"),
        ({}, BrownianBridge(schedule="linear"), "the path the same both ways"),
        (
            {},
            DDBM("ve", objective="residual"),
            "the path the same both ways: a BrownianBridge .* got DDBM",
        ),
        (
            {"condition_channels": 3},
            BRIDGE,
            "conditions of this one are 'source' .3 channels., 'direction'",
        ),
        ({"classes": {}}, BRIDGE, "conditions of this one are none"),
        ({"images": {"sar": 2}}, BRIDGE, "'direction' of AtoB and BtoA alone"),
        ({}, replace(BRIDGE, num_steps=3), "simulation_steps must be at most 3, as for T, got 4"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], bridge: Bridge, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        a_task(tiny_unet(**{**WAYS, **settings}), bridge)


def test_the_bridge_of_two_sets() -> None:
    """The mean variance of both is eps unless it is given, and the statistics are the same both ways."""
    measured = replace(BRIDGE, sigma_data=0.3, sigma_source=0.5, cov=0.02)
    bridge = between_sets(measured)
    assert 2 * bridge.max_variance == pytest.approx((0.09 + 0.25) / 2, rel=1e-3)
    assert bridge.sigma_data == bridge.sigma_source == pytest.approx(math.sqrt(0.17), rel=1e-5)
    assert between_sets(measured, 0.05).max_variance == 0.025


class Shrinks(nn.Module):
    """Predicts x - x0hat with x0hat = 0.6 x + 0.2, in the direction AtoB, and 0.6 x - 0.1 back."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.tensor([0.2, -0.1]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        return 0.4 * x - self.offsets[conditions["direction"]][:, None, None, None]


@pytest.mark.parametrize(("way", "offset"), [(0, 0.2), (1, -0.1)], ids=DIRECTIONS)
def test_other_ends_have_the_mean_and_variance_of_euler_maruyama(way: int, offset: float) -> None:
    """Of dx = (x0hat - x)/t dt + sqrt(2 max_variance / T) dw at the times 1600, 900, 400, 100 and 0.

    A step of a share s = dt/t takes the mean m to m + s (x0hat(m) - m), and the variance v to
    (1 - 0.4 s)^2 v + 2 max_variance dt / T. The last one ends in x0hat. Of 24,576 values the standard error
    of the mean is 0.0064 of a standard deviation, and that of the variance is 0.0090 of it. Four of each are
    allowed, so that of all seeds 0.01 % fail in each direction.
    """
    task = a_task(wrap(Shrinks(), 3, **WAYS), BrownianBridge(1600, max_variance=0.08))
    real, seeds = torch.full((2, 3, 64, 64), 0.5), sample_seeds(5, 0, 2, CPU)
    ends = task.other_ends(task.average, real, torch.full((2,), way), seeds, 9)

    mean, variance = 0.5, 0.0
    for time, following in ((1600, 900), (900, 400), (400, 100)):
        share = (time - following) / time
        mean += share * (0.6 * mean + offset - mean)
        variance = (1 - 0.4 * share) ** 2 * variance + 2 * 0.08 * (time - following) / 1600
    mean = 0.6 * mean + offset
    variance = 0.6**2 * variance
    assert float(ends.mean()) == pytest.approx(mean, abs=4 * 0.0064 * math.sqrt(variance))
    assert float(ends.var()) == pytest.approx(variance, rel=4 * 0.009)


@pytest.mark.parametrize("step", [0, 1])
def test_targets_are_real_and_sources_drawn_or_made(step: int) -> None:
    """What is shown at the top is the source, and the loss of a network that knows the target is 0."""
    task = a_task(tiny_unet(**WAYS))
    a = torch.full((4, 3, 8, 8), -0.5)
    b = torch.full((4, 3, 8, 8), 0.25)
    seeds = sample_seeds(0, 0, 4, CPU)
    batch = task.prepared(Example(a, b), seeds, step)
    way = batch.conditions["direction"]
    assert sorted(way.tolist()) == [0, 0, 1, 1]
    real = torch.where(way[:, None, None, None] == 0, b, a)
    sources = torch.where(way[:, None, None, None] == 0, a, b)
    if step:
        sources = task.other_ends(task.average, real, 1 - way, seeds, step)
    seen: list[torch.Tensor] = []

    def network(shown: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        assert torch.equal(conditions["direction"], way)
        seen.append(shown / float(BRIDGE.input(BRIDGE.top)[0]))
        (p_x, _, p_f) = BRIDGE.prediction(BRIDGE.top).tolist()
        return (real - p_x * seen[-1]) / p_f

    task.times = lambda seeds, step, bridge: torch.full_like(seeds, bridge.top)
    losses, reported = task.losses(network, batch, seeds, step)
    torch.testing.assert_close(seen[0], sources)
    assert losses.max() < 1e-10
    assert {"loss_AtoB", "loss_BtoA"} == over_examples(reported).keys()


class Linear(nn.Module):
    """x0hat is linear in x, by smooth functions of time: what Gaussians of one variance need, and no more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(2, 9, 1))
        self.offset = nn.Parameter(torch.zeros(2, 9, channels))

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        features = torch.cos(t[:, None] / 1000 * math.pi * torch.arange(9))[:, None]
        gain, offset = (
            (features @ w[conditions["direction"]])[:, 0, :, None, None]
            for w in (self.gain, self.offset)
        )
        return gain * x + offset


def test_validation_compares_each_way_with_its_set_and_grids_name_it() -> None:
    network = Linear(3)  # x0hat, x less the prediction, is 0.25 of AtoB, and 0 of BtoA
    network.gain.data[:, 0], network.offset.data[0, 0] = 1, -0.25
    task = a_task(wrap(network, 3, **WAYS), BrownianBridge())
    batch = Example(torch.full((4, 3, 8, 8), -0.5), torch.full((4, 3, 8, 8), 0.25))
    seeds = sample_seeds(0, 0, 4, CPU)
    losses = task.validate(
        [(batch, seeds)], as_pairs([*zip(batch.source, batch.target, strict=True)])
    )
    assert losses["validation_loss_AtoB"] == pytest.approx(0, abs=1e-5)
    assert losses["validation_loss_BtoA"] == pytest.approx(2 * 0.5, rel=1e-5)
    assert losses["validation_loss"] == pytest.approx(0.5, rel=1e-5)
    columns = {name: float(column.mean()) for name, column in task.columns(batch).items()}
    assert columns == pytest.approx({"A": -0.5, "A of B": 0, "B": 0.25, "B of A": 0.25}, abs=1e-5)


class Collapsed(Linear):
    """x0hat is grey, whatever it is shown."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        return x


@pytest.mark.parametrize("size", [1, 3, 8])
def test_validation_is_of_whole_sets(size: int) -> None:
    """By any batches: grey for all is worse than pictures of the set, and never better than none."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.3 * torch.randn(2, 8, 3, 8, 8, generator=generator)
    seeds = sample_seeds(0, 0, 8, CPU)
    batches = [
        (Example(a, b), s)
        for a, b, s in zip(*(v.split(size) for v in (*pictures, seeds)), strict=True)
    ]
    task = a_task(wrap(Collapsed(3), 3, **WAYS), BrownianBridge())
    losses = task.validate(batches, as_pairs([*zip(*pictures, strict=True)]))
    grey = torch.zeros_like(pictures)
    for way, name in enumerate(DIRECTIONS):
        truth = pictures[1 - way].flatten(1).numpy()
        within = [np.linalg.norm(one - other) for i, one in enumerate(truth) for other in truth[:i]]
        expected = (2 * np.linalg.norm(truth, axis=1).mean() - np.mean(within)) / math.sqrt(
            truth.shape[1]
        )
        assert losses[f"validation_loss_{name}"] == pytest.approx(expected, rel=1e-4)
    assert losses["validation_loss"] > energy_distance(pictures[0], pictures[1])
    assert energy_distance(grey[0], grey[1]) == 0


@pytest.mark.parametrize("size", [2, 4])
def test_validation_counts_each_picture_once(
    size: int, tmp_path: Path, save_picture: SavePicture, make_trainer: MakeTrainer
) -> None:
    """Of 3 pictures of A and 8 of B, by any batches: 2 E|a - b| - E|a - a'| - E|b - b'| of each set."""
    for letter, count in (("A", 3), ("B", 8)):
        for index in range(count):
            save_picture(
                tmp_path / letter / f"{index}.png", noise(index + 10 * (letter == "B"), 8, 8)
            )
    rows = Pairs(
        read_rows("unpaired", f"{tmp_path}/A,{tmp_path}/B"), Spec(size=8, direction="both")
    )
    network = wrap(Linear(3), 3, **WAYS)
    further = {"task": UnpairedTask}
    trainer = make_trainer(
        "run",
        network,
        BRIDGE,
        rows,
        rows,
        further=further,
        kind=UnpairedConfig,
        batch_size=size,
        simulation_steps=4,
    )
    losses = trainer.validate()
    sets = [
        torch.stack([rows[index][side] for index in range(count)])
        for side, count in ((0, 3), (1, 8))
    ]
    for side, way in enumerate(DIRECTIONS):
        seeds = sample_seeds(0, 0, len(sets[side]), CPU)
        there = torch.full_like(seeds, side)
        task: Any = trainer.task
        steps = VALIDATION_STEPS[side]
        ends = task.other_ends(trainer.average, sets[side], there, seeds, steps)
        a, b = (pictures.flatten(1).double().numpy() for pictures in (ends, sets[1 - side]))
        between = np.mean([np.linalg.norm(one - other) for one in a for other in b])
        within = [
            np.mean([np.linalg.norm(x - y) for i, x in enumerate(each) for y in each[:i]])
            for each in (a, b)
        ]
        expected = (2 * between - sum(within)) / math.sqrt(a.shape[1])
        assert losses[f"validation_loss_{way}"] == pytest.approx(expected, rel=1e-5)


def test_the_average_that_makes_other_ends_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --compile it makes all but one of the calls of a step."""
    compiled: list[Any] = []

    def compile_(module: Any, **_: Any) -> Any:
        compiled.append(module)
        return lambda *args: calls.append(module) or module(*args)

    calls: list[Any] = []
    monkeypatch.setattr(torch, "compile", compile_)
    task = a_task(tiny_unet(**WAYS), compile=True)
    optimization = Optimization(task)
    assert compiled == [task.network, task.average]
    optimization.step(Example(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)), 1)
    assert calls == [task.average] * len(task.table) + [task.network]


def test_energy_distance() -> None:
    """Of one distribution it is around 0, and of numbers at two places twice their distance."""
    same = [energy_distance(*torch.randn(2, 100, 3, 2, 2)) for _ in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(20)
    assert energy_distance(torch.zeros(4, 3, 2, 2), torch.ones(5, 3, 2, 2)) == pytest.approx(2)


# Truths


class MLP(nn.Module):
    """Two hidden layers, which see features of the time and the direction, beside :class:`Linear`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip = Linear(channels)
        self.of_x = nn.Linear(channels, 128)
        self.of_t = nn.Linear(16, 128)
        self.of_way = nn.Embedding(2, 128)
        self.rest = nn.Sequential(
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, channels),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        angles = t[:, None] / 1000 * math.pi / 2 * torch.arange(1, 9)
        hidden = self.of_x(x.flatten(1)) + self.of_t(torch.cat([angles.sin(), angles.cos()], 1))
        return self.skip(x, t, conditions) + self.rest(
            hidden + self.of_way(conditions["direction"])
        ).view_as(x)


Draw = Callable[[int], torch.Tensor]


def trained(
    module: nn.Module,
    sets: tuple[Draw, Draw],
    variance: float,
    eps: float,
    steps: int,
    **config: Any,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sources and results of both ways, after a training between sets of numbers (N, D) of a variance."""
    channels = sets[0](1).shape[1]
    network = wrap(module, channels, **WAYS)
    sigma = SCALE * math.sqrt(variance)
    bridge = between_sets(replace(BRIDGE, sigma_data=sigma, sigma_source=sigma), SCALE**2 * eps)
    settings = {
        "batch_size": 512,
        "learning_rate": 2e-3,
        "lr_schedule": "cosine",
        "ema_decay": 0.99,
    }
    settings |= {"pairing_steps": 500, "simulation_steps": 8, **config}
    task = a_task(network, bridge, **settings)
    optimization = Optimization(task, total=steps)
    for step in range(steps):
        a, b = (SCALE * draw(settings["batch_size"])[..., None, None] for draw in sets)
        optimization.step(Example(a, b), step)
    sampler = BridgeSampler(task.average, bridge, defaults=task.defaults)
    found = []
    for way, draw in zip(DIRECTIONS, sets, strict=True):
        x = draw(16384)
        found.append(
            (x, sampler(SCALE * x[..., None, None], seed=0, direction=way).flatten(1) / SCALE)
        )
    return found


@pytest.mark.parametrize(
    ("module", "channels", "config"),
    [
        (Linear, 2, {"steps": 250, "pairing_steps": 80, "learning_rate": 0.05, "batch_size": 2048}),
        pytest.param(MLP, 50, {"steps": 1200, "pairing_steps": 300}, marks=pytest.mark.nightly),
    ],
)
def test_gaussians(module: Any, channels: int, config: dict[str, Any]) -> None:
    """Of N(-1, I) and N(1, I) and eps 1 the covariance is (sqrt 5 - 1) / 2; random pairs end with 0.53."""
    sets: Any = [
        partial(lambda n, mean: torch.randn(n, channels) + mean, mean=mean) for mean in (-1, 1)
    ]
    for mean, (x, y) in zip((1, -1), trained(module(channels), sets, 1, 1, **config), strict=True):
        assert float(y.mean()) == pytest.approx(mean, abs=0.02)
        assert float(y.var(0).mean()) == pytest.approx(1, rel=0.05)
        covariance = float(((x - x.mean(0)) * (y - y.mean(0))).mean())
        assert covariance == pytest.approx((math.sqrt(5) - 1) / 2, rel=0.05)


def mixture(centres: list[list[float]]) -> Draw:
    """Gaussians of variance 0.04 around centres (K, 2), as many of each, in random order."""
    places = torch.tensor(centres)
    return lambda n: places[torch.randperm(n) % len(places)] + 0.2 * torch.randn(n, 2)


def sinkhorn(x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """(N, N) the plan between two samples with the cost |x - y|^2 / 2 eps, by 500 rounds."""
    kernel = -torch.cdist(x.double(), y.double()).square() / (2 * eps)
    f, g = torch.zeros(2, len(x), dtype=torch.float64)
    for _ in range(500):
        f = -(kernel + g).logsumexp(1)
        g = -(kernel + f[:, None]).logsumexp(0)
    return (kernel + f[:, None] + g).exp() / len(x)


@pytest.mark.nightly
def test_mixtures_meet_as_a_discrete_plan_says() -> None:
    """The shares of 2 x 3 pairs of components among results, and among a plan of 1,200 samples a side."""
    centres = ([[-1.0, -1.0], [-1.0, 1.0]], [[1.0, -1.2], [1.0, 0.2], [1.0, 1.0]])
    sets = mixture(centres[0]), mixture(centres[1])
    (x, y), (there, back) = trained(MLP(2), sets, 1, 0.5, steps=2500)
    plan = sinkhorn(a := sets[0](1200), b := sets[1](1200), 0.5)

    def nearest(points: torch.Tensor, side: int) -> torch.Tensor:
        return nn.functional.one_hot(
            torch.cdist(points, torch.tensor(centres[side])).argmin(1)
        ).double()

    wanted = nearest(a, 0).T @ plan @ nearest(b, 1)
    for one, other in ((x, y), (back, there)):
        shares = nearest(one, 0).T @ nearest(other, 1) / len(one)
        assert float((shares - wanted).abs().mean()) < 0.015
    assert energy_distance(y[:2000], sets[1](2000)) < 0.005


# Runs


def arguments(sets: str, output: Path, *flags: str) -> list[str]:
    common = "--preset demo --image_size 8 -b 2 -e 3 -t 50 --device cpu --precision fp32 --no-flip --warmup_steps 0"
    return ["unpaired", sets, str(output), *common.split(), "--pairing_steps", "2", *flags]


@pytest.mark.usefixtures("tiny_demo")
def test_the_command(sets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It measures eps, and its file translates both ways, by the solver that it names."""
    output = tmp_path / "out.pt"
    train.main(arguments(sets, output, "--simulation_steps", "3", "--preview_every", "3"))
    text = (output.with_suffix(".run") / "metrics.jsonl").read_text()
    assert all(
        f'"{name}_{way}"' in text for name in ("loss", "validation_loss") for way in DIRECTIONS
    )
    assert (output.with_suffix(".run") / "step_00000009.png").exists()
    sampler = BridgeSampler.from_checkpoint(output)
    eps = 2 * sampler.bridge.max_variance  # pyright: ignore
    assert f"eps {eps:g}" in capsys.readouterr().out
    assert (sampler.solver, len(sampler.table)) == ("ancestral", 30)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    there, back = (sampler(x, seed=0, direction=way) for way in DIRECTIONS)
    assert not torch.equal(there, back)
    translate.main(
        ["folder", f"{tmp_path}/B/val", str(output), f"{tmp_path}/results", "--direction", "BtoA"]
    )
    picture = tmp_path / "B" / "val" / "B0.png"
    alone = np.asarray(sampler(picture, seed=seed_of("B0"), direction="BtoA")[0], dtype=int)
    assert np.abs(alone - np.asarray(Image.open(tmp_path / "results" / "B0.png"))).max() <= 1


@pytest.mark.usefixtures("tiny_demo")
def test_the_spread_that_is_given_is_that_of_the_run(sets: str, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    for _ in range(2):  # nothing is left for the second one, and nothing is refused
        train.main(arguments(sets, output, "--spread", "0.3", "--eps", "0.1", "-e", "1"))
    assert load_checkpoint(output).bridge.spread == 0.3
    with pytest.raises(ValueError, match=r"was trained with bridge\.max_variance 0\.05, now 0\.1"):
        train.main(arguments(sets, output, "--spread", "0.3", "--eps", "0.2", "-e", "1"))


TRAIN: dict[str, Any] = {"output_model": Path("out.pt")}


@pytest.mark.parametrize(
    ("command", "words", "reason"),
    [
        (
            train.Train,
            {**TRAIN, "bridge": "i2sb"},
            "bridge must be brownian for the data set 'unpaired', got i2sb",
        ),
        (train.Train, {**TRAIN, "source_as": "concat"}, "source_as must be none"),
        (train.Train, {**TRAIN, "eps": 0.0}, "eps must be a positive number, got 0.0"),
        (
            train.Train,
            {**TRAIN, "eps": 0.1, "dataset": "paired"},
            "eps is of the data set 'unpaired', got 'paired'",
        ),
        (
            distill.Distill,
            {"teacher": Path("m.pt"), "output_model": Path("s.pt")},
            "one of pairs, .*; got 'unpaired'",
        ),
        (
            Calibrate,
            {"model": Path("m.pt")},
            "one of pairs, since sources are compared with targets",
        ),
        (
            eval.Eval,
            {"model": Path("m.pt"), "metrics": ("fid",), "num_samples": 2},
            "got fid and 2",
        ),
    ],
)
def test_what_commands_refuse(command: Any, words: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        command.of(**{"dataset": "unpaired", "data_dir": "A,B", **words})


def test_fid_compares_two_sets() -> None:
    assert eval.Eval.of(
        dataset="unpaired", data_dir="A,B", model=Path("m.pt"), metrics=("fid",)
    ).metrics == ("fid",)


def test_what_learns_or_measures_pairs_refuses_two_sets(
    sets: str, make_trainer: MakeTrainer
) -> None:
    rows = Pairs(read_rows("unpaired", sets), Spec(size=8, direction="both"))
    with pytest.raises(ValueError, match=r"train has two sets without pairs.*task=UnpairedTask"):
        make_trainer("run", tiny_unet(**WAYS), BRIDGE, None, rows)
    sampler = BridgeSampler(tiny_unet(**WAYS), BRIDGE, "ancestral", 2)
    with pytest.raises(ValueError, match=r"pairs must be pairs.*got two sets"):
        Intervals.calibrate(sampler, rows, samples=2)


@pytest.mark.nightly
def test_two_processes_are_one(sets: str, tmp_path: Path) -> None:
    """By gloo, with made ends from the third step on."""
    for name, launcher in {"one": ALONE, "two": TORCHRUN}.items():
        launch(launcher, arguments(sets, tmp_path / f"{name}.pt", "--simulation_steps", "3"))
    # validation compares sets of a batch
    assert_close(tmp_path / "two.pt", tmp_path / "one.pt", start="loss")
