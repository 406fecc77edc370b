"""Settings of programs that train a bridge on guided diffusion's network: DDBM, DBIM, ECSI and I2SB.

Their weights do not say which bridge they are of. The settings do, under the names of the programs' flags: a
named configuration, a JSON or YAML file, or the ``options.pkl`` of I2SB.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bbdm.bridges import DDBM, ECSI, I2SB, Bridge
from bbdm.files.records import Record
from bbdm.files.unpickling import Machine
from bbdm.networks.unet_config import UNetConfig

GROUPS = 32  # of every GroupNorm, in their code
ADM: dict[str, Any] = {"attention_resolutions": "32,16,8", "num_head_channels": 64, "resblock_updown": True}
SMALL = ADM | {"image_size": 64, "num_channels": 192, "num_res_blocks": 3}
LARGE = ADM | {"image_size": 256, "num_channels": 256, "num_res_blocks": 2}
BRIDGED: dict[str, Any] = {"condition_mode": "concat", "attention_type": "flash", "dropout": 0.1}
VP: dict[str, Any] = {"pred_mode": "vp", "beta_d": 2, "beta_min": 0.1, "sigma_max": 1, "sigma_min": 1e-4}
VE: dict[str, Any] = {"pred_mode": "ve"}
ECSI_COV: dict[str, Any] = {"cov_xy": 0.125, "sigma_max": 1, "sigma_min": 1e-4}

NAMED: dict[str, dict[str, Any]] = {
    "ddbm-edges2handbags-64": SMALL | BRIDGED | VP,
    "ddbm-edges2handbags-64-ve": SMALL | BRIDGED | VE | {"sigma_max": 80, "sigma_min": 0.002},
    "ddbm-diode-256": LARGE | BRIDGED | VP,
    "ddbm-diode-256-ve": LARGE | BRIDGED | VE | {"sigma_max": 20, "sigma_min": 0.0005},
    "ecsi-edges2handbags-64": SMALL | BRIDGED | ECSI_COV | {"pred_mode": "vpv5"},
    "ecsi-diode-256": LARGE | BRIDGED | ECSI_COV | {"pred_mode": "vpv8"},
    "i2sb-256": {"beta_max": 0.3},  # restoration of JPEG, superresolution
    "i2sb-256-ode": {"beta_max": 1.0, "ot_ode": True},  # deblurring, inpainting
}

MULTS = {32: (1, 2, 3, 4), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}  # by image_size
ROUTES = {"vpv2": 0.5, "vpv5": 0.125, "vpv6": 1.0, "vpv7": 0.0025, "vpv8": 0.25, "linear1": 0.25}  # ECSI's gamma_max
FIXED: dict[str, Any] = {  # settings of which one value is read
    "unet_type": "adm",
    "class_cond": False,
    "learn_sigma": False,
    "smooth": 0,
    "add_x1_noise": False,
    "t0": 1e-4,
    "T": 1.0,
}


@dataclass(frozen=True)
class Settings:
    """Settings by the programs' names; ``source`` is the name or the file that they are of."""

    source: str
    values: dict[str, Any]

    def get(self, name: str, *default: Any) -> Any:
        """A value; ValueError where there is none, and no default."""
        if name not in self.values and not default:
            raise ValueError(f"{self.source} does not have {name}")
        return self.values.get(name, *default)

    def number(self, name: str, *default: float) -> float:
        """A value that is a number, also where YAML reads text, such as 1e-4."""
        value = self.get(name, *default)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source} has {name} {value!r}, which is no number") from error

    def integer(self, name: str, *default: int) -> int:
        """A value that is an integer."""
        value = self.number(name, *default)
        if not value.is_integer():
            raise ValueError(f"{self.source} has {name} {value!r}; wanted an integer")
        return int(value)

    def flag(self, name: str, *default: bool) -> bool:
        """A value that is True or False."""
        value = self.get(name, *default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.source} has {name} {value!r}; wanted true or false")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A value that is a list of integers, or of these as text, ``32,16,8``."""
        value = self.get(name)
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        if not all(str(part).strip().isdecimal() and int(part) for part in parts):
            raise ValueError(f"{self.source} has {name} {value!r}; wanted integers of at least 1, such as 32,16,8")
        return tuple(map(int, parts))


def named() -> str:
    """The names, for an error."""
    return f"one of {sorted(NAMED)}, or a JSON or YAML file of the program's settings"


def read(config: str | os.PathLike[str]) -> Settings:
    """The settings of a name or a file.

    Raises:
        ValueError: there is neither, the file holds no settings, or one of them has a value that is not read.
    """
    source = os.fspath(config)
    settings = Settings(source, NAMED[source] if source in NAMED else _from_file(Path(source)))
    if _is_i2sb(settings):  # its code has one network
        settings = Settings(source, LARGE | settings.values)
    for name, wanted in FIXED.items():
        value = settings.get(name, wanted)
        if not _same(value, wanted):
            raise ValueError(f"{source} has {name} {value!r}; of these networks only {name} {wanted!r} is read")
    return settings


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"config must be {named()}; got {str(path)!r}, and there is no such file")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = Machine(file, _no_storage).run()
            content = content.attributes if isinstance(content, Record) else content
        else:
            content = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_bytes())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} holds no settings: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no settings, but a {type(content).__name__}")
    sections = [part for part in (content, content.get("model"), content.get("diffusion")) if isinstance(part, dict)]
    return {key: value for part in sections for key, value in part.items() if not isinstance(value, dict)}


def _same(value: Any, wanted: Any) -> bool:
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return value == wanted


def _no_storage(key: str, *_: Any) -> Any:
    raise ValueError(f"it has a tensor, {key}")


def _is_i2sb(settings: Settings) -> bool:
    return "beta_max" in settings.values and not settings.values.keys() & {"pred_mode", "noise_schedule"}


def network(settings: Settings, seen: int) -> UNetConfig:
    """The network's settings; ``seen`` is the number of channels of its first convolution, in the file."""
    size = settings.integer("image_size")
    if settings.get("channel_mult", "") != "":
        mults = settings.integers("channel_mult")
    elif size in MULTS:
        mults = MULTS[size]
    else:
        raise ValueError(f"{settings.source} does not have channel_mult, and image_size is {size}, not in {[*MULTS]}")
    channels = settings.integer("in_channels", 3)
    if settings.values.keys() & {"condition_mode", "cond_x1"}:
        conditioned = settings.get("condition_mode", None) == "concat" or settings.flag("cond_x1", False)
    else:
        conditioned = seen == 2 * channels
    width, heads = (settings.integer(name, -1) for name in ("num_head_channels", "num_heads"))
    if width == -1 and settings.get("num_heads_upsample", -1) not in (-1, heads):
        raise ValueError(f"{settings.source} has another num_heads_upsample than num_heads; wanted one for all")
    attention: dict[str, Any] = (
        {"head_channels": width} if width != -1 else {"num_heads": settings.integer("num_heads")}
    )
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        condition_channels=channels if conditioned else 0,
        model_channels=settings.integer("num_channels"),
        channel_mult=mults,
        num_res_blocks=settings.integer("num_res_blocks"),
        attention_resolutions=tuple(max(1, size // part) for part in settings.integers("attention_resolutions")),
        num_groups=GROUPS,
        dropout=settings.number("dropout", 0.0),
        scale_shift=settings.flag("use_scale_shift_norm", True),
        residual_resampling=settings.flag("resblock_updown"),
        **attention,
    )


def heads_last(settings: Settings, flat: bool) -> bool:
    """Whether attention has q, k and v first and the heads within them, not the other way round.

    DDBM and ECSI say so by ``attention_type``, flash by default; their attention is a 2D convolution, not
    ``flat``. The others say so by ``use_new_attention_order``.
    """
    if "attention_type" in settings.values or not flat:
        return settings.get("attention_type", "flash") == "flash"
    return settings.flag("use_new_attention_order", False)


def bridge(settings: Settings) -> Bridge:
    """The bridge, with its objective and times."""
    if _is_i2sb(settings):
        steps = settings.integer("interval", 1000)
        return I2SB(steps, settings.number("beta_max"), settings.flag("ot_ode", False))
    key = "pred_mode" if "pred_mode" in settings.values else "noise_schedule"
    kind = settings.get(key)
    if key == "noise_schedule" and str(kind).startswith("i2sb"):
        return I2SB(1000, settings.number("beta_max", 1.0))
    spread = settings.number("sigma_data", 0.5)
    spreads: dict[str, Any] = {"sigma_data": spread, "sigma_source": spread, "cov": settings.number("cov_xy", 0.0)}
    if kind in ROUTES:
        return ECSI(ROUTES[kind], settings.number("sigma_min"), **spreads)
    if kind not in ("ve", "vp"):
        raise ValueError(f"{settings.source} has {key} {kind!r}; wanted one of {['ve', 'vp', *ROUTES]}")
    times = settings.number("sigma_min"), settings.number("sigma_max")
    speed = settings.number("beta_d", 2.0), settings.number("beta_min", 0.1)
    return DDBM(kind, *times, *speed, **spreads)
