"""Methods of other packages are found by their entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.errors import ConfigError
from lobule.methods import METHODS, find_method, installed_methods

MODULE = """
from dataclasses import dataclass
from lobule.methods import Method
from lobule.settings import Settings

@dataclass(frozen=True)
class Config(Settings):
    window: int = 32

METHOD = Method("other_method", "Of another package.", Config, load=lambda bundle, *, trust=False: None)
NOT_A_METHOD = {"name": "other_method"}
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, name: str = "other_method") -> None:
    """Write the metadata that pip writes for a package with one entry point."""
    metadata = folder / "other_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[lobule.methods]\n{name} = {value}\n")
    (folder / "other_package_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)


def test_a_method_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "other_package_of_the_test:METHOD")
    assert "other_method" in installed_methods() and "other_method" not in METHODS
    method = find_method("other-method")
    assert method.name == "other_method"
    assert method.configured({"window": "64"}).window == 64


def test_a_package_cannot_replace_a_built_in_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "other_package_of_the_test:METHOD", name="colour")
    assert find_method("colour").config.__module__.startswith("lobule.methods.")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("other_package_of_the_test:NOT_A_METHOD", "is not a Method"),
        ("other_package_of_the_test:ABSENT", "cannot be loaded"),
        ("no_such_package:METHOD", "cannot be loaded"),
    ],
)
def test_a_broken_entry_point_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    install(tmp_path, monkeypatch, value)
    with pytest.raises(ConfigError, match=message) as error:
        find_method("other_method")
    assert value in str(error.value)


def test_an_unknown_name_suggests_methods_of_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "other_package_of_the_test:METHOD")
    with pytest.raises(ConfigError, match="Did you mean 'other_method'"):
        find_method("other_metod")
