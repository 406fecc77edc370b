from bbdm.data.cache import ImageCache as ImageCache
from bbdm.data.latents import LatentDataset as LatentDataset
from bbdm.data.mapped import MappedDataset as MappedDataset
from bbdm.data.pairs import Pair as Pair
from bbdm.data.pairs import PairedDataset as PairedDataset
from bbdm.data.pairs import load_dataset as load_dataset
from bbdm.data.valued import ValuedDataset as ValuedDataset
