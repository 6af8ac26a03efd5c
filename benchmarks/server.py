"""Tiles per second of the viewer's server, and of other tile servers, on the same file and machine.

The slide is a generated JPEG pyramid whose tiles share their tables, as scanners write them, and a copy of it
with tiles that no server can send as they are (deflate). Contenders:

- Lobule: `lobule view SLIDE` with uvicorn.
- A bare ASGI application with uvicorn that returns the same bytes from memory: the limit.
- large_image's tile server as shipped, and with colour correction off, so that it sends stored tiles. The
  faster one is "best". Its tiles in a bare ASGI application are measured, too: they come from its cache.
- TIAToolbox's tile server.

The client is `wrk` with 50 connections. Servers take turns in every round, and the median of the rounds
counts. Tiles that have to be decoded (deflate, 256 x 256) are requested once each from new processes, so that
no cache helps; then a few of them are requested again, so that every contender sends them from its cache.
large_image encodes JPEG with quality 95 and colours of full resolution by Pillow, its default; Lobule with
quality 88 and colours of half resolution by libjpeg-turbo. "large_image, same JPEG" uses the same
quality and resolution of colours as Lobule.

    python benchmarks/server.py --prepare    once: installs TIAToolbox in a separate environment under .peers/
    python benchmarks/server.py              five rounds of 8 s, and ten minutes of load for the memory
    python benchmarks/server.py --quick      one round without TIAToolbox, which starts slowly, under 45 s
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from measure import report

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".peers"
CONNECTIONS = 50
SIDE = 8192
TILE = 256
REPEATS = 4
"""The slide shows the same picture this often per side: painting all of it would take most of the time."""
FEW_TILES = 100
"""Tiles that are requested again and again; large_image's cache holds them."""
NATIVE = (
    "lobule",
    "bare ASGI",
    "large_image",
    "large_image, no ICC",
    "large_image in ASGI, no ICC",
    "tiatoolbox",
)
DECODED = ("lobule", "large_image", "large_image, no ICC", "large_image, same JPEG")
LUA = """
local urls = {}
for line in io.lines(os.getenv("WRK_URLS")) do urls[#urls + 1] = line end
local at = 0
request = function()
  at = at % #urls + 1
  return wrk.format("GET", urls[at])
end
if os.getenv("WRK_ONCE") then
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long s; long us; } moment; int gettimeofday(moment *now, void *zone);")
  local now = function()
    local moment = ffi.new("moment")
    ffi.C.gettimeofday(moment, nil)
    return tonumber(moment.s) * 1e6 + tonumber(moment.us)
  end
  local started = now()
  local answers, errors = 0, 0
  response = function(status)
    answers = answers + 1
    if status ~= 200 then errors = errors + 1 end
    if answers == #urls then  -- wrk itself would sleep until the end of its time.
      print(string.format("RESULT %d %d 0 %d", #urls, now() - started, errors))
      io.flush()
      os.exit(0)
    end
  end
end
done = function(summary, latency, requests)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  print(string.format("RESULT %d %d %f %d", summary.requests, summary.duration,
    latency:percentile(95) / 1000, errors))
end
"""


@dataclass(frozen=True)
class Load:
    """The outcome of one run of `wrk`."""

    per_second: float
    p95_ms: float
    errors: int


class Server:
    """A contender, in a separate process."""

    def __init__(self, contender: str, slide: Path) -> None:
        self.contender = contender
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        python = PEERS / "tileserver/bin/python" if contender == "tiatoolbox" else Path(sys.executable)
        command = [str(python), str(HERE / "peers/serve_tiles.py"), contender, str(slide), str(self.port)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.pattern = ""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        announced = next((line for line in lines if line.startswith("TILE ")), None)
        if announced is None:
            raise RuntimeError(f"{self.contender} did not start")
        self.pattern = announced.removeprefix("TILE ").strip()
        for _ in range(400):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.contender} does not listen")

    def urls(self, positions: Sequence[tuple[int, int]]) -> list[str]:
        return [self.pattern.format(column=column, row=row) for column, row in positions]

    @property
    def memory_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def load(
        self, positions: Sequence[tuple[int, int]], seconds: float, folder: Path, *, once: bool = False
    ) -> Load:
        """Request tiles with `wrk` for some seconds, or at most until each was requested `once`."""
        (folder / "urls.txt").write_text("\n".join(self.urls(positions)))
        (folder / "urls.lua").write_text(LUA)
        command = [
            "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
            "-s", str(folder / "urls.lua"), f"http://127.0.0.1:{self.port}",
        ]  # fmt: skip
        environment = (
            os.environ | {"WRK_URLS": str(folder / "urls.txt")} | ({"WRK_ONCE": "1"} if once else {})
        )
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        requests, duration_us, p95_ms, errors = line.split()[1:]
        return Load(int(requests) / (int(duration_us) / 1e6), float(p95_ms), int(errors))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def write_slides(folder: Path) -> tuple[Path, Path]:
    """Write a JPEG pyramid with shared tables, and the same pixels with deflate."""
    import tifffile

    from lobule.phantoms.slides import SlidePhantom, write_slide

    painted, stored, deflate = (folder / name for name in ("painted.tif", "stored.tif", "deflate.tif"))
    side = SIDE // REPEATS
    write_slide(SlidePhantom(width=side, height=side, mpp=0.5, seed=3), painted)
    common = {
        "tile": (TILE, TILE),
        "metadata": None,
        "resolution": (20000, 20000),
        "resolutionunit": "CENTIMETER",
    }
    with (
        tifffile.TiffFile(painted) as tif,
        tifffile.TiffWriter(stored) as jpeg_writer,
        tifffile.TiffWriter(deflate) as deflate_writer,
    ):
        data = painted.read_bytes()
        for index, page in enumerate(tif.pages):
            level: dict[str, Any] = {**common, "subfiletype": 1 if index else 0}
            pairs = zip(page.dataoffsets, page.databytecounts, strict=True)
            streams = [split_tables(data[offset : offset + length]) for offset, length in pairs]
            assert len({tables for tables, _ in streams}) == 1
            columns = page.shape[1] // TILE
            rows = [streams[first : first + columns] * REPEATS for first in range(0, len(streams), columns)]
            repeated = [rest for row in rows * REPEATS for _, rest in row]
            shape = (page.shape[0] * REPEATS, page.shape[1] * REPEATS, 3)
            jpeg_writer.write(
                iter(repeated), shape=shape, dtype=np.uint8, compression="jpeg", photometric="ycbcr",
                subsampling=(2, 2), jpegtables=streams[0][0], **level,
            )  # fmt: skip
            pixels = np.tile(page.asarray(), (REPEATS, REPEATS, 1))
            deflate_writer.write(
                pixels, compression="zlib", compressionargs={"level": 1}, photometric="rgb", **level
            )
    return stored, deflate


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Divide a JPEG stream into its tables and the rest, as files with shared tables store them."""
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        elif stream[at + 1] != 0xE0:
            rest += stream[at:end]
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


@contextlib.contextmanager
def started(contenders: Sequence[str], slide: Path) -> Iterator[dict[str, Server]]:
    """Start the contenders that are installed."""
    servers: dict[str, Server] = {}
    try:
        for name in contenders:
            if name == "tiatoolbox" and not (PEERS / "tileserver/bin/python").exists():
                print("TIAToolbox is not measured: run `python benchmarks/server.py --prepare` once")
                continue
            servers[name] = Server(name, slide)
        for name, server in list(servers.items()):  # They start at the same time.
            try:
                server.wait_until_ready()
            except RuntimeError as error:
                if name != "tiatoolbox":
                    raise
                print(f"TIAToolbox is not measured: {error}")
                servers.pop(name).stop()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def positions_of_slide() -> list[tuple[int, int]]:
    """Every full level-0 tile, in a random but fixed order."""
    positions = [(column, row) for column in range(SIDE // TILE) for row in range(SIDE // TILE)]
    random.Random(0).shuffle(positions)
    return positions


def measure_native(
    slide: Path, contenders: Sequence[str], seconds: float, rounds: int, folder: Path
) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {}
    with started(contenders, slide) as servers:
        for server in servers.values():  # Their caches are full in most of the rounds of the full mode.
            server.load(positions_of_slide(), 10, folder, once=True)
        for _ in range(rounds):
            for name, server in servers.items():
                loads.setdefault(name, []).append(server.load(positions_of_slide(), seconds, folder))
    return loads


def measure_decoded(
    slide: Path, seconds: float, warm_seconds: float, rounds: int, folder: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the rates of tiles that are requested for the first time, and of tiles requested again."""
    first: dict[str, list[float]] = {}
    again: dict[str, list[float]] = {}
    positions = positions_of_slide()
    for _ in range(rounds):
        with started(DECODED, slide) as servers:  # New processes, whose caches are empty.
            for name, server in servers.items():
                few = positions[:FEW_TILES]
                server.load(few, warm_seconds, folder)
                load = server.load(positions[FEW_TILES:], 10, folder, once=True)
                first.setdefault(name, []).append(load.per_second)
                again.setdefault(name, []).append(server.load(few, seconds, folder).per_second)
    return first, again


def measure_memory(slide: Path, seconds: float, folder: Path) -> tuple[float, float]:
    """Return the memory of Lobule's server after a tenth of the time and at the end, in MB."""
    with started(["lobule"], slide) as servers:
        server = servers["lobule"]
        server.load(positions_of_slide(), seconds / 10, folder)
        early = server.memory_mb
        server.load(positions_of_slide(), seconds * 9 / 10, folder)
        return early, server.memory_mb


def prepare() -> None:
    uv = (
        shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        or "uv"
    )
    environment = PEERS / "tileserver"
    subprocess.run([uv, "venv", "--quiet", "--clear", "-p", sys.executable, environment], check=True)
    packages = ["tiatoolbox", "--torch-backend=cpu"]
    subprocess.run([uv, "pip", "install", "-p", str(environment / "bin/python"), *packages], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round, under 45 s")
    parser.add_argument("--prepare", action="store_true", help="install TIAToolbox under .peers/")
    parser.add_argument("--memory-seconds", type=float, help="seconds of load for the memory; by default 600")
    options = parser.parse_args()
    if options.prepare:
        prepare()
        return
    if shutil.which("wrk") is None:
        raise SystemExit("This benchmark needs wrk: apt-get install wrk")
    seconds, rounds = (1.0, 1) if options.quick else (8.0, 5)
    # The first requests open the file and start threads and processes.
    warm_seconds = 1.0 if options.quick else 2.0
    memory_seconds = options.memory_seconds or (1.0 if options.quick else 600.0)
    if options.quick:
        print("TIAToolbox is not measured: its server takes too long to start for --quick")
    with tempfile.TemporaryDirectory(prefix="lobule-server-") as name:
        folder = Path(name)
        stored, deflate = write_slides(folder)
        contenders = [name for name in NATIVE if name != "tiatoolbox" or not options.quick]
        loads = measure_native(stored, contenders, seconds, rounds, folder)
        first, again = measure_decoded(deflate, 1.0, warm_seconds, rounds, folder)
        early, late = measure_memory(stored, memory_seconds, folder)
    per_second = {name: statistics.median(load.per_second for load in runs) for name, runs in loads.items()}
    decoded = {name: statistics.median(runs) for name, runs in first.items()}
    repeated = {name: statistics.median(runs) for name, runs in again.items()}
    for name, value in per_second.items():
        p95 = statistics.median(load.p95_ms for load in loads[name])
        print(f"stored tiles   {name:28} {value:9.0f} per second, 95 % within {p95:6.1f} ms")
    for name, value in decoded.items():
        print(f"decoded tiles  {name:28} {value:9.0f} per second, {repeated[name]:9.0f} when requested again")
    times = f"{memory_seconds / 10:.0f} s and {memory_seconds:.0f} s"
    print(f"memory after {times}: {early:.0f} MB and {late:.0f} MB")
    report("server", ratios(per_second, decoded, repeated, loads["lobule"], late / early))


def ratios(
    per_second: dict[str, float],
    decoded: dict[str, float],
    repeated: dict[str, float],
    loads: Sequence[Load],
    memory_growth: float,
) -> dict[str, float]:
    def best(rates: dict[str, float]) -> float:
        return max(rates["large_image"], rates["large_image, no ICC"])

    lobule = per_second["lobule"]
    values = {
        "native_over_large_image_best": lobule / best(per_second),
        "native_over_large_image": lobule / per_second["large_image"],
        "native_over_large_image_in_asgi": lobule / per_second["large_image in ASGI, no ICC"],
        "of_bare_asgi": lobule / per_second["bare ASGI"],
        "decoded_over_large_image": decoded["lobule"] / best(decoded),
        "decoded_over_large_image_same_jpeg": decoded["lobule"] / decoded["large_image, same JPEG"],
        "decoded_again_over_large_image": repeated["lobule"] / best(repeated),
        "p95_ms": statistics.median(load.p95_ms for load in loads),
        "errors": float(sum(load.errors for load in loads)),
        "memory_growth": memory_growth,
    }
    if "tiatoolbox" in per_second:
        values["native_over_tiatoolbox"] = lobule / per_second["tiatoolbox"]
    return values


if __name__ == "__main__":
    main()
