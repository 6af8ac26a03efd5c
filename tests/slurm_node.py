"""Starts a Slurm of one node on this machine with a configuration of its own; it needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
START_S = 60.0


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=SEARCH_PATH)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if program(name) is None]


def _configuration(folder: Path, controller_port: int, node_port: int) -> str:
    host = socket.gethostname()
    return f"""
ClusterName=lobule
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count() or 1} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports() -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return [int(first.getsockname()[1]), int(second.getsockname()[1])]


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run Slurm and yield the environment variables of its commands."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    configuration.write_text(_configuration(folder, *_free_ports()))
    environment = {"SLURM_CONF": str(configuration)}
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
         f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration)],
    ]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name, *options in commands:
            path = program(name)
            assert path is not None
            with (folder / f"{name}.out").open("wb") as log:
                daemons.append(
                    subprocess.Popen([path, *options], stdout=log, stderr=log, env=os.environ | environment)
                )
            time.sleep(1)
        _wait_until_idle(folder, environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _wait_until_idle(folder: Path, environment: dict[str, str]) -> None:
    end, state = time.monotonic() + START_S, ""
    sinfo = program("sinfo")
    assert sinfo is not None
    while time.monotonic() < end:
        answer = subprocess.run(
            [sinfo, "--noheader", "--format=%t"], env=os.environ | environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        state = answer.stdout.strip() or answer.stderr.strip()
        if state == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.[ol]*")))
    raise AssertionError(f"the node of Slurm did not become idle: {state}\n{logs}")
