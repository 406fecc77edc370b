"""Pictures: arrays that know where they lie, read from files and written to them, without torch."""

from bbdm.pictures.files import header as header
from bbdm.pictures.files import read as read
from bbdm.pictures.files import write as write
from bbdm.pictures.picture import Geometry as Geometry
from bbdm.pictures.picture import Header as Header
from bbdm.pictures.picture import Picture as Picture
