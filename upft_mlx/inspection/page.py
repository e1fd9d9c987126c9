"""report.html of a run, from the files in its directory: what `results.page` makes the page of is gathered here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

from upft_mlx.data.benchmarks import resolve
from upft_mlx.errors import RunDirError, UpftError
from upft_mlx.inspection.browse import facts_of, recipe_of, refuse_changed, seen
from upft_mlx.inspection.preview import preview
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model
from upft_mlx.models.load import load_tokenizer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.openings import DEPTH
from upft_mlx.results.page import Material, page
from upft_mlx.rows import write_atomically
from upft_mlx.rundir import RunDir

ROWS = 24
"""Training rows that the page shows at most."""


def write_page(run: RunDir, limit: tuple[int, str] | None = None) -> Path:
    """Write report.html beside report.md.

    Args:
        run: the run.
        limit: the bytes that a stage may take on this machine, and what they are.

    Returns:
        Its path.

    Raises:
        RunDirError: what was measured was changed since.
    """
    recipe, facts = recipe_of(run), facts_of(run)
    measured = {name: next(iter(found.measured.values())) for name, found in facts.benchmarks.items()}
    shown = [entry.label for entry in resolve(recipe.evaluate) if not entry.private and entry.label in measured]
    pieces, unit = _pieces(recipe)
    rows: dict[str, object] | None = None
    left_out = ""
    try:
        refuse_changed(run, "build")
        found_rows = preview(recipe, run.root, rows=ROWS)
        rows = found_rows.dump() if found_rows.source == "dataset" else None
    except RunDirError as error:
        left_out = f"the training rows are not shown: {error}"
    except UpftError:  # the model's tokenizer may not be here
        pass
    found = Material(
        facts=facts,
        asked=seen(run, shown) if shown else (),
        withheld={name: one.n for name, one in measured.items() if name not in shown},
        preview=rows,
        left_out=left_out,
        pieces=pieces,
        unit=unit,
        limit=limit,
        date=datetime.fromtimestamp(run.ledger.stat().st_mtime).date().isoformat() if run.ledger.exists() else "",
    )
    write_atomically(run.page, page(found))
    return run.page


def _pieces(recipe: Recipe) -> tuple[Callable[[str], Sequence[str]], str]:
    """Cuts a text into its first tokens; into words where the model's tokenizer is not here."""
    try:
        tokenizer = load_tokenizer(find_model(recipe, weights=False), trust_remote_code=recipe.trust_remote_code)
        renderer = Renderer(tokenizer, recipe.prompt)
    except UpftError:
        return lambda text: [f"{word} " for word in text.split()[:DEPTH]], "words"
    token = cache(lambda id_: renderer.tokens([id_])[0])
    return lambda text: [token(int(i)) for i in tokenizer.encode(text, add_special_tokens=False)[:DEPTH]], "tokens"
