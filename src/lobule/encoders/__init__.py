"""Tile encoders by name: how their authors specify them, where their weights are, and how they are loaded.

The table `ENCODERS` imports neither torch nor timm; `lobule.encoders.load` builds and loads the networks.
"""

from lobule.encoders.entry import EncoderEntry, Licence
from lobule.encoders.table import ENCODERS, NOT_SUPPORTED, find_entry, licences_of

__all__ = ["ENCODERS", "NOT_SUPPORTED", "EncoderEntry", "Licence", "find_entry", "licences_of"]
