"""Numbers and names of published networks that settings need; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

FOUR_VIEW_WIDTHS = (16, 32, 64, 128, 256)
"""Channels of the five stages of the trunk of the four-view network and of GMIC."""
PATCH_CLASSES = ("malignant", "benign", "outside", "negative")
"""Classes of the patch network: two kinds of lesions, tissue beside lesions, and healthy breasts."""
Pooling = Literal["mean", "max"]
"""How the feature map of a view is pooled."""

GMIC_TOP_SHARES = (0.02, 0.03, 0.03, 0.05, 0.10)
"""The share of saliency cells behind the global score of each of the five published models."""
GMIC_REGIONS = 6
GMIC_REGION_PX = 256
"""Side of a region in pixels."""

TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of the input of networks with torchvision's weights."""
