from bbdm.evaluation.metrics import METRICS as METRICS
from bbdm.evaluation.metrics import Metric as Metric
from bbdm.evaluation.scores import Scores as Scores
