"""The text of a new recipe, and what `upft new` says about it. Pure."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upft_mlx.new import Draft

_PLAIN = re.compile(r"[A-Za-z./][\w./-]*")
_WORDS = re.compile(r"(?i)true|false|yes|no|on|off|null|y|n")
"""What YAML takes for something else than a text."""
_COLUMN, _WIDTH = 36, 118


def recipe_text(draft: Draft) -> str:
    """The recipe as YAML, with the reason for each number beside it."""
    parts = ["\n".join(_header(draft)), *("\n".join(section) for section in _sections(draft))]
    return "\n\n".join(parts) + "\n"


def scalar(value: Any) -> str:
    """A value as YAML that reads back as it is."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _WORDS.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _header(draft: Draft) -> Iterator[str]:
    path, model = draft.path, draft.model
    yield f"# {draft.model_name} on {_data_name(draft)}, written by `upft new`; every number can be changed."
    yield "#"
    numbers = (
        "the paper's where a line says so, else this tool's defaults; none was measured on this model and these "
        "problems. `upft analyze` measures the prefix length, `upft compare` the methods"
    )
    size = f"{_size(model.bytes)} of weights" if model.bytes else "weights of unknown size"
    for key, value in (
        ("command", f"upft run {path.name}"),
        ("Mac", f"{size}, and room for sampling and training; `upft plan {path.name} --mac 16` says whether 16 GB do"),
        ("time", "not measured"),
        ("numbers", numbers),
    ):
        first = f"#   {key + ':':9}"
        yield from textwrap.wrap(value, _WIDTH, initial_indent=first, subsequent_indent="#" + " " * 12)
    yield _field("model", scalar(draft.model_name), _model_said(draft), indent="")
    if model.bits is None and (model.bytes or 0) > 2e9:
        smaller = _size((model.bytes or 0) * 4.5 / 16)
        yield f"# quantize: {{bits: 4}}  # the weights are not quantized; this makes them {smaller} in memory"


def _sections(draft: Draft) -> Iterator[list[str]]:
    chosen = draft.choices
    yield ["problems:", *_problems(draft)]
    if chosen.enable_thinking is not None:
        args = f"{{enable_thinking: {scalar(chosen.enable_thinking)}}}"
        why = "the chat template has this switch; the same in sampling, training and evaluation"
        yield ["prompt:", f"  # {why}", f"  chat_template_args: {args}"]
    limit = "tokens of a full solution; a longer one is left out"
    together = "sequences at a time: as many as fit"
    yield [
        "generate:",
        _field("max_tokens", chosen.max_tokens, limit),
        _field("batch_size", "auto", together),
    ]
    yield ["prefix:", *_prefix(draft)]
    yield ["train:", *_train(draft)]
    yield ["evaluate:", *_evaluate(draft)]
    if chosen.fuse != "auto":
        why = f"6 or 8 bits; to try 16 as well takes {_size(chosen.fuse_bytes or 0)}"
        yield ["publish:", _field("fuse", chosen.fuse, why)]


def _problems(draft: Draft) -> Iterator[str]:
    data, source = draft.data, draft.data.source
    if draft.parts:
        name = next(iter(draft.files))
        yield _field("path", scalar(name), f"{len(draft.parts.train):,} problems; {len(draft.parts.test):,} held out")
        return  # the columns have the usual names there
    said = f"{data.rows:,} rows" if data.rows is not None else "the Hub does not say how many rows"
    if source.path is not None:
        yield _field("path", scalar(draft.data_path), said)
    else:
        yield _field("dataset", scalar(source.dataset), said)
        if source.config is not None:
            yield _field("config", scalar(source.config))
        yield _field("split", scalar(source.split))
    yield _field("question", scalar(data.question), f"{data.mean_length:,.0f} characters on average")
    if data.answer is not None:
        yield _field("answer", scalar(data.answer), "UPFT does not need it; methods with labels do")


def _prefix(draft: Draft) -> Iterator[str]:
    chosen = draft.choices
    why = "the paper's for a model that thinks (R1-Distill)" if chosen.thinks else "the paper: 8 to 32 are alike"
    yield _field("length", chosen.length, f"tokens; {why}")
    small = "the paper's for its smallest set (LIMO, 817)" if chosen.structure_ratio == 0.3 else "the paper's"
    yield _field("structure_ratio", chosen.structure_ratio, f"share trained on a full solution; {small}")


def _train(draft: Draft) -> Iterator[str]:
    chosen = draft.choices
    yield _field("epochs", chosen.epochs, "the paper's for its smallest set" if chosen.epochs == 3 else None)
    yield _field("batch_size", chosen.trained_together, "sequences per step (the paper: 64)")
    yield _field("learning_rate", "1e-4", "our default for LoRA, not tuned on this model")
    if chosen.max_length is not None:
        yield _field("max_length", chosen.max_length, "tokens: the longest question and a full solution")
    if chosen.grad_checkpoint:
        without = f"without it a step takes up to {_size(chosen.step_bytes)}" if chosen.step_bytes else "less memory"
        yield _field("grad_checkpoint", "true", f"long rows: more time; {without}")


def _evaluate(draft: Draft) -> Iterator[str]:
    chosen = draft.choices
    if chosen.thinks:
        yield _field("temperature", 0.6, "models that think repeat themselves when greedy")
    yield _field("max_tokens", chosen.max_tokens, "a longer answer counts as wrong; the report says how many")
    yield _field("batch_size", "auto")
    yield "  benchmarks:"
    for number, (name, value) in enumerate(draft.benchmark.items()):
        yield f"    {' ' if number else '-'} {name}: {scalar(value)}"
    yield "      # asked in the same words as the training problems; prompt.instruction changes both"


def _field(name: str, value: Any, why: str | None = None, indent: str = "  ") -> str:
    text = f"{indent}{name}: {value}"
    return f"{text:{_COLUMN}} # {why}" if why else text


def _data_name(draft: Draft) -> str:
    source = draft.data.source
    return source.dataset or str(source.path).replace("\\", "/").rpartition("/")[2]


def _model_said(draft: Draft) -> str:
    model = draft.model
    size = f"{_millions(model.parameters)} parameters" if model.parameters else "size not known from its shape"
    return f"{model.kind}, {size}, {f'{model.bits} bits' if model.bits else 'not quantized'}"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _millions(number: int) -> str:
    return f"{number / 1e9:.1f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


_THINKING = {
    "switch": "can think; its chat template has `enable_thinking`",
    "always": "always thinks",
    "never": "has no thinking mode",
}


def told(draft: Draft) -> str:
    """What was found, chosen and written, for people."""
    data, chosen = draft.data, draft.choices
    rows = f"{data.rows:,} rows" if data.rows is not None else f"rows not counted, looked at {len(data.seen)}"
    answers = f"{len(data.answered):,} of {len(data.seen):,}" + (" looked at" if data.source.path is None else "")
    found = f"{rows}; question in `{data.question}` ({data.mean_length:,.0f} characters on average), "
    found += f"answers in `{data.answer}` ({answers})" if data.answer is not None else "no answers"
    lines = [("model", f"{draft.model_name}: {_model_said(draft)}; {_THINKING[draft.model.thinking]}")]
    lines += [("problems", found)]
    if draft.parts:
        lines += [("held out", f"{len(draft.parts.test):,} to measure with, {len(draft.parts.train):,} to train on")]
        if draft.parts.repeated:
            lines += [("", f"{draft.parts.repeated:,} rows repeat a question; none is in both parts")]
    said = " (thinking off)" if chosen.enable_thinking is False else " (thinking on)" if chosen.enable_thinking else ""
    lines += [("chosen", f"prefix.length {chosen.length}, solutions up to {chosen.max_tokens:,} tokens{said}")]
    lines += [("note", warning) for warning in draft.warnings]
    lines += [("wrote", ", ".join([str(draft.path), *(str(draft.path.parent / name) for name in draft.files)]))]
    lines += [("next" if number == 0 else "", command) for number, command in enumerate(draft.next_commands)]
    return "\n".join(f"{name:10}{text}" for name, text in lines)
