"""Write a recipe for your model and dataset: inspect both, split the data, and write the file with comments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.columns import WRONG_COLUMNS
from upft_mlx.data.problems import Problem
from upft_mlx.errors import ColumnError, OfflineError, ProblemsError, RecipeError
from upft_mlx.escape import half, plain_name, quoted, to_json
from upft_mlx.models.facts import model_facts
from upft_mlx.models.find import BUILTIN, is_hub_model
from upft_mlx.new.data_facts import DataFacts, Split, all_letters, data_facts, hard_to_grade, hold_out, is_file
from upft_mlx.new.draft import Draft, relative
from upft_mlx.new.settings import choose_settings
from upft_mlx.new.text import recipe_text
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Problems
from upft_mlx.rows import replacing, write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Wish:
    """The options of the command line."""

    model: str
    dataset: str
    output: Path | None = None
    question: str | None = None
    answer: str | None = None
    id: str | None = None
    skip_bad_rows: bool = False
    config: str | None = None
    split: str | None = None
    holdout: int | None = None
    """Number of test questions to set aside; None: a sensible number."""
    thinking: bool = False
    force: bool = False


def new_recipe(wish: Wish) -> Draft:
    """Inspect model and data; write the recipe, and both parts of a dataset that is split.

    Raises:
        UpftError: one of its kinds: model or data cannot be used, or a file is there already. Nothing is written then.
    """
    for name in (wish.model, wish.dataset):
        if half(name):
            raise RecipeError(f"{quoted(name)} is not UTF-8, so no recipe can name it", "rename it")
    path = _output(wish)
    try:
        data = data_facts(_source(wish))
        model = model_facts(wish.model)
    except ColumnError as error:
        if error.column in ("question", "answer", "id"):
            error.remedy = f"name the {error.column} column with --{error.column} {error.likely}"
        raise
    except OfflineError as error:  # other remedies, because there is no recipe yet to fetch or change
        first = "leave the network on" if error.fetched else "check the connection"
        raise OfflineError(error.problem, f"{first}, or name a local one") from None
    parts = _parts(wish, data)
    benchmark, warnings = _benchmark(data, parts, path.stem, wish.holdout)
    if parts and len(parts.test) < 100:
        warnings = [*warnings, f"{many(len(parts.test), 'test question')}: only large differences will show"]
    if parts and parts.disputed:
        one, other = parts.disputed
        rows = f"rows with the ids {quoted(one.id)} and {quoted(other.id)}"
        answers = f"{quoted(one.answer, 40)} and {quoted(other.answer, 40)}"
        warnings = [*warnings, f"a question has different answers: {answers} ({rows}); a test uses the first one"]
    if wish.model in BUILTIN:
        warnings = [*warnings, f"{wish.model} knows the demo's kind of question alone: it shows how a run goes"]
    settings = choose_settings(model, data, len(parts.train) if parts else data.rows, thinking=wish.thinking)
    on_hub = wish.model in BUILTIN or is_hub_model(wish.model)
    name = wish.model if on_hub else relative(Path(wish.model), path.parent.absolute())
    hub = is_hub_model(wish.model) or data.source.path is None or "path" not in benchmark
    draft = Draft(path, name, hub, model, data, parts, benchmark, settings, warnings)
    text = recipe_text(draft)
    _refuse_overwriting(draft, text, force=wish.force)
    for file_name, problems in draft.files.items():
        with replacing(path.parent / file_name) as temporary, temporary.open("wb") as file:
            file.writelines(_line(problem).encode() for problem in problems)
    write_atomically(path, text)
    return draft


def _output(wish: Wish) -> Path:
    stem = Path(wish.dataset.removesuffix(".gz")).stem if is_file(wish.dataset) else wish.dataset.rpartition("/")[2]
    path = wish.output or Path(f"{plain_name(stem, 'recipe')}.yaml")
    if path.is_dir():
        raise RecipeError("is a folder", "name the recipe's file in it", field=f"--output {path}")
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")
    if not _NAME.fullmatch(path.stem):
        raise RecipeError(
            "the file's name becomes the run's name: use only letters, digits, `.`, `_` and `-`, "
            "with a letter or digit first",
            field=f"--output {path}",
        )
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"the folder {path.parent} does not exist", "create it first", field=f"--output {path}")
    return path


def _source(wish: Wish) -> Problems:
    named = {"question": wish.question, "answer": wish.answer, "id": wish.id}
    named |= {"bad_rows": "skip" if wish.skip_bad_rows else "stop"}
    if wish.dataset in BUILTIN:
        remedy = "name a file or a dataset on the Hub; `upft recipes quickstart` has the demo's problems"
        raise RecipeError(f"dataset {wish.dataset}: is the demo's model", remedy)
    if not is_file(wish.dataset):
        place = {"dataset": wish.dataset, "config": wish.config, "split": wish.split or "train"}
        return Problems.model_validate({**place, **named})
    for option in ("config", "split"):
        if getattr(wish, option) is not None:
            raise RecipeError(
                f"{wish.dataset} is a file", "only datasets on the Hub have this option", field=f"--{option}"
            )
    return Problems.model_validate({"path": str(Path(wish.dataset).expanduser()), **named})


def _parts(wish: Wish, data: DataFacts) -> Split | None:
    """Both parts of a local dataset that has answers."""
    if data.source.path is None:
        if wish.holdout:
            raise RecipeError(
                "only local files are split",
                "evaluate on one of its splits, or download it",
                field=f"--holdout {wish.holdout}",
            )
        return None
    if wish.holdout == 0 or (wish.holdout is None and not data.answered):
        return None
    parts = hold_out(data.seen, wish.holdout)
    return parts if parts.test else None


def _benchmark(
    data: DataFacts, parts: Split | None, stem: str, holdout: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What to evaluate on: the test questions, a Hub dataset's test split, or GSM8K; and what to warn of."""
    source = data.source
    asked = parts.test if parts else [problem for problem in data.seen if problem.answer is not None]
    options = all_letters(asked) or (asked and all(problem.wrong_answers for problem in asked))
    grader = {"grader": "choice"} if options else {}
    if parts:
        return {"name": f"{stem}-test", "path": f"{stem}-test.jsonl", **grader}, _graded(parts.test)
    if source.dataset == "openai/gsm8k":
        return {"name": "gsm8k", "limit": 200}, []
    if source.split != "test" and "test" in data.splits and data.answered:
        place = {"dataset": source.dataset, "config": source.config, "split": "test"}
        columns = {"question": data.question, "answer": data.answer, "id": source.id}
        skips = {"bad_rows": "skip"} if source.bad_rows == "skip" else {}
        entry = {"name": f"{stem}-test", **place, **columns, **skips, **grader, "limit": 200}
        return {key: value for key, value in entry.items() if value is not None}, _graded(asked)
    own = "or name a file of your own in the recipe: `benchmarks: [{name: mine, path: my-test.jsonl}]`"
    if source.path is None:
        why = "it has no test split with answers"
        then = "evaluate on one of its splits: `benchmarks: [{name: mine, dataset: ID, split: NAME}]`"
    elif data.answered:
        why = "none of its questions were set aside"
        then = "leave out --holdout 0" if holdout == 0 else "use a file with more answers, 100 or more"
    else:
        why = "it has no answers"
        then = "add an `answer` to some rows, 100 or more, and `upft new` sets a fifth of them aside (--holdout N: N)"
    warning = f"evaluates on 200 questions of GSM8K, not on your data: {why}. To measure on your own, {then}; {own}"
    return {"name": "gsm8k", "limit": 200}, [warning]


def _graded(problems: list[Problem]) -> list[str]:
    hard = hard_to_grade(problems)
    if not hard:
        return []
    are = "is a text, not a number or formula" if len(hard) == 1 else "are texts, not numbers or formulas"
    return [
        f"{len(hard):,} of {many(len(problems), 'answer')} {are} (first: id {hard[0].id}): the "
        "grader compares the text, so a right answer in other words counts as wrong. In a text, the value goes in "
        "\\boxed{...} or after ####, or name a column that has it with --answer"
    ]


def _refuse_overwriting(draft: Draft, text: str, *, force: bool) -> None:
    """Refuse where a file exists and holds anything else than would be written: a command that was cut goes on."""
    paths = [draft.path, *(draft.path.parent / name for name in draft.files)]
    source = draft.data.source.path
    if source is not None and any(path.exists() and path.samefile(Path(source).expanduser()) for path in paths):
        raise ProblemsError("would be overwritten by the output", "choose another --output", path=source)
    contents = [[text.encode()], *((_line(problem).encode() for problem in file) for file in draft.files.values())]
    there = [
        str(path) for path, lines in zip(paths, contents, strict=True) if path.exists() and not _holds(path, lines)
    ]
    if there and not force:
        raise RecipeError(f"{', '.join(there)}: exists already", "choose another --output, or overwrite with --force")


def _holds(path: Path, parts: Iterable[bytes]) -> bool:
    """Whether a file holds these bytes and nothing else."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return all(file.read(len(part)) == part for part in parts) and not file.read(1)


def _line(problem: Problem) -> str:
    """A row with everything known about a problem, under names that are recognized."""
    known = {
        name: value
        for name, value in asdict(problem).items()
        if name in ("id", "question", "answer") or (value is not None and name != "wrong_answers")
    }
    known |= dict(zip(WRONG_COLUMNS, problem.wrong_answers, strict=False))
    return to_json(known, indent=None) + "\n"


def facts(draft: Draft) -> dict[str, Any]:
    """What was found and chosen as plain values, for JSON."""
    data = draft.data
    model = {key: value for key, value in vars(draft.model).items() if key != "shape"}
    return {
        "recipe": str(draft.path),
        "files": {str(draft.path.parent / name): len(problems) for name, problems in draft.files.items()},
        "model": {"name": draft.model_name, **model},
        "problems": {
            "rows": data.rows,
            "question": data.question,
            "answer": data.answer,
            "answered": data.answered,
            "seen": len(data.seen),
            "mean_question_characters": round(data.mean_length, 1),
            "repeated": draft.parts.repeated if draft.parts else None,
        },
        "benchmark": draft.benchmark,
        "chosen": asdict(draft.settings),
        "read": list(data.notes),
        "warnings": draft.warnings,
        "next": draft.next_commands,
    }
