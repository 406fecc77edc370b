from bbdm.training.callback import Callback as Callback
from bbdm.training.config import TrainConfig as TrainConfig
from bbdm.training.losses import bridge_loss as bridge_loss
from bbdm.training.trainer import Trainer as Trainer
