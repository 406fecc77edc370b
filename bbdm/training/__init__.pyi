from bbdm.training.bridge import bridge_loss as bridge_loss
from bbdm.training.callbacks import Callback as Callback
from bbdm.training.config import TrainConfig as TrainConfig
from bbdm.training.initial import fitted as fitted
from bbdm.training.optimization import EMA as EMA
from bbdm.training.trainer import Trainer as Trainer
