"""The machine under a long stage: the GPU's memory, battery and heat, and a Mac that stays awake.

What exists on Apple Silicon only has been tried with stand-ins for its facts, not on a Mac. What is said of NVIDIA GPUs
was seen on an H100 with MLX 0.32.4.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata

from upft_mlx.events import Note, Observer
from upft_mlx.machine.power import read_power
from upft_mlx.quantities import memory


def working_set_bytes() -> int | None:
    """The memory that Metal recommends to keep to; None where MLX does not run on Metal."""
    import mlx.core as mx

    if not mx.metal.is_available():
        return None
    size = mx.device_info().get("max_recommended_working_set_size")
    return int(size) if size else None


def nvidia_memory_bytes() -> int | None:
    """The memory of the NVIDIA GPU on which MLX computes; None elsewhere."""
    import mlx.core as mx

    size = mx.device_info().get("total_memory") if on_nvidia() else None
    return int(size) if size else None


def memory_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def on_gpu() -> bool:
    """Whether MLX computes on a GPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def on_nvidia() -> bool:
    """Whether that is a GPU of MLX's CUDA backend."""
    import mlx.core as mx

    return on_gpu() and bool(mx.cuda.is_available())


def attends_in_blocks() -> bool:
    """Whether this MLX computes causal attention for some positions at a time on Metal, in the backward pass too."""
    version = [int(part) for part in metadata.version("mlx").split(".")[:3] if part.isdigit()]
    return version >= [0, 32, 4]


def dense_bytes_limit(memory: int) -> int:
    """What the dense copies of quantized layers may take of a machine's memory where MLX computes on the CPU."""
    return memory // 4


def limit_memory() -> str | None:
    """Keep MLX within the working set and wire it there, so that macOS does not page weights out.

    Beyond the limit MLX waits for memory to become free before it takes more, and fails where none does: better than a
    Mac that swaps for an hour.

    Returns:
        What was done, for the log; None off Apple Silicon.
    """
    import mlx.core as mx

    size = working_set_bytes()
    if size is None:
        return None
    mx.set_memory_limit(size)
    text = f"memory is limited to this Mac's working set, {memory(size)}"
    try:
        mx.set_wired_limit(size)
    except (RuntimeError, ValueError) as error:  # macOS before 15, or a limit below it set with sysctl
        return f"{text}, and not wired: {error}"
    return f"{text}, and wired"


def compiles_first() -> str | None:
    """What to expect of the first run on an NVIDIA GPU; None elsewhere.

    MLX's CUDA backend compiles most kernels when they are first used: 3 to 8 s each, 20 to 45 s for a product with
    quantized weights (docs/measured/performance.md). Later runs read them from that folder.
    """
    if not on_nvidia():
        return None
    folder = os.environ.get("MLX_PTX_CACHE_DIR")
    kept = f"keeps them in {folder}" if folder else "keeps them in a temporary folder (MLX_PTX_CACHE_DIR names another)"
    return f"MLX compiles each kernel for this GPU at its first use, which can take minutes, and {kept}"


class PowerWatch:
    """Says once each that a Mac is on battery, in low power mode or slowed down by heat; silent elsewhere."""

    def __init__(self, notify: Observer) -> None:
        self._notify = notify
        self._told: set[str] = set()

    def look(self) -> None:
        """Tell what has become true since the last look; the work goes on whatever it is."""
        power = read_power()
        for kind, text in (power.concerns() if power else {}).items():
            if kind not in self._told:
                self._told.add(kind)
                self._notify(Note(text))


@contextmanager
def awake(notify: Observer) -> Iterator[None]:
    """Keep a Mac from sleeping while the block runs; the display may sleep.

    `caffeinate -w` ends by itself with this process, also when that is killed.
    """
    command = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if command is None:
        yield
        return
    keeper = subprocess.Popen([command, "-i", "-m", "-s", "-w", str(os.getpid())], stdin=subprocess.DEVNULL)
    notify(Note("this Mac is kept awake until the command ends (caffeinate); its display may sleep", minor=True))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            keeper.terminate()
        keeper.wait()
