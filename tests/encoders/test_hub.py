"""Downloads from a local server that answers like the hub: caches, denied access, half downloads."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lobule.encoders import ENCODERS, EncoderEntry
from lobule.encoders.checkpoint_files import locate
from lobule.encoders.load import load_file
from lobule.errors import ConfigError, MissingExtra
from lobule.nets.encoders import encoder
from lobule.nets.hub import client, offline_if_unreachable, why_unreachable
from lobule.nets.teachers import teacher
from tests.encoders.published import LAYOUTS, checkpoint, random_weights, small_entry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The files that the server offers, and the requests that it received."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path, such as `/OWNER/NAME/resolve/main/FILE`."""
    gated: bool = False
    cut: bool = False
    """Send only half of a file."""
    requests: list[str] = field(default_factory=list)
    user_agents: set[str] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.user_agents.add(self.headers.get("User-Agent", ""))
        content = self.hub.files.get(self.path)
        if self.hub.gated or content is None:
            self.send_response(403 if self.hub.gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if self.hub.gated else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.hub.cut else content)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    Handler.hub = Hub(address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield Handler.hub
    server.shutdown()
    thread.join()
    server.server_close()


def content_of(name: str) -> bytes:
    return save(
        {key: tensor.contiguous() for key, tensor in checkpoint(random_weights(LAYOUTS[name])).items()}
    )


def offer(hub: Hub, name: str, file: str | None = None) -> EncoderEntry:
    """A small encoder whose file is on the server."""
    entry = small_entry(name)
    published = replace(entry.published, file=file or "model.safetensors", revision=None)
    hub.files[f"/{published.repository}/resolve/main/{published.file}"] = content_of(name)
    return replace(entry, published=published)


def test_file_is_downloaded_once_into_the_cache_of_the_hub(hub: Hub) -> None:
    entry = offer(hub, "uni")
    path = locate(entry)
    assert path.read_bytes() == content_of("uni")
    loaded = load_file(entry, path)
    assert loaded.dim == LAYOUTS["uni"].out
    request_count = len(hub.requests)
    assert locate(entry) == path
    assert len(hub.requests) == request_count, "the second call needs no network"


def test_revision_of_the_table_is_requested(hub: Hub) -> None:
    entry = offer(hub, "phikon")
    revision = ENCODERS["phikon"].published.revision
    assert revision is not None
    pinned = replace(entry, published=replace(entry.published, revision=revision))
    hub.files[f"/owkin/phikon/resolve/{revision}/model.safetensors"] = content_of("phikon")
    locate(pinned)
    assert any(revision in request for request in hub.requests)


def test_the_other_usual_file_name_is_tried(hub: Hub) -> None:
    entry = offer(hub, "uni", "model.safetensors")
    other = replace(entry, published=replace(entry.published, file="pytorch_model.bin"))
    assert locate(other).name == "model.safetensors"


def test_denied_access_names_the_page_and_the_login(hub: Hub) -> None:
    entry = offer(hub, "uni")
    hub.gated = True
    with pytest.raises(ConfigError) as caught:
        locate(entry)
    message = str(caught.value)
    assert "access to the weights of 'uni' is denied" in message
    assert "https://huggingface.co/MahmoodLab/UNI" in message
    assert "hf auth login" in message


@pytest.mark.parametrize("name", ["phikon", "uni2-h"])
def test_without_a_network_the_message_names_file_and_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    entry = ENCODERS[name]
    with pytest.raises(ConfigError) as caught:
        locate(entry)
    message, published = str(caught.value), entry.published
    assert f"the weights of '{name}' cannot be downloaded" in message
    assert (
        f"https://huggingface.co/{published.repository}/resolve/{published.revision}/{published.file}"
        in message
    )
    assert f"hf download {published.repository} {published.file} --revision {published.revision}" in message
    assert f"--encoder {name} --weights {published.file}" in message


def test_file_of_the_hub_cache_is_used_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = locate(offer(hub, "uni"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    entry = small_entry("uni")
    cached = replace(entry, published=replace(entry.published, file="model.safetensors"))
    assert locate(cached) == path


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on this machine that refuses connections. Waiting before a second attempt fails a test."""

    def refuse_to_wait(seconds: float) -> None:
        raise AssertionError(f"another attempt in {seconds} s")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", refuse_to_wait)
    return address


def test_hub_that_cannot_be_reached_is_tried_once(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    connect = socket.create_connection

    def counted(address: Any, timeout: float) -> socket.socket:
        attempts.append(address)
        return connect(address, timeout)

    monkeypatch.setattr("lobule.nets.hub.socket.create_connection", counted)
    with pytest.raises(ConfigError) as caught:
        locate(ENCODERS["uni2-h"])
    port = int(closed.rpartition(":")[2])
    message = str(caught.value)
    assert "the weights of 'uni2-h' cannot be downloaded" in message
    assert f"127.0.0.1, port {port}, cannot be reached: Connection refused" in message
    assert "--encoder uni2-h --weights" in message
    assert attempts == [("127.0.0.1", port)]


@pytest.mark.parametrize("build", [encoder, partial(teacher, pretrained=True)])
def test_networks_of_timm_try_the_hub_once(closed: str, build: Callable[[str], Any]) -> None:
    port = closed.rpartition(":")[2]
    with pytest.raises(ConfigError, match=rf"'.*resnet10t' cannot be downloaded.*port {port}, cannot be"):
        build("timm:resnet10t")
    assert not client().constants.HF_HUB_OFFLINE


def test_cache_is_used_at_once_if_the_hub_cannot_be_reached(hub: Hub, request: pytest.FixtureRequest) -> None:
    path = locate(offer(hub, "uni"))
    request.getfixturevalue("closed")
    with offline_if_unreachable():
        assert Path(client().hf_hub_download("MahmoodLab/UNI", "model.safetensors")) == path


def test_a_proxy_decides_whether_the_hub_can_be_reached(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unreachable() is not None
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert why_unreachable() is None


def at_address(hub: Hub, name: str) -> EncoderEntry:
    entry = small_entry(name)
    hub.files[f"/{entry.published.file}"] = content_of(name)
    return replace(entry, published=replace(entry.published, url=f"{hub.address}/{entry.published.file}"))


def test_file_at_an_address_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    entry = at_address(hub, "kaiko-vits16")
    path = locate(entry)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / "vits16.pth"
    assert path.read_bytes() == content_of("kaiko-vits16")
    assert locate(entry) == path
    assert hub.requests == ["GET /vits16.pth"]


def test_half_a_download_is_refused_and_leaves_no_file(hub: Hub, tmp_path: Path) -> None:
    entry = at_address(hub, "kaiko-vits16")
    hub.cut = True
    size = len(content_of("kaiko-vits16"))
    with pytest.raises(
        ConfigError, match=f"cannot be downloaded.*ended after {size // 2:,} of {size:,} bytes"
    ):
        locate(entry)
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]
    hub.cut = False
    assert locate(entry).stat().st_size == size


def test_unreachable_address_names_file_cache_and_command(hub: Hub, tmp_path: Path) -> None:
    entry = at_address(hub, "kaiko-vits16")
    closed = replace(entry, published=replace(entry.published, url="http://127.0.0.1:9/vits16.pth"))
    with pytest.raises(ConfigError) as caught:
        locate(closed)
    message = str(caught.value)
    assert "http://127.0.0.1:9/vits16.pth: the weights of 'kaiko-vits16' cannot be downloaded" in message
    assert (
        f"Copy it to {tmp_path / 'torch' / 'hub' / 'checkpoints'} on this machine, or pass it with" in message
    )
    assert "--encoder kaiko-vits16 --weights vits16.pth" in message


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lobule.encoders.checkpoint_files.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"'efficientnet-lite0' needs the extra 'starter'"):
        locate(ENCODERS["efficientnet-lite0"])


def test_the_hub_learns_nothing_about_the_machine(hub: Hub) -> None:
    locate(offer(hub, "uni"))
    assert hub.user_agents
    assert not any(torch.__version__ in agent or "agent/" in agent for agent in hub.user_agents)


def test_telemetry_is_off_whatever_is_imported_first() -> None:
    code = (
        "import os; os.environ.pop('HF_HUB_DISABLE_TELEMETRY', None); "
        "{first}; from lobule.nets.hub import client; "
        "assert client().constants.HF_HUB_DISABLE_TELEMETRY; "
        "import lobule; assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'"
    )
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    for first in ("import huggingface_hub", "import lobule"):
        subprocess.run([sys.executable, "-c", code.format(first=first)], env=environment, check=True)
    assert client().constants.HF_HUB_DISABLE_TELEMETRY
