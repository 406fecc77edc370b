from bbdm.training.callback import Callback as Callback
from bbdm.training.config import TrainConfig as TrainConfig
from bbdm.training.losses import bridge_loss as bridge_loss
from bbdm.training.optimizers import EMA as EMA
from bbdm.training.statistics import fitted as fitted
from bbdm.training.trainer import Trainer as Trainer
