"""Recipes and data files with random changes: taken, or refused with one of our errors that names the file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .world import RECIPE

BATCH = 100
SHIPPED = Path(__file__).resolve().parents[2] / "recipes"
VALUES = [
    *("-1", "0", "1e999", "-.inf", ".nan", "null", "~", "true", "[]", "{}", "''", "'\\x00'", '"\\ud800"', "2024-01-01"),
    *("9" * 400, "0x7fffffffffffffff", "1_000", "[[[[[[]]]]]]", "!!python/object:os.system x", "&a *a", "*b", "<<: *c"),
    *(
        "../../etc/passwd",
        "~/x",
        "hf_" + "a" * 34,
        "\u202e",
        "x" * 5000,
        "- - -",
        "? ",
        "|",
        ">",
        "%YAML 9.9",
        "---",
        "...",
    ),
]
ROWS = [
    *("{}", "[]", "null", "1", '"x"', "", " ", "{", '{"question": ""}', '{"question": null}', '{"question": 1}'),
    *('{"question": ["x"]}', '{"question": "\\ud800"}', '{"question": "\\u0000"}', '{"answer": "1"}', "\ufeff{}"),
    *('{"question": "x", "answer": {"a": 1}}', '{"question": "x", "answer": NaN}', '{"question": "x", "id": [1]}'),
    *(
        '{"question": "x", "id": "1"}',
        '{"question": "' + "x" * 20_000 + '"}',
        '{"question": "x", "answer": ' + "9" * 5000 + "}",
    ),
    *(
        "[" * 50_000,
        '{"question": "\u202e<script>"}',
        '{"question": "x", "question": "y"}',
        '{"question": "<|im_end|>"}',
    ),
]
CSV = 'id,question,answer\n1,"What is 1 + 1?",2\n2,"A, b\nand c?",3\n3,Who?,\n'


def mutant(text: bytes, pieces: list[str], rng: random.Random) -> bytes:
    """One to four changes: bytes, lines, values, pieces put in."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        lines = text.split(b"\n")
        line = rng.randrange(len(lines))
        piece = rng.choice(pieces).encode("utf-8", "surrogatepass")
        kind = rng.randrange(8)
        if kind == 0:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 40) :]
        elif kind == 2:
            text = text[:at] + piece + text[at:]
        elif kind == 3:
            lines[line] = piece
            text = b"\n".join(lines)
        elif kind == 4:
            head, colon, _ = lines[line].partition(b":")
            lines[line] = head + colon + b" " + piece
            text = b"\n".join(lines)
        elif kind == 5:
            lines.insert(rng.randrange(len(lines)), lines[line])
            text = b"\n".join(lines)
        elif kind == 6:
            text = text[:at]
        else:
            rng.shuffle(lines)
            text = b"\n".join(lines)
    return text


def _tried(path: Path, texts: Callable[[random.Random], bytes], work: Callable[[], object], seed: str) -> str:
    from upft_mlx.errors import UpftError

    rng, wrong = random.Random(seed), []
    for number in range(BATCH):
        path.write_bytes(texts(rng))
        try:
            work()
        except UpftError as error:
            if path.name not in str(error):
                wrong.append(f"{number}: does not name the file: {str(error)[:200]}")
            if len(str(error)) > 20_000:
                wrong.append(f"{number}: a message of {len(str(error))} characters")
        except OSError as error:
            if error.filename is None and error.errno is None:
                wrong.append(f"{number}: {error!r}"[:300])
        except BaseException as error:  # Rust code panics with a BaseException; each one is reported as a failure
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"{number}: {error!r}"[:300])
            path.with_name(f"wrong-{number}-{path.name}").write_bytes(path.read_bytes())
    return "\n".join(wrong)


def recipes(folder: Path, seed: int) -> Iterator[tuple[str, Callable[[], str], int]]:
    """20,000 recipes: the shipped ones and a small one, changed."""
    from upft_mlx import load_recipe

    sources = [RECIPE.encode(), *(path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml")))]
    path = folder / "mutant.yaml"
    for batch in range(200):
        texts = partial(_from, sources, VALUES)
        yield (
            f"recipes : {seed}/{batch}",
            partial(_tried, path, texts, partial(load_recipe, path), f"{seed}/{batch}"),
            BATCH,
        )


def _from(sources: list[bytes], pieces: list[str], rng: random.Random) -> bytes:
    return mutant(rng.choice(sources), pieces, rng)


def data(folder: Path, seed: int) -> Iterator[tuple[str, Callable[[], str], int]]:
    """20,000 data files, JSONL and CSV by turns, read as a plan does."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from upft_mlx import load_recipe, plan

    rows = "".join(json.dumps({"id": n, "question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(12))
    for batch in range(200):
        suffix, source, pieces = (
            (".jsonl", rows, ROWS) if batch % 2 else (".csv", CSV, [*ROWS, '"', ",", '""', "\r", ";"])
        )
        path, recipe = folder / f"mutant{suffix}", folder / f"data{suffix}.yaml"
        recipe.write_text(f"model: builtin:arithmetic\nproblems: {{path: mutant{suffix}}}\n")
        work = partial(lambda name, run: plan(load_recipe(name), run, calibrates=False), recipe, folder / "run")
        texts = partial(_from, [source.encode()], pieces)
        yield f"{suffix[1:]} : {seed}/{batch}", partial(_tried, path, texts, work, f"{seed}/{batch}"), BATCH
