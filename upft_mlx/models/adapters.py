"""LoRA adapters: a fresh one to train, a trained one to use; the files are mlx-lm's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import quoted
from upft_mlx.events import Side
from upft_mlx.models.files import json_object, read_header
from upft_mlx.models.hub import reason
from upft_mlx.models.load import Loaded

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.recipe.schema import Lora


def add_lora(loaded: Loaded, lora: Lora, seed: int) -> dict[str, Any]:
    """Freeze the model and put a fresh adapter on it; the adapter is float32 whatever the base is.

    Returns:
        What `adapter_config.json` must hold for mlx-lm to load the adapter.

    Raises:
        ModelError: the model has fewer layers, or none of the modules of `lora.keys`.
    """
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    layers = len(loaded.model.layers)
    if lora.num_layers > layers:
        raise ModelError(f"{lora.num_layers}, but the model has {layers} layers only", field="lora.num_layers")
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
    if lora.keys is not None:
        modules = [item for layer in loaded.model.layers for item in layer.named_modules()]
        linear = sorted({name for name, module in modules if "weight" in module and module.weight.ndim > 1})
        for key in lora.keys:
            if key not in linear:
                raise ModelError(
                    f"no linear module {quoted(key)} in the model's layers",
                    f"they have {', '.join(linear)}",
                    field="lora.keys",
                )
        parameters["keys"] = list(lora.keys)
    mx.random.seed(seed)
    loaded.model.freeze()
    linear_to_lora_layers(loaded.model, lora.num_layers, parameters)
    mx.eval(loaded.model.parameters())
    assert all(array.dtype == mx.float32 for array in adapter_weights(loaded.model).values())
    return {"fine_tune_type": "lora", "num_layers": lora.num_layers, "lora_parameters": parameters}


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's arrays by name, the layout of adapters.safetensors."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def refuse_missing_adapter(adapter: Path) -> None:
    """Refuse a path that is no adapter, before a model is loaded for it.

    Raises:
        ModelError: there is no such folder, or it has no adapter_config.json.
    """
    if (adapter / "adapter_config.json").is_file():
        return
    inside = next((path.parent for path in sorted(adapter.glob("*/adapter_config.json"))), None)
    meant = f"did you mean {quoted(str(inside))}?" if inside else ""
    remedy = meant or "use a folder with adapter_config.json and adapters.safetensors"
    there = "not an adapter: adapter_config.json is missing" if adapter.exists() else "no such adapter folder"
    raise ModelError(there, remedy, path=adapter)


def load_adapter(loaded: Loaded, adapter: Path) -> None:
    """Put a trained adapter on the model, as mlx-lm's loader does; before 0.32 that took arrays of any shape.

    Raises:
        ModelError: the adapter is missing, is no LoRA adapter, or does not fit the model.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    refuse_missing_adapter(adapter)
    kind = None
    try:
        config = json_object(adapter / "adapter_config.json")
        kind = config.get("fine_tune_type", "lora")  # mlx-lm writes `dora` and `full` as well
        if kind == "lora":
            linear_to_lora_layers(loaded.model, config["num_layers"], config["lora_parameters"])
            read_header(adapter / "adapters.safetensors")  # mlx itself takes what it says for true
            arrays = mx.load(str(adapter / "adapters.safetensors"))
    except Exception as error:  # whatever mlx and mlx-lm make of missing or damaged files
        raise ModelError(f"does not fit this model, {loaded.path}: {reason(error)}", path=adapter) from error
    if kind != "lora":
        raise ModelError(
            f"fine_tune_type is {quoted(kind)}, but only a LoRA adapter can be switched on and off",
            "fuse it into the model with `mlx_lm fuse`, and use that folder as the model",
            path=adapter,
        )
    shapes = {name: array.shape for name, array in dict(tree_flatten(loaded.model.parameters())).items()}
    assert isinstance(arrays, dict)
    for name, array in arrays.items():
        if ".lora_" not in name or shapes.get(name) != array.shape:
            raise ModelError(
                f"{name} {array.shape} does not fit {loaded.path}", "it belongs to another model", path=adapter
            )
    loaded.model.load_weights(list(arrays.items()), strict=False)
    loaded.model.eval()
    mx.eval(loaded.model.parameters())


class AdapterSwitch:
    """A trained adapter on a model, to be taken off and put on: off, the model is the base, bit for bit."""

    def __init__(self, loaded: Loaded, adapter: Path) -> None:
        """Load the adapter; it is on then.

        Raises:
            ModelError: the adapter is missing or does not fit the model.
        """
        from mlx.utils import tree_unflatten

        before = dict(loaded.model.named_modules())
        load_adapter(loaded, adapter)
        after = dict(loaded.model.named_modules())
        changed = [name for name, module in before.items() if after[name] is not module]
        modules = {"base": before, "tuned": after}
        self._model = loaded.model
        self._modules = {side: tree_unflatten([(n, found[n]) for n in changed]) for side, found in modules.items()}
        self._side = "tuned"

    def __call__(self, side: Side) -> None:
        """Put the adapter on for "tuned", off for "base"."""
        if side != self._side:
            self._model.update_modules(self._modules[side])
            self._side = side
