"""Quantile regression on a bridge's pairs: python -m benchmarks.quantile_regression DATA OUT.json [flags].

A UNet predicts a lower quantile l, the mean f and an upper quantile u of each value in one call, as im2im-uq
does (Angelopoulos et al. 2022, arXiv:2202.05265): its loss is the pinball loss at alpha/2 and at 1 - alpha/2,
and the squared error. It is trained for some seconds of one core, by the recipe of the preset ``demo``, and
kept as OUT.pt. Then its intervals [f - lambda (f - l), f + lambda (u - f)] are calibrated and tested on the
splits of benchmarks/trust.py, by the same bounds.

The network is shown the source in place of the state, as a bridge's network is in its first step. There that
one predicts the mean: with --init_from, l, f and u all begin as this mean. With --bridge, a bridge is trained
so in its place, for as many seconds, and OUT is its checkpoint, for benchmarks/trust.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, count, product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import machine, scripts
from bbdm.base.atomic import file_sha256, write_atomically
from bbdm.bridges import Bridge
from bbdm.cli.presets import PRESET_SETTINGS
from bbdm.cli.setup import build_bridge
from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.execution.device import keep_freed_memory
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint
from bbdm.networks.base import Network
from bbdm.networks.unet import UNet
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import TrainConfig
from bbdm.training.task import Losses
from benchmarks import trust

DEMO = PRESET_SETTINGS["demo"]
RECIPE = {name: DEMO[name] for name in ("batch_size", "lr_schedule", "warmup_steps", "flip", "precision", "ema_decay")}
KINDS = list(product(["regression"], ("hoeffding-bentkus", "conformal"), (1, 4)))
AnyTask = TypeVar("AnyTask", bound=BridgeTask)
LEAST = 1 / 255  # of f - l and u - f: half a level of 8 bits, to which targets are rounded


def build(init_from: Path | None) -> tuple[UNet, Bridge]:
    """A network with three outputs for each of a bridge's, and that bridge, which says what it is shown."""
    if init_from is None:
        bridge = build_bridge(DEMO["bridge"], objective=DEMO["objective"], density=DEMO["density"])
        return UNet.from_config(replace(UNet.presets["demo"], out_channels=9)), bridge
    checkpoint = load_checkpoint(init_from)
    state = checkpoint.build_unet().state_dict()
    for name in ("out.2.weight", "out.2.bias"):
        state[name] = torch.cat([state[name]] * 3)
    config = checkpoint.unet.config
    unet = UNet.from_config(replace(config, out_channels=3 * config.out_channels))
    unet.load_state_dict(state)
    return unet, checkpoint.bridge


def predict(unet: Callable[..., torch.Tensor], bridge: Bridge, y: torch.Tensor) -> torch.Tensor:
    """(B, 3, C, H, W) lower quantile, mean and upper quantile, from (B, C, H, W) sources."""
    i_x, i_y, p_x, p_y, p_f = (float(weight) for weight in bridge.weights(bridge.top))
    made = unet((i_x + i_y) * y, torch.full((1,), bridge.top), {"source": y})
    return (p_x + p_y) * y[:, None] + p_f * made.unflatten(1, (3, -1))


def loss(predicted: torch.Tensor, target: torch.Tensor, alpha: float) -> torch.Tensor:
    """(B,) means over values, from (B, 3, C, H, W) and (B, C, H, W)."""
    low, middle, high = (target - each for each in predicted.unbind(1))
    pinball = torch.maximum(alpha / 2 * low, (alpha / 2 - 1) * low)
    pinball = pinball + torch.maximum((1 - alpha / 2) * high, -alpha / 2 * high)
    return (pinball + middle.square()).flatten(1).mean(1)


class RegressionTask(BridgeTask):
    """An optimizer step as in the training of a bridge, by the loss of quantile regression."""

    alpha: float

    def losses(self, network: Callable[..., torch.Tensor], batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses (B,)."""
        with self.autocast():
            predicted = predict(network, self.bridge, batch.source)
        return loss(predicted.float(), batch.target, self.alpha), {}


def build_task(kind: type[AnyTask], unet: UNet, bridge: Bridge, rate: float) -> AnyTask:
    """What is trained, by the recipe of the preset ``demo``."""
    config = TrainConfig(learning_rate=rate, shift=0.05, loss="l2", **RECIPE)
    return kind(unet, bridge, config)


def train(task: BridgeTask, pairs: Pairs, seconds: float) -> tuple[Network, int]:
    """The averaged network after so many seconds of a core, and its steps; the rate falls to 0 with them."""
    rng = np.random.default_rng(0)
    order = chain.from_iterable(rng.permutation(len(pairs)).tolist() for _ in count())
    batches = Batches(pairs, task.config.batch_size, task.device)(order)
    step, started = 0, time.process_time()  # of this process, which may share its core
    while (spent := time.process_time() - started) < seconds:
        # The steps that the time allows at the pace so far
        task.total = round(step * seconds / max(spent, 1e-9)) or 1
        task(next(batches), step)
        step += 1
    return task.average, step


def compared(predicted: npt.NDArray[Any], target: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(2, ...) of (3, ...) and (...): the lambda from which on a value is inside, and half of u - l."""
    low, middle, high = predicted
    below, above = np.maximum(middle - low, LEAST), np.maximum(high - middle, LEAST)
    excess = np.where(target < middle, (middle - target) / below, (target - middle) / above)
    return np.stack([excess, (below + above) / 2])


@torch.no_grad()
def measure(unet: Network, bridge: Bridge, pair: Any) -> dict[str, npt.NDArray[Any]]:
    """What splits need of a pair, and the mean's error and PSNR."""
    source, target = (side[None] for side in pair)
    predicted = predict(unet, bridge, source)[0].clamp(-1, 1).double().numpy()
    error = abs(predicted[1] - target[0].numpy())
    psnr = 10 * np.log10(4 / np.square(error).mean())
    made = {"regression": compared(predicted, target[0].numpy()), "error": error, "psnr": psnr}
    return {name: np.asarray(value, np.float32) for name, value in made.items()}


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("data_dir", help="a folder with train/ and val/, source left and target right")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--seconds", type=float, default=1500, help="of training, on one core")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init_from", type=Path, help="a bridge's weights to begin with; else the preset demo's")
    start.add_argument("--bridge", action="store_true", help="train a bridge, and write its checkpoint to OUT")
    parser.add_argument("-lr", "--learning_rate", type=float, default=DEMO["learning_rate"])
    trust.add_split_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    unet, bridge = build(args.init_from)
    size = None if args.init_from is None else load_checkpoint(args.init_from).image_size
    pairs, validation = (
        Pairs(read_rows("edge2shoes", args.data_dir, split), Spec(size=size or DEMO["image_size"]))
        for split in ("train", "val")
    )
    if args.bridge:
        unet = UNet.from_config(UNet.presets["demo"])
        network, steps = train(build_task(BridgeTask, unet, bridge, args.learning_rate), pairs, args.seconds)
        save_checkpoint(args.output, network, bridge, image_size=DEMO["image_size"])
        print(f"{steps} steps")
        return
    setting = {key: getattr(args, key) for key in ("seconds", "learning_rate", "alpha")}
    setting |= {"init_from": None if args.init_from is None else file_sha256(args.init_from)}
    setting |= {"training": pairs.names_digest(), "files": validation.digest()}
    place = args.output.with_suffix(".pt")
    if place.exists():
        known = torch.load(place, weights_only=True)
        if known["setting"] != setting:
            raise SystemExit(f"{place} was trained with {known['setting']}, not {setting}: name another file")
        unet.load_state_dict(known["weights"])
    else:
        task = build_task(RegressionTask, unet, bridge, args.learning_rate)
        task.alpha = args.alpha
        unet, steps = train(task, pairs, args.seconds)
        known = {"setting": setting, "steps": steps, "pairs": steps * RECIPE["batch_size"]}
        known |= {"machine": machine.describe(torch.device("cpu"), ["torch"]), "config": unet.description()}
        write_atomically(place, lambda temporary: torch.save({**known, "weights": unet.state_dict()}, temporary))
    unet.eval()
    measured = [measure(unet, bridge, validation[index]) for index in range(len(validation))]
    results = trust.on_splits(measured, KINDS, args)
    psnr = [float(pair["psnr"]) for pair in measured]
    report = {
        **{key: value for key, value in known.items() if key != "weights"},
        "psnr": psnr,
        "delta": args.delta,
        "splits": results,
    }
    write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(report)))
    print(trust.table(results, args.alpha))
    outside = np.mean([(pair["regression"][0] > 1).mean() for pair in measured])
    error = np.std(psnr, ddof=1) / np.sqrt(len(psnr))
    print(f"{known['steps']} steps; PSNR of f {np.mean(psnr):.2f} ± {error:.2f} dB; {outside:.3f} outside of [l, u]")


if __name__ == "__main__":
    main()
