"""`python tests/campaign/versions.py`: a small run with the oldest and the newest packages that pyproject.toml allows.

Makes an environment for each Python from 3.10 on that is found as pythonX.Y (or by uv, where that is installed), once
with the lower bounds pinned and once with what pip chooses, runs the small recipe of the campaign in it, and prints a
line for each.

    python tests/campaign/versions.py --python 3.10 --ends oldest newest --keep /tmp/environments
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NAMES = ("mlx", "mlx-lm", "transformers", "datasets", "huggingface-hub", "numpy")


def main() -> int:
    """One line for each environment; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=PYTHONS)
    parser.add_argument("--ends", nargs="*", choices=["oldest", "newest"], default=["oldest", "newest"])
    parser.add_argument("--keep", type=Path, help="where the environments are made, and stay")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="upft-versions-") as temporary:
        for python in options.python:
            for end in options.ends:
                said = tried(python, end, options.keep or Path(temporary))
                failed += said.startswith("failed")
                print(f"Python {python}, {end}: {said}", flush=True)
    return 1 if failed else 0


def tried(python: str, end: str, folder: Path) -> str:
    """What came out in one environment, in a line."""
    place = folder / f"{python}-{end}"
    if not (place / "bin" / "python").exists() and (trouble := made(python, place)):
        return trouble
    own = place / "bin" / "python"
    pins = place / "pins.txt"
    pins.write_text("\n".join(lower_bounds()) + "\n" if end == "oldest" else "")
    install: list[str | Path] = [own, "-m", "pip", "install", "-q", "-c", pins, ROOT]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed to install: {' '.join(done.stderr.split())[-400:]}"
    shutil.rmtree(place / "case", ignore_errors=True)
    (place / "case").mkdir()
    recipe = re.search(r'RECIPE = """\\\n(.*?)"""', (ROOT / "tests/campaign/world.py").read_text(), re.S)
    assert recipe is not None
    (place / "case" / "r.yaml").write_text(recipe[1])
    for words in (["run", "r.yaml", "--plain"], ["show", "r"], ["push", "r.yaml", "--dry-run"]):
        done = subprocess.run(
            [own, "-m", "upft_mlx", *words], cwd=place / "case", capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"failed: upft {' '.join(words)}: {' '.join((done.stdout + done.stderr).split())[-400:]}"
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {NAMES!r}), sep=', ')"
    return "works: " + subprocess.run([own, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def made(python: str, place: Path) -> str:
    """Make the environment; why it cannot be made, where it cannot."""
    found = shutil.which(f"python{python}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        if shutil.which("uv") is None:
            return "skipped: there is no such Python, nor uv"
        done = subprocess.run(["uv", "venv", "--seed", "--python", python, place], capture_output=True, check=False)
        return "skipped: uv has no such Python" if done.returncode else ""
    subprocess.run([found, "-m", "venv", place], check=True)
    return ""


def lower_bounds() -> list[str]:
    """The dependencies of pyproject.toml, each pinned to the oldest version that it allows."""
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert block is not None
    found = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', block[1])
    return sorted({f"{name}=={version}" for name, version in found})


if __name__ == "__main__":
    sys.exit(main())
