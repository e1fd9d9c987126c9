"""What does each form of fusing keep of adapters of three sizes, and what does it weigh?

    python perf/fuse_fidelity.py                                         # the embedded model, quantized to 4 bits
    python perf/fuse_fidelity.py --model FOLDER --problems FILE.jsonl    # any quantized model, your questions
    python perf/fuse_fidelity.py --grid                                 # with and without lora.grid, base's bits

Samples prefixes of 160 problems, trains 8 steps with the default adapter at each learning rate, and fuses each adapter
in every form. Prints a table with the retained effect, the greedy agreement, the weights' size and what `publish.fuse:
auto` takes. With `--grid` each adapter is trained twice, as usual and with `lora.grid: base`, and fused at the base's
bits only; the table has the loss on validation rows as well and, with `--held-out`, greedy accuracy.
Results: docs/use/fusing.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

RATES = (1e-6, 1e-5, 1e-4)
GRID_RATES = (1e-5, 1e-4, 1e-3)
ANSWER_TOKENS = 28
"""Of each answer that is graded; tools/one_step.py asks for short ones."""
PACKAGE = Path(__file__).resolve().parent.parent / "upft_mlx"


def recipe_of(arguments: argparse.Namespace, rate: float, grid: str | None = None) -> Any:
    """The same for all rates but the rate."""
    from upft_mlx.recipe.schema import Recipe

    embedded = arguments.model is None
    return Recipe.model_validate(
        {
            "model": str(arguments.model or PACKAGE / "demo" / "model"),
            "quantize": {"bits": 4, "group_size": 32} if embedded else None,
            "problems": {
                "path": str(arguments.problems or PACKAGE / "demo" / "train.jsonl"),
                "limit": arguments.limit,
                "shuffle": True,
            },
            "prompt": {"instruction": arguments.instruction} if arguments.instruction else {},
            "lora": {"grid": grid},
            "prefix": {"length": 16},
            "generate": {"max_tokens": 64},
            "train": {
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "learning_rate": rate,
                "valid_ratio": 0.1,
                "save": "last",
            },
        }
    )


def prepare(arguments: argparse.Namespace, work: Path) -> None:
    """Sample and build the rows, the same for all rates."""
    from upft_mlx.pipeline import run_stage

    if not (work / "rows" / "dataset" / "valid.jsonl").exists():
        for stage in ("generate", "build"):
            run_stage(recipe_of(arguments, RATES[0]), work / "rows", stage)


def loaded_as(arguments: argparse.Namespace, recipe: Any) -> Any:
    """The model, with floating numbers that the type asked for holds, in float32."""
    import mlx.core as mx

    from upft_mlx.models.cpu_layers import add_dense_copies
    from upft_mlx.models.load import load

    loaded = load(Path(recipe.model), quantize=recipe.quantize)
    if arguments.dtype:
        loaded.dtype = getattr(mx, arguments.dtype)
        for dtype in (loaded.dtype, mx.float32):
            loaded.model.set_dtype(dtype)
        add_dense_copies(loaded.model)
    return loaded


def trained(arguments: argparse.Namespace, work: Path, recipe: Any) -> Any:
    """The run directory with the adapter of a recipe, trained unless it is there."""
    from upft_mlx.rundir import RunDir
    from upft_mlx.training.train import train

    run = RunDir(work / f"{recipe.train.learning_rate:g}{'-grid' if recipe.lora.grid else ''}")
    if not (run.adapter / "adapters.safetensors").exists():
        shutil.copytree(work / "rows" / "dataset", run.root / "dataset", dirs_exist_ok=True)
        train(recipe, loaded_as(arguments, recipe), run)
    return run


def accuracy(arguments: argparse.Namespace, recipe: Any, loaded: Any) -> str:
    """How many of the held-out problems the model answers rightly, greedily; empty without such problems."""
    from upft_mlx.data.problems import Problem
    from upft_mlx.grade.graders import Task, grade_all
    from upft_mlx.models.chat import Renderer
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.sampler import Sampler

    if arguments.held_out is None:
        return ""
    problems = [Problem(**json.loads(line)) for line in arguments.held_out.read_text().splitlines()]
    loaded.model.eval()
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    asked = [Request(renderer.asked(problem.question), ANSWER_TOKENS, 1, problem.id) for problem in problems]
    made = Sampler(loaded, Sampling(0.0, batch_size=32)).sample(asked, 0)
    tasks = [Task(renderer.text(c.ids), str(p.answer)) for c, p in zip(made, problems, strict=True)]
    return f"{sum(verdict.correct for verdict in grade_all(tasks))}/{len(tasks)}"


def valid_loss(arguments: argparse.Namespace, recipe: Any, loaded: Any, run: Any) -> float:
    """Nats per supervised token of validation rows, the mean over rows."""
    from upft_mlx.rows import TrainingRow, read_rows
    from upft_mlx.training.batches import to_examples
    from upft_mlx.training.loss import choose_modes
    from upft_mlx.training.token_loss import token_losses

    examples = to_examples(list(read_rows(run.valid, TrainingRow)), recipe.train.max_length, recipe.prefix)
    modes, _ = choose_modes(loaded.model, dropout=True, checkpoint=False)
    found = token_losses(loaded.model, examples, modes)
    return sum(sum(nats) / len(nats) for nats in found) / len(found)


def grid_rows(arguments: argparse.Namespace, work: Path, rate: float) -> list[str]:
    """Train at a rate with and without the grid, and fuse at the base's own bits."""
    from upft_mlx.fusing.fuser import Fuser

    lines = []
    for grid in (None, "base"):
        recipe = recipe_of(arguments, rate, grid)
        run = trained(arguments, work, recipe)
        loaded = loaded_as(arguments, recipe)
        name = f"| {rate:g} | {grid or ''} |"
        if grid is None:
            before = valid_loss(arguments, recipe, loaded, run)
            lines.append(
                f"{name} not fused: the base | 0.000 | | {before:.4f} | {accuracy(arguments, recipe, loaded)} |"
            )
        fuser = Fuser(recipe, loaded, run)
        nats = valid_loss(arguments, recipe, loaded, run)
        lines.append(f"{name} adapter | 1.000 | 1.000 | {nats:.4f} | {accuracy(arguments, recipe, loaded)} |")
        for form in (form for form in fuser.formats if form.family == "base"):
            found = fuser.measure(form)
            if found is None:
                continue
            nats, right = valid_loss(arguments, recipe, loaded, run), accuracy(arguments, recipe, loaded)
            kept = f"{found.retained:.3f} | {found.greedy_agreement:.3f}"
            lines.append(f"{name} {form.name} | {kept} | {nats:.4f} | {right} |")
    return lines


def rows(arguments: argparse.Namespace, work: Path, rate: float) -> list[str]:
    """Train at a rate and measure every form."""
    from upft_mlx.fusing.fuse import KEPT
    from upft_mlx.fusing.fuser import Fuser

    recipe = recipe_of(arguments, rate)
    run = trained(arguments, work, recipe)
    fuser = Fuser(recipe, loaded_as(arguments, recipe), run)
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
    parser.add_argument("--limit", type=int, default=160, help="number of problems")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--instruction", help="what the model is asked, with {question}")
    parser.add_argument("--grid", action="store_true", help="with and without lora.grid, the base's own bits")
    parser.add_argument("--held-out", type=Path, help="with --grid: problems to answer greedily (.jsonl)")
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], help="learning rates")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], help="pretend that the folder's floats are of this type"
    )
    parser.add_argument("--work", type=Path, help="keep rows and adapters here, and use those that are here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        prepare(arguments, folder)
        if arguments.grid:
            print("| learning rate | grid | form | retained effect | greedy agreement | validation loss | accuracy |")
            print("|---|---|---|---|---|---|---|")
        else:
            print("| learning rate | form | retained effect | greedy agreement | top-1 agreement | MB | |")
            print("|---|---|---|---|---|---|---|")
        for rate in arguments.rates or (GRID_RATES if arguments.grid else RATES):
            made = grid_rows(arguments, folder, rate) if arguments.grid else rows(arguments, folder, rate)
            print("\n".join(made), flush=True)


if __name__ == "__main__":
    main()
