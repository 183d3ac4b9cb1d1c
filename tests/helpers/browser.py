"""Chromium without a window, told what to do over its DevTools protocol
(https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import contextlib
import itertools
import pathlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._ids = socket, itertools.count(1)
        self.requests: list[str] = []  # addresses that the page has asked
        self.complaints: list[str] = []  # of its console

    async def tell(self, method: str, **params) -> dict[str, Any]:
        """The result of a command."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(str(message["params"]))
            elif message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def value(self, script: str) -> Any:
        """Of a piece of JavaScript."""
        found = await self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Waits until a piece of JavaScript is true."""
        async with asyncio.timeout(60):
            while not await self.value(script):
                await asyncio.sleep(0.02)

    async def write(self, text: str) -> None:
        """Types where the cursor is."""
        await self.tell("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """With the mouse, in the middle of what the selector names."""
        x, y = await self.value(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def picture(self, path: pathlib.Path) -> None:
        """A screenshot, as .png."""
        shot = await self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def opened(address: str, folder: pathlib.Path) -> AsyncIterator[Page]:
    """A browser at that address, with `folder` for what it keeps."""
    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",  # which root may not have
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=900,900",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            while not (port_file.exists() and "\n" in port_file.read_text()):
                assert process.poll() is None, "Chromium has ended"
                await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                (target, *_) = [t for t in await response.json(content_type=None) if t["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.tell(f"{domain}.enable")
                await page.tell("Page.navigate", url=address)
                await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
                yield page
    finally:
        process.kill()
        process.wait()
