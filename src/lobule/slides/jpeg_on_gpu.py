"""Decode JPEG tiles on an NVIDIA card with nvImageCodec, if the user asks for it.

The card rounds differently from libjpeg-turbo, so a scan uses it only on request, and records it. Tiles that
nvImageCodec cannot decode, and those that are not stored as YCbCr, are decoded by libjpeg-turbo. nvImageCodec
may decode a damaged tile without an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from lobule.errors import ConfigError, MissingExtra
from lobule.slides.backend import RGB
from lobule.slides.jpeg import Bytes, decoding_with

log = logging.getLogger("lobule.scan")

CPU, NVIMAGECODEC = "cpu", "nvimagecodec"
DECODERS = (CPU, NVIMAGECODEC)
MODULE = "nvidia.nvimgcodec"
BACKENDS = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU")
"""The kinds of decoders that nvImageCodec may use. Decoders that use the CPU alone are left out."""
LARGEST_MEAN_DIFFERENCE = 1.0
"""Largest mean difference to libjpeg-turbo, in grey levels, with which a decoder is accepted."""


def check_decoder(name: str, device: str) -> None:
    """Check that a scan on a device can decode JPEG tiles with a decoder.

    Raises:
        ConfigError: There is no such decoder, or the device is not a CUDA card.
        MissingExtra: nvImageCodec is not installed.
    """
    if name not in DECODERS:
        raise ConfigError(f"unknown JPEG decoder '{name}'", expected=", ".join(DECODERS))
    if name == CPU:
        return
    card_number(device)
    try:
        is_installed = importlib.util.find_spec(MODULE) is not None
    except ModuleNotFoundError:  # Not even the package `nvidia` is there.
        is_installed = False
    if not is_installed:
        raise MissingExtra(NVIMAGECODEC, "decoding JPEG tiles on a GPU")


def decoding_by(name: str, device: str) -> AbstractContextManager[None]:
    """Return a context in which JPEG tiles are decoded by the decoder of a scan on a device."""
    return decoding_with(None if name == CPU else GpuDecoder(card_number(device)))


def card_number(device: str) -> int:
    """Return the number of a CUDA card."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        raise ConfigError(
            "nvImageCodec decodes on an NVIDIA card",
            actual=f"the device {device}",
            remedy="Use --jpeg-decoder cpu",
        )
    return int(number or 0)


@dataclass(eq=False)
class _Request:
    """A tile that a reading thread waits for."""

    stream: bytes
    is_done: bool = False
    pixels: RGB | None = None


class GpuDecoder:
    """A decoder for several reading threads. Tiles that wait at the same time are decoded as one batch."""

    def __init__(self, card: int, backends: Sequence[str] = BACKENDS) -> None:
        """
        Args:
            card: Number of the CUDA card.
            backends: Names of nvImageCodec's kinds of decoders that may be used.

        Raises:
            ConfigError: nvImageCodec does not run here, or does not give the pixels of libjpeg-turbo.
        """
        codec = importlib.import_module(MODULE)
        self._code_stream = codec.CodeStream
        self._waiting: list[_Request] = []
        self._list, self._card = threading.Lock(), threading.Lock()
        self._has_warned = False
        try:
            self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
            self._decoder: Any = codec.Decoder(
                device_id=card,
                backends=[codec.Backend(getattr(codec.BackendKind, name)) for name in backends],
                options=":fancy_upsampling=1",
            )
        except (RuntimeError, TypeError, AttributeError) as error:
            raise _unusable(str(error).splitlines()[0]) from error
        self._require_same_pixels()

    def decode(self, stream: Bytes) -> RGB | None:
        """Decode a complete stream to RGB. Return None if nvImageCodec cannot decode it."""
        request = _Request(bytes(stream))
        with self._list:
            self._waiting.append(request)
        with self._card:
            if not request.is_done:  # Otherwise the previous thread has decoded it with its batch.
                with self._list:
                    batch, self._waiting = self._waiting, []
                self._decode_batch(batch)
        return request.pixels

    def _decode_batch(self, batch: Sequence[_Request]) -> None:
        try:
            streams = [self._code_stream(request.stream) for request in batch]
            for request, image in zip(batch, self._decoder.decode(streams, params=self._params), strict=True):
                host = None if image is None else image.cpu()
                request.pixels = None if host is None else np.asarray(host)
        except RuntimeError as error:  # libjpeg-turbo decodes the tiles, and reports damage if there is any.
            if not self._has_warned:
                log.warning("nvImageCodec failed, so some JPEG tiles are decoded on the CPU: %s", error)
            self._has_warned = True
        for request in batch:
            request.is_done = True

    def _require_same_pixels(self) -> None:
        """Compare one picture with libjpeg-turbo, in case colours or sampling are understood differently."""
        y, x = np.mgrid[0:64, 0:64].astype(np.float32)
        waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], axis=2)
        stream = simplejpeg.encode_jpeg((127 + 100 * waves).astype(np.uint8), 90, "RGB", "420")
        expected, pixels = simplejpeg.decode_jpeg(stream), self.decode(stream)
        if pixels is None or pixels.shape != expected.shape:
            actual = "nothing" if pixels is None else f"a picture of shape {pixels.shape}"
            raise _unusable(f"{actual} when it decoded a picture of shape {expected.shape}")
        difference = float(np.abs(pixels.astype(np.float32) - expected).mean())
        if difference > LARGEST_MEAN_DIFFERENCE:
            raise _unusable(f"pixels that differ from libjpeg-turbo's by {difference:.1f} of 255 on average")


def _unusable(actual: str) -> ConfigError:
    return ConfigError("nvImageCodec cannot be used", actual=actual, remedy="Use --jpeg-decoder cpu")
