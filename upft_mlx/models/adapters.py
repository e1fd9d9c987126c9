"""LoRA adapters on a model: a fresh one to train, a trained one to use or to train further."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line, quoted
from upft_mlx.events import Variant
from upft_mlx.models.adapter_files import LAYER, AdapterFiles, Place, read_adapter, read_arrays
from upft_mlx.models.hub import reason
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import many

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.recipe.schema import Lora


def refuse_missing_layers(lora: Lora, layers: int, linear: Collection[str]) -> None:
    """Refuse an adapter for more layers than a model has, or for modules that are not linear ones in its layers.

    Raises:
        ModelError: says what the model has.
    """
    if lora.num_layers > layers:
        raise ModelError(f"{lora.num_layers}, but the model has {many(layers, 'layer')} only", field="lora.num_layers")
    for key in lora.keys or ():
        if key not in linear:
            what = f"no linear module {quoted(key)} in the model's layers"
            raise ModelError(what, f"they have {', '.join(sorted(linear))}", field="lora.keys")


def add_lora(loaded: Loaded, lora: Lora, seed: int) -> dict[str, Any]:
    """Freeze the model and put an adapter on it: a fresh one, or a copy of the one that `lora.start_from` names.

    The adapter is float32 whatever the base is.

    Returns:
        What `adapter_config.json` must hold for mlx-lm to load the adapter.

    Raises:
        ModelError: the model has fewer layers, or none of the modules of `lora.keys`, or no grid, or the adapter does
            not fit it.
    """
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from upft_mlx.models.cpu_layers import add_updates_in_products
    from upft_mlx.models.families import default_keys

    modules = [item for layer in loaded.model.layers for item in layer.named_modules()]
    linear = {name for name, module in modules if "weight" in module and module.weight.ndim > 1}
    refuse_missing_layers(lora, len(loaded.model.layers), linear)
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
    if lora.keys is not None:
        parameters["keys"] = list(lora.keys)
    elif (keys := default_keys(loaded.model)) is not None:
        parameters["keys"] = keys
    mx.random.seed(seed)
    loaded.model.freeze()
    kind = "lora"
    if lora.start_from is None:
        linear_to_lora_layers(loaded.model, lora.num_layers, parameters)
    else:
        files = read_adapter(Path(lora.start_from))
        kind = files.kind
        _put_on(loaded, files, lora.num_layers, parameters)
    for _, module in loaded.model.named_modules():
        if "lora_a" in module:  # also of a copy in 16 bits
            own = {part: module[part].astype(mx.float32) for part in ("lora_a", "lora_b", "m") if part in module}
            module.update(own)
    if lora.grid is not None:
        from upft_mlx.models.grid_lora import put_on_grid

        put_on_grid(loaded.model, fresh=lora.start_from is None)
    add_updates_in_products(loaded.model)
    mx.eval(loaded.model.parameters())
    assert all(array.dtype == mx.float32 for array in adapter_weights(loaded.model).values())
    return {"fine_tune_type": kind, "num_layers": lora.num_layers, "lora_parameters": parameters}


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's arrays by name, the layout of adapters.safetensors."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def load_adapter(loaded: Loaded, adapter: Path) -> None:
    """Put a trained adapter on the model, mlx-lm's or PEFT's; before 0.32 mlx-lm's loader took arrays of any shape.

    Raises:
        ModelError: the adapter is missing, is no LoRA or DoRA adapter, or does not fit the model.
    """
    import mlx.core as mx

    files = read_adapter(adapter)
    _put_on(loaded, files, files.layers_of(len(loaded.model.layers)), files.parameters())
    loaded.model.eval()
    mx.eval(loaded.model.parameters())


def _put_on(loaded: Loaded, files: AdapterFiles, num_layers: int, parameters: dict[str, Any]) -> None:
    """Wrap the model's modules as mlx-lm does it, and load the arrays, each of which must have its place."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, folder = loaded.model, files.folder
    arrays = read_arrays(files, modules_of(model))
    try:
        linear_to_lora_layers(model, num_layers, parameters, use_dora=files.kind == "dora")
    except Exception as error:  # whatever mlx-lm makes of layers that it has no adapter for
        raise ModelError(f"does not fit this model, {loaded.path}: {reason(error)}", path=folder) from error
    shapes = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    own = ("lora_a", "lora_b", *(("m",) if files.kind == "dora" else ()))
    for name, array in arrays.items():
        if name.rpartition(".")[2] not in own or shapes.get(name) != array.shape:
            shown = f"{one_line(name)} {array.shape}"
            raise ModelError(f"{shown} does not fit {loaded.path}", "it belongs to another model", path=folder)
    model.load_weights(list(arrays.items()), strict=False)
    for name, module in model.named_modules():
        if files.places and "lora_a" in module and f"{name}.lora_a" not in arrays:
            module.lora_a = mx.zeros_like(module.lora_a)  # `lora_b` is zero as well: never trained


def modules_of(model: nn.Module) -> dict[Place, str]:
    """The full names of a model's modules, by layer and key."""
    return {(int(place[1]), place[2]): name for name, _ in model.named_modules() if (place := LAYER.search(name))}


class AdapterSwitch:
    """A trained adapter on a model, to be taken off and put on: off, the model is the base, bit for bit."""

    def __init__(self, loaded: Loaded, adapter: Path | None = None) -> None:
        """Load the adapter; it is on then. None: the one that is on the model already.

        Raises:
            ModelError: the adapter is missing or does not fit the model.
        """
        from mlx.utils import tree_unflatten

        from upft_mlx.models.grid_lora import inner_layer

        if adapter is not None:
            load_adapter(loaded, adapter)
        found = [(name, module) for name, module in loaded.model.named_modules() if "lora_a" in module]
        variants = {"base": [(name, inner_layer(module)) for name, module in found], "tuned": found}
        self._model = loaded.model
        self._modules = {variant: tree_unflatten(modules) for variant, modules in variants.items()}
        self._variant = "tuned"

    def __call__(self, variant: Variant) -> None:
        """Put the adapter on for "tuned", off for "base"."""
        if variant != self._variant:
            self._model.update_modules(self._modules[variant])
            self._variant = variant
