"""Models that workers load from paths, instead of receiving their weights from the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lobule.cluster.scan import scan_on_ray
from lobule.cluster.session import ClusterOptions
from lobule.cohort import Cohort
from lobule.encoders.load import open_encoder
from lobule.errors import BundleError
from lobule.files import is_url
from lobule.methods.extraction import Extraction, open_extraction
from lobule.results.store import scratch_of
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.scan import Machine, ScanReport


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


@dataclass(frozen=True)
class EncoderSource:
    """Encoders of tiles, which each worker opens from the same weights."""

    encoders: tuple[tuple[str, str | Path], ...]
    """Names with weights: "pretrained", "random", or a file that all machines see."""
    unverified: bool
    extraction: Extraction
    out: str
    """The folder of the features, or its URL."""
    bundle: Mapping[str, Any] = field(default_factory=dict)
    """What identifies the encoders of the driver."""

    def load(self) -> Predictor:
        """Open the encoders and the folders of their features.

        Raises:
            BundleError: The weights on this machine are not those of the driver.
            ResultsError: The folder contains features of another encoder.
        """
        encoders = [
            open_encoder(name, weights, unverified=self.unverified) for name, weights in self.encoders
        ]
        root = scratch_of(self.out) if is_url(self.out) else Path(self.out)
        predictor = open_extraction(encoders, self.extraction, root)
        if predictor.bundle != dict(self.bundle):
            raise BundleError(
                "a worker has other encoders than the driver",
                subject=", ".join(name for name, _ in self.encoders),
                expected=str(self.bundle["fingerprint"]),
                actual=str(predictor.bundle["fingerprint"]),
                remedy="Put the same weights on every machine",
            )
        return predictor


def extract_on_ray(source: EncoderSource, cluster: ClusterOptions) -> Callable[..., ScanReport]:
    """Return a function that `lobule.methods.extraction.extract` calls to run the scan on Ray."""

    def run(
        bundle: Mapping[str, Any],
        cohort: Cohort,
        out: Path,
        options: ScanOptions | None,
        machine: Machine | None,
        **arguments: Any,
    ) -> ScanReport:
        return scan_on_ray(
            replace(source, bundle=bundle), cohort, out, options, machine, cluster, **arguments
        )

    return run
