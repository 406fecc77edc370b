"""Network architectures, with the state-dict keys of the released weights."""

from bbdm.networks.config import WrappedConfig as WrappedConfig
from bbdm.networks.config import register as register
