"""A headless Chromium by its DevTools protocol over two pipes: no driver, no port and no package is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
REASON = "no Chromium here: apt-get install chromium"
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """One page in one browser with a profile of its own in `folder`, which downloads to `folder / "downloads"`."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1200, 900)):
        (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()  # the browser's 3 and 4
        command = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "chromium", CHROMIUM, *FLAGS.split()]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}"]
        pipes = {"pass_fds": (to_read, to_write), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env={**os.environ, "HOME": str(folder)}, **pipes)
        os.close(to_read), os.close(to_write)
        self._buffer, self._number, self._session, self.events = b"", 0, None, []
        self.downloads = folder / "downloads"
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        os.close(self._write), os.close(self._read)
        self.process.wait(20)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer of the browser. What it tells meanwhile goes to `events`; its dialogs are answered with yes."""
        number = self._send(method, parameters)
        while (message := self._receive()).get("id") != number:
            if "method" not in message:  # the answer to a dialog's
                continue
            self.events.append(message)
            if message["method"] == "Page.javascriptDialogOpening":
                self._send("Page.handleJavaScriptDialog", {"accept": True})
        assert "error" not in message, message
        return message["result"]

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 20)
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.run("window.isOld = true")
        self.call("Page.reload")
        self.wait("document.readyState === 'complete' && !window.isOld")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, a promise's too."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"waited in vain for {script}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A real click at the middle of the element, which is scrolled into view, as soon as it stays where it is."""
        place = f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: "nearest"}});
            const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
        before, now, end = None, self.run(place), time.monotonic() + 2
        while now != before and time.monotonic() < end:
            time.sleep(0.05)
            before, now = now, self.run(place)
        self.drag([now])

    def drag(self, points: list[tuple[float, float]]) -> None:
        """A real drag with the left button through points of the window, from the first to the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]]):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def upload(self, selector: str, path: Path) -> None:
        """Gives a file to the file input, as its dialog would."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def press(self, key: str, repeat: bool = False) -> None:
        """A real key press; `repeat`: as when it is held down."""
        written = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        common = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeat, **common, **written)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def downloaded(self) -> Path:
        """The only file that was downloaded, when it is whole."""
        for _ in range(500):  # ten seconds
            if [file for file in self.downloads.glob("*") if file.suffix != ".crdownload"]:
                break
            time.sleep(0.02)
        (file,) = self.downloads.glob("*")
        return file

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[Any]:
        """Errors of scripts, and what the console was told of errors."""
        told = [event["params"] for event in self.events if event["method"] == "Log.entryAdded"]
        thrown = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return thrown + [one for one in told if one["entry"]["level"] == "error"]
