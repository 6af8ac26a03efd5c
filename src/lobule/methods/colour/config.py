"""Settings of the colour baseline."""

from __future__ import annotations

from dataclasses import dataclass

from lobule.errors import ConfigError
from lobule.settings import Settings

BATCH = 64
"""Number of windows that a training reads at once."""


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the windows and of the map."""

    classes: tuple[str, ...] = ("normal", "tumour")
    mpp: float = 1.0
    window: int = 64
    """Side in pixels of the window whose colour is measured for each cell."""
    stride: int = 16
    patches: int = 2000
    """Number of training windows, half of each class."""
    threshold: float = 0.5
    """Cells with a higher score are findings."""

    def __post_init__(self) -> None:
        if len(self.classes) != 2 or self.window < 2 or self.stride < 1 or self.patches < 2 * BATCH:
            raise ConfigError(
                "invalid settings of the method colour",
                expected=f"two classes, window >= 2, stride >= 1 and patches >= {2 * BATCH}",
            )
