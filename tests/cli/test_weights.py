"""`weights`: hashes agree with other tools, and no code in a file is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from lobule.bundles import plain_weights
from lobule.cli.weights.catalog import CATALOG, Weights, hashes
from lobule.cli.weights.pickles import read_imports
from lobule.errors import ConfigError
from tests.cli.conftest import Lobule


def test_hashes_are_those_of_sha256sum_and_git(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    # The output of `git hash-object` for this file, as in the documentation of git.
    assert hashes(path)[1] == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert hashes(path)[0] == hashlib.sha256(b"hello\n").hexdigest()


def test_published_file_is_recognised_by_its_hash() -> None:
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


def test_pickle_that_runs_code_is_refused_and_its_import_named(lobule: Lobule, workspace: Path) -> None:
    torch.save({"weight": Evil()}, workspace / "evil.pt")
    (workspace / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        done = lobule("weights", "inspect", name)
        assert done.status == 1
        assert "posix.mkdir" in done.err
        assert "Do not load it" in done.err
    assert not (workspace / "evil-was-run").exists()
    assert "posix.mkdir" in read_imports(workspace / "evil.pt").names


MKDIR = b"\x8c\x05posix\x94\x8c\x06system\x94"
DISGUISED = {
    # The memo contains posix and system. Harmless words are pushed later and dropped.
    "memo": b"\x80\x04" + MKDIR + b"00\x8c\x0bcollections0\x8c\x04dict0h\x00h\x01\x93\x8c\x02ls\x85R.",
    "inst": b"\x80\x02(X\x02\0\0\0lsiposix\nsystem\n.",
    "dup": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x93\x8c\x02ls\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", DISGUISED)
def test_disguised_import_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(DISGUISED[name])
    imports = read_imports(path)
    assert imports.names == {"posix.system"} and imports.certain


def test_import_after_many_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    size = 70 << 20
    padding = b"B" + size.to_bytes(4, "little") + bytes(size) + b"0"
    path.write_bytes(b"\x80\x04" + padding + b"cposix\nsystem\n\x8c\x02ls\x85R.")
    assert read_imports(path).names == {"posix.system"}


def test_import_in_the_first_of_two_entries_of_one_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns about the second entry
        archive.writestr("archive/data.pkl", DISGUISED["inst"])
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "posix.system" in read_imports(path).names


def test_pickle_before_an_archive_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    path = tmp_path / "evil.pt"
    path.write_bytes(DISGUISED["inst"] + (tmp_path / "good.zip").read_bytes())
    assert zipfile.is_zipfile(path)
    assert "posix.system" in read_imports(path).names


UNCERTAIN = {
    "a name that is computed": b"\x80\x04\x8c\x05posix\x8c\x06system\x85\x93.",
    "the extension registry": b"\x80\x04\x82\x01.",
    "cut short": b"\x80\x04\x8c\x05pos",
    "an empty memo": b"\x80\x04h\x07h\x08\x93.",
    "an empty stack": b"\x80\x04\x93.",
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_uncertain_imports_are_reported(name: str, tmp_path: Path, lobule: Lobule) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(UNCERTAIN[name])
    assert not read_imports(path).certain
    done = lobule("weights", "inspect", str(path))
    assert done.status == 1 and "cannot be determined" in done.err


def test_an_empty_checkpoint_is_a_typed_error(tmp_path: Path, lobule: Lobule) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    done = lobule("weights", "inspect", str(tmp_path / "empty.pt"))
    assert done.status == 1 and "empty.pt: cannot be loaded as weights only" in done.err
    with pytest.raises(ConfigError, match=r"empty\.pt: the weights cannot be read"):
        plain_weights(tmp_path / "empty.pt")


def test_old_checkpoints_of_several_pickles_are_read(lobule: Lobule, workspace: Path) -> None:
    torch.save({"a": torch.zeros(4)}, workspace / "old.pt", _use_new_zipfile_serialization=False)
    data = json.loads(lobule("weights", "inspect", "old.pt", "--json").out)
    assert [tensor["shape"] for tensor in data["tensors"]] == [[4]]


def test_blob_id_agrees_with_git(workspace: Path) -> None:
    done = subprocess.run(
        ["git", "hash-object", str(workspace / "checkpoint.pt")], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        assert hashes(workspace / "checkpoint.pt")[1] == done.stdout.strip()
