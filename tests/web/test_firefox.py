"""colorizer.html in Firefox, which is driven by Marionette, its own protocol: it colours as Python does."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import apart, by_python
from PIL import Image

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in WebDriver
SHOWN = """
const done = arguments[arguments.length - 1];
const finished = () => {
    const { state } = document.getElementById('stage').dataset;
    if (state === 'failed') return done(document.getElementById('problem').textContent);
    if (state !== 'ready' || document.body.dataset.working !== 'false') return setTimeout(finished, 50);
    done(document.querySelector('#after canvas').toDataURL());
};
finished();
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FIREFOX is None, reason="no Firefox: neither firefox-esr nor firefox is installed"),
]


class Firefox:
    """A headless Firefox; a message of Marionette is its length, a colon, and JSON."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "user.js").write_text(f'user_pref("marionette.port", {self.port});\n')
        call = [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(folder)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(call, env={**os.environ, "HOME": str(folder)}, **silent)

    def open(self) -> None:
        """Wait for it, and begin a session."""
        while self.process.poll() is None:
            try:
                self.line = socket.create_connection(("127.0.0.1", self.port))
                break
            except ConnectionRefusedError:
                continue
        self.incoming = self.line.makefile("rb")
        self.read()  # what it is
        self.call("WebDriver:NewSession", capabilities={"alwaysMatch": {"timeouts": {"script": 300_000}}})

    def read(self) -> Any:
        length = b"".join(iter(lambda: self.incoming.read(1), b":"))
        return json.loads(self.incoming.read(int(length)))

    def call(self, name: str, **given: Any) -> Any:
        message = json.dumps([0, 1, name, given]).encode()
        self.line.sendall(b"%d:%b" % (len(message), message))
        _, _, problem, result = self.read()
        assert problem is None, problem
        return result


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    """Yield a Firefox with a new profile."""
    (tmp_path / "profile").mkdir()
    started = Firefox(tmp_path / "profile")
    try:
        started.open()
        yield started
    finally:
        started.process.terminate()
        started.process.wait()


# What the page has asked for; then it asks 127.0.0.1, at a port that an argument names, for two seconds.
ASKED = """
const [port, done] = arguments;
const named = performance.getEntriesByType('resource').map((entry) => entry.name);
const asking = { mode: 'no-cors', signal: AbortSignal.timeout(2000) }; // nobody answers
fetch(`http://127.0.0.1:${port}/`, asking).finally(() => done(named)).catch(() => {});
"""


def test_firefox_shows_what_python_gives(firefox: Firefox, html: Path, model: Path, photographs: list[Path]) -> None:
    firefox.call("WebDriver:Navigate", url=html.as_uri())
    given = firefox.call("WebDriver:FindElement", using="css selector", value="#files")["value"][ELEMENT]
    firefox.call("WebDriver:ElementSendKeys", id=given, text=str(photographs[0]))
    found = firefox.call("WebDriver:ExecuteAsyncScript", script=SHOWN, args=[])["value"]
    assert found.startswith("data:image/png"), found
    shown = Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))).convert("RGB")
    assert apart(np.asarray(shown), by_python(model, photographs[0])) <= 2
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        asked = firefox.call("WebDriver:ExecuteAsyncScript", script=ASKED, args=[port])["value"]
        assert [name for name in asked if not name.startswith(("data:", "blob:"))] == []
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
