"""Bridges: Gaussian paths between a source image y and a target image x0.

A bridge is three functions of time, x_t = alpha(t) x0 + beta(t) y + sigma(t) eps, and what the network is
shown and predicts. :class:`~bbdm.bridges.base.Bridge` says what a bridge of your own has to have.
"""

from bbdm.bridges.base import BRIDGES as BRIDGES
from bbdm.bridges.base import Bridge as Bridge
from bbdm.bridges.base import from_config as from_config
from bbdm.bridges.base import register as register
from bbdm.bridges.brownian import ABridge as ABridge
from bbdm.bridges.brownian import BrownianBridge as BrownianBridge
from bbdm.bridges.diffusions import DDBM as DDBM
from bbdm.bridges.diffusions import ECSI as ECSI
from bbdm.bridges.diffusions import GOUB as GOUB
from bbdm.bridges.diffusions import I2SB as I2SB
from bbdm.bridges.path import Density as Density
from bbdm.bridges.path import Marginal as Marginal
from bbdm.bridges.path import Objective as Objective
