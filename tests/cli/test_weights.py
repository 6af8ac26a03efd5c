"""`weights`: hashes as their tools print them, and nothing in a file is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
from pathlib import Path

import torch

from lobule.cli.weights.catalog import CATALOG, Weights, hashes
from lobule.cli.weights.inspect import pickle_imports
from tests.cli.conftest import Lobule


def test_hashes_are_those_of_sha256sum_and_git(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    # `git hash-object` of this file, a figure that stands in git's own documentation
    assert hashes(path)[1] == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert hashes(path)[0] == hashlib.sha256(b"hello\n").hexdigest()


def test_a_genuine_file_is_told_by_its_hash() -> None:
    published = next(weights for weights in CATALOG if weights.git_blob)
    assert published.git_blob is not None
    assert published.genuine("0" * 64, published.git_blob + "0" * 32)
    assert not published.genuine("0" * 64, "0" * 40)
    assert not Weights("x", (), "x", "x", "x").genuine("", "")
    assert len({weights.sha256 or weights.git_blob for weights in CATALOG}) == len(CATALOG)


def test_safetensors_and_checkpoints_are_listed(lobule: Lobule) -> None:
    for name, kind in (("weights.safetensors", "safetensors"), ("checkpoint.pt", "torch")):
        data = json.loads(lobule("weights", "inspect", name, "--json").out)
        assert data["format"] == kind
        assert [tensor["shape"] for tensor in data["tensors"]] == [[2, 3]]
        assert data["tensors"][0]["name"].endswith("fc.weight")
    assert "torch._utils._rebuild_tensor_v2" in data["imports"]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("evil-was-run",)


def test_a_pickle_that_would_run_code_is_refused_and_named(lobule: Lobule, workspace: Path) -> None:
    torch.save({"weight": Evil()}, workspace / "evil.pt")
    (workspace / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        done = lobule("weights", "inspect", name)
        assert done.status == 1
        assert "posix.mkdir" in done.err
        assert "Do not load it" in done.err
    assert not (workspace / "evil-was-run").exists()
    assert "posix.mkdir" in set(pickle_imports(workspace / "evil.pt"))


def test_old_checkpoints_of_several_pickles_are_read(lobule: Lobule, workspace: Path) -> None:
    torch.save({"a": torch.zeros(4)}, workspace / "old.pt", _use_new_zipfile_serialization=False)
    data = json.loads(lobule("weights", "inspect", "old.pt", "--json").out)
    assert [tensor["shape"] for tensor in data["tensors"]] == [[4]]


def test_git_agrees_where_it_is_here(workspace: Path) -> None:
    done = subprocess.run(
        ["git", "hash-object", str(workspace / "checkpoint.pt")], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        assert hashes(workspace / "checkpoint.pt")[1] == done.stdout.strip()
