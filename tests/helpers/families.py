"""What of the package works on a tiny random model of one of mlx-lm's families."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from conftest import MODEL
from mlx.utils import tree_flatten

from helpers.adapter import Q4
from helpers.family_configs import config_of, make
from helpers.loss import oracle
from upft_mlx.errors import UpftError
from upft_mlx.fusing.export import export_gguf, export_peft
from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.adapters import AdapterSwitch, adapter_weights, add_lora
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Lora, Recipe, Train
from upft_mlx.rows import TrainingRow, write_json, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.same_logits import same_logits, scalar
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.training.batches import make_batch, to_examples
from upft_mlx.training.checkpoints import save_safetensors
from upft_mlx.training.loss import to_arrays, value_and_grad
from upft_mlx.training.step import Stepper

PROMPTS = [[16, 17, 18, 19, 20, 5, 6, 7], [16, 17, 18, 19, 20, 8, 9, 10, 11, 12], [16, 17, 18, 30]]
COLUMNS = ("sample", "share", "gather", "recompute", "train", "fuse", "PEFT", "GGUF")


def write_family(name: str, folder: Path, **changes: Any) -> Path:
    """A model folder of a family with the embedded model's tokenizer."""
    config = config_of(name, 600, **changes)
    model = make(config)
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder / file)
    eos = json.loads((MODEL / "config.json").read_text())["eos_token_id"]
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder


def tried(name: str, folder: Path) -> dict[str, str]:
    """What works on a tiny 4-bit model of a family: `yes`, other words for how, or `no` with one of our errors.

    Whatever else is raised is raised.
    """
    run, found = RunDir(folder / "run"), dict.fromkeys(COLUMNS, "no")
    rows = [
        TrainingRow(f"{n}/0", str(n), 0, "prefix", "", "", ids, [20, 30 + n, 40]) for n, ids in enumerate(PROMPTS * 2)
    ]
    for path in (run.train, run.valid):
        write_rows(path, rows)
    with suppress(UpftError):
        loaded = load(write_family(name, folder / "model"), quantize=Q4)
        found |= _sample(loaded, run, rows)
        found |= _train(loaded, run, rows)
        for work in (_fuse, _peft, _gguf):
            with suppress(UpftError):
                found |= work(loaded, run, rows)
    return found


def _sample(loaded: Loaded, run: RunDir, rows: list[TrainingRow]) -> dict[str, str]:
    """Greedy completions are those of plain passes over all tokens, but for rounding."""
    sampler = Sampler(loaded, Sampling(0.0, batch_size=2))
    completions = sampler.sample([Request(ids, 4) for ids in PROMPTS], seed=1)
    for ids, completion in zip(PROMPTS, completions, strict=True):
        logits = loaded.model(mx.array([[*ids, *completion.ids]]))[0, len(ids) - 1 : -1]  # (4, V)
        chosen = mx.take_along_axis(logits, mx.array(completion.ids)[:, None], axis=-1)[:, 0]
        best = logits.max(axis=-1)
        assert mx.all(chosen >= best - 1e-3 * mx.abs(best)).item(), "sampled other tokens than plain passes"
    if sampler.sampling.batch_size == 1:
        return {"sample": "one at a time"}
    return {"sample": "yes" if sampler.notice is None else "whole prompts"}


def _train(loaded: Loaded, run: RunDir, rows: list[TrainingRow]) -> dict[str, str]:
    """The loss is that of plain passes, falls, and the adapter can be loaded again."""
    config = add_lora(loaded, Lora(rank=2, scale=2.0), seed=1)
    loaded.model.train()
    stepper = Stepper(loaded.model, Train(batch_size=len(rows)), shared=3)
    examples = to_examples(rows, 64)
    arrays = to_arrays(make_batch(examples))
    again = Stepper(loaded.model, Train(batch_size=len(rows), grad_checkpoint=True)).modes
    kept, recomputed = (
        dict(tree_flatten(value_and_grad(loaded.model, m)(*arrays)[1]))
        for m in (replace(again, checkpoint=False), again)
    )
    for key, array in kept.items():
        assert scalar(mx.abs(array - recomputed[key]).max()) < 1e-4, (
            f"another gradient of {key} where layers are computed again"
        )
    plain = scalar(oracle(loaded.model, examples))
    losses = [stepper.step(examples, 1e-2, 1)[0] for _ in range(3)]
    assert abs(losses[0] - plain) < 1e-3 * plain, "another loss than plain passes"
    assert losses[-1] < losses[0], "the loss does not fall"
    write_json(run.adapter / "adapter_config.json", config)
    save_safetensors(run.adapter / "adapters.safetensors", adapter_weights(loaded.model))
    loaded.model.eval()
    fresh = load(loaded.path, quantize=Q4)
    AdapterSwitch(fresh, run.adapter)
    tokens = mx.array(PROMPTS[:1])
    assert same_logits(fresh.model(tokens), loaded.model(tokens)), "the adapter on disk is another one"
    modes = {"share": stepper.modes.share, "gather": stepper.modes.gather, "recompute": again.checkpoint}
    return {"train": "yes", **{mode: "yes" if works else "no" for mode, works in modes.items()}}


def _fuse(loaded: Loaded, run: RunDir, rows: list[TrainingRow]) -> dict[str, str]:
    """The fused folder is loaded by mlx-lm and gives the logits of base and adapter."""
    recipe = Recipe.model_validate(
        {
            "model": str(loaded.path),
            "problems": {"builtin": "arithmetic"},
            "evaluate": {"benchmarks": [{"name": "arithmetic", "limit": 2}]},  # as many greedy completions to compare
            "publish": {"fuse": "fp16", "min_retained": 0},
        }
    )
    with patch("upft_mlx.fusing.fidelity.GREEDY_TOKENS", 4):  # half of the time goes into decoding 32
        fuse(recipe, load(loaded.path, quantize=Q4), run)
    tokens = mx.array(PROMPTS[:1])
    fused, tuned = load(run.fused).model(tokens), loaded.model(tokens)
    off = scalar(mx.linalg.norm(fused.astype(mx.float32) - tuned)) / scalar(mx.linalg.norm(tuned))
    assert off < 1e-2, f"fused logits are off by {off:.3f}"
    return {"fuse": "yes"}


def _peft(loaded: Loaded, run: RunDir, rows: list[TrainingRow]) -> dict[str, str]:
    folder = run.root / "PEFT"
    folder.mkdir()
    export_peft(run, loaded.path, "base", folder)
    return {"PEFT": "yes"}


def _gguf(loaded: Loaded, run: RunDir, rows: list[TrainingRow]) -> dict[str, str]:
    folder = run.root / "GGUF"
    folder.mkdir()
    export_gguf(run, loaded.path, "base", folder)
    return {"GGUF": "yes"}
