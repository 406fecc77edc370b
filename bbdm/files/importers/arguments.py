"""What files of DDBM, DBIM, ECSI and I2SB leave out, by a published network's name or a training's arguments.

The arguments are those that the three programs train with: in a JSON object, also in objects of it as ECSI's
are, with the programs' own defaults for what is left out. None of their code is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbdm.bridges import DDBM, ECSI, I2SB, Bridge

HEADS = 64  # channels of an attention head of every published network
SPREADS = {  # ECSI's pred_mode of a linear path: noise is the number times sqrt(t (1 - t))
    "linear1": 0.5,
    "vpv2": 1.0,
    "vpv5": 0.25,
    "vpv6": 2.0,
    "vpv7": 0.005,
    "vpv8": 0.5,
}


@dataclass(frozen=True)
class Published:
    """What the files of a network leave out.

    Args:
        bridge: that it was trained on.
        image_size: the side of its pictures.
        heads_last: whether attention has q, k and v first and the heads within them, not the other way round.
        head_channels: the channels of an attention head.
    """

    bridge: Bridge
    image_size: int
    heads_last: bool = True
    head_channels: int = HEADS


PUBLISHED: dict[str, Published] = {  # of DDBM, DBIM, ECSI and I2SB
    "ddbm-edges2handbags-64": Published(DDBM("vp"), 64),
    "ddbm-edges2handbags-64-ve": Published(DDBM("ve", 0.002, 80.0), 64),
    "ddbm-diode-256": Published(DDBM("vp"), 256),
    "ddbm-diode-256-ve": Published(DDBM("ve", 0.0005, 20.0), 256),
    "ecsi-edges2handbags-64": Published(ECSI(0.125, 1e-4, cov=0.125), 64),
    "ecsi-diode-256": Published(ECSI(0.25, 1e-4, cov=0.125), 256),
    # restoration of JPEG, superresolution; then deblurring, inpainting
    "i2sb-256": Published(I2SB(1000, 0.3), 256, heads_last=False),
    "i2sb-256-ode": Published(I2SB(1000, 1.0, True), 256, heads_last=False),
}


class Arguments:
    """The arguments of a training, from a JSON file.

    Args:
        path: the file that holds the arguments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there are no arguments {path}")
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"{path} must hold arguments by name, got a {type(content).__name__}")
        self.path = path
        self._values: dict[str, Any] = {}
        for name, value in content.items():
            arguments = value if isinstance(value, Mapping) else {name: value}
            self._values |= {
                str(key).replace("-", "_"): argument for key, argument in arguments.items()
            }

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def number(self, name: str, default: float) -> float:
        """A number by name."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} in {self.path} must be a number, got {value!r}")
        return float(value)

    def integer(self, name: str, default: int) -> int:
        """An integer by name."""
        number = self.number(name, default)
        if not number.is_integer():
            raise ValueError(f"{name} in {self.path} must be an integer, got {number:g}")
        return int(number)

    def text(self, name: str, default: str) -> str:
        """A text by name."""
        return str(self._values.get(name, default))

    def on(self, name: str) -> bool:
        """Whether a flag is given and true."""
        return bool(self._values.get(name, False))

    def refuse_others(self, expected: Mapping[str, Any]) -> None:
        """Raise ValueError where an argument has another value than the only one that is read."""
        for name, value in expected.items():
            stored = self._values.get(name, value)
            if stored != value:
                raise ValueError(
                    f"{name} in {self.path} must be {value!r}, which alone is read; got {stored!r}"
                )


def read_arguments(path: Path) -> Published:
    """What the arguments of a training with the code of DDBM, ECSI or I2SB say of its network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no arguments of these programs, or some that are not read; the message names one.
    """
    arguments = Arguments(path)
    if "pred_mode" in arguments:
        return _ecsi(arguments) if arguments.text("pred_mode", "") in SPREADS else _ddbm(arguments)
    if "beta_max" in arguments or "interval" in arguments or "ot_ode" in arguments:
        return _i2sb(arguments)
    raise ValueError(
        f"{path} has neither pred_mode, of the code of DDBM and ECSI, nor beta_max, of that of I2SB"
    )


def _ddbm(arguments: Arguments) -> Published:
    """Those of DDBM's code, which DBIM's shares."""
    kind = arguments.text("pred_mode", "ve")
    if kind not in ("ve", "vp"):
        known = ", ".join(["ve", "vp", *SPREADS])
        raise ValueError(f"pred_mode in {arguments.path} must be one of {known}, got {kind!r}")
    if arguments.text("weight_schedule", "") == "sibm":
        raise ValueError(
            f"pred_mode {kind!r} in {arguments.path} is of ECSI's code, of which linear paths are read"
        )
    if kind == "vp":
        arguments.refuse_others({"sigma_max": 1})
    t_max = 1.0 if kind == "vp" else arguments.number("sigma_max", 80.0)
    deviation = arguments.number("sigma_data", 0.5)
    bridge = DDBM(
        kind,
        arguments.number("sigma_min", 0.002),
        t_max,
        arguments.number("beta_d", 2.0),
        arguments.number("beta_min", 0.1),
        sigma_data=deviation,
        sigma_source=deviation,
        cov=arguments.number("cov_xy", 0.0),
    )
    return _of_adm(arguments, bridge)


def _ecsi(arguments: Arguments) -> Published:
    """Those of ECSI's code, of a linear path."""
    arguments.refuse_others({"sigma_max": 1, "smooth": 0})
    deviation = arguments.number("sigma_data", 0.5)
    bridge = ECSI(
        SPREADS[arguments.text("pred_mode", "")] / 2,
        arguments.number("sigma_min", 0.002),
        sigma_data=deviation,
        sigma_source=deviation,
        cov=arguments.number("cov_xy", 0.0),
    )
    return _of_adm(arguments, bridge)


def _of_adm(arguments: Arguments, bridge: Bridge) -> Published:
    """What the arguments of guided diffusion's network say besides the bridge."""
    arguments.refuse_others({"unet_type": "adm", "class_cond": False, "learn_sigma": False})
    head_channels = arguments.integer("num_head_channels", -1)
    if head_channels < 1:
        raise ValueError(
            f"num_head_channels in {arguments.path} must be at least 1, since heads of another width on each level are "
            f"not read; got {head_channels}"
        )
    heads_last = arguments.text("attention_type", "flash") == "flash"
    return Published(bridge, arguments.integer("image_size", 64), heads_last, head_channels)


def _i2sb(arguments: Arguments) -> Published:
    """Those of I2SB's code."""
    arguments.refuse_others({"t0": 1e-4, "T": 1.0, "add_x1_noise": False})
    bridge = I2SB(
        arguments.integer("interval", 1000),
        arguments.number("beta_max", 0.3),
        arguments.on("ot_ode"),
    )
    return Published(bridge, arguments.integer("image_size", 256), heads_last=False)
