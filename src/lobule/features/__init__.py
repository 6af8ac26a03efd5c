"""Tile features on disk: written as TRIDENT and CLAM lay them out, read from theirs and STAMP's; streamed."""

from lobule.features.folder import FeatureFolder, FeatureManifest, begin_folder, open_features
from lobule.features.frame import Encoding, TileFrame, nominal_magnification
from lobule.features.hdf5 import FeatureFile, write_coords, write_features

__all__ = [
    "Encoding",
    "FeatureFile",
    "FeatureFolder",
    "FeatureManifest",
    "TileFrame",
    "begin_folder",
    "nominal_magnification",
    "open_features",
    "write_coords",
    "write_features",
]
