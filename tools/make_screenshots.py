"""Writes docs/assets/evaluation-*.svg, demo.svg, report-*.png and report-cast.svg: python tools/make_screenshots.py

One real run of the demo: the live view of its evaluation at two sizes of the terminal, its last screen,
report.html at three widths in a headless Chromium, and a walk through it. Every number on them was measured then.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.browser import browser

from upft_mlx.events import Event, Graded
from upft_mlx.inspection.page import write_page
from upft_mlx.planning.budget import this_machine
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.rundir import RunDir
from upft_mlx.studies.demo import run_demo
from upft_mlx.ui.live import LiveView
from upft_mlx.ui.views import picture, save_svg

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"
PAGES = ((390, 844, "problems", "light"), (820, 900, "problems", "dark"), (1280, 900, "", "light"))
"""Width and height, the section at the top, and the theme of each picture of report.html."""
WALK = (
    ("", ""),
    ("", "problems"),
    ("filter=lost", "problems"),
    ("filter=gained&sort=longest", "problems"),
    ("theme=dark", ""),
)
"""What the address of report.html says at each stop of the walk, and the section at the top."""
STOP = 3.0
"""Seconds at each stop."""
SIZES = ((80, 24), (120, 40))
AT = ("arithmetic-sampled", "tuned", 320)
"""The picture is taken once this many completions of this benchmark and variant are graded."""


def console(width: int, height: int) -> Console:
    """One of this size that records."""
    environment: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False}
    return Console(record=True, file=io.StringIO(), width=width, height=height, _environ={}, **environment)


class Photographer:
    """Watches a run with a view for each size, and takes the pictures once."""

    def __init__(self) -> None:
        self.consoles = {size: console(*size) for size in SIZES}
        self.views = {size: LiveView(self.consoles[size], ("evaluate",)) for size in SIZES}
        self.pictures: dict[tuple[int, int], str] = {}
        self._graded = 0

    def __call__(self, event: Event) -> None:
        """Tell the views."""
        for view in self.views.values():
            view._state.apply(event, view._now())  # not `view(event)`: the lines above the frame are not wanted
        if isinstance(event, Graded) and (event.benchmark, event.variant) == AT[:2]:
            self._graded += 1  # the demo evaluates twice; the picture is of the first time
            if self._graded == AT[2]:
                self._take()

    def _take(self) -> None:
        for size, view in self.views.items():
            self.consoles[size].print(view)
            self.pictures[size] = picture(self.consoles[size], "upft demo")


def cast(pictures: list[bytes], width: int, height: int) -> str:
    """PNG pictures as an animated SVG, which moves wherever SVG is shown and has no script."""
    total, share = STOP * len(pictures), 100 / len(pictures)
    images = [
        f'<image width="{width}" height="{height}" style="animation-delay: {STOP * number:g}s" '
        f'href="data:image/png;base64,{base64.b64encode(picture).decode()}"/>'
        for number, picture in enumerate(pictures)
    ]
    rules = (
        f"image {{ opacity: 0; animation: show {total:g}s step-end infinite }} "
        f"@keyframes show {{ 0% {{ opacity: 1 }} {share:g}% {{ opacity: 0 }} }} "
        "@media (prefers-reduced-motion: reduce) { image { animation: none } image:first-of-type { opacity: 1 } }"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="A walk through report.html">\n<style>{rules}</style>\n'
        + "\n".join(images)
        + "\n</svg>\n"
    )


def photograph(page: Path) -> None:
    """The page at three widths, in the table the first flip is open; and the walk through it."""
    with browser() as tab, tempfile.TemporaryDirectory() as folder:
        width, height = 1000, 640
        tab.resize(width, height)
        stops = []
        for fragment, section in WALK:
            tab.open(f"{page.resolve().as_uri()}#{fragment}")
            tab.run("document.querySelector('#rows button')?.click()")
            tab.run(f"document.getElementById('{section}')?.scrollIntoView({{behavior: 'instant'}})")
            tab.picture(Path(folder) / "stop.png", whole=False)
            stops.append((Path(folder) / "stop.png").read_bytes())
        (ASSETS / "report-cast.svg").write_text(cast(stops, width, height), encoding="utf-8")
        for width, height, section, theme in PAGES:
            tab.resize(width, height)
            tab.open(f"{page.resolve().as_uri()}#theme={theme}")
            tab.run("document.querySelector('#rows button').click()")
            tab.run(f"document.getElementById('{section}')?.scrollIntoView({{behavior: 'instant'}})")
            tab.picture(ASSETS / f"report-{width}.png", whole=False)


def main() -> None:
    """Run the demo; photograph the evaluation, the last screen and the page."""
    recipe, photographer = load_recipe(shipped_recipes()["demo"], ["evaluate.batch_size=32"]), Photographer()
    with tempfile.TemporaryDirectory() as folder:
        facts, _ = run_demo(recipe, Path(folder), photographer)
        budget = this_machine()
        photograph(write_page(RunDir(folder), (budget.bytes, budget.what)))
        names = {"fused": "fused", "page": "report.html"}
        files = {kind: f"runs/demo/{name}" for kind, name in names.items()}
        save_svg(replace(facts, files=files), ASSETS / "demo.svg")
    for (width, height), taken in photographer.pictures.items():
        (ASSETS / f"evaluation-{width}x{height}.svg").write_text(taken, encoding="utf-8")


if __name__ == "__main__":
    main()
