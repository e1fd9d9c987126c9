"""The text of a new recipe, and what `upft new` says about it. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upft_mlx.errors import RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.quantities import disk, many, memory
from upft_mlx.recipe.safe_yaml import read_yaml, yaml_scalar
from upft_mlx.recipe.schema import Train

if TYPE_CHECKING:
    from upft_mlx.new.draft import Draft

_COLUMN, _WIDTH = 36, 118


@dataclass(frozen=True)
class _Field:
    """A line of the recipe."""

    name: str
    value: Any
    """A text, number or truth value; a mapping of those is written in braces, a list of mappings below the name."""
    why: str | None = None
    before: str | None = None
    """A comment above it."""


def recipe_text(draft: Draft) -> str:
    """The recipe as YAML, with the reason next to each number.

    Values go through the YAML library, reasons through `one_line`, and the whole is read back: no name in a stranger's
    folder can add a field.

    Raises:
        RecipeError: it does not read back as what was chosen.
    """
    top, sections = [_Field("model", draft.model_name, _model_said(draft))], dict(_sections(draft))
    head, size = [*_comment(draft), *_lines(top, "")], draft.model.bytes or 0
    if draft.model.bits is None and size > 2e9:
        why = f"the weights are not quantized; with this they take {memory(size * 4.5 / 16)} of memory"
        head.append(f"# quantize: {{bits: 4}}  # {why}")
    parts = ["\n".join(head), *("\n".join([f"{name}:", *_lines(of, "  ")]) for name, of in sections.items())]
    text = "\n\n".join(parts) + "\n"
    chosen = {name: {field.name: field.value for field in fields} for name, fields in sections.items()}
    if read_yaml(text)[0] != {"model": draft.model_name, **chosen}:
        raise RecipeError(f"{quoted(draft.model_name)}: cannot be written to a recipe", "rename it", path=draft.path)
    return text


def _lines(fields: Sequence[_Field], indent: str) -> Iterator[str]:
    for field in fields:
        if field.before:
            yield f"{indent}# {one_line(field.before)}"
        if isinstance(field.value, list):
            yield f"{indent}{field.name}:"
            for entry in field.value:
                pairs = [f"{name}: {yaml_scalar(value)}" for name, value in entry.items()]
                yield from (f"{indent}  {' ' if number else '-'} {pair}" for number, pair in enumerate(pairs))
            if field.why:
                yield from (f"{indent}    # {line}" for line in field.why.splitlines())
            continue
        small = isinstance(field.value, float) and 0 < field.value < 1e-3  # YAML would write 3.0e-05
        text = f"{indent}{field.name}: {f'{field.value:g}'.replace('e-0', 'e-') if small else yaml_scalar(field.value)}"
        yield f"{text:{_COLUMN}} # {one_line(field.why)}" if field.why else text


def _comment(draft: Draft) -> Iterator[str]:
    name, model = one_line(draft.path.name), draft.model
    source = draft.data.source
    data = source.dataset or str(source.path).replace("\\", "/").rpartition("/")[2]
    title = f"{one_line(draft.model_name)} on {one_line(data)}"
    yield f"# {title}, written by `upft new`; every number can be changed."
    yield "#"
    numbers = (
        "the paper's if a line says so, otherwise this tool's defaults; none was measured on this model and these "
        "problems. `upft analyze` measures the prefix length, `upft compare` the methods"
    )
    size = f"{disk(model.bytes)} of weights" if model.bytes else "weights of unknown size"
    for key, value in (
        ("command", f"upft run {name}"),
        (
            "Mac",
            f"{size}, plus memory for sampling and training; `upft plan {name} --mac 16` says whether 16 GB are enough",
        ),
        ("time", "not measured"),
        ("numbers", numbers),
    ):
        first = f"#   {key + ':':9}"
        yield from textwrap.wrap(value, _WIDTH, initial_indent=first, subsequent_indent="#" + " " * 12)


def _sections(draft: Draft) -> Iterator[tuple[str, list[_Field]]]:
    chosen = draft.settings
    yield "problems", list(_problems(draft))
    if chosen.enable_thinking is not None:
        args = {"enable_thinking": chosen.enable_thinking}
        why = "the chat template has this switch; sampling, training and evaluation use the same value"
        yield "prompt", [_Field("chat_template_args", args, before=why)]
    limit = "tokens of a full solution; longer ones are left out"
    together = "sequences at a time: as many as fit"
    yield "generate", [_Field("max_tokens", chosen.max_tokens, limit), _Field("batch_size", "auto", together)]
    why = "the paper's for a thinking model (R1-Distill)" if chosen.thinks else "in the paper, 8 to 32 are alike"
    small = "the paper's for its smallest set (LIMO, 817)" if chosen.structure_ratio == 0.3 else "the paper's"
    ratio = _Field("structure_ratio", chosen.structure_ratio, f"share with a full solution; {small}")
    yield "prefix", [_Field("length", chosen.length, f"tokens; {why}"), ratio]
    train = [
        _Field("epochs", chosen.epochs, "the paper's for its smallest set" if chosen.epochs == 3 else None),
        _Field("batch_size", chosen.trained_together, "sequences per step (the paper: 64)"),
        _Field("learning_rate", Train().learning_rate, "our default for LoRA, not tuned on this model"),
    ]
    if chosen.max_length is not None:
        train.append(_Field("max_length", chosen.max_length, "tokens: the longest question and a full solution"))
    if chosen.grad_checkpoint:
        without = f"without it a step takes up to {memory(chosen.step_bytes)}" if chosen.step_bytes else "less memory"
        train.append(_Field("grad_checkpoint", True, f"long rows: more time; {without}"))
    yield "train", train
    sampled = _Field("temperature", 0.6, "thinking models repeat themselves when greedy")
    limit = "a longer answer counts as wrong; the report says how many"
    asked = "asked in the same words as the training problems; prompt.instruction changes both"
    evaluate = [_Field("max_tokens", chosen.max_tokens, limit), _Field("batch_size", "auto")]
    evaluate.append(_Field("benchmarks", [draft.benchmark], asked))
    yield "evaluate", [sampled, *evaluate] if chosen.thinks else evaluate
    if chosen.fuse != "auto":
        why = f"6 or 8 bits; trying 16 bits as well takes {memory(chosen.fuse_bytes or 0)}"
        yield "publish", [_Field("fuse", chosen.fuse, why)]


def _problems(draft: Draft) -> Iterator[_Field]:
    data, source = draft.data, draft.data.source
    if draft.parts:
        name = next(iter(draft.files))
        yield _Field("path", name, f"{many(len(draft.parts.train), 'problem')}; {len(draft.parts.test):,} set aside")
        return  # the columns have the usual names there
    said = many(data.rows, "row") if data.rows is not None else "the Hub does not say how many rows"
    if source.path is not None:
        yield _Field("path", draft.data_path, said)
    else:
        yield _Field("dataset", source.dataset, said)
        if source.config is not None:
            yield _Field("config", source.config)
        yield _Field("split", source.split)
    if source.id is not None:
        yield _Field("id", source.id)
    if source.bad_rows != "stop":
        yield _Field("bad_rows", source.bad_rows)
    yield _Field("question", data.question, f"{data.mean_length:,.0f} characters on average")
    if data.columns.answer is not None and not data.columns.answers:
        yield _Field("answer", data.answer, "UPFT does not need it; methods with labels do")


def _model_said(draft: Draft) -> str:
    model, size = draft.model, "size not known from its shape"
    if number := model.parameters:
        size = f"{f'{number / 1e9:.1f} G' if number >= 1e9 else f'{number / 1e6:.1f} M'} parameters"
    return f"{model.kind}, {size}, {f'{model.bits} bits' if model.bits else 'not quantized'}"


_THINKING = {
    "switch": "can think; its chat template has `enable_thinking`",
    "always": "always thinks",
    "never": "has no thinking mode",
}


def told(draft: Draft) -> str:
    """A summary of what was found, chosen and written."""
    data, chosen = draft.data, draft.settings
    rows = many(data.rows, "row") if data.rows is not None else f"rows not counted, read {len(data.seen)}"
    answers = f"{data.answered:,} of {len(data.seen):,}" + (" read" if data.source.path is None else "")
    found = f"{rows}; question in `{data.question}` ({data.mean_length:,.0f} characters on average), "
    found += f"answers in `{data.answer}` ({answers})" if data.answer is not None else "no answers"
    lines = [("model", f"{draft.model_name}: {_model_said(draft)}; {_THINKING[draft.model.thinking]}")]
    lines += [("problems", found), *(("read", note) for note in data.notes)]
    if draft.parts:
        lines += [("split", f"{len(draft.parts.train):,} to train on, {many(len(draft.parts.test), 'test question')}")]
        if draft.parts.repeated:
            repeat = many(draft.parts.repeated, "row repeats", "rows repeat")
            lines += [("", f"{repeat} a question; no question is in both parts")]
    said = " (thinking off)" if chosen.enable_thinking is False else " (thinking on)" if chosen.enable_thinking else ""
    lines += [
        ("chosen", f"prefix.length {chosen.length}, solutions of at most {many(chosen.max_tokens, 'token')}{said}")
    ]
    lines += [("note", warning) for warning in draft.warnings]
    lines += [("wrote", ", ".join([str(draft.path), *(str(draft.path.parent / name) for name in draft.files)]))]
    lines += [("next" if number == 0 else "", command) for number, command in enumerate(draft.next_commands)]
    return "\n".join(f"{name:10}{text}" for name, text in lines)
