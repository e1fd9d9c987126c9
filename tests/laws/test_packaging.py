"""What would be uploaded to PyPI: sdist and wheel are built, checked, installed, and run from there."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from upft_mlx import __version__

pytest.importorskip("hatchling", reason="hatchling is not installed; pip install -e '.[dev]' installs it")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it, as an installer would."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "sdist", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    build(source, "wheel", folder)
    return folder


def build(source: Path, kind: str, folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def test_the_wheel_has_the_package_its_data_and_the_recipes_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "upft_mlx"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:  # not in an unpacked sdist
        expected = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
        assert {name for name in names if not name.startswith("upft_mlx/recipe/shipped/")} == expected
    recipes = {f"upft_mlx/recipe/shipped/{path.name}" for path in (ROOT / "recipes").iterdir()}
    assert {name for name in names if name.startswith("upft_mlx/recipe/shipped/")} == recipes
    assert {"upft_mlx/py.typed", "upft_mlx/demo/train.jsonl"} <= names


def test_the_metadata_is_what_pypi_takes(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(name), validate=True)
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert (metadata.name, str(metadata.version)) == ("upft-mlx", __version__)
    assert metadata.description_content_type == "text/markdown"
    assert str(metadata.license_expression) == "MIT"
    assert metadata.project_urls
    assert metadata.classifiers
    pythons = {line.rpartition(" :: ")[2] for line in metadata.classifiers if re.search(r":: 3\.\d+$", line)}
    assert {"3.10", "3.14"} <= pythons
    assert all(str(metadata.requires_python).startswith(">=3.10") for _ in pythons)


def test_what_is_installed_from_the_wheel_runs_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import upft_mlx; from upft_mlx.__main__ import main\n"
        "print(upft_mlx.__file__); sys.argv[0] = 'upft'; main()\n"
    )
    for arguments, part in (
        (["--version"], __version__),
        (["recipes"], "quickstart"),
        (["plan", "quickstart", "--no-calibration"], "every stage fits in memory"),
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(target))
        assert part in done.stdout
