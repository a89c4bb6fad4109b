"""Makes app.png: the demo app in a headless Chromium, after a click on Generate with seed 0, at the first frame.

python docs/images/make_app_screenshot.py
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "tests"), str(HERE.parents[1] / "tests" / "examples")]

from small_browser import Browser  # noqa: E402
from test_app import SEED, fill, run, served  # noqa: E402


def main():
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as address:
        (Path(folder) / "browser").mkdir()
        with Browser(Path(folder) / "browser", (1280, 745)) as page:
            page.open(address)
            page.wait("document.querySelectorAll('#text .empty').length === 3", 60)
            page.click("#text input[type=checkbox]")
            fill(page, SEED, 0)
            run(page, "text", steps=25)
            page.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)  # else the button is shown as pressed
            page.run("document.querySelectorAll('.shown video').forEach((v) => { v.pause(); v.currentTime = 0; })")
            page.wait("[...document.querySelectorAll('.shown video')].every((v) => !v.seeking)")
            page.screenshot(HERE / "app.png")


if __name__ == "__main__":
    main()
