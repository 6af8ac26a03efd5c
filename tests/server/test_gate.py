"""What the server refuses: other host names, other sites, wrong tokens, and requests for anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobule.server.app import STATIC, ServerOptions
from lobule.server.gate import LOOPBACK, host_name
from tests.server.support import PATIENT, Scene, build_scene, case_ids, client_of

WRITING = {"x-lobule": "1", "origin": "http://localhost", "content-type": "application/json"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build_scene(tmp_path_factory.mktemp("scene"))


def hostile_requests(case: str, other: str, secret: Path) -> list[tuple[str, str]]:
    """Method and URL of 200 requests that must be refused."""
    tricks = [
        "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "....//....//etc/passwd",
        "..\\..\\etc\\passwd", "/etc/passwd", "//etc/passwd", str(secret), f"..{secret}", "%00", "a%00.jpg", "index.html%00",
        "assets/../../../pyproject.toml", "assets/%2e%2e/__init__.py", "__init__.py", "app.py", ".sources%00", "static/index.html",
        "file:///etc/passwd", "~root/.bashrc", "C:/Windows/win.ini", "%c0%ae%c0%ae/etc/passwd", "..;/..;/etc/passwd",
        "CON", "results/scan.json", "scan.json", "cases/one/result.json", "x" * 3000,
    ]  # fmt: skip
    urls = [f"/{trick}" for trick in tricks] + [f"/api/{trick}" for trick in tricks]
    urls += [f"/tiles/{trick}" for trick in tricks] + [f"/api/cases/{trick}" for trick in tricks]
    urls += [f"/tiles/{case}/{address}" for address in (
        "0/0/999.jpg", "0/999/0.jpg", "99/0/0.jpg", "0/-1/0.jpg", "-1/0/0.jpg", "0/0/0.png", "0/0/0", "0/0/1e3.jpg", "0/0/0x1.jpg",
        "0/9999999/9999999.jpg", "0/99999999999/0.jpg", "0/0/٣.jpg", "0/0/0.jpg/..", "0/0/%30.jpg%00",
    )]  # fmt: skip
    urls += [f"/tiles/{other}/0/0/0.jpg", f"/tiles/{'0' * 24}/0/0/0.jpg", f"/tiles/{case.upper()}/0/0/0.jpg"]
    good = {"name": "tumour", "layer": 1, "level": 0, "column": 0, "row": 0}
    for change in (
        {"name": "../tumour"}, {"name": "..%2ftumour"}, {"name": ""}, {"name": "."}, {"name": ".."}, {"name": "x" * 600},
        {"layer": -1}, {"layer": 2}, {"layer": 10**9}, {"level": -1}, {"level": 99}, {"column": -1}, {"column": 10**12},
        {"column": 400}, {"row": 400}, {"row": "a"}, {"row": "1;2"}, {"column": "NaN"}, {"name": str(secret)},
    ):  # fmt: skip
        urls.append(
            f"/api/cases/{case}/map?"
            + "&".join(f"{key}={value}" for key, value in {**good, **change}.items())
        )
    area: dict[str, object] = {"x": 0, "y": 0, "width": 10, "height": 10, "side": 64}
    for area_change in (
        {"x": "nan"}, {"x": "inf"}, {"x": 1e30}, {"width": 0}, {"width": -5}, {"width": 1e9}, {"height": "1e400"},
        {"side": 0}, {"side": 10**6}, {"side": -1}, {"width": 9e6, "height": 9e6, "side": 2048}, {"y": ""},
    ):  # fmt: skip
        urls.append(
            f"/api/cases/{case}/region?"
            + "&".join(f"{key}={value}" for key, value in {**area, **area_change}.items())
        )
    box = "x=0&y=0&width=9&height=9"
    urls += [f"/api/cases/{case}/outlines?image=slide&{box}&limit={limit}" for limit in (0, 1001, -1, "x")]
    urls += [
        f"/api/cases/{case}/outlines?image=slide&x=0&y=0&width={width}&height=9"
        for width in (0, "inf", "nan", -1, 1e9)
    ]
    urls += [
        f"/api/cases/{case}/{name}"
        for name in ("%2e%2e%2f..", "%2e%2e", "plan.json", "result.json", "maps/tumour")
    ]
    urls += [f"/api/cases/{case}/view?name={name}" for name in ("L-CC", "slide", "../slide", "x" * 600)]
    urls += [
        f"/api/cases/{case}/findings?{text}"
        for text in ("limit=-1", "limit=501", "offset=-1", "limit=a", "label=" + "x" * 300)
    ]
    urls += [f"/api/cases/{case}/findings/{number}" for number in (-1, 40, 10**30, "x")]
    urls += [
        f"/api/cases/{case}/finding-tile?image=slide&level={level}&column=0&row=0"
        for level in (31, -1, 30, "b")
    ]
    urls += [f"/api/cases/{other}/thumbnail", f"/api/cases/{'f' * 24}", "/docs", "/redoc", "/openapi.json"]
    requests = [("GET", url) for url in urls]
    requests += [
        (method, f"/api/cases/{case}") for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT")
    ]
    requests += [(method, f"/tiles/{case}/0/0/0.jpg") for method in ("POST", "PUT", "DELETE", "OPTIONS")]
    return requests


def test_200_hostile_requests_are_refused(scene: Scene, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("MARKER-OF-THE-SECRET")
    with client_of(scene.results) as client:
        ids = case_ids(client)
        requests = hostile_requests(ids["one"], ids["two"], secret)
        assert len(requests) >= 200
        for method, url in requests:
            answer = client.request(method, url, headers=WRITING if method != "GET" else {})
            assert 300 <= answer.status_code < 500, (method, url, answer.status_code)
            for text in (b"MARKER-OF-THE-SECRET", b"root:", b"Traceback", b"[project]"):
                assert text not in answer.content, (method, url)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "localhost@evil",
        "[::1",
        "localhost:99999x",
    ],
)
def test_other_host_names_are_refused(scene: Scene, host: str) -> None:
    with client_of(scene.results) as client:
        assert client.get("/api/session", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    ("host", "name"), [("localhost:8080", "localhost"), ("[::1]:80", "::1"), ("127.0.0.1", "127.0.0.1")]
)
def test_host_names_without_port(host: str, name: str) -> None:
    assert host_name(host.encode()) == name


def test_the_token_is_exchanged_for_a_cookie(scene: Scene) -> None:
    options = ServerOptions(hosts=LOOPBACK, token="right-token")
    with client_of(scene.results, options=options) as client:
        for url in ("/", "/api/cases", "/?token=wrong", "/api/cases?token=", f"/tiles/{'0' * 24}/0/0/0.jpg"):
            assert client.get(url).status_code == 401, url
        first = client.get("/?token=right-token", follow_redirects=False)
        assert first.status_code == 303 and first.headers["location"] == "."
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert client.get("/api/cases").status_code == 200
        client.cookies.set("lobule-token", "wrong", domain="localhost.local")
        client.cookies.clear()
        assert client.get("/api/cases", headers={"cookie": "lobule-token=wrong"}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-lobule": "1"},
        {"x-lobule": "1", "content-type": "application/json"},
        {**WRITING, "origin": "http://evil.example"},
        {**WRITING, "origin": "null"},
        {**WRITING, "origin": "http://localhost:9"},
        {"origin": "http://localhost", "content-type": "application/json"},
        {**WRITING, "content-type": "text/plain"},
        {**WRITING, "sec-fetch-site": "cross-site"},
        {**WRITING, "sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_cannot_write_a_review(scene: Scene, headers: dict[str, str]) -> None:
    body = json.dumps({"person": "mallory", "action": "note", "text": "forged"})
    with client_of(scene.results) as client:
        answer = client.post(f"/api/cases/{case_ids(client)['one']}/reviews", content=body, headers=headers)
    assert answer.status_code in (403, 415), answer.text
    assert not list((scene.root / "results").glob("reviews/*/mallory*"))


def test_every_answer_says_how_it_may_be_used(scene: Scene) -> None:
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        for url in ("/api/session", f"/tiles/{case}/0/0/0.jpg", f"/tiles/{case}/9/0/0.jpg", "/nothing"):
            headers = client.get(url).headers
            assert headers.get_list("x-content-type-options") == ["nosniff"], url
            assert headers.get_list("cross-origin-resource-policy") == ["same-origin"], url
        policy = client.get("/api/session").headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy


def test_large_bodies_are_refused(scene: Scene) -> None:
    with client_of(scene.results) as client:
        url = f"/api/cases/{case_ids(client)['one']}/reviews"
        assert client.post(url, content=b"x" * 300_000, headers=WRITING).status_code == 413
        assert client.post(url, content=iter([b"x" * 300_000]), headers=WRITING).status_code == 413


def test_answers_name_no_patient_and_no_path(scene: Scene) -> None:
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        for url in (
            "/api/cases",
            f"/api/cases/{case}",
            "/api/session",
            f"/api/cases/{case}/findings",
            "/api/openapi.json",
        ):
            text = client.get(url).text
            assert PATIENT not in text
            assert str(scene.root) not in text
            assert "slide one" not in text
    with client_of(scene.results, options=ServerOptions(show_patients=True)) as client:
        assert client.get("/api/cases").json()[0]["patient"] == PATIENT


def test_a_vanished_results_folder_is_no_crash(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        (scene.root / "results").rename(tmp_path / "gone")
        for url in (
            "/api/session",
            "/api/cases",
            f"/api/cases/{case}",
            f"/api/cases/{case}/findings",
            f"/api/cases/{case}/thumbnail",
            "/api/reviews",
        ):
            assert client.get(url).status_code < 500, url
        (tmp_path / "gone").rename(scene.root / "results")
        assert client.get(f"/api/cases/{case}").json()["status"] == "complete"


def test_ids_are_opaque_and_stable(scene: Scene) -> None:
    with client_of(scene.results) as client:
        first = case_ids(client)
    with client_of(scene.results) as client:
        assert case_ids(client) == first
    assert all("one" not in case and len(case) == 24 for case in first.values())


def test_the_server_imports_neither_torch_nor_methods() -> None:
    code = (
        "import sys, lobule.server.app, lobule.cli.view; "
        "wrong = [n for n in sys.modules if n.split('.')[0] in ('torch', 'torchvision', 'timm') "
        "or n.startswith(('lobule.methods', 'lobule.scanning', 'lobule.training'))]; "
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    not (STATIC / "index.html").is_file(), reason="the viewer's pages are not built: run `make viewer`"
)
def test_the_built_pages_are_served_and_small(scene: Scene) -> None:
    import gzip

    with client_of(scene.results) as client:
        page = client.get("/")
        assert page.status_code == 200 and "<title>Lobule</title>" in page.text
        sizes = {}
        for file in sorted((STATIC / "assets").iterdir()):
            answer = client.get(f"/assets/{file.name}")
            assert answer.content == file.read_bytes()
            sizes[file.name] = len(gzip.compress(file.read_bytes()))
    beside = sum(size for name, size in sizes.items() if "openseadragon" not in name)
    assert beside <= 200_000, sizes
    licences = (STATIC / "THIRD_PARTY.txt").read_text()
    assert "openseadragon" in licences and "preact" in licences
