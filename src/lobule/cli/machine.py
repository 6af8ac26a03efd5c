"""Resources of this machine within the limits of its container: cores, memory, disk, accelerators, caches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")


def cores() -> dict[str, Any]:
    """Return the cores of the machine, those that this process may use, and the limit of the container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup_cores()
    usable = min(float(allowed or 1), quota) if quota else float(allowed or 1)
    return {"machine": os.cpu_count(), "allowed": allowed, "container": quota, "usable": usable}


def memory() -> dict[str, Any]:
    """Return the memory of the machine, the limit of the container and the available memory in bytes."""
    now = psutil.virtual_memory()
    limit = cgroup_memory()
    limit = limit if limit is not None and limit < now.total else None
    free = now.available if limit is None else min(now.available, limit - psutil.Process().memory_info().rss)
    return {"machine": now.total, "container": limit, "available": free}


def disk(folder: str | Path = ".") -> dict[str, Any]:
    usage = shutil.disk_usage(folder)
    return {"folder": str(Path(folder).absolute()), "free": usage.free, "total": usage.total}


def cgroup_cores(root: Path = CGROUP_ROOT, groups: str | None = None) -> float | None:
    """Return the number of cores that control groups allow, or None without a limit."""
    limits = []
    for folder in _group_folders(root, groups):
        version_2 = _words(folder / "cpu.max")
        if len(version_2) == 2 and version_2[0] != "max":
            limits.append(int(version_2[0]) / int(version_2[1]))
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            limits.append(int(quota[0]) / int(period[0]))
    return min(limits, default=None)


def cgroup_memory(root: Path = CGROUP_ROOT, groups: str | None = None) -> int | None:
    """Return the bytes of memory that control groups allow, or None without a limit."""
    limits = []
    for folder in _group_folders(root, groups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            # Older kernels write a huge number for no limit.
            if words and words[0] != "max" and int(words[0]) < 1 << 60:
                limits.append(int(words[0]))
    return min(limits, default=None)


def _group_folders(root: Path, groups: str | None) -> list[Path]:
    """Return the folders of all control groups that contain this process, for versions 1 and 2."""
    if groups is None:
        try:
            groups = Path("/proc/self/cgroup").read_text()
        except OSError:
            groups = ""
    folders = [root, root / "cpu", root / "memory"]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = [name for name in path.split("/") if name and name != ".."]
        folders += [(root / controllers).joinpath(*names[: depth + 1]) for depth in range(len(names))]
    return list(dict.fromkeys(folders))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


_ASK_TORCH = """
import json, torch
found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
found["cpu"] = torch.backends.cpu.get_cpu_capability()
found["devices"] = [
    {"name": p.name, "memory": p.total_memory, "bf16": p.major >= 8}
    for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
]
if torch.backends.mps.is_available():
    found["devices"].append({"name": "Apple GPU (mps)", "memory": None, "bf16": False})
print(json.dumps(found))
"""


def accelerators(timeout: float = 120) -> dict[str, Any]:
    """Ask torch for its devices in a subprocess, because a broken driver can hang or crash the process."""
    try:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"torch did not answer within {timeout:.0f} s"}
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return {"error": last}
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def weight_caches() -> list[dict[str, Any]]:
    """Return the folders in which torchvision and timm store pretrained weights, with their sizes."""
    home = Path.home() / ".cache"
    torch_home = Path(os.environ.get("TORCH_HOME", home / "torch")) / "hub" / "checkpoints"
    hub_home = Path(os.environ.get("HF_HOME", home / "huggingface")) / "hub"
    hub = Path(os.environ.get("HF_HUB_CACHE", hub_home))
    return [
        {"of": of, "folder": str(folder), "bytes": sum(_sizes(folder))}
        for of, folder in (("torchvision", torch_home), ("timm", hub))
    ]


def _sizes(folder: Path) -> list[int]:
    return [item.stat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink()]
