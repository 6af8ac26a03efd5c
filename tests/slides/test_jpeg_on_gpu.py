"""JPEG tiles decoded by nvImageCodec, which a module with the same functions replaces in these tests."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg

from lobule.errors import ConfigError, MissingExtra, ResultsError
from lobule.geometry import Box
from lobule.scanning import recorded_engine
from lobule.scanning.scan import Machine, scan
from lobule.slides import jpeg, jpeg_on_gpu
from lobule.slides.jpeg_on_gpu import BACKENDS, MODULE, GpuDecoder, check_decoder
from lobule.slides.slide import open_slide
from tests.scanning.support import BUNDLE, EVERYWHERE, MeanPredictor, cohort_of, pixels_of, tree
from tests.slides.tiffs import overwrite, write_jpeg

Codec = Callable[..., list[int]]
"""Installs the stand-in and returns the sizes of the batches that it decodes."""


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> Codec:
    """Install a stand-in of the package, whose pixels are those of libjpeg-turbo plus `shift`."""

    def install(
        shift: int = 1, fails: Callable[[bytes], bool] = lambda _: False, hold: Callable[[], Any] = bool
    ) -> list[int]:
        batches: list[int] = []

        class Image:
            def __init__(self, pixels: Any) -> None:
                self.pixels = pixels

            def cpu(self) -> Any:
                return np.clip(self.pixels.astype(np.int16) + shift, 0, 255).astype(np.uint8)

        class Decoder:
            def __init__(self, device_id: int, backends: list[Any], options: str) -> None:
                assert device_id == 3 and backends == list(BACKENDS) and options == ":fancy_upsampling=1"

            def decode(self, streams: list[bytes], *, params: Any) -> list[Image | None]:
                assert params.color_spec == "sRGB" and not params.apply_exif_orientation
                hold()
                batches.append(len(streams))
                return [None if fails(one) else Image(simplejpeg.decode_jpeg(one)) for one in streams]

        module = ModuleType(MODULE)
        module.__dict__.update(
            Decoder=Decoder,
            CodeStream=bytes,
            DecodeParams=SimpleNamespace,
            ColorSpec=SimpleNamespace(SRGB="sRGB"),
            Backend=lambda kind: kind,
            BackendKind=SimpleNamespace(**{name: name for name in BACKENDS}),
        )
        package = ModuleType("nvidia")
        package.nvimgcodec = module  # type: ignore[attr-defined]
        module.__spec__ = SimpleNamespace(name=MODULE)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, "nvidia", package)
        monkeypatch.setitem(sys.modules, MODULE, module)
        return batches

    return install


def jpeg_slide(path: Path, subsampling: str = "420") -> Path:
    """A slide of JPEG tiles of 128 px."""
    pixels = (60 + pixels_of(500, 400) * 0.5).astype(np.uint8)
    return write_jpeg(path, [pixels], tile=128, subsampling=subsampling)


def pixels_at(path: Path) -> Any:
    """All pixels of level 0."""
    with open_slide(path, mpp=0.5) as slide:
        return slide.read_lattice(slide.lattice(level=0), Box(0, 0, 500, 400))


# -- decoding ------------------------------------------------------------------------------------------------


def test_tiles_of_a_slide_come_from_the_card(codec: Codec, tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "one.tif")
    before = pixels_at(path)
    batches = codec()
    with jpeg.decoding_with(GpuDecoder(3)):
        on_card = pixels_at(path)
    assert np.array_equal(on_card, np.minimum(before, 254) + 1), "the pixels are not those of the stand-in"
    assert sum(batches) == 1 + 4 * 4, "the check of one picture, and every tile of 128 px"
    assert np.array_equal(pixels_at(path), before), "the decoder is used after its scan"


def test_tiles_that_are_stored_as_rgb_are_left_to_the_cpu(codec: Codec, tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "rgb.tif", "rgb")
    overwrite(path, "PhotometricInterpretation", 0, 2)
    before, batches = pixels_at(path), codec()
    with jpeg.decoding_with(GpuDecoder(3)):
        assert np.array_equal(pixels_at(path), before)
    assert batches == [1]


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA error: unspecified launch failure")])
def test_tiles_that_fail_on_the_card_are_decoded_by_the_cpu(
    codec: Codec, tmp_path: Path, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = jpeg_slide(tmp_path / "one.tif")
    before, is_checked = pixels_at(path), False

    def fails(_: bytes) -> bool:
        if is_checked and error is not None:
            raise error
        return is_checked

    codec(fails=fails)
    decoder = GpuDecoder(3)
    is_checked = True
    with jpeg.decoding_with(decoder):
        assert np.array_equal(pixels_at(path), before)
    assert caplog.text.count("nvImageCodec failed") == (0 if error is None else 1)


def test_threads_that_wait_share_a_batch(codec: Codec) -> None:
    """Seven threads wait while the first tile is decoded; their tiles are the next batch."""
    first, may_end = threading.Event(), threading.Event()
    checked = False

    def hold() -> None:
        if checked and not first.is_set():
            first.set()
            assert may_end.wait(60)

    batches = codec(hold=hold)
    decoder = GpuDecoder(3)
    checked = True
    streams = [
        simplejpeg.encode_jpeg(np.full((16, 16, 3), 20 * n + 40, np.uint8), 95, "RGB") for n in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(decoder.decode, streams[0])]
        assert first.wait(60)
        futures += [pool.submit(decoder.decode, stream) for stream in streams[1:]]
        while len(decoder._waiting) < 7:
            pass
        may_end.set()
        for stream, future in zip(streams, futures, strict=True):
            assert np.array_equal(future.result(), simplejpeg.decode_jpeg(stream) + 1)
    assert batches == [1, 1, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 40}, r"differ from libjpeg-turbo's by 3\d\.\d of 255"),
        ({"fails": lambda _: True}, "Found nothing when it decoded"),
    ],
)
def test_a_decoder_with_other_pixels_is_refused(codec: Codec, changes: dict[str, Any], message: str) -> None:
    codec(**changes)
    with pytest.raises(ConfigError, match=message):
        GpuDecoder(3)


def test_a_decoder_that_is_unknown_missing_or_without_a_card_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="unknown JPEG decoder 'gpu'"):
        check_decoder("gpu", "cuda:0")
    with pytest.raises(ConfigError, match=r"decodes on an NVIDIA card\. Found the device cpu"):
        check_decoder("nvimagecodec", "cpu")
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(MissingExtra, match=r"lobule\[nvimagecodec\]"):
        check_decoder("nvimagecodec", "cuda:0")


# -- scans ---------------------------------------------------------------------------------------------------

MACHINE = Machine(device="cpu", precision="float32", batch=3, cells=4, readers=2, channels_last=True)
ON_CARD = Machine(**{**MACHINE.__dict__, "jpeg_decoder": "nvimagecodec"})


@pytest.fixture
def on_card(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Decode on the CPU as if it were card number 3."""
    monkeypatch.setattr(jpeg_on_gpu, "card_number", lambda _: 3)
    return codec()


def test_the_decoder_of_a_scan_is_recorded_and_followed(on_card: list[int], tmp_path: Path) -> None:
    cohort = cohort_of(jpeg_slide(tmp_path / "one.tif"))

    def run(name: str, machine: Machine) -> dict[str, bytes]:
        report = scan(MeanPredictor(), BUNDLE, cohort, tmp_path / name, EVERYWHERE, machine)
        assert dict(report.counts) == {"complete": 1}
        return tree(tmp_path / name)

    on_cpu = run("cpu", MACHINE)
    assert not on_card and "jpeg_decoder" not in json.loads(on_cpu["scan.json"])["engine"]
    uninterrupted = run("gpu", ON_CARD)
    assert json.loads(uninterrupted["scan.json"])["engine"]["jpeg_decoder"] == "nvimagecodec"
    decoded = sum(on_card)
    (folder,) = (tmp_path / "gpu" / "cases").iterdir()
    (folder / "result.json").unlink()
    next(folder.glob("maps/*/state/c/*/*")).unlink()
    assert run("gpu", MACHINE) == uninterrupted, "a resume without the option does not follow the record"
    assert sum(on_card) > decoded


def test_a_resume_never_begins_to_use_the_card(
    on_card: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = cohort_of(jpeg_slide(tmp_path / "one.tif"))
    scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, MACHINE)
    before = tree(tmp_path / "r")
    (folder,) = (tmp_path / "r" / "cases").iterdir()
    (folder / "result.json").unlink()
    scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, ON_CARD)
    assert tree(tmp_path / "r") == before and not on_card
    assert "jpeg_decoder cpu and continues with it; nvimagecodec is ignored" in caplog.text


def test_a_worker_without_the_recorded_decoder_stops(
    on_card: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = cohort_of(jpeg_slide(tmp_path / "one.tif"))
    scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, ON_CARD)

    def missing(name: str, device: str) -> None:
        raise MissingExtra(name, "decoding JPEG tiles on a GPU")

    monkeypatch.setattr(recorded_engine, "check_decoder", missing)
    with pytest.raises(ResultsError, match=r"cannot continue the scan as it began.*decoded by nvimagecodec"):
        scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, MACHINE)
