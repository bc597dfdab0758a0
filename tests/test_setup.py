"""Set-up, run for real (bash, venv, pip) in a small project of its own, with local packages in place of the lock's."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile

import pytest

from verifiers.registry import BUILTIN

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LOCK = "# a comment\none==1.0\n"

# An in-tree build back end, so that the editable install of the small project needs no setuptools.
BACKEND = """
import pathlib, zipfile
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "rlvr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("rlvr.pth", str(pathlib.Path.cwd()))
        wheel.writestr("rlvr-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: rlvr\\nVersion: 0.1.0\\n")
        tag = "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("rlvr-0.1.0.dist-info/WHEEL", tag)
        wheel.writestr("rlvr-0.1.0.dist-info/RECORD", "")
    return name
"""


def write_wheel(folder: pathlib.Path, name: str, version: str) -> None:
    """A wheel with one module that states its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_project(root: pathlib.Path) -> pathlib.Path:
    """A checkout with the real set-up script, and locks that local wheels can satisfy."""
    for folder in ("launch", "launch/requirements", "wheels"):
        (root / folder).mkdir(parents=True)
    shutil.copy(REPOSITORY / "launch/setup.sh", root / "launch/setup.sh")
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "rlvr"\nversion = "0.1.0"\n'
    )
    # torch as PyPI offers it: the CUDA build of the same version, which must not be taken
    for name, version in (("buildtool", "1.0"), ("one", "1.0"), ("one", "2.0"), ("torch", "2.13.0")):
        write_wheel(root / "wheels", name, version)
    (root / "launch/requirements/build.txt").write_text("buildtool==1.0\n")
    (root / "launch/requirements/cpu.txt").write_text(LOCK)
    (root / "launch/requirements/gpu.txt").write_text("one==2.0\n")
    return root


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_project(tmp_path / "checkout")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A project whose set-up was killed, and then run to its end. Each test leaves it as it found it."""
    root = make_project(tmp_path_factory.mktemp("ready") / "checkout")
    kill_in_the_middle(root)
    assert ".venv: interrupted" in set_up(root, "--dry-run").stdout
    again = set_up(root)
    assert again.returncode == 0, again.stderr
    assert "making it anew" in again.stdout
    return root


def kill_in_the_middle(project: pathlib.Path) -> None:
    with subprocess.Popen(
        ["bash", "launch/setup.sh"], cwd=project, env=environment(project), start_new_session=True
    ) as process:
        while not (project / ".venv/bin/python").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)


def environment(project: pathlib.Path, **extra: str) -> dict[str, str]:
    """No network, and none of this machine's pip settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RLVR_", "VIRTUAL_ENV", "PYTHON"))}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels")}
    return kept | pip | {"RLVR_DEVICE": "cpu", "RLVR_PYTHON": sys.executable} | extra


def set_up(project: pathlib.Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "launch/setup.sh", *arguments]
    return subprocess.run(
        command,
        cwd=project,
        env=environment(project, **extra),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def installed(project: pathlib.Path) -> str:
    command = [".venv/bin/python", "-c", "import one; print(one.version)"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()


def test_an_interrupted_set_up_is_repeated_from_the_start(ready: pathlib.Path) -> None:
    assert installed(ready) == "1.0"
    assert ".venv: up to date" in set_up(ready, "--dry-run").stdout


def test_a_second_set_up_does_nothing(ready: pathlib.Path) -> None:
    log = ready / ".venv/setup.log"
    log.write_text("untouched")
    second = set_up(ready)
    assert (second.returncode, second.stdout, log.read_text()) == (0, "", "untouched")


def test_set_up_follows_a_changed_lock(ready: pathlib.Path) -> None:
    lock = ready / "launch/requirements/cpu.txt"
    for version in ("2.0", "1.0"):
        lock.write_text(LOCK.replace("1.0", version))
        assert ".venv: out of date" in set_up(ready, "--dry-run").stdout
        assert set_up(ready).returncode == 0
        assert installed(ready) == version


def test_another_device_makes_the_environment_anew(ready: pathlib.Path) -> None:
    assert ".venv: for another device" in set_up(ready, "--dry-run", RLVR_DEVICE="gpu").stdout


def test_a_failed_update_leaves_the_old_environment_and_is_tried_again(ready: pathlib.Path) -> None:
    lock = ready / "launch/requirements/cpu.txt"
    lock.write_text("one==9.9\n")
    failed = set_up(ready)
    assert failed.returncode == 1
    assert "No matching distribution found for one==9.9" in failed.stderr
    assert installed(ready) == "1.0"
    assert ".venv: out of date" in set_up(ready, "--dry-run").stdout
    lock.write_text(LOCK)
    assert set_up(ready).returncode == 0


def test_without_a_cpu_torch_the_message_names_the_one_option(ready: pathlib.Path) -> None:
    lock = ready / "launch/requirements/cpu.txt"
    lock.write_text("torch==2.13.0+cpu\none==2.0\n")
    failed = set_up(ready)
    assert failed.returncode == 1
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart" in failed.stderr
    assert installed(ready) == "1.0"
    assert subprocess.run([".venv/bin/python", "-c", "import torch"], cwd=ready, check=False).returncode != 0
    lock.write_text(LOCK)
    assert set_up(ready).returncode == 0


def fake_command(folder: pathlib.Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("listing", "device"),
    [("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "gpu"), ("echo 'No devices found.'", "cpu"), ("exit 9", "cpu")],
)
def test_the_device_is_gpu_only_where_nvidia_smi_lists_one(project: pathlib.Path, listing: str, device: str) -> None:
    fake_command(project / "bin", "nvidia-smi", listing)
    result = set_up(project, "--dry-run", RLVR_DEVICE="", PATH=f"{project / 'bin'}:{os.environ['PATH']}")
    assert f"device: {device}\nlock: launch/requirements/{device}.txt\n" in result.stdout


def test_an_unknown_device_is_refused(project: pathlib.Path) -> None:
    result = set_up(project, "--dry-run", RLVR_DEVICE="tpu")
    assert (result.returncode, result.stdout) == (1, "")
    assert "must be cpu or gpu; got 'tpu'" in result.stderr


def test_an_old_python_is_refused_with_what_was_found(project: pathlib.Path) -> None:
    fake_command(project / "bin", "python3", "echo 3.10")
    result = set_up(project, "--dry-run", RLVR_PYTHON=str(project / "bin/python3"))
    assert result.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert "(3.10)" in result.stderr


def test_a_python_without_venv_names_the_package_to_install(project: pathlib.Path) -> None:
    # Debian's python3 without python3-venv: the version can be asked for, `import ensurepip` fails
    fake_command(project / "bin", "python3", 'case "$2" in *version_info*) echo 3.11;; *) exit 1;; esac')
    result = set_up(project, "--dry-run", RLVR_PYTHON=str(project / "bin/python3"))
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr


def test_every_dependency_is_locked_inside_its_range(repository: pathlib.Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for device in ("cpu", "gpu"):
        lines = (repository / f"launch/requirements/{device}.txt").read_text().splitlines()
        pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
        locked = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
        assert len(locked) == len(pins), "a package is pinned twice"
        assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins)
        wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
        wanted += project["optional-dependencies"]["plots"]
        for requirement in map(Requirement, wanted + project["optional-dependencies"][device]):
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{device}: {requirement} against {version}"


def test_the_cpu_lock_holds_no_cuda_build(repository: pathlib.Path) -> None:
    pins = (repository / "launch/requirements/cpu.txt").read_text().lower()
    assert re.findall(r"^(?:nvidia|cuda|triton|flashinfer|torchvision|torchaudio|torchcodec|vllm=).*", pins, re.M) == []
    assert re.search(r"^torch==[\d.]+\+cpu$", pins, re.M)


def test_the_wheel_ships_the_three_packages_only(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(repository / name, source / name)
    for name in ("rlvr", "verifiers", "sft_dpo", "tests", "benchmarks", "launch"):
        if (repository / name).is_dir():
            shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "README.md").write_text("readme\n")
    for name in ("rlvr", "verifiers", "sft_dpo", "tests", "benchmarks"):
        (source / name).mkdir(exist_ok=True)
        (source / name / "__init__.py").touch()
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('out')"]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = (source / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names} == {"rlvr", "verifiers", "sft_dpo", "rlvr-0.1.0.dist-info"}
    assert "rlvr-0.1.0.dist-info/licenses/LICENSE" in names
    done = subprocess.run(  # the acceptance gate works where only the wheel is
        [sys.executable, "-m", "rlvr", "verifiers", "test", "exact", "trl"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^exact .* pass$", done.stdout, re.M), done.stdout
    tables = {name for name in names if name.startswith("verifiers/tables/") and name.endswith(".jsonl")}
    assert tables == {f"verifiers/tables/{name}.jsonl" for name in BUILTIN}


@pytest.mark.parametrize("script", ["launch/single_node.sh", "launch/multi_node.sh"])
def test_a_launch_script_runs_torchrun_with_the_recipe(
    repository: pathlib.Path, tmp_path: pathlib.Path, script: str
) -> None:
    fake_command(tmp_path / "bin", "torchrun", 'printf "%s\\n" "$@"')
    given = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HEAD": "node7",
        "NODES": "2",
        "GPUS": "8",
    }
    command = ["bash", str(repository / script), "recipe.toml", "run.seed=3"]
    words = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.split()
    assert words[-5:] == ["-m", "rlvr", "train", "recipe.toml", "run.seed=3"]
    assert words[words.index("--nproc-per-node") + 1] == "8"
    if "--nnodes" in words:
        assert words[words.index("--nnodes") + 1] == "2"
        assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500"
