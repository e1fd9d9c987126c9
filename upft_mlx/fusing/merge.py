"""Several adapters as one: w_1 times the update of the first, plus w_2 times that of the second, and so on, exactly.

An update is scale * A B. Those of one module stand side by side in one adapter: A = [A_1, A_2, ...] (in, r_1 + r_2 +
...) and B = [w_1 scale_1 B_1; w_2 scale_2 B_2; ...] (r_1 + r_2 + ..., out), with scale 1. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from upft_mlx.errors import FuseError
from upft_mlx.models.adapter_files import CONFIG, LAYER, MLX_LM, AdapterFiles, read_adapter, read_arrays
from upft_mlx.models.adapters import modules_of
from upft_mlx.models.load import Loaded
from upft_mlx.rows import write_json
from upft_mlx.training.checkpoints import save_safetensors


def readable(weights: Mapping[Path, float]) -> dict[Path, AdapterFiles]:
    """What the files of adapters that are to be added up say.

    Raises:
        FuseError: one is DoRA.
        ModelError: one is missing or damaged.
    """
    found = {path: read_adapter(path) for path in weights}
    if dora := [path for path, files in found.items() if files.kind == "dora"]:
        problem = "is a DoRA adapter, which also scales each row of the weights: it is no update that can be added"
        raise FuseError(problem, "fuse it with `mlx_lm fuse`, and use the fused model as the base", path=dora[0])
    return found


def merge(loaded: Loaded, weights: Mapping[Path, float], folder: Path) -> int:
    """Write the weighted sum of adapters as one adapter that mlx-lm loads.

    Args:
        loaded: the base model, without an adapter.
        weights: of each adapter's update, by its folder.
        folder: is written.

    Returns:
        The rank: the sum of theirs.

    Raises:
        FuseError: the update of one has another shape than that of another, or one is DoRA.
        ModelError: one is missing or damaged, or the model has no such modules.
    """
    adapters, names = readable(weights), modules_of(loaded.model)
    arrays = {path: read_arrays(files, names) for path, files in adapters.items()}
    modules = {name.removesuffix(".lora_a") for found in arrays.values() for name in found if name.endswith(".lora_a")}
    made: dict[str, mx.array] = {}
    for module in sorted(modules):
        parts_a, parts_b = list[mx.array](), list[mx.array]()
        like = next(found for found in arrays.values() if f"{module}.lora_a" in found)
        shapes = {part: like[f"{module}.{part}"].shape for part in ("lora_a", "lora_b")}
        experts = len(shapes["lora_a"]) == 3  # (E, r, in) and (E, out, r) instead of (in, r) and (r, out)
        for path, files in adapters.items():
            found = arrays[path]
            if f"{module}.lora_a" in found:
                a, b = (found[f"{module}.{part}"].astype(mx.float32) for part in ("lora_a", "lora_b"))
            else:  # not on this module: nothing is added
                a, b = (_with_rank(shape, files.rank, part, experts) for part, shape in shapes.items())
            for part, array in (("lora_a", a), ("lora_b", b)):
                if array.shape != _with_rank(shapes[part], files.rank, part, experts).shape:
                    problem = f"{module}.{part} {array.shape} does not go with {shapes[part]} of the other adapters"
                    raise FuseError(problem, "merge adapters of the same model", path=path)
            parts_a.append(a)
            parts_b.append(weights[path] * files.scale * b)
        made[f"{module}.lora_a"] = mx.concatenate(parts_a, axis=1)
        made[f"{module}.lora_b"] = mx.concatenate(parts_b, axis=2 if experts else 0)
    places = {module: LAYER.search(module) for module in modules}
    layers = len(loaded.model.layers)
    first = min((int(place[1]) for place in places.values() if place), default=0)
    keys = sorted({place[2] if place else module for module, place in places.items()})
    rank = sum(files.rank for files in adapters.values())
    parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
    num_layers = -1 if first == 0 else layers - first
    config = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": parameters}
    write_json(folder / CONFIG, config)
    save_safetensors(folder / MLX_LM, made)
    return rank


def _with_rank(shape: tuple[int, ...], rank: int, part: str, experts: bool) -> mx.array:
    """Zeros like another adapter's array, with this rank."""
    place = {("lora_a", False): 1, ("lora_b", False): 0, ("lora_a", True): 1, ("lora_b", True): 2}[part, experts]
    return mx.zeros((*shape[:place], rank, *shape[place + 1 :]))
