"""The hardware and memory that a training may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lobule.errors import ConfigError
from lobule.scanning.device import available_cores, choose_device, has_bfloat16
from lobule.training.distributed import Ranks

MIN_REPLICA_SAMPLES = 16
"""Smallest number of samples in a micro-batch: with fewer, the statistics of batch norms are poor."""


@dataclass(frozen=True)
class TrainMachine:
    """The hardware and memory that a training may use."""

    device: str = "auto"
    """A device, or several CUDA cards, of which the first trains. With "auto", that is the first card."""
    precision: str = "auto"
    """float32 or bfloat16; "auto" is bfloat16 on a GPU that supports it."""
    workers: int | None = None
    """Number of workers that sample patches; None uses one per core."""
    processes: bool = False
    """Whether workers are processes instead of threads, for machines with many cores per GPU."""
    max_ram: int = 2 << 30
    """Largest memory in bytes for scans during the training and for cached data, without the model."""
    replicas: int | None = None
    """Number of micro-batches that a CPU computes in parallel; None uses one per core if the batch is large
    enough."""
    scan_devices: str = ""
    """Devices of the scans during the training, in the form of `Machine.device`; empty for `device`."""

    def resolved(self, ranks: Ranks | None = None) -> TrainMachine:
        """Return a copy in which "auto" and None are replaced by values for this process.

        The processes of a machine share its cores, and each uses its own GPU.
        """
        ranks = ranks or Ranks()
        scan_devices = self.scan_devices or (self.device if ranks.count == 1 else "")
        first = self.device.split(",")[0].strip()
        auto_device = f"cuda:{ranks.local}" if ranks.count > 1 and torch.cuda.is_available() else "auto"
        is_any_gpu = first == "cuda" and torch.cuda.is_available()
        device = choose_device(auto_device if first == "auto" or is_any_gpu else first)
        can_use_bfloat16 = device.startswith("cuda") and has_bfloat16(device)
        auto_precision = "bfloat16" if can_use_bfloat16 else "float32"
        precision = auto_precision if self.precision == "auto" else self.precision
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"unknown precision '{precision}'", expected="auto, float32 or bfloat16")
        cores = max(1, available_cores() // max(1, ranks.local_count))
        replicas = self.replicas or (cores if device == "cpu" else 1)
        return replace(
            self,
            device=device,
            scan_devices=scan_devices,
            precision=precision,
            workers=self.workers or cores,
            replicas=replicas,
        )

    def replicas_for(self, batch: int) -> int:
        """Return the number of replicas for a batch: each needs `MIN_REPLICA_SAMPLES` samples."""
        return max(1, min(self.replicas or 1, batch // MIN_REPLICA_SAMPLES))
