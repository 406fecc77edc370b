from bbdm.data.examples import Example as Example
from bbdm.data.latents import LatentDataset as LatentDataset
from bbdm.data.pairs import MappedDataset as MappedDataset
from bbdm.data.pairs import Pairs as Pairs
from bbdm.data.rows import read_rows as read_rows
from bbdm.data.spec import Condition as Condition
from bbdm.data.spec import Spec as Spec
