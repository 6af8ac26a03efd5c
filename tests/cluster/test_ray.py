"""Scans on a local Ray: bytes, lost workers and drivers, and no traffic except on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lobule.api.runners import require_ray_options
from lobule.bundles import read_bundle
from lobule.cluster.session import ClusterOptions, local_cpus, require_answer, worker_resources
from lobule.cluster.sources import BundleSource
from lobule.cluster.worker import CaseWorker, ScanJob
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError
from lobule.methods.scannet import Config, save
from lobule.methods.scannet.predictor import DensePredictor
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING
from lobule.results import open_results
from lobule.results.folder import begin_results
from lobule.results.runs import read_runs
from lobule.scanning.contract import Batch, Predictor
from lobule.scanning.engine import options_to_dict
from lobule.scanning.scan import scan
from tests.cluster.driver import ONE_THREAD, Job, driver, outcome_of, wait_for
from tests.cluster.support import SlowPredictor, SlowSource
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, cohort_of, pixels_of, tree, write_slide

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra 'ray')")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    good = [write_slide(folder / f"s{i}.tif", pixels_of(500 + 40 * i, 400, i)) for i in range(8)]
    (folder / "bad.tif").write_bytes(b"not a slide")
    return cohort_of(*good, folder / "bad.tif")


@pytest.fixture(scope="module")
def undisturbed(slides: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "r"
    scan(SlowPredictor(0), BUNDLE, slides, out, EVERYWHERE, ONE_THREAD)
    return tree(out)


def results_in(out: Path) -> dict[str, bytes]:
    """The files of a results folder without locks, and without what a killed process was writing."""
    return {name: data for name, data in tree(out).items() if not Path(name).name.startswith(".")}


@needs_ray
@pytest.mark.campaign
def test_a_scan_on_ray_that_loses_a_worker_has_the_bytes_of_a_local_scan(
    slides: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, processes = tmp_path / "r", tmp_path / "processes"
    processes.mkdir()
    with driver(Job(slides, str(out), 0.01, str(processes))) as process:
        wait_for(lambda: list(out.glob("cases/*/result.json")), process)
        os.kill(int(next(processes.iterdir()).name), signal.SIGKILL)
        outcome = outcome_of(process)
    assert outcome["counts"] == {"complete": 8, "failed": 1} and list(outcome["failed"]) == ["bad"]
    assert results_in(out) == undisturbed
    assert len(list(processes.iterdir())) >= 2, "a worker was replaced"
    assert outcome["fields"] > 0 and outcome["sends_usage"] is False
    (run,) = read_runs(out)
    assert run.data["runner"] == "ray" and run.data["workers"] == 2
    assert run.scanned >= 7, "only cases that were finished when the worker was lost are skipped"
    assert run.data["engine"]["batch"] == SMALL.batch and run.data["inputs_sha256"]


def cluster_of(*cpus: int, gpus: int = 0) -> SimpleNamespace:
    nodes = [{"Alive": True, "Resources": {"CPU": count, "GPU": gpus}} for count in cpus]
    return SimpleNamespace(nodes=lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 512}}])


def test_resources_of_workers() -> None:
    def resources(ray: SimpleNamespace, options: ClusterOptions) -> tuple[int, int, int]:
        chosen = worker_resources(ray, options)
        return chosen.count, chosen.cpus, chosen.gpus

    assert resources(cluster_of(8, 8), ClusterOptions()) == (2, 8, 0)
    assert resources(cluster_of(8, 8, gpus=4), ClusterOptions()) == (8, 2, 1)
    assert resources(cluster_of(8, 4), ClusterOptions(workers=1)) == (1, 8, 0)
    assert resources(cluster_of(8), ClusterOptions(workers=4, worker_cpus=1)) == (4, 1, 0)
    with pytest.raises(ConfigError, match="no node has enough cores"):
        worker_resources(cluster_of(8, 8), ClusterOptions(workers=1, worker_cpus=9))
    with pytest.raises(ConfigError, match="no CPU cores"):
        worker_resources(cluster_of(0), ClusterOptions())


def test_a_local_ray_has_no_more_cores_for_one_worker_than_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lobule.scanning.device.available_cores", lambda: 4)
    assert local_cpus(ClusterOptions()) == 4
    assert local_cpus(ClusterOptions(workers=3, worker_cpus=2)) == 6
    assert local_cpus(ClusterOptions(workers=1, worker_cpus=64)) == 4, "no node has enough cores for it"


def test_an_address_without_a_cluster_is_refused_without_waiting() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # The port is reserved, and nothing listens on it.
        with pytest.raises(OSError, match="refused"):
            require_answer(f"127.0.0.1:{unused.getsockname()[1]}")
    for address in ("", "auto", "local", "ray://head:10001"):
        require_answer(address)


def test_options_of_another_runner_are_refused() -> None:
    require_ray_options("ray", {"workers": 2, "address": None}, None)
    require_ray_options("local", {"workers": None}, (1, 2))
    with pytest.raises(ConfigError, match="--worker-cpus has an effect only with --runner ray"):
        require_ray_options("local", {"worker_cpus": 2}, None)
    with pytest.raises(ConfigError, match="--shard cannot be used"):
        require_ray_options("ray", {}, (1, 2))


def test_workers_load_the_bundle_of_the_driver_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path / "bundle", Config(trunk="tiny", mpp=0.5), BACKBONES["tiny"](2), PLAIN_SCALING)
    opened = read_bundle(tmp_path / "bundle")
    summary = {"method": opened.method, "fingerprint": opened.fingerprint, "classes": list(opened.classes)}
    source = BundleSource(str(tmp_path / "bundle"), summary)
    predictor = source.load()
    assert isinstance(predictor, DensePredictor) and tuple(predictor.classes) == tuple(opened.classes)
    with pytest.raises(BundleError, match="another bundle than the driver"):
        replace(source, bundle=summary | {"fingerprint": "0" * 64}).load()


def test_a_worker_with_another_version_is_refused(tmp_path: Path) -> None:
    job = ScanJob(SlowSource(), str(tmp_path), EVERYWHERE, SMALL, Cohort(()), False, "changed", lobule="0.0")
    with pytest.raises(ConfigError, match="another version of Lobule"):
        CaseWorker(job).start()


class FailingSource(SlowSource):
    """Loads a model whose card is lost with the first batch of a case."""

    def load(self) -> Predictor:
        class Failing(SlowPredictor):
            def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
                if batch.pixels.any():  # The batch for choosing the form is black.
                    raise RuntimeError("CUDA error: unspecified launch failure")
                return super().forward(key, batch)

        return Failing(0)


def test_a_worker_whose_card_is_lost_ends_and_another_completes_the_case(
    slides: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver replaces workers that end. Here, both workers are objects in this process."""
    monkeypatch.setattr("lobule.scanning.pipeline.responds", lambda _: False)
    monkeypatch.setattr("os._exit", sys.exit)
    case = slides.cases[0]
    settings = {"bundle": BUNDLE, "options": options_to_dict(EVERYWHERE), "cases": [case.id]}
    begin_results(tmp_path, settings)

    def scan_with(source: SlowSource) -> str:
        job = ScanJob(source, str(tmp_path), EVERYWHERE, SMALL, Cohort((case,)), False, "changed")
        worker = CaseWorker(job)
        worker.start()
        try:
            return worker.scan(0, case).status
        finally:
            worker.stop()

    with pytest.raises(SystemExit):
        scan_with(FailingSource())
    assert scan_with(SlowSource()) == "complete"


@needs_ray
@pytest.mark.campaign
def test_slides_divided_among_workers_have_the_bytes_of_a_local_scan(
    slides: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with driver(Job(slides, str(tmp_path / "r"), divided_bytes=0)) as process:
        outcome = outcome_of(process)
    assert outcome["counts"] == {"complete": 8, "failed": 1}
    assert results_in(tmp_path / "r") == undisturbed


@needs_ray
@pytest.mark.campaign
def test_a_scan_continues_after_its_driver_was_killed(
    slides: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    with driver(Job(slides, str(out), 0.1)) as process:
        wait_for(lambda: list(out.glob("cases/*/result.json")), process)
        process.kill()
        process.communicate()
    finished = sorted(path.parent.name for path in out.glob("cases/*/result.json"))
    assert 0 < open_results(out).counts()["complete"] < 8
    with driver(Job(slides, str(out))) as process:
        outcome = outcome_of(process)
    assert results_in(out) == undisturbed
    assert set(finished) - {"bad"} <= set(outcome["skipped"]), "finished cases are not scanned again"


@needs_ray
@pytest.mark.campaign
def test_a_case_that_ends_its_worker_is_recorded_as_failed(slides: Cohort, tmp_path: Path) -> None:
    deadly = replace(slides.cases[0], id="deadly")
    cohort = Cohort((deadly, *slides.cases[1:3]))
    with driver(Job(cohort, str(tmp_path / "r"), attempts=2)) as process:
        outcome = outcome_of(process)
    assert outcome["counts"] == {"complete": 2, "failed": 1}
    assert "died 2 times" in outcome["failed"]["deadly"]


# The namespace has its own loopback interface, and a second interface whose other end ignores all packets.
NAMESPACE = """
set -e
log=$1; shift
mount -t sysfs none /sys
ip link set lo up
sysctl -qw net.ipv6.conf.default.disable_ipv6=1 || true
ip link add outside type veth peer name end
ip link set end up
ip addr add 192.0.2.1/24 dev outside
ip link set outside up
ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev outside
ip route add default via 192.0.2.254
python3 -c "$WATCH" > $log & watcher=$!
while [ ! -s $log ]; do sleep 0.1; done
"$@"
sleep 1
kill $watcher
"""
WATCH = """
import socket
watch = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
watch.bind(("outside", 0))
print("ready", flush=True)
while True:
    data = watch.recv(2000)
    print(socket.inet_ntoa(data[30:34]), ascii(data[34:]), flush=True)
"""
SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('198.51.100.7', 9))"


def in_namespace(log: Path) -> tuple[str, ...]:
    """The start of a command that runs in a new network namespace and lists the packets that leave it."""
    return ("env", f"WATCH={WATCH}", "unshare", "--net", "--mount", "bash", "-c", NAMESPACE, "bash", str(log))


@needs_ray
@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="needs iproute2")
def test_nothing_is_sent_to_other_machines(slides: Cohort, tmp_path: Path) -> None:
    log = tmp_path / "packets"
    command = [*in_namespace(log), sys.executable, "-c", SEND]
    control = subprocess.run(command, capture_output=True, text=True, check=False)
    if control.returncode:
        pytest.skip(f"no network namespace can be created here: {control.stderr.strip()[-200:]}")
    assert "198.51.100.7" in log.read_text(), "a packet must be noticed"
    log.unlink()
    with driver(Job(slides, str(tmp_path / "r")), *in_namespace(log)) as process:
        output, _ = process.communicate(timeout=600)
    assert '"complete": 8' in output
    assert log.read_text().splitlines()[1:] == []
