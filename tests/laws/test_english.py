"""Old wording does not come back: stiff or private English that was replaced in the program and its pages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

OLD = (
    "with the model itself",
    "tokens of full solutions are trained",
    "installation that says nothing",
    "this machine is fit",
    "questions out to measure with",
    "of a row trains",
    "none can stop a run",
    "what rounding keeps",
    "has not been seen yet",
    "stands the 95 % interval",
    "is no witness",
    "is no new knowledge",
    "is no check of",
    "are no independent problems",
    "is pointed out, and runs",
    "loading included; build and fuse come on top",
    "belongs into",
    "belong into",
    "that all prompts begin with are passed",
    "adapter/ holds step",
    "rounded so that the outputs",
    "no difference shown between",
    "no-calibration leaves it out",
    "tokens in the mean",
    "below what there is",
    "no time is told",
    "works in this run directory",
    "cannot be put on",
    "what is done is kept",
    "the same command continues",
    "an empty line ends",
    "right on one side and wrong on the other",
    "as many as have 512 tokens",
    "compute right",
    "for what there is",
    "nothing of batch sizes",
    "stands there twice",
    "of a problem's samples trains",
    "so many problems",
    "mend the text",
    "if it shall",
    "overwritten by what is written",
    "is not there; make it first",
    "is of another model",
    "not to be found any more",
    "problems is none",
    "makes no sense where",
    "recipe file is none",
    "what ways are tried in the order of",
    "Of `base` where that is not quantized",
    "the so many longest",
    "only that and where it is there",
    "taken for not there",
    "how often a solution gets right",
    "tries less else",
    "Put what helped into",
    "is told",
)


def pattern(words: str) -> re.Pattern[str]:
    """These words in order, with any whitespace, or the end and the beginning of a string in the code, between them."""
    return re.compile(r"(?:\s|\"\s+f?\")+".join(map(re.escape, words.split())), re.IGNORECASE)


@cache
def texts() -> dict[Path, str]:
    """All that users and readers of the code see: the package, recipes, pages and their generators."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    files += [path for folder in ("upft_mlx", "docs", "recipes", "perf") for path in (ROOT / folder).rglob("*.*")]
    kept = [path for path in files if path.suffix in (".md", ".py", ".yaml")]
    return {path: path.read_text(encoding="utf-8") for path in kept}


@pytest.mark.parametrize("words", OLD)
def test_old_wording_is_gone(words: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}"
        for path, text in texts().items()
        for hit in pattern(words).finditer(text)
    ]
    assert found == []


def test_wording_is_found_across_lines_and_strings() -> None:
    assert len(texts()) > 100
    assert pattern("what is done is kept").search("error; What is\n    done is kept")
    assert pattern("what is done is kept").search('f"error; what is "\n        f"done is kept"')
    assert not pattern("what is done is kept").search("what is kept is done")


def test_no_docstring_starts_with_a_bare_genitive() -> None:
    modules = [path for path in texts() if path.suffix == ".py" and "upft_mlx" in path.parts]
    assert len(modules) > 100
    assert [path.name for path in modules if re.search(r'"""Of ', path.read_text(encoding="utf-8"))] == []


COUNTED = re.compile(
    r"\} (?:problem|question|row|file|token|sample|answer|solution|step|run|prompt|module|completion|layer|rollout|"
    r"opening|column|thread|method|model|benchmark)s\b(?!/)|\{'' if .{1,30} == 1 else 's'\}"
)
NEVER_ONE = (
    *("{LEAST_ANSWERS} problems", "{answers} problems", "{answers} answers", "{needed:,} answers"),
    *("{{ recipe.forecast.problems }} problems", "{found.within} tokens", "{count(sampled)} tokens"),
    *("{self.mean_kept:.0f} tokens", "{count:,} tokens", "{samples} samples", "{n} samples", "else 1}f} tokens/s"),
    *("{most} rows", "{kind} rows", "{{ kind }} rows", "{recipe.prefix.selection} samples"),
)
"""At least 2 or 8 by the rules of what they count, means and rates, and names in front of a plural."""


def test_what_is_counted_gets_its_plural_from_many() -> None:
    """A plural behind a number is wrong for 1: `1 problems`. `quantities.many` is the one home of the rule."""
    found = []
    for path, text in texts().items():
        if "upft_mlx" in path.parts and "demo" not in path.parts:
            for hit in COUNTED.finditer(text):
                if not text[: hit.end()].endswith(NEVER_ONE) and "tokens/s" not in text[hit.start() : hit.end() + 2]:
                    found.append(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}")
    assert found == []


@pytest.mark.parametrize("words", ["{n} problems", "{len(a):,} rows", "row{'' if n == 1 else 's'}", "{{ n }} files"])
def test_a_plural_that_is_wrong_for_one_is_found(words: str) -> None:
    assert COUNTED.search(words)
