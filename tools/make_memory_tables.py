"""Writes the tables of docs/start/macs.md, between its markers: python tools/make_memory_tables.py

They are what `upft plan` computes (`upft_mlx/planning/budget.py`) for models of these shapes. `CONFIGS` serves the
tests of the shipped recipes as well.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from upft_mlx.models.architecture import Architecture, from_config
from upft_mlx.planning.budget import MARGIN, MemoryPlan, another_mac, changed
from upft_mlx.planning.lengths import Prompts, Solutions
from upft_mlx.recipe.schema import Recipe

GB = 1e9


def _config(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    *,
    tied: bool = False,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """The fields of a config.json that memory depends on."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        **({"head_dim": head_dim} if head_dim else {}),
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5 0.5B": _config(896, 4864, 24, 14, 2, 151_936, tied=True),
    "Qwen2.5 1.5B": _config(1536, 8960, 28, 12, 2, 151_936, tied=True),
    "Qwen2.5 3B": _config(2048, 11008, 36, 16, 2, 151_936, tied=True),
    "Qwen3 4B": _config(2560, 9728, 36, 32, 8, 151_936, tied=True, head_dim=128),
    "Qwen3.5 4B": {  # THUDM/slime, scripts/models/qwen3.5-4B.sh, taken from its config.json
        **_config(2560, 9216, 32, 16, 4, 248_320, tied=True, head_dim=256),
        "linear_num_key_heads": 16,  # three of four layers keep a state: the plan counts keys and values, too many
    },
    "Qwen2.5 7B": _config(3584, 18944, 28, 28, 4, 152_064),
    "Llama 3.1 8B": _config(4096, 14336, 32, 32, 8, 128_256),
    "Qwen3 8B": _config(4096, 12288, 36, 32, 8, 151_936, head_dim=128),
    "Qwen2.5 14B": _config(5120, 13824, 48, 40, 8, 152_064),
    "Qwen2.5 32B": _config(5120, 27648, 64, 40, 8, 152_064),
}
"""From the models' public config.json; quantization is left out."""
MACS = (8, 16, 24, 32, 48, 64, 128)
"""GB of memory."""
BITS = (16, 8, 4)
PROMPT, LONGEST, TEMPLATE, SHARED = 130, 200, 25, 25
"""Tokens that are assumed: of a question on average, of the longest, of the task template, of what all begin with."""
RECIPE = Recipe.model_validate(
    {
        "name": "table",
        "model": "any/model",
        "problems": {"dataset": "any/data"},
        "generate": {"max_tokens": 1024, "batch_size": "auto"},
        "evaluate": {"max_tokens": 1024, "batch_size": "auto"},
        "publish": {"fuse": "mixed"},
    }
)
"""The defaults, with solutions of at most 1,024 tokens."""
WITHOUT_FULL = {"prefix.structure_ratio": 0.0}
CHECKPOINT = {"train.grad_checkpoint": True}


def architecture(name: str, bits: int = 16) -> Architecture:
    """A model's shapes, its matrices with so many bits in groups of 64 (16: as they are)."""
    quantization = {} if bits == 16 else {"quantization": {"bits": bits, "group_size": 64}}
    return from_config({**CONFIGS[name], **quantization})


@cache
def memory_plan(name: str, bits: int, gigabytes: float) -> MemoryPlan:
    """A model on a Mac, with 1,000 problems of the lengths that are assumed."""
    asked = Prompts(1000, PROMPT, [LONGEST], SHARED)
    trained = Prompts(1000, PROMPT + TEMPLATE, [LONGEST + TEMPLATE], SHARED)
    limit = RECIPE.generate.max_tokens
    solutions = Solutions(limit / 2, limit, [limit], limit / 2, 1.0, "assumed")
    return MemoryPlan(
        architecture(name, bits), asked, trained, solutions, {(None, None): asked}, another_mac(gigabytes)
    )


def weights_table() -> str:
    """Bytes of the weights by bits."""
    rows = ["| model | parameters | 4 bits | 8 bits | 16 bits |", "|---|---|---|---|---|"]
    for name in CONFIGS:
        sizes = " | ".join(f"{architecture(name, bits).weight_bytes(2) / GB:.2f} GB" for bits in (4, 8, 16))
        rows.append(f"| {name} | {architecture(name).parameters / 1e9:.2f} billion | {sizes} |")
    return "\n".join(rows)


def batches(size: int) -> dict[str, Any]:
    """So many sequences at a time in sampling and evaluation."""
    return {"generate.batch_size": size, "evaluate.batch_size": size}


def stages_table() -> str:
    """Peak memory of each stage of 4-bit models."""
    heads = (
        *("sampling, 8", "sampling, 32", "training, prefixes", "full solutions", "checkpointed"),
        *("fusing, `mixed`", "16 bits"),
    )
    rows = [f"| model | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in CONFIGS:
        plan = memory_plan(name, 4, 64)
        sampling = [plan.peak("evaluate", changed(RECIPE, batches(n))) for n in (8, 32)]
        training = [plan.peak("train", changed(RECIPE, fields)) for fields in (WITHOUT_FULL, {}, CHECKPOINT)]
        fusing = [plan.peak("fuse", changed(RECIPE, {"publish.fuse": w})) for w in ("mixed", "auto")]
        cells = [f"{peak / GB:.1f} GB" for peak in (*sampling, *training, *fusing)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def fits(name: str, bits: int, gigabytes: float, *, checkpoint: bool, fuse: str = "adapter") -> bool:
    """Whether all stages fit, with as much to spare as the formulas may be wrong."""
    plan = memory_plan(name, bits, gigabytes)
    recipe = plan.settle(changed(RECIPE, {"train.grad_checkpoint": checkpoint, "publish.fuse": fuse}))
    return all(peak <= MARGIN * plan.machine.bytes for peak in plan.peaks(recipe).values())


def most_bits(name: str, gigabytes: float) -> str:
    """The most bits with which a model fits or, marked, fits with checkpointing."""
    for bits in BITS:
        for checkpoint, mark in ((False, ""), (True, "*")):
            if fits(name, bits, gigabytes, checkpoint=checkpoint):
                return f"{bits}{mark}"
    return "no"


def largest_fused(gigabytes: float) -> str:
    """The largest model of 4 bits that fits when it is fused as well."""
    return [name for name in CONFIGS if fits(name, 4, gigabytes, checkpoint=True, fuse="mixed")][-1]


def fits_table() -> str:
    """The most bits that each Mac has room for."""
    budgets = " | ".join(f"{another_mac(memory).bytes / GB:.1f} GB" for memory in MACS)
    rows = [
        "| model | " + " | ".join(f"{memory} GB" for memory in MACS) + " |",
        "|---|" + "---|" * len(MACS),
        f"| (working set, about) | {budgets} |",
    ]
    rows += [f"| {name} | " + " | ".join(most_bits(name, memory) for memory in MACS) + " |" for name in CONFIGS]
    rows.append(f"| fused from 4 bits, up to | {' | '.join(map(largest_fused, MACS))} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("weights", weights_table()), ("stages", stages_table()), ("fits", fits_table())):
        pattern = rf"(<!-- {name} -->\n\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, f"docs/start/macs.md has {count} places for the table {name}"
    return text


if __name__ == "__main__":
    page = Path(__file__).resolve().parent.parent / "docs/start/macs.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
