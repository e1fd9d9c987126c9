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
from upft_mlx.dataset.selection import PICKED
from upft_mlx.errors import ModelError
from upft_mlx.escape import code, one_line
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models.files import bounded
from upft_mlx.models.find import HUB_ID, is_hub_model
from upft_mlx.quantities import difference, many, p_value, percent
from upft_mlx.recipe.safe_yaml import read_yaml, to_yaml
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results import templates
from upft_mlx.results.facts import RunFacts
from upft_mlx.results.report import outcome
from upft_mlx.rows import write_atomically
from upft_mlx.rundir import fingerprint
from upft_mlx.stages import STAGES

_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HEAD_CHARACTERS = 128 * 1024
_MARK = re.compile(r"\n<!-- upft_mlx: ([0-9a-f]{16}) -->\s*")
_METHODS = {
    "upft": "Prefix Fine-Tuning: trained on the first {length} of one solution per problem that the base model "
    "sampled itself, {checked}, and on whole solutions of {ratio} of the problems",
    "sft": "fine-tuning on one whole solution per problem that the base model sampled itself, {checked}",
    "rft": "rejection-sampling fine-tuning: trained on whole solutions that the base model sampled itself and whose "
    "answer is right",
    "annotated": "fine-tuning on the dataset's own solutions",
    "structure_only": "trained on whole, unverified solutions of {ratio} of the problems (a control for UPFT)",
}
_CHECKED = {
    "none": "unverified",
    "some": "with the right answer for the at most {answers} problems whose answers were used, unverified for others",
    "all": "with the right answer",
}


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
    try:  # what stands at the head of its card; nothing where that is damaged, or too long to be one
        head = _HEAD.match(bounded(folder / "README.md", 4 << 20).decode("utf-8", errors="replace"))
        found = read_yaml(head[1])[0] if head and len(head[1]) <= _HEAD_CHARACTERS else None
    except (ModelError, ValueError, TypeError, RecursionError, YAMLError):
        found = None
    card: dict[str, Any] = found if isinstance(found, dict) else {}
    known = {key: one_line(str(card[key])) for key in ("license", "license_name", "license_link") if card.get(key)}
    if is_hub_model(recipe.model):
        return Base(recipe.model, recipe.model, known)
    above = card.get("base_model")
    above = above[0] if isinstance(above, list) and above else above
    name = recipe.model if recipe.model.startswith("builtin:") else Path(recipe.model).absolute().name
    return Base(name, above if isinstance(above, str) and HUB_ID.match(above) else None, known)


def model_card(recipe: Recipe, base: Base, facts: RunFacts, described: Mapping[str, Any]) -> str:
    """README.md: the Hub's metadata, then the card.

    Args:
        recipe: the run's.
        base: the base model.
        facts: the run's, with its fidelity.
        described: recipe.json, with versions and hashes.
    """
    fidelity, problems = facts.fidelity, recipe.problems
    assert fidelity is not None
    adapter = fidelity.fuse == "adapter"
    stages = {stage.stage: stage for stage in facts.stages}
    name = recipe.publish.repo or "PATH/TO/THIS/FOLDER"
    if adapter:
        model = shlex.quote(one_line(base.hub_id or base.name))
        use = f'python -m mlx_lm generate --model {model} --adapter-path adapter --prompt "..."'
        commands = f"hf download {name} --local-dir adapter\n{use}"
    else:
        commands = f'python -m mlx_lm generate --model {name} --prompt "..."\npython -m mlx_lm server --model {name}'
    method = _METHODS[recipe.method].format(
        length=many(recipe.prefix.length, "token"),
        ratio=percent(recipe.prefix.structure_ratio, 0),
        checked=_CHECKED[recipe.checks].format(answers=recipe.forecast.problems),
    )
    if recipe.method == "upft" and recipe.checks == "none" and recipe.prefix.selection != "rollouts":
        method = f"Unsupervised {method}"
    if recipe.generate.samples > 1 and recipe.prefix.selection != "first":
        method += f"; of several samples, {PICKED[recipe.prefix.selection]} trained"
    template = templates.markdown(Path(__file__).parent).get_template("card.md")
    return template.render(
        metadata=to_yaml(card_data(recipe, base, facts)),
        title=_title(recipe),
        recipe=recipe,
        base=base,
        facts=facts,
        described=described,
        fidelity=fidelity,
        problems=problems,
        adapter=adapter,
        above=_link(base.name, "") if base.hub_id == base.name else code(base.name),
        method=method,
        by_hand=[STAGES[name].adopted_as for name, stage in stages.items() if stage.adopted],
        compared={label: found.compared for label, found in facts.benchmarks.items() if found.compared},
        certainty={
            label: "void" if outcome(found)[0] == "void" else p_value(found.paired.p_value).removeprefix("p ")
            for label, found in facts.benchmarks.items()
            if found.paired and found.compared
        },
        difference=difference,
        stages=stages,
        source=_link(problems.dataset or "", "datasets/"),
        file=Path(problems.path or "").name,
        yaml=to_yaml(_public(recipe, base)),
        commands=commands,
        asked=recipe.prompt.system or recipe.prompt.instruction not in (None, "{question}"),
        license=base.license.get("license_name") or base.license.get("license"),
    )


def write_card(folder: Path, text: str, notify: Observer = ignore) -> None:
    """Write README.md with a checksum of its text; keep the old one beside it unless it is as this version wrote it."""
    place, line = folder / "README.md", "\n<!-- upft_mlx: {} -->\n"
    there = place.read_bytes().decode(errors="replace") if place.is_file() else ""
    mark = _MARK.search(there)
    own = mark is not None and mark[1] == fingerprint({"card": there[: mark.start()] + there[mark.end() :]})
    if there.strip() and not own and there != text:
        names = ("README-by-hand.md", *(f"README-by-hand-{number}.md" for number in range(2, 10_000)))
        aside = next(folder / name for name in names if not (folder / name).exists())
        place.rename(aside)
        whose = "was changed by hand" if mark else "was written by hand or by an earlier version"
        notify(Note(f"{place} {whose}: renamed to {aside.name}, and a new card is written from the run"))
    write_atomically(place, text + line.format(fingerprint({"card": text})))


def _link(name: str, kind: str) -> str:
    """A link to a Hub repository; the name alone where it is none."""
    return f"[{name}](https://huggingface.co/{kind}{name})" if HUB_ID.match(name) else code(name)


def card_data(recipe: Recipe, base: Base, facts: RunFacts) -> dict[str, Any]:
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
            metric_name=f"accuracy (95 % interval {s.ci95[0]:.4f} to {s.ci95[1]:.4f}, {many(s.n, 'problem')})",
            metric_value=round(s.accuracy, 6),
        )
        for label, result in facts.benchmarks.items()
        if (s := result.tuned) is not None and label in entries and outcome(result)[0] != "void"
    ]
    fused = facts.fidelity is not None and facts.fidelity.fuse != "adapter"
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


def _public(recipe: Recipe, base: Base) -> dict[str, Any]:
    """The recipe without what says something about the machine: of local paths, the names only."""
    data = {**recipe.model_dump(mode="json", exclude_defaults=True), "model": base.name}
    if start := data.get("lora", {}).get("start_from"):
        data["lora"]["start_from"] = Path(start).name
    for section in (data["problems"], *data.get("evaluate", {}).get("benchmarks", [])):
        if section.get("path"):
            section["path"] = Path(section["path"]).name
    if template := data.get("prompt", {}).get("chat_template"):
        data["prompt"]["chat_template"] = Path(template).name
    return data
