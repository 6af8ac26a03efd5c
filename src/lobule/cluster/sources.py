"""Models that workers load from paths, instead of receiving their weights from the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lobule.errors import BundleError
from lobule.scanning.contract import Predictor


@dataclass(frozen=True)
class BundleSource:
    """A trained model in a folder that all machines see under the same path."""

    path: str
    bundle: Mapping[str, Any]
    """The method, the fingerprint and the classes, as the driver read them."""
    trust: bool = False

    def load(self) -> Predictor:
        """Load the model.

        Raises:
            BundleError: The bundle on this machine is not that of the driver.
        """
        from lobule.bundles import read_bundle
        from lobule.methods import load

        opened = read_bundle(self.path)
        if opened.fingerprint != self.bundle["fingerprint"]:
            raise BundleError(
                "a worker has another bundle than the driver",
                subject=self.path,
                expected=str(self.bundle["fingerprint"]),
                actual=opened.fingerprint,
                remedy="Put the same bundle on every machine",
            )
        return load(opened, trust=self.trust)
