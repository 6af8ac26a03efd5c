"""Scans of one cohort on many processes and machines with Ray. No other package imports Ray."""

from lobule.cluster.scan import scan_on_ray
from lobule.cluster.session import ClusterOptions
from lobule.cluster.sources import BundleSource

__all__ = ["BundleSource", "ClusterOptions", "scan_on_ray"]
