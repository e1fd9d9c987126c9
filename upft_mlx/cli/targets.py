"""What a command works on: a recipe, by file or shipped name, or a run as it stands, with its recipe.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upft_mlx.errors import UnknownRecipeError
from upft_mlx.inspection.browse import recipe_of
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe, validated
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir


def recipe_for(target: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a recipe file, a shipped recipe, a run directory, or a run in runs/.

    Raises:
        RecipeError: it is none of these, or an override is wrong.
        RunDirError: the run's recipe cannot be read.
    """
    folder = _folder(target)
    if folder is not None:
        run = RunDir(folder)
        return validated(run.recipe, {}, recipe_of(run).dump(), overrides)
    try:
        return load_recipe(target, overrides)
    except UnknownRecipeError as error:
        remedy = f"{error.remedy}; nor is it a run directory, or a run in runs/"
        raise UnknownRecipeError(error.problem, remedy, path=error.path) from None


def run_for(target: str | None, recipe: Recipe) -> RunDir:
    """The run directory of such a target; of None, the one of the recipe's name."""
    return RunDir((_folder(target) if target else None) or Path("runs") / recipe.name)


def _folder(target: str) -> Path | None:
    """A run directory, if the target is one by path, or by a name in runs/ that no recipe has."""
    if Path(target).is_file() or target in shipped_recipes():
        return None
    return next((path for path in (Path(target), Path("runs") / target) if (path / "recipe.json").is_file()), None)
