"""Tile features on disk: written in the layout of TRIDENT or CLAM, read from these and from STAMP."""

from lobule.features.folder import FeatureFolder, FeatureManifest, open_features, prepare_folder
from lobule.features.frame import Encoding, TileFrame, nominal_magnification
from lobule.features.hdf5 import FeatureFile, write_coords, write_features
from lobule.features.tokens import TokenFile, TokenGrid, read_token_file, write_tokens

__all__ = [
    "Encoding",
    "FeatureFile",
    "FeatureFolder",
    "FeatureManifest",
    "TileFrame",
    "TokenFile",
    "TokenGrid",
    "prepare_folder",
    "nominal_magnification",
    "open_features",
    "read_token_file",
    "write_coords",
    "write_features",
    "write_tokens",
]
