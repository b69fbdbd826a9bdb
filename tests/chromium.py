"""A headless Chromium over its debugging pipe: opens pages and asks them questions."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BINARY = shutil.which("chromium") or shutil.which("google-chrome")
_SECONDS = 60
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
# Text that leaves its drawing or the page, and text of too little contrast.
_QUESTIONS = """
(() => {
  const found = {outside: [], faint: [], texts: 0, width: 0};
  const shown = (node) => node.getClientRects().length > 0;
  const scrolls = (node) => node && node.closest('.scroll');
  const page = document.documentElement;
  found.width = page.scrollWidth - window.innerWidth;
  for (const node of document.querySelectorAll('svg text')) {
    if (!shown(node) || !node.textContent) continue;
    const box = node.getBoundingClientRect();
    const frame = node.ownerSVGElement.getBoundingClientRect();
    found.texts += 1;
    if (box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      found.outside.push(node.textContent);
  }
  const numbers = (said) => said.match(/[\\d.]+/g).map(Number);
  const light = (said) => {
    const part = numbers(said).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const said = getComputedStyle(at).backgroundColor;
      if (numbers(said)[3] !== 0) return said;
    }
    return 'rgb(255, 255, 255)';
  };
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(
      (child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !shown(node)) continue;
    const box = node.getBoundingClientRect();
    if (!node.ownerSVGElement && !scrolls(node)
        && (box.left < -1 || box.right > window.innerWidth + 1))
      found.outside.push(node.textContent.slice(0, 60));
    const style = getComputedStyle(node);
    const ink = light(node.ownerSVGElement ? style.fill : style.color);
    const under = light(ground(node));
    const ratio = (Math.max(ink, under) + 0.05) / (Math.min(ink, under) + 0.05);
    if (ratio < 4.5) found.faint.push([node.textContent.slice(0, 60), ratio]);
  }
  return JSON.stringify(found);
})()
"""


@dataclass
class Seen:
    """
    A page as Chromium shows it.

    Args:
        said: Its text as people read it.
        complaints: Of the console, and of what was refused.
        requests: Every address that was asked for.
        outside: Texts that are cut off.
        faint: Texts whose contrast is under 4.5.
        num_texts: Texts of drawings that are shown.
        overflow: Pixels by which the page is wider than the window.
    """

    said: str
    complaints: list[str]
    requests: list[str]
    outside: list[str]
    faint: list[Any]
    num_texts: int
    overflow: int


@dataclass
class Browser:
    """
    A running Chromium.

    Args:
        process: The program.
        read: What it says.
        write: What it is told.
    """

    process: subprocess.Popen[bytes]
    read: int
    write: int
    _buffer: bytes = b""
    _last: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, session: str = "", **values: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what comes between is kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": values}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._last:
                assert "error" not in got, got
                answer: dict[str, Any] = got["result"]
                return answer
            self._events.append(got)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.read], [], [], until - time.monotonic())
            assert ready, "Chromium does not answer"
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _wait(self, event: str) -> None:
        while not any(each.get("method") == event for each in self._events):
            self._events.append(self._next())

    def look(
        self, page: Path, *, width: int = 1100, dark: bool = False, media: str = ""
    ) -> Seen:
        """
        Open a page as somebody has it before them.

        Args:
            page: The file.
            width: Of the window.
            dark: Whether the system is set to the dark scheme.
            media: `print` for paper; empty for a screen.
        """
        self._events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        name = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", name)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", name, media=media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            name,
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._events.clear()
        self.call("Page.navigate", name, url=page.resolve().as_uri())
        self._wait("Page.loadEventFired")
        found = json.loads(self._evaluate(name, _QUESTIONS))
        said = self._evaluate(name, "document.body.innerText")
        self.call("Target.closeTarget", targetId=target)
        return Seen(
            said=said,
            complaints=self._complaints(),
            requests=[
                each["params"]["request"]["url"]
                for each in self._events
                if each.get("method") == "Network.requestWillBeSent"
            ],
            outside=found["outside"],
            faint=found["faint"],
            num_texts=found["texts"],
            overflow=found["width"],
        )

    def _evaluate(self, session: str, expression: str) -> str:
        got = self.call("Runtime.evaluate", session, expression=expression)
        assert "exceptionDetails" not in got, got
        return str(got["result"]["value"])

    def _complaints(self) -> list[str]:
        methods = (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
        )
        return [
            json.dumps(each["params"])
            for each in self._events
            if each.get("method") in methods
        ]


def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile; the caller's fixture ends it."""
    if BINARY is None:
        pytest.skip("no chromium on this machine")
    to_read, its_write = os.pipe()
    its_read, to_write = os.pipe()
    command = f'exec "$0" "$@" 3<&{its_read} 4>&{its_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, BINARY, *_FLAGS, f"--user-data-dir={folder}"],
        pass_fds=(its_read, its_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_read)
    os.close(its_write)
    opened = Browser(process=process, read=to_read, write=to_write)
    try:
        yield opened
    finally:
        opened.call("Browser.close")
        os.close(to_write)
        process.wait(timeout=_SECONDS)
        os.close(to_read)
