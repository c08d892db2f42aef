"""Every format in which users bring media and conversations; nothing downstream knows these formats."""

from featurize.sources.formats import FORMATS
from featurize.sources.record import LeftOut, Record
from featurize.sources.source import Source, read_sources

__all__ = ["FORMATS", "LeftOut", "Record", "Source", "read_sources"]
