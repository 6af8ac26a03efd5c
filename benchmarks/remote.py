"""Slides that are scanned from a server by ranges: bytes that are fetched, time, and failing requests.

    bytes_over_needed   bytes of all answers, over those of the distinct tiles that a local scan decodes
    time_over_local     seconds of a scan of the remote slide, over those of the local one

The server is a separate process that waits 20 ms before each answer. Scans take turns; the first of each
kind is not counted, and the ratio is that of the medians. A further scan gets no answer or an error for 5 %
of its requests, and must write the same maps. The slide is a generated pyramid with JPEG tiles; the model is
the dense net `tiny`. `--quick` takes a slide of a sixteenth of the area, and one round in place of three.

    python benchmarks/remote.py [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measure import report

DELAY_S = 0.02
FAILING_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """The size of the benchmark."""

    side_px: int
    rounds: int


FULL = Plan(side_px=12_288, rounds=3)
QUICK = Plan(side_px=3_072, rounds=1)


# -- server -------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers ranges of one file after a pause. `/statistics` is answered at once, and starts a new count."""

    protocol_version = "HTTP/1.1"
    path_of_file: Path
    version = ""
    failing_share = 0.0
    bytes_sent = requests = failed = 0
    lock = threading.Lock()
    numbers = random.Random(5)

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/statistics"):
            self.statistics()
        else:
            self.answer(with_body=True)

    def statistics(self) -> None:
        """Report the counts, set them to zero, and set the share of requests that fail."""
        cls = type(self)
        with self.lock:
            counts = {"bytes": cls.bytes_sent, "requests": cls.requests, "failed": cls.failed}
            cls.bytes_sent = cls.requests = cls.failed = 0
            cls.failing_share = float(self.path.partition("?")[2] or 0)
        body = json.dumps(counts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, with_body: bool) -> None:
        cls = type(self)
        time.sleep(DELAY_S)
        with self.lock:
            cls.requests += 1
            fails = self.numbers.random() < cls.failing_share
            cls.failed += fails
        size = self.path_of_file.stat().st_size
        start, end = 0, size
        if value := self.headers.get("Range"):
            first, _, last = value.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, size)
        if fails and self.numbers.random() < 0.5:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if value else 200)
        for name, text in (("ETag", self.version), ("Content-Length", str(end - start)),
                           ("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")):  # fmt: skip
            self.send_header(name, text)
        if value:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if with_body:
            with self.path_of_file.open("rb") as file:
                file.seek(start)
                data = file.read((end - start) // (2 if fails else 1))
            self.close_connection = fails
            self.wfile.write(data)
            with self.lock:
                cls.bytes_sent += len(data)


def serve(path: Path) -> None:
    """Serve a file until the process is ended. The port is printed first."""
    Handler.path_of_file = path
    Handler.version = f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def server_of(path: Path) -> Iterator[str]:
    """Start a server of one file, and yield its address."""
    command = [sys.executable, __file__, "--serve", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def statistics_of(address: str, failing_share: float = 0.0) -> dict[str, int]:
    """The counts since the last call. From now on, a share of the requests fails."""
    with urllib.request.urlopen(f"{address}/statistics?{failing_share}") as answer:
        counts: dict[str, int] = json.load(answer)
    return counts


# -- scans --------------------------------------------------------------------------------------------------


class Scans:
    """Scans of one slide from its path and from its URL, each into a new folder."""

    def __init__(self, folder: Path) -> None:
        import torch

        from lobule.bundles import read_bundle
        from lobule.methods import load
        from lobule.methods.scannet import Config, save
        from lobule.nets.backbones import BACKBONES
        from lobule.nets.scaling import PLAIN_SCALING

        torch.manual_seed(0)
        save(folder / "bundle", Config(trunk="tiny", mpp=0.5), BACKBONES["tiny"](2), PLAIN_SCALING)
        opened = read_bundle(folder / "bundle")
        self.predictor = load(opened)
        self.bundle = {
            "method": opened.method,
            "fingerprint": opened.fingerprint,
            "classes": list(opened.classes),
        }
        self.folder, self.number = folder, 0

    def seconds(self, path: str) -> tuple[float, dict[str, bytes]]:
        """Scan a slide. Returns the seconds and the bytes of its maps."""
        from lobule.cohort import Case, Cohort
        from lobule.scanning.contract import ScanOptions
        from lobule.scanning.scan import Machine, scan

        self.number += 1
        out = self.folder / f"results{self.number}"
        machine = Machine(device="cpu", precision="float32", channels_last=True, batch=2, cells=32)
        began = time.perf_counter()
        result = scan(
            self.predictor,
            self.bundle,
            Cohort((Case("slide", "patient", "slide", path),)),
            out,
            ScanOptions(),
            machine,
        )
        seconds = time.perf_counter() - began
        if result.failed:
            raise RuntimeError(str(result.failed))
        return seconds, {
            item.name: item.read_bytes() for item in sorted(out.glob("cases/*/maps/**/*")) if item.is_file()
        }


def tiles_needed(scans: Scans, path: Path) -> int:
    """Bytes of the distinct tiles that a local scan reads."""
    from lobule.slides.tiff import TiffBackend

    original, ranges = TiffBackend._fetch, set()

    def fetch(backend: Any, offset: int, length: int, buffer: Any) -> Any:
        ranges.add((offset, length))
        return original(backend, offset, length, buffer)

    with patch.object(TiffBackend, "_fetch", fetch):
        scans.seconds(str(path))
    return sum(length for _, length in ranges)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 45 s")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(Path(chosen.serve))
    else:
        measure(QUICK if chosen.quick else FULL)


def measure(plan: Plan) -> None:
    from lobule.phantoms.slides import SlidePhantom, write_slide

    with tempfile.TemporaryDirectory(prefix="lobule-remote-") as name:
        folder = Path(name)
        path = folder / "slide.tif"
        side = plan.side_px
        write_slide(SlidePhantom(seed=11, width=side, height=side, mpp=0.5, tissue=0.4, sections=1), path)
        scans = Scans(folder)
        needed = tiles_needed(scans, path)
        with server_of(path) as address:
            url = f"{address}/slide.tif"
            local, remote, sent = [], [], []
            statistics_of(address)
            for _ in range(plan.rounds + 1):
                seconds, local_maps = scans.seconds(str(path))
                local.append(seconds)
                seconds, remote_maps = scans.seconds(url)
                remote.append(seconds)
                sent.append(statistics_of(address))
                require_same(local_maps, remote_maps)
            statistics_of(address, FAILING_SHARE)
            require_same(local_maps, scans.seconds(url)[1])
            faults = statistics_of(address)
        slide_mb, needed_mb = path.stat().st_size / 1e6, needed / 1e6
        print(f"slide {slide_mb:.1f} MB, tiles needed {needed_mb:.1f} MB, answers {sent[-1]}")
        print(f"with failing requests: {faults}; the maps are the same")
        for name, seconds_of in (("local", local), ("remote", remote)):
            print(name, " ".join(f"{seconds:.2f}" for seconds in seconds_of), "s")
    ratios = {
        "bytes_over_needed": statistics.median(counts["bytes"] for counts in sent) / needed,
        "time_over_local": statistics.median(remote[1:]) / statistics.median(local[1:]),
    }
    report("remote", ratios)


def require_same(expected: dict[str, bytes], actual: dict[str, bytes]) -> None:
    if not expected or expected != actual:
        raise RuntimeError("a remote scan has other maps than a local one")


if __name__ == "__main__":
    main()
