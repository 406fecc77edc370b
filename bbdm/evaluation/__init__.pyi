from bbdm.evaluation.deeplab import DeepLab as DeepLab
from bbdm.evaluation.deeplab import load_deeplab as load_deeplab
from bbdm.evaluation.deeplab import save_deeplab as save_deeplab
from bbdm.evaluation.metrics import Scores as Scores
from bbdm.evaluation.segmentation import SegmentationScore as SegmentationScore
