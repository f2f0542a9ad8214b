"""Picture of a report page, as in the README: `python docs/images/screenshot.py .understudy/runs/RUN/report.html`.

Needs Chromium (Debian's `chromium`) and the development packages. `--width 375` shows a phone, `--dark` the dark page.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> None:
    """Take the picture, with few colours, so that the repository stays small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("report.png"))
    parser.add_argument("--width", type=int, default=1080)
    parser.add_argument("--height", type=int, default=1480)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": given.width, "height": given.height}, color_scheme="dark" if given.dark else "light"
        )
        page.goto(given.report.resolve().as_uri())
        picture = page.screenshot()
        browser.close()
    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    few = whole.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(given.output, optimize=True)
    print(f"{given.output}: {given.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
