"""What the tests of base and tuned share with others."""

from __future__ import annotations

from pathlib import Path

from conftest import MODEL

from upft_mlx.models.adapters import add_lora
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Lora, Quantize
from upft_mlx.rows import write_json
from upft_mlx.training.checkpoints import save_safetensors


def write_adapter(folder: Path, quantize: Quantize | None = None, size: float = 0.05) -> Path:
    """A random adapter that changes what the embedded model says."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    loaded = load(MODEL, quantize=quantize)
    config = add_lora(loaded, Lora(rank=4), seed=1)
    arrays = dict(tree_flatten(loaded.model.trainable_parameters()))
    noisy = {name: array + size * mx.random.normal(array.shape) for name, array in arrays.items()}
    save_safetensors(folder / "adapters.safetensors", noisy)
    write_json(folder / "adapter_config.json", config)
    return folder
