"""What does each form of fusing keep of adapters of three sizes, and what does it weigh?

    python perf/fuse_fidelity.py                                         # the embedded model, quantized to 4 bits
    python perf/fuse_fidelity.py --model FOLDER --problems FILE.jsonl    # any quantized model, your questions

Samples prefixes of 160 problems, trains 8 steps with the default adapter at each learning rate, and fuses each adapter
in every form. Prints a table with the retained effect, the greedy agreement, the weights' size and what `publish.fuse:
auto` takes. Results: docs/use/fusing.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

RATES = (1e-6, 1e-5, 1e-4)
PACKAGE = Path(__file__).resolve().parent.parent / "upft_mlx"


def recipe_of(arguments: argparse.Namespace, rate: float) -> Any:
    """The same for all rates but the rate."""
    from upft_mlx.recipe.schema import Recipe

    embedded = arguments.model is None
    return Recipe.model_validate(
        {
            "model": str(arguments.model or PACKAGE / "demo" / "model"),
            "quantize": {"bits": 4, "group_size": 32} if embedded else None,
            "problems": {
                "path": str(arguments.problems or PACKAGE / "demo" / "train.jsonl"),
                "limit": 160,
                "shuffle": True,
            },
            "prefix": {"length": 16},
            "generate": {"max_tokens": 64},
            "train": {"steps": arguments.steps, "learning_rate": rate, "valid_ratio": 0.1, "save": "last"},
        }
    )


def prepare(arguments: argparse.Namespace, work: Path) -> None:
    """Sample and build the rows, the same for all rates."""
    from upft_mlx.pipeline import run_stage

    if not (work / "rows" / "dataset" / "valid.jsonl").exists():
        for stage in ("generate", "build"):
            run_stage(recipe_of(arguments, RATES[0]), work / "rows", stage)


def rows(arguments: argparse.Namespace, work: Path, rate: float) -> list[str]:
    """Train at a rate and measure every form."""
    from upft_mlx.fusing.fuse import KEPT
    from upft_mlx.fusing.fuser import Fuser
    from upft_mlx.models.load import load
    from upft_mlx.rundir import RunDir
    from upft_mlx.training.train import train

    recipe, run = recipe_of(arguments, rate), RunDir(work / f"{rate:g}")
    if not (run.adapter / "adapters.safetensors").exists():
        shutil.copytree(work / "rows" / "dataset", run.root / "dataset", dirs_exist_ok=True)
        train(recipe, load(Path(recipe.model), quantize=recipe.quantize), run)
    loaded = load(Path(recipe.model), quantize=recipe.quantize)
    fuser = Fuser(recipe, loaded, run)
    base = fuser.base
    lines = [
        f"| {rate:g} | not fused: the base | 0.000 | {base.greedy_agreement:.3f} | {base.top1_agreement:.3f} | | |"
    ]
    taken = None
    for form in fuser.formats:
        found = fuser.measure(form)
        if found is None:
            continue
        taken = taken or (form.name if found.retained >= KEPT else None)
        mark = "auto" if taken == form.name else ""
        lines.append(
            f"| {rate:g} | {form.name} | {found.retained:.3f} | {found.greedy_agreement:.3f} "
            f"| {found.top1_agreement:.3f} | {found.bytes / 1e6:.2f} | {mark} |"
        )
    found = fuser.adapter()
    return [*lines, f"| {rate:g} | adapter | 1.000 | 1.000 | 1.000 | + {found.bytes / 1e6:.2f} | |"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a quantized model folder; default: the embedded model at 4 bits")
    parser.add_argument("--problems", type=Path, help="questions for it (.jsonl)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], help="pretend that the folder's floats are of this type"
    )
    parser.add_argument("--work", type=Path, help="keep rows and adapters here, and use those that are here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        prepare(arguments, folder)
        print("| learning rate | form | retained effect | greedy agreement | top-1 agreement | MB | |")
        print("|---|---|---|---|---|---|---|")
        for rate in RATES:
            print("\n".join(rows(arguments, folder, rate)), flush=True)


if __name__ == "__main__":
    main()
