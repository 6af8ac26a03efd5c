"""Starts Orthanc with its DICOMweb plug-in on a free port of this machine, with an empty archive."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "reader", "secret"
START_S = 60.0


@dataclass
class Orthanc:
    """One server, which can be killed and started again with the same archive."""

    folder: Path
    with_password: bool = False
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> Orthanc:
        program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
        if program is None or not PLUGIN.exists():
            pytest.skip("Orthanc with its DICOMweb plug-in is not installed")
        self.port = self.port or _free_port()
        configuration: dict[str, Any] = {
            "Name": "test", "StorageDirectory": str(self.folder / "archive"), "HttpPort": self.port,
            "IndexDirectory": str(self.folder / "archive"), "DicomServerEnabled": False,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": self.with_password,
            "RegisteredUsers": {USER: PASSWORD}, "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen([program, str(path)], stdout=log, stderr=log)
        self._wait()
        return self

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urlopen(self.url, timeout=5).close()
                return
            except OSError as error:
                if getattr(error, "code", None) is not None:  # It answers, although with an error.
                    return
                time.sleep(0.1)
        raise AssertionError((self.folder / "orthanc.log").read_text())

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
