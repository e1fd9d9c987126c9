"""Does transformers compute from our GGUF files what MLX computes from the model, and the other way round?

    python3 -m venv /tmp/torch && /tmp/torch/bin/pip install torch transformers accelerate gguf
    python perf/experiments/check_gguf.py --torch-python /tmp/torch/bin/python [--gguf FILE]

For a tiny random model of each family that `upft export --format gguf-model` writes, unquantized and at 4 bits in
groups of 32: logits of MLX on the folder, of transformers on the GGUF file that we wrote, and of MLX on what our own
reader makes of that file, all in float32 on the CPU. With --gguf, also a real file: transformers' logits and tokens
beside ours.

Prints the largest differences beside the largest logit, and ends with status 1 where one is above 1e-4 of it. Results:
docs/use/publishing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOKENS = [[11, 12, 13, 14, 15, 120, 7, 300]]
TEXT = "Sam's 12345 cups,  l\u2019\u00e9t\u00e9 \u4f60\u597d\n\n  x+=1 go"
TOLERANCE = 1e-4


def compare(work: Path) -> None:
    """In torch's Python: transformers' logits of each GGUF file in a folder, and its tokens of a text."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for file in sorted(work.glob("*.gguf")):
        try:
            model = AutoModelForCausalLM.from_pretrained(work, gguf_file=file.name, dtype=torch.float32)
            with torch.no_grad():
                found = {"logits": model(torch.tensor(TOKENS)).logits.numpy()}
            tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=file.name)
            found["ids"] = np.array(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
            np.savez(file.with_suffix(".npz"), **found)
        except Exception as error:  # what transformers cannot read is reported, not hidden
            file.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}"[:200])


def main() -> None:
    """Write the files, let transformers read them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        import mlx.core as mx
        import numpy as np
        from helpers.gguf import FAMILIES, write_family

        from upft_mlx.fusing.gguf_model import write_gguf
        from upft_mlx.models.gguf.model import gguf_folder
        from upft_mlx.models.load import load

        ours, back, ids, unscaled = {}, {}, {}, {}
        for family in FAMILIES:
            for bits in (None, 4):
                name = f"{family.replace(' ', '-')}-{bits or 'f32'}"
                how = {} if bits is None else {"bits": bits, "group_size": 32}
                folder = write_family(work / name, family, mx.float32 if bits is None else mx.float16, **how)
                write_gguf(folder, work / f"{name}.gguf", name)
                ours[name] = np.array(load(folder).model(mx.array(TOKENS)))
                if "rope_scaling" in FAMILIES[family]:  # transformers' reader leaves it out
                    config = json.loads((folder / "config.json").read_text())
                    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": None}))
                    unscaled[name] = np.array(load(folder).model(mx.array(TOKENS)))
        if options.gguf is not None:
            (work / "real.gguf").symlink_to(options.gguf.resolve())
        for file in sorted(work.glob("*.gguf")):
            made = load(gguf_folder(file))
            back[file.stem] = np.array(made.model(mx.array(TOKENS)))
            ids[file.stem] = made.tokenizer.encode(TEXT, add_special_tokens=False)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import check_gguf, pathlib; "
        code += f"check_gguf.compare(pathlib.Path({str(work)!r}))"
        subprocess.run([str(options.torch_python), "-c", code], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        print("| model | largest logit | read back by us | transformers | same tokens |\n|---|---|---|---|---|")
        failed = False
        for name, again in back.items():
            wanted = ours.get(name, again)
            largest, own = float(np.abs(wanted).max()), float(np.abs(wanted - again).max())
            failed |= own > TOLERANCE * largest
            if (refused := work / f"{name}.txt").exists():
                theirs, same = f"cannot read it ({refused.read_text()[:80]})", ""
            else:
                found = np.load(work / f"{name}.npz")
                difference = float(np.abs(found["logits"] - wanted).max())
                theirs, same = f"{difference:.2g}", "yes" if found["ids"].tolist() == list(ids[name]) else "no"
                if name in unscaled:
                    difference = float(np.abs(found["logits"] - unscaled[name]).max())
                    theirs += f" ({difference:.2g} from the model without rope_scaling)"
                failed |= difference > TOLERANCE * largest
            print(f"| {name} | {largest:.3g} | {own:.2g} | {theirs} | {same} |")
        sys.exit(int(failed))


if __name__ == "__main__":
    main()
