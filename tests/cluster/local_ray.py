"""A stand-in for Ray in this process: calls run at once, and workers can be lost on request."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Call:
    result: Any


@dataclass(eq=False)
class Actor:
    ray: LocalRay
    number: int
    instance: Any
    is_lost: bool = False

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: self.ray.call(self, name, arguments))


@dataclass
class LocalRay:
    """Arguments and results are pickled, as Ray does. Each worker has a cache folder of its own."""

    home: Path
    lost_at: dict[int, int] = field(default_factory=dict)
    """Number of a worker: number of its call at which it is lost."""
    actors: list[Actor] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2}}]

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def remote(self, kind: type) -> SimpleNamespace:
        def create(job: bytes) -> Actor:
            self.actors.append(Actor(self, len(self.actors), kind(pickle.loads(job))))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=create))

    def call(self, actor: Actor, name: str, arguments: tuple[Any, ...]) -> Call:
        calls = self.calls.setdefault(actor.number, [])
        calls.append(name)
        if actor.is_lost or self.lost_at.get(actor.number) == len(calls):
            self.kill(actor)
            return Call(RayError("the worker died"))
        with self._machine(actor.number):
            try:
                result = getattr(actor.instance, name)(*pickle.loads(pickle.dumps(arguments)))
                return Call(pickle.loads(pickle.dumps(result)))
            except Exception as error:
                return Call(RayTaskError(error))

    @contextmanager
    def _machine(self, number: int) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOBULE_CACHE", str(self.home / f"machine {number}"))
            folder = Path.cwd()
            try:
                yield
            finally:
                os.chdir(folder)

    def wait(self, calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
        return calls[:1], calls[1:]

    def get(self, call: Call) -> Any:
        if isinstance(call.result, Exception):
            raise call.result
        return call.result

    def kill(self, actor: Actor) -> None:
        if not actor.is_lost:
            actor.is_lost = True
            actor.instance.stop()


@pytest.fixture
def local_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    """Let the code of this process use the stand-in instead of Ray."""
    ray = LocalRay(tmp_path / "machines")

    @contextmanager
    def session(options: Any) -> Iterator[LocalRay]:
        yield ray

    for module in ("lobule.cluster.scan", "lobule.cluster.case_map"):
        monkeypatch.setattr(f"{module}.ray_session", session)
    return ray
