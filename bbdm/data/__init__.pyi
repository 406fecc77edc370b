from bbdm.data.cached import CachedExamples as CachedExamples
from bbdm.data.cached import LatentDataset as LatentDataset
from bbdm.data.examples import Example as Example
from bbdm.data.mapped import MappedDataset as MappedDataset
from bbdm.data.pairs import Pairs as Pairs
from bbdm.data.rows import read_rows as read_rows
from bbdm.data.spec import Condition as Condition
from bbdm.data.spec import Spec as Spec
