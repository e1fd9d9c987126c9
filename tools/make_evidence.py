"""Writes docs/measured/evidence.md and docs/assets/evidence.json: does choosing a prefix help? python
tools/make_evidence.py WORK

Two toy worlds. "careful": the embedded model, whose commonest voice is careful. "careless": the same model taught, by
LoRA on solutions of the pretraining problems, voices in other shares, so that the commonest one is careless; the
lengths are the same. For each rule that chooses training rows, each setting is tried with two seeds and judged on one
half of the evaluation problems ("choose"); the best setting gets five seeds and is reported on the other half
("report").

It takes about half an hour per world on one core; WORK keeps what is done, so that it can be interrupted. `--worlds
careful` and `--worlds careless` can run beside each other; without it the pages are written from both. `--forms`
measures only what the recipe's defaults and the paper's form of a row give, sampled and greedy, and adds that to the
pages.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upft_mlx.demo import world as demo
from upft_mlx.recipe.schema import Recipe, Train
from upft_mlx.rows import TrainingRow, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.studies.compare import run_cell
from upft_mlx.studies.method_table import Cell, summarize

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "upft_mlx" / "demo" / "model"
WORLDS = ("careful", "careless")
SHARES = {"planner": 0.18, "stepper": 0.27, "hasty": 0.43, "direct": 0.12}
"""Of the voices in the careless world; in the careful one planner and hasty are the other way round."""
CHOOSE_SEEDS, REPORT_SEEDS = 2, 5
PROBLEMS, HALF = 256, 256
LENGTH = 8
BUDGET = 0.25
"""Of RFT's sampled tokens: what a cheap rule may take."""


@dataclass(frozen=True)
class Rule:
    """A way to choose training rows."""

    name: str
    method: str
    selection: str = "first"
    samples: int = 1
    labels: bool = False


RULES = (
    Rule("first", "upft"),
    Rule("consensus of 16", "upft", "consensus", 16),
    Rule("majority answer of 4", "upft", "majority_answer", 4),
    Rule("majority answer of 8", "upft", "majority_answer", 8),
    Rule("confidence of 8", "upft", "confidence", 8),
    Rule("longest of 8", "upft", "longest", 8),
    Rule("label of 16", "upft", "label", 16, labels=True),
    Rule("full, majority answer of 4", "sft", "majority_answer", 4),
    Rule("full, majority answer of 8", "sft", "majority_answer", 8),
    Rule("RFT of 16", "rft", samples=16, labels=True),
)
RFT = RULES[-1].name
PREFIX_SETTINGS = {
    "template, p = 0.1, lr 1e-3": ({"structure_ratio": 0.1, "template": "paper", "eos": True}, 1e-3),
    "no template, p = 0.3, lr 1e-3": ({"structure_ratio": 0.3, "template": "none", "eos": False}, 1e-3),
    "no template, p = 0.3, lr 3e-4": ({"structure_ratio": 0.3, "template": "none", "eos": False}, 3e-4),
}
PAPER = {"structure_ratio": 0.1, "template": "paper", "eos": True}
RATE = Train().learning_rate
FORMS: dict[str, tuple[Rule, dict[str, Any], float]] = {
    "first, the defaults": (RULES[0], {}, RATE),
    "first, the paper's form": (RULES[0], PAPER, RATE),
    "first, the paper's form, lr 1e-3": (RULES[0], PAPER, 1e-3),
    "consensus of 16, the defaults": (RULES[1], {}, RATE),
    "consensus of 16, the paper's form": (RULES[1], PAPER, RATE),
}
"""What is measured as it is, without choosing: a rule, `prefix` fields beside the defaults, and a learning rate."""
FORM_SEEDS = 3
FULL_SETTINGS: dict[str, tuple[dict[str, Any], float]] = {"lr 1e-3": ({}, 1e-3), "lr 3e-4": ({}, 3e-4)}


def settings(rule: Rule) -> dict[str, tuple[dict[str, Any], float]]:
    """What is tried of a rule: `prefix` fields and learning rate."""
    return PREFIX_SETTINGS if rule.method == "upft" else FULL_SETTINGS


def recipe(model: Path, rule: Rule | None, setting: str, seed: int, work: Path) -> Recipe:
    """Of one cell; without a rule that of the base model."""
    prefix, rate = settings(rule)[setting] if rule else ({}, 1e-3)
    halves = [{"name": half, "path": str(work / f"{half}.jsonl")} for half in ("choose", "report")]
    return Recipe.model_validate(
        {
            "name": "evidence",
            "model": str(model),
            "seed": seed,
            "method": rule.method if rule else "upft",
            "problems": {"builtin": "arithmetic", "limit": PROBLEMS},
            "prompt": {"instruction": "{question}"},
            "generate": {"max_tokens": 64, "batch_size": 128, "samples": rule.samples if rule else 1},
            "prefix": {"length": LENGTH, "selection": rule.selection if rule else "first", **prefix},
            "train": {"epochs": 2, "learning_rate": rate, "valid_ratio": 0.0, "save": "last"},
            "evaluate": {
                "benchmarks": halves,
                "samples": 3,
                "temperature": 0.7,
                "max_tokens": 64,
                "batch_size": 128,
            },
        }
    )


def write_halves(work: Path) -> None:
    """The evaluation problems, the kinds equally frequent in both halves."""
    rows = (ROOT / "upft_mlx" / "demo" / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    work.mkdir(parents=True, exist_ok=True)
    for number, half in enumerate(("choose", "report")):
        (work / f"{half}.jsonl").write_text("".join(rows[number * HALF : (number + 1) * HALF]), encoding="utf-8")


# The careless world.


def make_sibling(folder: Path, work: Path) -> None:
    """The embedded model, taught the voices in other shares, as a folder of float16 weights."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.lora import LoRALinear

    from upft_mlx.models.load import load
    from upft_mlx.training.train import train

    loaded, run = load(MODEL), RunDir(work / "sibling")
    write_rows(run.train, sibling_rows(loaded.tokenizer))
    write_rows(run.valid, [])
    taught = Recipe.model_validate(
        {
            "model": str(MODEL),
            "problems": {"builtin": "arithmetic"},
            "lora": {"rank": 64},
            "train": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "schedule": "cosine", "save": "last"},
        }
    )
    train(taught, loaded, run)
    fused = [(name, part.fuse()) for name, part in loaded.model.named_modules() if isinstance(part, LoRALinear)]
    loaded.model.update_modules(tree_unflatten(fused))
    loaded.model.set_dtype(mx.float16)
    shutil.copytree(MODEL, folder)
    weights = dict(tree_flatten(loaded.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def sibling_rows(tokenizer: Any, count: int = 8000) -> Iterator[TrainingRow]:
    """Pretraining problems, each solved by a voice that was drawn with `SHARES`."""
    rng = random.Random("careless")
    for take, problem in zip(range(count), demo.stream("pretrain", seed=1), strict=False):
        (voice,) = rng.choices(list(SHARES), list(SHARES.values()))
        text = demo.solution(problem, voice, take)
        messages = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        yield TrainingRow(f"{take}/0", str(take), 0, "full", problem.question, text, [int(i) for i in prompt], ids)


# The study.


class World:
    """All cells of one world."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work, self.root = name, work, work / name
        self.model = MODEL if name == "careful" else work / "careless-model"
        if name == "careless" and not self.model.exists():
            temporary = work / "careless-model.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            make_sibling(temporary, work)
            temporary.rename(self.model)

    def cell(self, rule: Rule | None, setting: str, seed: int) -> Cell:
        """Run it, or read what it found; solutions are shared among cells that sample alike."""
        name = rule.name if rule else "base"
        folder = self.root / f"{name}, {setting}".replace(" ", "_").replace(",", "") / f"seed-{seed}"
        donors = [RunDir(path) for path in sorted(self.root.glob(f"*/seed-{seed}")) if path != folder]
        made = recipe(self.model, rule, setting, seed, self.work)
        print(f"{self.name}: {name}; {setting or '-'}; seed {seed}", flush=True)
        return run_cell(made, name, folder, donors)

    def study(self) -> dict[str, Any]:
        """For each rule its setting, and what that gave on the other half."""
        base = [self.cell(None, "", seed) for seed in range(REPORT_SEEDS)]
        cells, chosen = list(base), {}
        for rule in RULES:
            tried = {
                setting: [self.cell(rule, setting, seed) for seed in range(CHOOSE_SEEDS)] for setting in settings(rule)
            }
            gains = {setting: gain([*base, *few], rule.name, "choose") for setting, few in tried.items()}
            best = max(gains, key=lambda setting: gains[setting])
            chosen[rule.name] = {"setting": best, "gains": gains}
            cells += tried[best] + [self.cell(rule, best, seed) for seed in range(CHOOSE_SEEDS, REPORT_SEEDS)]
        return {"chosen": chosen, **asdict(summarize(cells, comparisons=1))}

    def forms(self) -> dict[str, Any]:
        """What each of `FORMS` gives on the report half, sampled and greedy."""
        cells = []
        for name, (rule, prefix, rate) in {"base": (RULES[0], {}, RATE), **FORMS}.items():
            for seed in range(FORM_SEEDS):
                data = recipe(self.model, None, "", seed, self.work).model_dump()
                data["generate"]["samples"] = rule.samples
                data["prefix"] |= {"selection": rule.selection, **prefix}
                data["train"]["learning_rate"] = rate
                report = {"path": str(self.work / "report.jsonl")}
                greedy = {"name": "report-greedy", "samples": 1, "temperature": 0.0, **report}
                data["evaluate"]["benchmarks"] = [{"name": "report", **report}, greedy]
                root = self.root / "forms"
                folder = root / re.sub("[^a-z0-9]+", "-", name) / f"seed-{seed}"
                donors = [RunDir(path) for path in sorted(root.glob(f"*/seed-{seed}")) if path != folder]
                print(f"{self.name}: {name}; seed {seed}", flush=True)
                cells.append(run_cell(Recipe.model_validate(data), name, folder, donors))
        return {name: row["benchmarks"] for name, row in asdict(summarize(cells, comparisons=1))["methods"].items()}


def gain(cells: list[Cell], rule: str, half: str) -> float:
    """Mean difference to base."""
    difference = summarize(cells, comparisons=1).methods[rule].benchmarks[half].difference
    assert difference
    return difference.delta


# The pages.


def page(found: dict[str, Any]) -> str:
    """docs/measured/evidence.md."""
    parts = [HEADER.format(seeds=REPORT_SEEDS, choose=CHOOSE_SEEDS, problems=PROBLEMS, half=HALF, length=LENGTH)]
    for name in WORLDS:
        parts += [f"## World: {name}\n", table(found[name]), "Settings that were chosen:\n", chosen_list(found[name])]
    if all("forms" in found[name] for name in WORLDS):
        parts += ["## The defaults, and the paper's form\n", forms_table(found)]
    parts += [REAL, "## What can be claimed\n", claims(found)]
    return "\n".join(parts)


REAL = """## World: a real model

SmolLM2-135M-Instruct on problems with one step: what each rule was forecast there and what training changed, sampled
and greedy, each with its interval, is on [Does the forecast hold?](forecast.md#smollm2-135m-instruct).
"""

HEADER = """# Evidence: does it matter which prefix is trained?

Written by `tools/make_evidence.py`; do not edit. Toy worlds and a toy model (docs/measured/demo-model.md): what is
shown here is how the rules compare there, not what they do for a real model.

- careful: the embedded model. Its commonest voice plans first and is right; careless voices have 30 % of the corpus.
- careless: the same model taught the voices in other shares; the commonest one is careless. Same lengths. What most
  samples agree on is often wrong there: the world in which choosing without labels should fail, if it can.

{problems} problems, t = {length}, two epochs. Evaluation at T = 0.7, three samples per problem. Settings (template with
an EOS after the prefix, or neither; share p of structure rows; learning rate) were chosen with {choose} seeds on {half}
evaluation problems; reported are {seeds} seeds on {half} others. The question is asked bare throughout. Differences are
paired with the base model by problem and seed; intervals are 95 %, over problems and seeds
(`upft_mlx/studies/two_way.py`). Sampled tokens are those for training. "Share of RFT" is the rule's difference divided
by that of RFT.
"""


def table(world: dict[str, Any]) -> str:
    """One line per rule, on the report half."""
    lines = [
        "| rule | labels | tokens sampled (of RFT's) | tokens trained (of RFT's) | accuracy "
        "| difference to base (points) | share of RFT |",
        "|---|---|---|---|---|---|---|",
    ]
    rft = world["methods"][RFT]
    base = world["methods"]["base"]["benchmarks"]["report"]["accuracy"]
    lines.append(f"| base | | | | {base:.1%} | | |")
    for rule in RULES:
        row = world["methods"][rule.name]
        result = row["benchmarks"]["report"]
        delta, (low, high) = result["difference"]["delta"], result["difference"]["ci95"]
        costs = [f"{row[k]:,.0f} ({row[k] / rft[k]:.1%})" for k in ("tokens_sampled", "tokens_trained")]
        lines.append(
            f"| {rule.name} | {'yes' if rule.labels else 'no'} | {costs[0]} | {costs[1]} | {result['accuracy']:.1%} "
            f"| {100 * delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | {share_of_rft(world, rule):.0%} |"
        )
    return "\n".join(lines) + "\n"


def share_of_rft(world: dict[str, Any], rule: Rule) -> float:
    """Of RFT's difference to base."""
    of = {name: world["methods"][name]["benchmarks"]["report"]["difference"]["delta"] for name in (rule.name, RFT)}
    return float(of[rule.name] / of[RFT])


def chosen_list(world: dict[str, Any]) -> str:
    """The settings, with what the others gave on the half that chose."""
    lines = []
    for name, choice in world["chosen"].items():
        gains = "; ".join(f"{setting}: {100 * value:+.1f}" for setting, value in choice["gains"].items())
        lines.append(f"- {name}: **{choice['setting']}** ({gains})")
    return "\n".join(lines) + "\n"


def forms_table(found: dict[str, Any]) -> str:
    """What `FORMS` measured, a line per world and form."""
    lines = [
        f"Nothing was chosen here: {FORM_SEEDS} seeds, p = 0.1, a learning rate of {RATE:g} unless another one is "
        "named. The defaults are no template and no EOS; the paper's form has both. Greedy: one answer per problem.\n",
        "| world | rule and form | sampled (points) | greedy (points) |",
        "|---|---|---|---|",
    ]
    for world in WORLDS:
        for name, results in found[world]["forms"].items():
            if name == "base":
                cells = [f"base: {results[label]['accuracy']:.1%}" for label in ("report", "report-greedy")]
            else:
                of = [results[label]["difference"] for label in ("report", "report-greedy")]
                cells = [f"{100 * d['delta']:+.1f} [{100 * d['ci95'][0]:+.1f}, {100 * d['ci95'][1]:+.1f}]" for d in of]
            lines.append(f"| {world} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claims(found: dict[str, Any]) -> str:
    """Only what the intervals allow."""
    lines = []
    for rule in RULES:
        verdicts = []
        for name in WORLDS:
            low, high = found[name]["methods"][rule.name]["benchmarks"]["report"]["difference"]["ci95"]
            verdicts.append(f"{name}: {'better' if low > 0 else 'worse' if high < 0 else 'no measurable change'}")
        lines.append(f"- {rule.name}: {', '.join(verdicts)}.")
    good = [rule.name for rule in RULES if not rule.labels and cheap_and_good(found, rule)]
    if good:
        lines.append(
            f"\nWithout labels, on at most {BUDGET:.0%} of the tokens that RFT samples, better than base in both "
            f"worlds and with at least 80 % of RFT's difference in both: {', '.join(good)}."
        )
    else:
        lines.append(
            f"\nNo rule without labels that samples at most {BUDGET:.0%} of RFT's tokens was better than base in both "
            "worlds with at least 80 % of RFT's difference."
        )
    return "\n".join(lines) + "\n"


def cheap_and_good(found: dict[str, Any], rule: Rule) -> bool:
    """A quarter of the tokens, four fifths of the gain, in both worlds, and the gain is not noise."""
    for name in WORLDS:
        row, rft = found[name]["methods"][rule.name], found[name]["methods"][RFT]
        cheap = row["tokens_sampled"] <= BUDGET * rft["tokens_sampled"] * 1.005
        sure = row["benchmarks"]["report"]["difference"]["ci95"][0] > 0
        if not (cheap and sure and share_of_rft(found[name], rule) >= 0.8):
            return False
    return True


def main() -> None:
    """The study, then the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--worlds", choices=WORLDS, help="only one; the pages are not written")
    parser.add_argument("--forms", action="store_true", help="only the defaults and the paper's form")
    options = parser.parse_args()
    work = options.work.resolve()
    write_halves(work)
    names = [options.worlds] if options.worlds else WORLDS
    data = ROOT / "docs/assets/evidence.json"
    found = json.loads(data.read_text(encoding="utf-8"))
    for name in names:
        world = World(name, work)
        found[name] = {**found[name], "forms": world.forms()} if options.forms else {**found[name], **world.study()}
    if options.worlds is None:
        data.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        ROOT.joinpath("docs/measured/evidence.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
