"""The examples for batch systems and containers. Those that cannot be run here are checked for structure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lobule.cli.scan import command as scan_command
from lobule.results import open_results
from lobule.results.runs import read_runs
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import pixels_of, write_slide
from tests.slurm_node import missing_programs, slurm_node

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "cluster"
yaml: Any = pytest.importorskip("yaml")

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside the tests")


def text_of(name: str) -> str:
    return (EXAMPLES / name).read_text(encoding="utf-8")


SCANS = ["slurm/scan.sbatch", "snakemake/Snakefile", "kubernetes/scan-job.yaml", "nextflow/main.nf"]


@pytest.mark.parametrize("name", SCANS)
def test_examples_use_options_of_the_command(name: str) -> None:
    (command,) = re.findall(
        r"lobule scan [^\n]*(?:\n\s+\"[^\n]*)?", re.sub(r"(?m)^(#|//).*$", "", text_of(name))
    )
    available = {option for parameter in scan_command.params for option in parameter.opts}
    used = set(re.findall(r"--[a-z-]+", command))
    assert {"--out", "--shard"} <= used <= available
    # Other batch systems repeat a shard, or stop all of them, if one of its cases failed.
    assert ("--allow-failed" in used) == (name != "slurm/scan.sbatch")


@pytest.mark.parametrize("name", ["slurm/scan.sbatch"])
def test_shell_scripts_are_valid(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(EXAMPLES / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kubernetes_job_gives_every_index_another_shard() -> None:
    job = yaml.safe_load(text_of("kubernetes/scan-job.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and 1 <= spec["parallelism"] <= spec["completions"]
    assert spec["maxFailedIndexes"] <= spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "an index is retried by backoffLimitPerIndex"
    (container,) = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    shards = []
    for index in range(spec["completions"]):
        command = (
            container["args"][0].removeprefix("exec lobule scan").replace('"$((', "$((").replace('"', "")
        )
        script = f"printf '%s\\n' {command}"
        environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        if index in (0, spec["completions"] - 1):
            done = subprocess.run(
                ["sh", "-c", script], capture_output=True, text=True, env=environment, check=True
            )
            shards.append(done.stdout.split()[-1])
    assert shards == [f"1/{spec['completions']}", f"{spec['completions']}/{spec['completions']}"]


def test_nextflow_module_and_its_description_agree() -> None:
    meta, module = yaml.safe_load(text_of("nextflow/meta.yml")), text_of("nextflow/main.nf")
    assert meta["name"] == re.findall(r"process (\w+)", module)[0].lower()
    assert {"name", "description", "keywords", "tools", "input", "output", "authors"} <= set(meta)
    inputs = re.findall(r"(?:val|path)\((\w+)\)", module.partition("output:")[0])
    assert [next(iter(entry)) for entry in meta["input"]] == inputs
    emitted = re.findall(r"emit: (\w+)", module)
    assert [name for entry in meta["output"] for name in entry] == ["meta", *emitted]
    for entry in meta["input"] + meta["output"]:
        (fields,) = entry.values()
        assert {"type", "description"} <= set(fields)
    for opening, closing in ("{}", "()", "[]"):
        assert module.count(opening) == module.count(closing)


def test_dockerfile_copies_what_the_build_needs() -> None:
    text = text_of("container/Dockerfile").replace("\\\n", "")
    instructions = [line.split(maxsplit=1)[0] for line in text.splitlines() if line and line[0] not in "# "]
    assert set(instructions) <= {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert instructions[:2] == ["ARG", "FROM"] and "USER" in instructions
    copied = {name for line in re.findall(r"^COPY (.+) /opt", text, re.MULTILINE) for name in line.split()}
    apptainer = set(re.findall(r"^    \.\./\.\./\.\./(\S+) ", text_of("container/lobule.def"), re.MULTILINE))
    assert copied == apptainer
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", "src", "web", "hatch_build.py", project["project"]["readme"], "LICENSE"}
    assert needed <= copied
    for extra in re.findall(r"/opt/lobule\[([a-z,]+)\]", text)[0].split(","):
        assert extra in project["project"]["optional-dependencies"]


def test_apptainer_definition_has_the_usual_sections() -> None:
    text = text_of("container/lobule.def")
    assert re.search(r"^Bootstrap: docker\nFrom: \S+$", text, re.MULTILINE)
    sections = re.findall(r"^%(\w+)", text, re.MULTILINE)
    assert sections == ["files", "post", "environment", "runscript", "labels"]
    script = text.partition("%post\n")[2].partition("%environment")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


# -- run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, a cohort of four slides, and the command `lobule` on the PATH."""
    write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    rows = ["case,patient,slide"]
    for index in range(4):
        write_slide(tmp_path / f"{index}.tif", pixels_of(600 + 100 * index, 500, index))
        rows.append(f"{index},p{index},{index}.tif")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "lobule"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lobule "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def assert_all_shards_ran(results: Path, count: int) -> None:
    assert open_results(results).counts()["complete"] == 4
    runs = read_runs(results)
    assert sorted(run.data["shard"] for run in runs) == [[index, count] for index in range(1, count + 1)]
    assert sum(run.scanned for run in runs) == 4


def test_the_slurm_script_scans_its_shard(workspace: Path) -> None:
    script = str(EXAMPLES / "slurm" / "scan.sbatch")
    for task in (1, 2):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        subprocess.run(
            ["bash", script, "bundle", "cohort.csv", "results"], cwd=workspace, env=environment, check=True,
            capture_output=True,
        )  # fmt: skip
    assert_all_shards_ran(workspace / "results", 2)
    done = subprocess.run(
        ["bash", script, "nothing", "cohort.csv", "results"], cwd=workspace, env=environment, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode != 0, "the script must pass on the status of the scan"


def test_the_slurm_script_scans_some_of_the_shards(tmp_path: Path) -> None:
    program = tmp_path / "lobule"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    task = {"ID": "17", "COUNT": "2", "MIN": "3", "MAX": "17"}
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in task.items()}
    environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "slurm" / "scan.sbatch"), "bundle", "cohort.csv", "results"]
    options: Any = {"env": environment, "capture_output": True, "text": True, "check": False}
    assert "--shard 17/40" in subprocess.run([*command, "40"], **options).stdout
    refused = subprocess.run(command, **options)
    assert refused.returncode == 2 and "number of all shards" in refused.stderr


@pytest.mark.campaign
def test_snakemake(workspace: Path) -> None:
    snakemake = os.environ.get("LOBULE_SNAKEMAKE") or shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("Snakemake is not installed; LOBULE_SNAKEMAKE may name its program")
    command = [
        snakemake, "--snakefile", str(EXAMPLES / "snakemake" / "Snakefile"), "--cores", "2", "--config",
        "bundle=bundle", "cohort=cohort.csv", "results=results", "shards=3",
    ]  # fmt: skip
    subprocess.run(command, cwd=workspace, check=True)
    assert_all_shards_ran(workspace / "results", 3)
    again = subprocess.run(command, cwd=workspace, check=True, capture_output=True, text=True)
    assert "Nothing to be done" in again.stderr + again.stdout


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A running Slurm: that of the site if there is one, or else one of one node on this machine."""
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed: {', '.join(missing)} missing")
    if subprocess.run(["sinfo", "--noheader"], capture_output=True, check=False).returncode == 0:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("Slurm does not answer, and only root can start one")
    with slurm_node(tmp_path_factory.mktemp("slurm")) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.campaign
def test_slurm_array(workspace: Path, slurm: None) -> None:
    command = [
        "sbatch", "--wait", "--array=1-2", "--cpus-per-task=1", "--mem=0", "--time=10",
        str(EXAMPLES / "slurm" / "scan.sbatch"), "bundle", "cohort.csv", "results",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    logs = "\n".join(path.read_text() for path in workspace.glob("lobule-*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert_all_shards_ran(workspace / "results", 2)
