"""The section `evaluate` of a recipe: benchmarks, and how they are sampled and graded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from upft_mlx.recipe.fields import BadRows, Count, FieldError, Section, Sequences, Strings, Subset, Turn, as_tuple

EFFECT = 2.0
"""Points."""


class Benchmark(Section):
    """One evaluation set; unset fields come from the benchmark, then from `evaluate`."""

    name: str
    """A built-in benchmark, or any name together with `path` or `dataset`."""
    label: str | None = None
    """The name in the results; unset: `name`."""
    path: str | None = None
    """A local file, as for `problems.path`."""
    dataset: str | None = None
    """A dataset id on the Hugging Face Hub."""
    config: str | None = None
    """The Hub dataset's configuration."""
    split: str | None = None
    """The Hub dataset's split."""
    revision: str | None = None
    """The Hub dataset's branch, tag or commit."""
    question: str | None = None
    """The question's column."""
    answer: str | None = None
    """The answer's column."""
    id: str | None = None
    """The id's column, or `none` to number the rows."""
    bad_rows: BadRows = "stop"
    """As for `problems.bad_rows`."""
    level: str | None = None
    """The difficulty's column; unset: level, if there is one."""
    subject: str | None = None
    """The subject's column; unset: subject, type or High-level domain, if there is one."""
    wrong_answers: Strings | None = None
    """The columns with wrong answers (`grader: choice`). They become options A, B, C, ... together with the right
    answer, in an order drawn with the recipe's seed; unset: Incorrect Answer 1 to 3, if they exist."""
    grader: Literal["maths", "integer", "choice"] | None = None
    """How answers are graded: as equal `maths`, as an `integer`, or as the letter of a `choice`; unset: the
    benchmark's own, or maths."""
    prompt: Turn | None = None
    """The user turn, with `{question}` in it, if it differs from `prompt.instruction`; unset: that one."""
    private: bool | None = None
    """Keep all text of the set out of rows, reports and screens; unset: true for GPQA, as its authors ask."""
    subset: Subset = Field(default_factory=dict)
    """Only problems of this level or subject, for example `{level: [4, 5]}`."""
    part: Literal["development", "rest"] | None = None
    """Only the problems of the `development` part, to choose settings on, or only the `rest`, to report on. A question
    is always in the same part, whatever the seed, the subset and the limit; unset: both parts."""
    limit: Count | None = None
    """Maximum number of problems, from the first; counted within the part and the subset if there are any."""
    samples: Count | None = None
    """Completions per problem."""
    temperature: Annotated[float, Field(ge=0.0, le=5.0)] | None = None
    """Sampling temperature; 0 is greedy."""
    max_tokens: Count | None = None
    """Maximum length of a completion (tokens)."""

    @model_validator(mode="after")
    def _one_source(self) -> Benchmark:
        if self.path is not None and self.dataset is not None:
            raise FieldError("give path or dataset, not both")
        return self


def _as_benchmark(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _as_benchmarks(value: object) -> object:
    """One benchmark as a list of one: `--set evaluate.benchmarks=gsm8k`."""
    return (value,) if isinstance(value, (str, dict)) else as_tuple(value)


class Evaluate(Section):
    """The benchmarks for base and tuned."""

    benchmarks: Annotated[
        tuple[Annotated[Benchmark, BeforeValidator(_as_benchmark)], ...], BeforeValidator(_as_benchmarks)
    ] = ()
    """Names of benchmarks, or mappings with the fields below."""
    samples: Count = 1
    """Completions per problem."""
    temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """Sampling temperature; 0 is greedy."""
    max_tokens: Count = 1024
    """Maximum length of a completion (tokens)."""
    limit: Count | None = None
    """Maximum number of problems of each benchmark, from the first."""
    subset: Subset = Field(default_factory=dict)
    """Only problems of this level or subject, for benchmarks without a subset of their own."""
    development: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of a benchmark's problems in its development part."""
    batch_size: Sequences = 32
    """Sequences decoded together; `auto`: as many as fit in memory, at most 64."""
    effect: Annotated[float, Field(gt=0.0, le=100.0)] = EFFECT
    """The smallest difference that matters (points of accuracy): `no measurable change` rules out larger ones."""
    until: Literal["end", "known"] = "end"
    """When to stop: at the `end` of each benchmark, or, with its problems in random order, when it is `known` that
    tuned differs from base, or does not differ by `effect`. Intervals that allow for it are about 1.7 times as wide."""

    @model_validator(mode="after")
    def _labels_differ_and_samples_vary(self) -> Evaluate:
        labels = [entry.label or entry.name for entry in self.benchmarks]
        for label in labels:
            taken = label.casefold() == "summary.json"  # a file beside the folders
            if not label or label.startswith(".") or "/" in label or "\\" in label or taken:
                raise FieldError(f"benchmark label {label!r} cannot name a folder", "set another `label`")
        folders = [label.casefold() for label in labels]  # a Mac's file system takes A and a for one name
        if twice := sorted({label for label in labels if folders.count(label.casefold()) > 1}):
            raise FieldError(f"two benchmarks are called {twice[0]!r}", "give one of them a `label`")
        for entry, label in zip(self.benchmarks, labels, strict=True):
            samples = self.samples if entry.samples is None else entry.samples
            temperature = self.temperature if entry.temperature is None else entry.temperature
            if samples > 1 and temperature == 0:
                raise FieldError(
                    f"benchmark {label!r}: {samples} samples at temperature 0 are all equal",
                    "set temperature above 0, or samples: 1",
                )
        return self
