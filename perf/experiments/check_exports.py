"""Do transformers and peft compute what MLX computes from our exports?

    python3 -m venv /tmp/torch && /tmp/torch/bin/pip install torch transformers peft     # an environment of its own
    python perf/experiments/check_exports.py --torch-python /tmp/torch/bin/python

For tiny random models of several families, written by transformers, and an adapter of random weights:

- `upft export --format peft`: logits of MLX with the adapter on against peft's on the same base;
- the other way: adapters that peft wrote (plain, rsLoRA, DoRA, ranks and alphas of their own), in peft and in MLX;
- `upft export --format dequantized`, from the model quantized to 4 bits: logits of MLX against transformers' on that
  folder, and how much of the adapter's effect the rounding to 16 bits keeps.

All in float32 on the CPU. Prints for each the largest difference of a logit beside the largest effect that the adapter
has on one, and ends with status 1 where a difference is above 0.1 % of the effect. Results: docs/use/fusing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).resolve().parent.parent.parent / "upft_mlx" / "demo" / "model"
TOKENS = [[11, 12, 13, 14, 15, 120, 7, 300]]
TOLERANCE = 1e-3
"""Of the largest effect of the adapter on a logit."""
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 608,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    "mistral": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}


THEIRS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"down_proj": 4}, "layers_to_transform": [1]},
}
"""Adapters of peft's: what differs from the defaults."""


def make(work: Path) -> None:
    """In torch's Python: write a random model of each family, and adapters of peft's with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, own in FAMILIES.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **COMMON, **own)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.08)
        model.to(torch.float32).save_pretrained(work / family / "base")
        # transformers 5 writes `rope_parameters` alone, mlx-lm's qwen2 reads `rope_theta` alone, as on the Hub.
        path = work / family / "base" / "config.json"
        written = json.loads(path.read_text())
        path.write_text(json.dumps({**written, "rope_theta": written["rope_parameters"]["rope_theta"]}))
        for kind, settings in THEIRS.items():
            base = AutoModelForCausalLM.from_pretrained(work / family / "base", dtype=torch.float32)
            adapted = get_peft_model(
                base, LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"], **settings)
            )
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
                elif "magnitude" in name:
                    parameter.data *= 1.1
            adapted.save_pretrained(work / family / kind)


def compare(work: Path) -> None:
    """In torch's Python: the logits of peft and of transformers beside those that MLX wrote."""
    import torch
    from peft import PeftModel
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    tokens, found = torch.tensor(TOKENS), {}
    for family in FAMILIES:
        ours = load_file(work / family / "logits.safetensors")
        base = AutoModelForCausalLM.from_pretrained(work / family / "base", dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, work / family / "peft")
        dequantized = AutoModelForCausalLM.from_pretrained(work / family / "dequantized", dtype=torch.float32)
        with torch.no_grad():
            theirs = {"peft": adapted(tokens).logits, "dequantized": dequantized(tokens).logits}
            for kind in THEIRS:
                again = AutoModelForCausalLM.from_pretrained(work / family / "base", dtype=torch.float32)
                theirs[kind] = PeftModel.from_pretrained(again, work / family / kind)(tokens).logits
        found[family] = {
            "effect": float(abs(ours["peft"] - ours["base"]).max()),
            **{kind: float(abs(logits.numpy() - ours[kind]).max()) for kind, logits in theirs.items()},
        }
    (work / "found.json").write_text(json.dumps(found))


def export(work: Path, family: str) -> str:
    """With MLX: an adapter, its exports and the logits; returns what the dequantized export said."""
    import shutil

    import mlx.core as mx

    from upft_mlx.fusing.export import export_dequantized, export_peft
    from upft_mlx.models.adapters import adapter_weights, add_lora, load_adapter
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Quantize, Recipe
    from upft_mlx.rows import TrainingRow, write_json, write_rows
    from upft_mlx.rundir import RunDir
    from upft_mlx.training.checkpoints import save_safetensors

    base, run = work / family / "base", RunDir(work / family / "run")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, base / name)
    loaded = load(base)
    logits = {"base": loaded.model(mx.array(TOKENS))}
    config = add_lora(loaded, Lora(rank=4, scale=2.0), seed=0)
    mx.random.seed(1)
    arrays = adapter_weights(loaded.model)
    arrays = {n: 0.02 * mx.random.normal(a.shape) if n.endswith("lora_b") else a for n, a in arrays.items()}
    write_json(run.adapter / "adapter_config.json", config)
    save_safetensors(run.adapter / "adapters.safetensors", arrays)
    write_rows(run.valid, [TrainingRow("0", "0", 0, "prefix", "", "", TOKENS[0], [20, 30, 40])])
    write_rows(run.train, [])
    adapted = load(base)
    load_adapter(adapted, run.adapter)
    logits["peft"] = adapted.model(mx.array(TOKENS))
    export_peft(run, base, str(base), work / family / "peft")
    recipe = Recipe.model_validate({"model": str(base), "problems": {"builtin": "arithmetic"}})
    quantized = load(base, quantize=Quantize(bits=4, group_size=32))
    said = export_dequantized(recipe, quantized, run, work / family / "dequantized", "bf16")
    logits["dequantized"] = load(work / family / "dequantized").model(mx.array(TOKENS))
    for kind in THEIRS:
        adapted = load(base)
        load_adapter(adapted, work / family / kind)
        logits[kind] = adapted.model(mx.array(TOKENS))
    save_safetensors(work / family / "logits.safetensors", {n: a.astype(mx.float32) for n, a in logits.items()})
    return said


def main() -> None:
    """Make, export, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="a Python with torch, transformers and peft")
    parser.add_argument("--step", choices=["make", "compare"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        return {"make": make, "compare": compare}[arguments.step](arguments.work)
    if not arguments.torch_python:
        parser.error("--torch-python is needed")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        step = [arguments.torch_python, __file__, "--work", str(work), "--step"]
        quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run([*step, "make"], check=True, env=quiet)
        said = {family: export(work, family) for family in FAMILIES}
        subprocess.run([*step, "compare"], check=True, env=quiet)
        found = json.loads((work / "found.json").read_text())
    print(
        f"| family | largest effect on a logit | peft differs by | {' | '.join(THEIRS)} | transformers | dequantized |"
    )
    print(f"|---|---|---|{'---|' * len(THEIRS)}---|---|")
    for family, row in found.items():
        parts = " | ".join(f"{row[kind]:.2g}" for kind in ("peft", *THEIRS, "dequantized"))
        print(f"| {family} | {row['effect']:.3g} | {parts} | {said[family]} |")
    worst = max(max(row[kind] for kind in row if kind != "effect") / row["effect"] for row in found.values())
    sys.exit(0 if worst <= TOLERANCE else f"a difference of {worst:.1%} of the effect")


if __name__ == "__main__":
    main()
