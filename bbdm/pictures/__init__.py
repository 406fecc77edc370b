"""Pictures: arrays that know where they lie, read from files and written to them, without torch."""

from bbdm.pictures.derivation import Derivation as Derivation
from bbdm.pictures.formats import Library as Library
from bbdm.pictures.formats import register as register
from bbdm.pictures.picture import Geometry as Geometry
from bbdm.pictures.picture import Header as Header
from bbdm.pictures.picture import Picture as Picture
from bbdm.pictures.picture import header as header
from bbdm.pictures.picture import read as read
from bbdm.pictures.picture import write as write
