"""The OpenAPI document describes the API: requests drawn from it, valid and invalid ones, cause no server error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.server.support import Scene, build_scene, case_ids, client_of

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: run `make setup`")

WRITING = {"x-lobule": "1", "origin": "http://localhost", "content-type": "application/json"}
ENDLESS = "/api/events"
SENSIBLE = {
    "name": "tumour",
    "image": "slide",
    "layer": "1",
    "level": "0",
    "column": "0",
    "row": "0",
    "label": "tumour",
}
EXAMPLES = 25


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build_scene(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.filterwarnings("ignore")
def test_no_request_of_the_document_is_a_server_error(scene: Scene, mode: str) -> None:
    from schemathesis import GenerationMode

    with client_of(scene.results) as client:
        case_id = case_ids(client)["one"]
        schema = schemathesis.openapi.from_dict(client.get("/api/openapi.json").json())
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 15
        statuses: dict[str, set[int]] = {}
        for operation in operations:
            if operation.path == ENDLESS:
                continue
            strategy = operation.as_strategy(generation_mode=GenerationMode(mode))
            check(client, operation, strategy, case_id, statuses.setdefault(operation.label, set()))
    assert not {name: codes for name, codes in statuses.items() if max(codes, default=0) >= 500}
    if mode == "positive":  # The requests went beyond the checks of their parameters.
        answered = {name for name, codes in statuses.items() if codes & {200, 304, 404, 409, 422}}
        assert sum(200 in codes for codes in statuses.values()) >= 10, statuses
        assert answered == set(statuses)


def check(client: Any, operation: Any, strategy: Any, case_id: str, statuses: set[int]) -> None:
    """Send the examples of one operation; half of them with names that the server has."""

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=strategy, use_stored_names=st.booleans())
    def send(case: Any, use_stored_names: bool) -> None:
        if use_stored_names and "case_id" in (case.path_parameters or {}):
            case.path_parameters["case_id"] = case_id
        arguments = case.as_transport_kwargs(base_url="http://localhost")
        if use_stored_names and arguments.get("params"):
            arguments["params"] = {
                name: SENSIBLE.get(name, value) for name, value in dict(arguments["params"]).items()
            }
        headers = {name: value for name, value in dict(arguments.pop("headers", {}) or {}).items() if value}
        cookies = arguments.pop("cookies", None)
        assert cookies is None or isinstance(cookies, dict)
        answer = client.request(**arguments, headers={**headers, **WRITING})
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    with suppress(Unsatisfiable):  # A request without parameters has no invalid form.
        send()


def test_texts_and_numbers_that_json_cannot_store_are_refused(scene: Scene) -> None:
    with client_of(scene.results) as client:
        url = f"/api/cases/{case_ids(client)['one']}/reviews"
        for body in (
            b'{"person": "a", "action": "note", "text": "\\ud800"}',
            b'{"person": "a", "action": "draw", "polygon": [[NaN, 1], [2, 3], [4, 5]]}',
            b'{"person": "a", "action": "draw", "polygon": [[1e300, 1], [2, 3], [4, 5]]}',
            b'{"person": "a", "action": "draw", "polygon": [[Infinity, 1], [2, 3], [4, 5]]}',
            b'{"person": "a", "action": "accept", "finding": 1e400}',
            b"[" * 2000, b"\xff\xfe", b"",
        ):  # fmt: skip
            assert client.post(url, content=body, headers=WRITING).status_code in (400, 422), body
    assert not Path(scene.root / "results/reviews").exists()
