"""The model card: README.md of what is published, from what the run recorded and nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from upft_mlx.data.benchmarks import resolve
from upft_mlx.errors import ModelError
from upft_mlx.escape import code, fenced, markdown, one_line
from upft_mlx.models.files import bounded
from upft_mlx.models.find import HUB_ID, is_hub_model
from upft_mlx.recipe.safe_yaml import read_yaml, to_yaml
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.report import outcome
from upft_mlx.stages import STAGES

_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HEAD_CHARACTERS = 128 * 1024
_METHODS = {
    "upft": "Unsupervised Prefix Fine-Tuning: trained on the first {length} tokens of one solution per problem that "
    "the base model sampled itself, unverified, and on whole solutions of {ratio:.0%} of the problems",
    "sft": "fine-tuning on one whole, unverified solution per problem that the base model sampled itself",
    "rft": "rejection-sampling fine-tuning: trained on whole solutions that the base model sampled itself and whose "
    "answer is right",
    "structure_only": "trained on whole, unverified solutions of {ratio:.0%} of the problems (a control for UPFT)",
}
_PAPER = """@article{ji2025first,
  title   = {The First Few Tokens Are All You Need: An Efficient and Effective Unsupervised Prefix Fine-Tuning Method
             for Reasoning Models},
  author  = {Ji, Ke and Xu, Jiahao and Liang, Tian and Liu, Qiuzhi and He, Zhiwei and Chen, Xingyu and Liu, Xiaoyuan
             and Wang, Zhijie and Chen, Junying and Wang, Benyou and Tu, Zhaopeng and Mi, Haitao and Yu, Dong},
  journal = {arXiv preprint arXiv:2503.02875},
  year    = {2025}
}"""


@dataclass(frozen=True)
class Base:
    """What is known of the base model."""

    name: str
    """For people: a Hub id, or the name of a local folder."""
    hub_id: str | None
    """The Hub model that the result derives from; None where the run does not know."""
    license: Mapping[str, str]
    """The card's `license`, `license_name` and `license_link`; empty where it has none."""


def base_of(recipe: Recipe, folder: Path) -> Base:
    """The base model from the recipe and the card in its folder.

    A local folder that carries a card is named after the model that this card derives from.
    """
    card = _metadata(folder / "README.md")
    known = {key: one_line(str(card[key])) for key in ("license", "license_name", "license_link") if card.get(key)}
    if is_hub_model(recipe.model):
        return Base(recipe.model, recipe.model, known)
    above = card.get("base_model")
    above = above[0] if isinstance(above, list) and above else above
    name = recipe.model if recipe.model.startswith("builtin:") else Path(recipe.model).name
    return Base(name, above if isinstance(above, str) and HUB_ID.match(above) else None, known)


def _metadata(card: Path) -> dict[str, Any]:
    """What stands at the head of a model's card; nothing where that is damaged, or too long to be one."""
    try:
        head = _HEAD.match(bounded(card, 4 << 20).decode("utf-8", errors="replace"))
        found = read_yaml(head[1])[0] if head and len(head[1]) <= _HEAD_CHARACTERS else None
    except (ModelError, ValueError, TypeError, RecursionError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def model_card(recipe: Recipe, base: Base, facts: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """README.md: the Hub's metadata, then the card.

    Args:
        recipe: the run's.
        base: the base model.
        facts: what `report.collect` found.
        described: recipe.json, with versions and hashes.
    """
    parts = [
        f"---\n{to_yaml(card_data(recipe, base, facts))}---",
        f"# {_title(recipe)}",
        _opening(recipe, base, facts),
        "## Evaluation",
        _evaluation(facts),
        "## How it was made",
        _making(recipe, facts, described),
        f"The recipe, where it differs from the defaults of upft_mlx:\n\n{fenced(to_yaml(_public(recipe)), 'yaml')}",
        "## How much of the training is in these weights",
        _fidelity(facts["fidelity"]),
        "## Use",
        _use(recipe, base, facts["fidelity"]["fuse"]),
        "## Limits",
        _limits(recipe, facts),
        "## Licence",
        _licence(base),
        "## Citation",
        f"The method:\n\n```bibtex\n{_PAPER}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def card_data(recipe: Recipe, base: Base, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in the Hub's terms."""
    from huggingface_hub import EvalResult, ModelCardData

    entries = {entry.label: entry for entry in resolve(recipe.evaluate)}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=entries[label].dataset or label,
            dataset_name=label,
            dataset_config=entries[label].config,
            dataset_split=entries[label].split,
            metric_type="accuracy",
            metric_name=f"accuracy (95 % interval {s['ci95'][0]:.4f} to {s['ci95'][1]:.4f}, {s['n']} problems)",
            metric_value=round(s["accuracy"], 6),
        )
        for label, sides in facts["benchmarks"].items()
        if (s := sides.get("tuned")) is not None and label in entries and outcome(sides)[0] != "void"
    ]
    fused = facts["fidelity"]["fuse"] != "adapter"
    data = ModelCardData(
        model_name=_title(recipe),
        base_model=base.hub_id,
        base_model_relation=("finetune" if fused else "adapter") if base.hub_id else None,
        library_name="mlx",
        pipeline_tag="text-generation",
        tags=["mlx", "upft_mlx", recipe.method, "reasoning", *([] if fused else ["lora"])],
        datasets=[recipe.problems.dataset] if recipe.problems.dataset else None,
        eval_results=results or None,
        license=base.license.get("license"),
        license_name=base.license.get("license_name"),
        license_link=base.license.get("license_link"),
    )
    return dict(data.to_dict())  # type: ignore[no-untyped-call]


def _title(recipe: Recipe) -> str:
    return recipe.publish.repo.partition("/")[2] if recipe.publish.repo else recipe.name


def _opening(recipe: Recipe, base: Base, facts: Mapping[str, Any]) -> str:
    link = f"[{base.name}](https://huggingface.co/{base.hub_id})" if base.hub_id == base.name else code(base.name)
    what = "A LoRA adapter for" if facts["fidelity"]["fuse"] == "adapter" else "A fine-tune of"
    how = _METHODS[recipe.method].format(length=recipe.prefix.length, ratio=recipe.prefix.structure_ratio)
    quantize = recipe.quantize
    bits = f", quantized to {quantize.bits} bits (groups of {quantize.group_size})" if quantize else ""
    return f"{what} {link}{bits} in MLX format. Method: {how}.{_by_hand(facts)} Made with upft_mlx."


def _by_hand(facts: Mapping[str, Any]) -> str:
    """What somebody changed after it was made: then it is not, or not only, what the model sampled or training made."""
    names = [STAGES[stage["stage"]].adopted_as for stage in facts["stages"] if stage.get("adopted")]
    return "".join(f" **{name} were changed by hand afterwards.**" for name in names)


def _evaluation(facts: Mapping[str, Any]) -> str:
    if not any("tuned" in sides for sides in facts["benchmarks"].values()):
        return "Not evaluated. Whether this model is better than its base is not known."
    rows = ["| benchmark | problems x samples | T | base | tuned | tuned - base | p |", "|---|---|---|---|---|---|---|"]
    rows += [_row(label, sides) for label, sides in facts["benchmarks"].items() if "tuned" in sides]
    verdict = "\n".join(f"- {markdown(line)}" for line in facts["verdict"])
    about = (
        "Accuracy in %, with its 95 % interval; the difference is on the same problems. `tuned` is the base with the "
        "adapter on, before fusing."
    )
    return "\n\n".join(["\n".join(rows), about, verdict])


def _row(label: str, sides: Mapping[str, Any]) -> str:
    def shown(side: Mapping[str, Any]) -> str:
        low, high = side["ci95"]
        return f"{100 * side['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    tuned, paired = sides["tuned"], sides["paired"]
    low, high = paired["ci95"]
    delta = f"{100 * paired['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    settings = f"{markdown(label)} | {tuned['n']} x {tuned['samples']} | {tuned['temperature']:g}"
    return f"| {settings} | {shown(sides['base'])} | {shown(tuned)} | {delta} | {paired['p_value']:.3g} |"


def _making(recipe: Recipe, facts: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    stages = {stage["stage"]: stage for stage in facts["stages"]}
    versions = ", ".join(markdown(f"{name} {version}") for name, version in described["versions"].items())
    lines = [
        f"- data: {_source(recipe)}; fingerprint of the problems {code(described['hashes']['problems'])}",
        f"- base model's fingerprint: {code(described['hashes']['model'])}",
    ]
    if made := stages.get("generate"):
        lines.append(
            f"- sampled: {made['tokens_sampled']:,} tokens ({markdown(made['detail'])}), {made['seconds']:,.0f} s"
        )
    if made := stages.get("train"):
        peak = f"{made['peak_memory_bytes'] / 1e9:.2f} GB"
        tokens = f"{made['tokens_trained']:,} supervised tokens"
        lines.append(f"- trained: {tokens} ({markdown(made['detail'])}), {made['seconds']:,.0f} s, peak memory {peak}")
    return "\n".join([*lines, f"- versions: {versions}"])


def _source(recipe: Recipe) -> str:
    problems = recipe.problems
    if problems.dataset:
        at = f" at revision {markdown(problems.revision)}" if problems.revision else ""
        name = problems.dataset
        link = f"[{name}](https://huggingface.co/datasets/{name})" if HUB_ID.match(name) else code(name)
        return f"{link}, {markdown(problems.split)}{at}"
    return (
        f"the file {code(Path(problems.path).name)}"
        if problems.path
        else f"the problems `{problems.builtin}` of upft_mlx"
    )


def _public(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what says something about the machine: of local paths, the names only."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    if Path(data["model"]).is_absolute():
        data["model"] = Path(data["model"]).name
    for section in (data["problems"], *data.get("evaluate", {}).get("benchmarks", [])):
        if section.get("path"):
            section["path"] = Path(section["path"]).name
    return data


def _fidelity(fidelity: Mapping[str, Any]) -> str:
    if fidelity["fuse"] == "adapter":
        return "All of it: this is the adapter itself."
    return (
        f"Rounding can erase a small fine-tune. Fused as `{fidelity['fuse']}`, these weights keep "
        f"**{fidelity['retained']:.1%}** of the adapter's effect: 1 - KL(adapter || fused) / KL(adapter || base), with "
        f"{fidelity['kl']:.3g} and {fidelity['kl_base']:.3g} nats per position. They agree with the adapter on the "
        f"most likely token at {fidelity['top1_agreement']:.1%} of the positions, and repeat "
        f"{fidelity['greedy_agreement']:.1%} of its first greedy tokens (the base model: "
        f"{fidelity['base']['greedy_agreement']:.1%}). Measured on {fidelity['rows']} held-out rows and "
        f"{fidelity['prompts']} prompts."
    )


def _use(recipe: Recipe, base: Base, fuse: str) -> str:
    name = recipe.publish.repo or "PATH/TO/THIS/FOLDER"
    if fuse == "adapter":
        model = shlex.quote(one_line(base.hub_id or base.name))
        commands = (
            f"hf download {name} --local-dir adapter\n"
            f'python -m mlx_lm generate --model {model} --adapter-path adapter --prompt "..."'
        )
        quantized = "The base must be quantized first, as in training: `mlx_lm convert -q`. "
        before = quantized if recipe.quantize else ""
        return f"{before}With [mlx-lm](https://github.com/ml-explore/mlx-lm):\n\n{fenced(commands, 'sh')}"
    asked = recipe.prompt.system or recipe.prompt.instruction not in (None, "{question}")
    prompt = " Trained and evaluated with the system turn and instruction of the recipe above." if asked else ""
    return (
        "With [mlx-lm](https://github.com/ml-explore/mlx-lm), no other code needed:\n\n```sh\n"
        f'python -m mlx_lm generate --model {name} --prompt "..."\npython -m mlx_lm server --model {name}\n```\n\n'
        "transformers does not read MLX's quantized weights. `upft export RECIPE --format dequantized` writes a folder "
        f"that it loads, `--format peft` the adapter for PEFT.{prompt}"
    )


def _limits(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    lines = ["It knows what its base knows, with its base's faults; the training adds no facts and no safety."]
    if recipe.method in ("upft", "sft", "structure_only"):
        lines.append("The solutions that it was trained on were not checked: some are wrong.")
    if facts["benchmarks"]:
        lines.append(
            "The evaluation covers the benchmarks above and nothing else. An interval that includes 0 shows no "
            "measurable change."
        )
    return "\n".join(f"- {line}" for line in lines)


def _licence(base: Base) -> str:
    if not base.license:
        return (
            f"Not known to upft_mlx: the folder of {code(base.name)} has no card that states one. The base model's "
            "licence applies; look it up before you pass these weights on."
        )
    name = markdown(base.license.get("license_name") or base.license.get("license") or "")
    above = f"Inherited from the base model {code(base.name)}: {name}, as its card says."
    return f"{above} Its terms apply to these weights."
