"""Settings of the probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lobule.errors import ConfigError
from lobule.settings import Settings

Head = Literal["linear", "knn", "boosted"]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the tokens, of the head and of the map."""

    classes: tuple[str, ...] = ("normal", "tumour")
    encoder: str = "efficientnet-lite0"
    """The encoder whose tokens are scored: a name of `lobule weights list`, `torchvision:NAME`, `timm:NAME`
    or `lobule:NAME`."""
    weights: str = "pretrained"
    """Weights of the encoder: "pretrained", "random", or a file."""
    head: Head = "linear"
    """The classifier of a token: logistic regression, nearest neighbours, or small boosted trees."""
    mpp: float = 0.5
    window: int = 224
    """Pixels per side of a window of a convolutional network. A transformer has its own."""
    token_px: int = 16
    """Pixels per side of a token of a convolutional network. A transformer has its own."""
    strides: tuple[int, ...] = (16,)
    """The strides of the maps of a convolutional network whose channels form a token."""
    overlap: float = 0.36
    """Share of the side of a window that it has in common with the next one."""
    tokens: int = 20000
    """Number of training tokens, half of each class."""
    tokens_per_window: int = 16
    """Training tokens that are taken from one window at most."""
    features: str = ""
    """Folder of `lobule features --tokens`, from which training tokens are read instead of slides."""
    penalty: float = 1.0
    """Linear head: weight of the squared coefficients, relative to one token."""
    neighbours: int = 20
    """Nearest neighbours that vote."""
    bank: int = 4000
    """Tokens that the nearest neighbours are chosen from."""
    trees: int = 60
    """Boosted trees."""
    depth: int = 3
    """Depth of a boosted tree."""
    smooth: float = 2.0
    """Width in cells of the Gaussian that smooths a map before findings and the slide score are derived from
    it; 0 for none. The stored map is not smoothed."""
    threshold: float = 0.5
    """Regions with a higher smoothed score are findings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "window", "token_px", "tokens_per_window", "neighbours", "trees", "depth")
        self.require(0, "smooth", "penalty")
        if len(self.classes) != 2 or not self.strides or min(self.strides) < 1:
            raise ConfigError("the probe needs two classes and positive strides")
        if not 0 <= self.overlap < 1 or self.depth > 8:
            raise ConfigError(
                "invalid settings of the probe", expected="an overlap of 0 to below 1, and depth <= 8"
            )
        if self.tokens < 2 * self.tokens_per_window or self.bank < 2 * self.neighbours:
            raise ConfigError(
                "the probe has too few tokens",
                expected="tokens >= 2 tokens_per_window, and bank >= 2 neighbours",
            )
