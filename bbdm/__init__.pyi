from bbdm.bridges import DDBM as DDBM
from bbdm.bridges import ECSI as ECSI
from bbdm.bridges import GOUB as GOUB
from bbdm.bridges import I2SB as I2SB
from bbdm.bridges import ABridge as ABridge
from bbdm.bridges import BrownianBridge as BrownianBridge
from bbdm.bridges import timesteps as timesteps
from bbdm.codec import DiffusersCodec as DiffusersCodec
from bbdm.codec import VQGANCodec as VQGANCodec
from bbdm.codec import wrap_codec as wrap_codec
from bbdm.files.checkpoint import load_checkpoint as load_checkpoint
from bbdm.files.checkpoint import load_codec as load_codec
from bbdm.files.checkpoint import load_vqgan as load_vqgan
from bbdm.files.checkpoint import save_checkpoint as save_checkpoint
from bbdm.files.checkpoint import save_vqgan as save_vqgan
from bbdm.networks.base import Network as Network
from bbdm.networks.base import wrap as wrap
from bbdm.networks.unet import UNet as UNet
from bbdm.networks.unet_config import UNetConfig as UNetConfig
from bbdm.networks.vqgan import VQGAN as VQGAN
from bbdm.networks.vqgan_config import VQGANConfig as VQGANConfig
from bbdm.sampling.sampler import BridgeSampler as BridgeSampler
from bbdm.training.callback import Callback as Callback
from bbdm.training.config import TrainConfig as TrainConfig
from bbdm.training.losses import bridge_loss as bridge_loss
from bbdm.training.trainer import Trainer as Trainer

__version__: str
