"""Write docs/reference/families.md from docs/assets/families.json: python tools/make_families_page.py [--try]

With --try each family of mlx-lm is tried first, on a tiny random model (about 90 s), and the JSON is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import upft_mlx  # noqa: F401  (before mlx: it chooses the BLAS)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "assets" / "families.json"
PAGE = ROOT / "docs" / "reference" / "families.md"
HEAD = """\
# Model families

What works on each model family of mlx-lm {version}, tried on a tiny random model with 4 bits, on MLX's CPU backend. The
test `tests/models/test_every_family.py` tries it again, and `tools/make_families_page.py` writes this page.

- **sample**: `yes` in batches; `one at a time` where mlx-lm's batches give the family other logits: the same texts,
  more slowly.
- **share**: training runs the tokens that all prompts begin with through the model once for a batch.
- **gather**: training computes logits at supervised positions only, and head and loss in chunks.
- **recompute**: `train.grad_checkpoint` saves memory.
- **train**: LoRA on the default modules, with the loss and the gradient of plain passes.
- **fuse**: the fused folder gives the adapter's logits.
- **PEFT**, **GGUF**: `upft export --format peft` and `gguf`. They say `no` where the other tool has no name for a
  module, such as stacked experts, or where llama.cpp's names are not known here. `--format dequantized` and the fused
  folder remain.

What does not work is refused with a message. Where **share**, **gather** or **recompute** say `no`, training works
without it and costs more. Not tried: {untried}.

| `model_type` | {columns} |
|---|{rule}|
"""


def page() -> str:
    """The page's text."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    columns = next(iter(data["families"].values()))
    untried = "; ".join(f"`{name}`, which {why}" for name, why in data["untried"].items())
    head = HEAD.format(
        version=data["mlx-lm"], untried=untried, columns=" | ".join(columns), rule="|".join("---" for _ in columns)
    )
    rows = (f"| `{name}` | {' | '.join(found.values())} |\n" for name, found in sorted(data["families"].items()))
    return head + "".join(rows)


def lines(data: dict[str, Any]) -> str:
    """JSON with a line per family."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in data["families"].items())
    rest = "".join(f" {json.dumps(key)}: {json.dumps(data[key])},\n" for key in ("mlx-lm", "untried"))
    return f'{{\n{rest} "families": {{\n{rows}\n }}\n}}\n'


def main() -> None:
    """Try, if asked to, and write."""
    if "--try" in sys.argv[1:]:
        sys.path.insert(0, str(ROOT / "tests"))
        from helpers.families import tried
        from helpers.family_configs import FAMILIES, UNTRIED

        found: dict[str, Any] = {"mlx-lm": metadata.version("mlx-lm"), "untried": UNTRIED, "families": {}}
        for name in FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                found["families"][name] = tried(name, Path(folder))
        DATA.write_text(lines(found), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
