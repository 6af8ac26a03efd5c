"""A scan contacts nobody: every process of it runs where only loopback addresses are allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lobule.scanning.contract import OPENVINO
from lobule.scanning.openvino_library import is_installed
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import pixels_of, write_slide

WATCH = """
    # Python runs this file before everything else, in the command and in every process that it starts.
    import atexit, os, sys

    LOOPBACK = ("127.0.0.1", "::1", "localhost", "", None)
    LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")

    def note(line):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(line + "\\n")

    def refuse(event, arguments):
        if event in LOOKUPS:
            host = arguments[0]
        elif event in SENDS and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if (host.decode() if isinstance(host, bytes) else host) not in LOOPBACK:
            note(f"refused {event} {host}")
            raise OSError(f"refused: {host}")

    def list_modules():
        if sys.modules.get("openvino_telemetry") is not None:
            note("imported openvino_telemetry")

    sys.addaudithook(refuse)
    atexit.register(list_modules)
"""

TELEMETRY = """
    import time
    from openvino_telemetry import Telemetry

    Telemetry(app_name="test", app_version="1", tid="G-TEST", backend="ga4", enable_opt_in_dialog=False)
    Telemetry().send_event("test", "test", "test", force_send=True)
    time.sleep(2)
"""
NNCF = "import time; from lobule.scanning.openvino_library import nncf; nncf(); time.sleep(1)"
SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))"


def watched(tmp_path: Path, *arguments: str, may_fail: bool = False) -> list[str]:
    """Run Python, without pytest and CI, and return what was refused, and any telemetry that was imported."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    (tmp_path / "home").mkdir(exist_ok=True)
    hidden = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(tmp_path / "home"), "LOBULE_CACHE": str(tmp_path / "cache")}
    paths = [str(tmp_path / "site"), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "WATCHED": str(tmp_path / "watched.txt")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=900
    )
    assert may_fail or done.returncode == 0, done.stderr
    lines = tmp_path / "watched.txt"
    return lines.read_text().splitlines() if lines.exists() else []


needs_openvino = pytest.mark.skipif(not is_installed(), reason="the extra 'openvino' is not installed")


@pytest.mark.parametrize("runtime", ["torch", pytest.param(OPENVINO, marks=needs_openvino)])
def test_a_scan_contacts_nobody(runtime: str, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tif", pixels_of(420, 330))
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    options = ["--precision", "float32", "--no-tissue", "--device", "cpu", "--max-ram", "48MiB"]
    command = ["-m", "lobule", "scan", str(bundle), str(slide), "--out", str(tmp_path / "r"), *options]
    assert watched(tmp_path, *command, "--runtime", runtime) == []
    assert f'"runtime": "{runtime}"' in (tmp_path / "r" / "scan.json").read_text()
    assert not (tmp_path / "home" / "intel").exists()


@pytest.mark.campaign
@pytest.mark.skipif(not is_installed("nncf"), reason="the extra 'quantize' is not installed")
def test_nncf_contacts_nobody(tmp_path: Path) -> None:
    assert watched(tmp_path, "-c", NNCF) == []
    assert not (tmp_path / "home" / "intel").exists()


@needs_openvino
def test_the_watch_sees_telemetry(tmp_path: Path) -> None:
    """Where Lobule does not block it, the package looks up its server from another process."""
    lines = watched(tmp_path, "-c", textwrap.dedent(TELEMETRY))
    assert "imported openvino_telemetry" in lines
    assert any(line.startswith("refused") for line in lines) or (tmp_path / "home" / "intel").exists()


@pytest.mark.parametrize(
    "starts", ["{}", "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"]
)
def test_the_watch_refuses_other_hosts_in_every_process(starts: str, tmp_path: Path) -> None:
    lines = watched(tmp_path, "-c", starts.format(SEND), may_fail=True)
    assert lines == ["refused socket.sendto 192.0.2.1"]
