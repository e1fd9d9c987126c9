"""How many copies MLX holds of each term of upft_mlx/planning/memory.py at its peak: python perf/plan_memory.py
[--quick]

Measures mx.get_peak_memory() of training steps and of sampling on models of many shapes with random weights, fits the
numbers in `SAVED`, `BACKWARD`, `HEAD`, `PASSED`, ... to them and prints them with the errors that are left. The models
are small: every term is linear or quadratic in the shapes that it names, so that the numbers hold for larger ones.
tests/planning/test_budget.py compares plans with other runs. Needs scipy, which is among the development dependencies.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upft_mlx.models.architecture import Architecture, from_config
from upft_mlx.planning import memory
from upft_mlx.planning.memory import Machine, SamplingLoad, TrainingPass
from upft_mlx.recipe.schema import Lora, Quantize, Train

GROUP = 32
TRAINING = {"h": 128, "L": 4, "i": 352, "H": 4, "K": 2, "V": 1024, "B": 8, "T": 64, "P": 16, "t": 16, "micro": 16}
TRAINING |= {"rank": 16, "nl": -1, "checkpoint": False, "bf16": False}
SAMPLING = {"h": 128, "L": 4, "i": 352, "H": 4, "K": 2, "V": 1024, "B": 16, "T": 64, "P": 16, "t": 16, "n": 64}
SAMPLING |= {"samples": 1, "ends": 0}


@dataclass(frozen=True)
class Measured:
    """A setting and the peak bytes that MLX had."""

    setting: dict[str, Any]
    peak: int


def config(s: dict[str, Any]) -> dict[str, Any]:
    """Of a Qwen2 model."""
    return {
        "model_type": "qwen2",
        "hidden_size": s["h"],
        "num_hidden_layers": s["L"],
        "intermediate_size": s["i"],
        "num_attention_heads": s["H"],
        "num_key_value_heads": s["K"],
        "vocab_size": s["V"],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def architecture(s: dict[str, Any]) -> Architecture:
    """The same as the plan sees it."""
    found = from_config(config(s), quantize=Quantize(bits=4, group_size=GROUP))
    return replace(found, float_bytes=2 if s.get("bf16") else 4)


def model(s: dict[str, Any]) -> Any:
    """The same in memory, 4 bits."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.models import qwen2

    made = qwen2.Model(qwen2.ModelArgs.from_dict(config(s)))
    if s.get("bf16"):
        made.set_dtype(mx.bfloat16)
    nn.quantize(made, group_size=GROUP, bits=4)
    mx.eval(made.parameters())
    return made


MACHINE = Machine(is_gpu=True)
"""No dense copies are made here, as on a GPU."""


def training_settings() -> list[dict[str, Any]]:
    """The default with one or two things changed."""
    changes: list[dict[str, Any]] = [{}, {"t": 64}, {"micro": 4}, {"micro": 2}, {"nl": 1}, {"nl": 2}]
    changes += [{"L": n} for n in (1, 2, 8)] + [{"T": n} for n in (32, 128, 256)] + [{"B": n} for n in (1, 16)]
    changes += [{"V": n} for n in (256, 8192)] + [{"P": n} for n in (0, 64)] + [{"i": n} for n in (128, 1024)]
    changes += [{"h": n} for n in (64, 512)] + [{"rank": n} for n in (4, 64)]
    changes += [{"H": 2, "K": 1}, {"H": 4, "K": 4}, {"H": 8, "K": 2}]
    both = [{**TRAINING, **change, "checkpoint": c} for change in changes for c in (False, True)]
    half = [{**TRAINING, **c, "bf16": True} for c in ({}, {"V": 8192}, {"i": 1024}, {"h": 512}, {"T": 256})]
    return both + half


def sampling_settings() -> list[dict[str, Any]]:
    """Prefixes that all end together, and solutions that do not."""
    changes: list[dict[str, Any]] = [
        {},
        {"n": 16},
        {"n": 32},
        {"B": 8},
        {"B": 8, "n": 16},
        {"B": 32},
        {"B": 32, "n": 32},
    ]
    changes += [{"B": 32, "n": 128}, {"L": 8}, {"h": 256}, {"K": 4}, {"i": 1024}, {"V": 8192}, {"P": 64}]
    changes += [{"T": n} for n in (24, 128, 256, 400)] + [{"samples": 4, "n": 16}, {"L": 24, "n": 32}]
    changes += [{"V": 65536, "n": 16}, {"B": 4, "n": 16}]
    long = [{"t": 48, "ends": 25, **change} for change in changes] + [{"t": 300, "ends": 5}]
    return [{**SAMPLING, **change} for change in changes + long]


def measure_training(s: dict[str, Any]) -> Measured:
    """Two steps."""
    import mlx.core as mx

    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import Loaded
    from upft_mlx.training.batches import Example
    from upft_mlx.training.step import Stepper

    before = fresh()
    made = model(s)
    loaded = Loaded(made, None, config(s), Path(), mx.float32)
    add_lora(loaded, Lora(rank=s["rank"], num_layers=s["nl"]), 1)
    made.train()
    rng = random.Random(0)
    prompts = [[*range(16, 16 + s["P"]), *(rng.randrange(s["V"]) for _ in range(s["T"] + 1))] for _ in range(s["B"])]
    examples = [Example("", ids, len(ids) - s["t"]) for ids in prompts]
    settings = Train(batch_size=s["B"], micro_batch_size=s["micro"], grad_checkpoint=s["checkpoint"])
    stepper = Stepper(made, settings, shared=s["P"])
    mx.reset_peak_memory()
    for _ in range(2):
        stepper.step(examples, 1e-4, 1)
    return Measured(s, mx.get_peak_memory() - before)


def measure_sampling(s: dict[str, Any]) -> Measured:
    """A chunk, twice with other random numbers: when solutions end makes a difference. The larger peak counts."""
    import mlx.core as mx

    from upft_mlx.models.load import Loaded
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.sampler import Sampler

    before = fresh()
    made = model(s)
    ends = list(range(max(1, s["ends"])))
    tokenizer = SimpleNamespace(eos_token_id=0, eos_token_ids=ends, decode=lambda ids: "")
    sampler = Sampler(Loaded(made, tokenizer, config(s), Path(), mx.float32), Sampling(0.6, batch_size=s["B"]))
    rng = random.Random(0)
    mx.reset_peak_memory()
    for seed in (1, 2) if s["ends"] else (1,):
        lengths = [s["T"] - rng.randrange(s["T"] // 3) for _ in range(s["n"] - 1)] + [s["T"]]
        prompts = [[*range(40, 40 + s["P"]), *(rng.randrange(40, s["V"]) for _ in range(n))] for n in lengths]
        sampler.sample([Request(ids, s["t"], s["samples"]) for ids in prompts], seed)
    return Measured(s, mx.get_peak_memory() - before)


def measured(kind: str, settings: list[dict[str, Any]]) -> list[Measured]:
    """All of them, telling how far it is."""
    measure = {"training": measure_training, "sampling": measure_sampling}[kind]
    found = []
    for number, setting in enumerate(settings, start=1):
        found.append(measure(setting))
        print(f"{kind}: {number} of {len(settings)}", end="\r", file=sys.stderr, flush=True)
    return found


def fresh() -> int:
    """Active bytes with nothing of the last setting left."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


def planned_training(s: dict[str, Any]) -> float:
    """What memory.py says."""
    shared = 0 if s["checkpoint"] else s["P"]
    tokens = -(-(s["T"] + s["P"] - shared) // 8) * 8
    count = min(s["B"], s["micro"])
    one = TrainingPass(count, tokens, shared, -(-count * s["t"] // 32) * 32, s["micro"] < s["B"])
    lora = Lora(rank=s["rank"], num_layers=s["nl"])
    return memory.training_peak(architecture(s), lora, one, MACHINE, checkpoint=s["checkpoint"])


def planned_sampling(s: dict[str, Any]) -> float:
    """What memory.py says."""
    load = SamplingLoad(s["B"], s["n"], s["samples"], s["T"] + s["P"], s["P"], s["t"], end_together=not s["ends"])
    return memory.sampling_peak(architecture(s), load, MACHINE)


def fit(tables: list[dict[str, float]], plan: Any, found: list[Measured]) -> NDArray[np.float64]:
    """Put the numbers into the tables with which the plan is nearest to what was measured; returns relative errors."""
    from scipy.optimize import least_squares

    places = [(table, name) for table in tables for name in table]

    def errors(values: NDArray[np.float64]) -> NDArray[np.float64]:
        for (table, name), value in zip(places, values, strict=True):
            table[name] = float(value)
        return np.array([plan(one.setting) / one.peak - 1 for one in found])

    start = np.array([max(0.1, table[name]) for table, name in places])
    best = least_squares(errors, start, bounds=(0, 200), loss="soft_l1", f_scale=0.03)
    return errors(best.x)


def report(name: str, tables: dict[str, dict[str, float]], errors: NDArray[np.float64], found: list[Measured]) -> None:
    """The numbers, and the settings that they fit worst."""
    mean, most = np.abs(errors).mean(), np.abs(errors).max()
    print(f"\n{name}: {len(found)} settings, error {mean:.1%} in the mean, {most:.1%} at most")
    for title, table in tables.items():
        print(f"{title} = {{{', '.join(f'{key!r}: {value:.2f}' for key, value in table.items())}}}")
    for index in np.argsort(-np.abs(errors))[:5]:
        usual = TRAINING if "checkpoint" in found[index].setting else SAMPLING
        changed = {key: value for key, value in found[index].setting.items() if usual[key] != value}
        print(f"  {errors[index]:+.1%} at {changed or 'the default'}")


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every sixth setting, to see that it runs")
    parser.add_argument("--only", choices=["training", "sampling"])
    options = parser.parse_args()
    step = 6 if options.quick else 1
    if options.only != "sampling":
        train(step)
    if options.only != "training":
        sample(step)


def train(step: int) -> None:
    """Measure and fit training, with every `step`-th setting."""
    trained = measured("training", training_settings()[::step])
    tables = {"SAVED": memory.SAVED, "BACKWARD": memory.BACKWARD, "HEAD": memory.HEAD, "REST": memory.REST}
    report("training", tables, fit(list(tables.values()), planned_training, trained), trained)


def sample(step: int) -> None:
    """Measure and fit sampling, with every `step`-th setting."""
    sampled = measured("sampling", sampling_settings()[::step])
    tables = {"PASSED": memory.PASSED, "DECODED": memory.DECODED}
    report("sampling", tables, fit(list(tables.values()), planned_sampling, sampled), sampled)


if __name__ == "__main__":
    main()
