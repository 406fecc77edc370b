"""Bridges: Gaussian paths between a source image y and a target image x0.

A bridge is three functions of time, x_t = alpha(t) x0 + beta(t) y + sigma(t) eps, and what the network is
shown and predicts. :class:`~bbdm.bridges.base.Bridge` says what a bridge of your own has to have.
"""

from bbdm.bridges.base import Bridge
from bbdm.bridges.brownian import ABridge, BrownianBridge
from bbdm.bridges.ddbm import DDBM
from bbdm.bridges.densities import Density
from bbdm.bridges.ecsi import ECSI
from bbdm.bridges.goub import GOUB
from bbdm.bridges.i2sb import I2SB
from bbdm.bridges.objectives import Objective
from bbdm.bridges.path import Marginal
from bbdm.bridges.registry import BRIDGES, from_config, register

__all__ = [
    "BRIDGES",
    "DDBM",
    "ECSI",
    "GOUB",
    "I2SB",
    "ABridge",
    "Bridge",
    "BrownianBridge",
    "Density",
    "Marginal",
    "Objective",
    "from_config",
    "register",
]
