"""The resources that a scan may use."""

from __future__ import annotations

from dataclasses import dataclass

from lobule.errors import ConfigError
from lobule.scanning.device import available_cores
from lobule.scanning.requested_form import requested_runtime

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """The resources that a scan may use. They change results at most by rounding errors."""

    device: str = "auto"
    """A device, several CUDA cards such as "cuda:0,cuda:2", or "auto" for every visible card."""
    precision: str = "auto"
    max_ram: int = 2 * GIB
    """Limit of the memory besides the model, in bytes; it holds for slides of any size."""
    readers: int | None = None
    """Reading threads; None uses one per core."""
    cells: int | None = None
    batch: int | None = None
    replicas: int | None = None
    channels_last: bool | None = None
    """Memory layout of the model; None uses the faster one, measured once per machine and model."""
    runtime: str = "torch"
    """Library that computes the networks on a CPU: "torch", "openvino", or "auto" for the faster one."""
    jpeg_decoder: str | None = None
    """What decodes the JPEG tiles of slides: "cpu" (libjpeg-turbo), or "nvimagecodec" on a CUDA card."""
    cores: int | None = None
    """Cores to use; None uses all cores that this process may use."""

    @property
    def usable_cores(self) -> int:
        """The number of cores to use."""
        return self.cores or available_cores()

    @classmethod
    def with_layout(
        cls,
        layout: str,
        device: str,
        precision: str,
        max_ram: int,
        readers: int | None,
        batch: int | None,
        runtime: str = "torch",
        jpeg_decoder: str | None = None,
    ) -> Machine:
        """Return the resources with a memory layout by name: auto, channels-last or contiguous.

        The environment variable LOBULE_RUNTIME replaces the runtime "auto".
        """
        if layout not in CHANNELS_LAST:
            raise ConfigError(f"unknown memory layout '{layout}'", expected=", ".join(CHANNELS_LAST))
        channels_last = CHANNELS_LAST[layout]
        return cls(
            device, precision, max_ram, readers, batch=batch, channels_last=channels_last,
            runtime=requested_runtime(runtime), jpeg_decoder=jpeg_decoder,
        )  # fmt: skip


CHANNELS_LAST = {"auto": None, "channels-last": True, "contiguous": False}
"""The value of `Machine.channels_last` for each memory layout."""
