"""serve.py: what it answers to pictures, and to what is none; who may ask; how many may wait."""

import asyncio
import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run
from PIL import Image

import export
import serve
from config import ROOT, UserError
from inference import exporters
from inference.checkpoint import load_exported, read_record
from inference.hint_files import Point

httpx = pytest.importorskip("httpx", reason="serve.py is asked through httpx")
starlette_requests = pytest.importorskip("starlette.requests", reason="serve.py needs requirements-web.txt")
ClientDisconnect = starlette_requests.ClientDisconnect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> serve.Server:
    """Return a server of a tiny model that takes no hints."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "SIZES", ((19, 34),))
        patch.setattr(exporters, "BATCHES", (1,))
        path = export.main(run=make_run(folder / "run", "coco", size=32, depth=3), device="cpu")
    return serve.Server(*serve.find_models(path), "cpu")


def ask(server: serve.Server, method: str, url: str, **given: Any) -> "httpx.Response":
    """Return the answer to one request."""
    app = serve.build_app(server)

    async def send() -> "httpx.Response":
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
            return await client.request(method, url, **given)

    with ThreadPoolExecutor(1) as other:  # the browser of other tests keeps a loop in this thread
        return other.submit(asyncio.run, send()).result()


def picture(form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image file."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(encoded, form)
    return encoded.getvalue()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, a minute at most."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def film(form: str, count: int) -> bytes:
    """Return an animation, or a TIFF of several pages."""
    encoded, frames = io.BytesIO(), [Image.new("L", (8, 8), 80 * i % 256) for i in range(count)]
    frames[0].save(encoded, form, save_all=True, append_images=frames[1:])
    return encoded.getvalue()


# which Pillow gives to Ghostscript
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n{} loop\n%%EOF\n"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_comes_back_in_its_own_format(server: serve.Server, form: str) -> None:
    answer = ask(server, "POST", "/colorize", content=picture(form))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"image/{form.lower()}"
    with Image.open(io.BytesIO(answer.content)) as result:
        assert (result.format, result.size, result.mode) == (form, (40, 30), "RGB")


def test_format_and_strength_are_what_the_query_says(server: serve.Server) -> None:
    answer = ask(server, "POST", "/colorize?format=png&strength=0", content=picture("JPEG"))
    with Image.open(io.BytesIO(answer.content)) as result:
        assert result.format == "PNG"
        levels = np.asarray(result).astype(int)
    assert np.ptp(levels, axis=2).max() <= 1  # strength 0 is gray


@pytest.mark.parametrize(
    ("url", "given", "status", "words"),
    [
        ("/colorize", {"content": b""}, 400, "empty"),
        ("/colorize", {"content": b"no picture"}, 422, "picture"),
        ("/colorize", {"content": b"\x89PNG\r\n\x1a\n" + bytes(99)}, 422, "picture"),
        ("/colorize?strength=nan", {"content": picture()}, 400, "strength"),
        ("/colorize?strength=-1", {"content": picture()}, 400, "strength"),
        ("/colorize?format=exe", {"content": picture()}, 400, "format"),
        ("/colorize?model=../../etc/passwd", {"content": picture()}, 400, "model"),
        ("/colorize?size=9999", {"content": picture()}, 400, "size"),
        ("/colorize?first=all", {"content": picture()}, 400, "first"),
        ("/colorize?format=png", {"content": film("TIFF", 3)}, 422, "3 pages"),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": "["}}, 400, "JSON"),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": "[" * 5000}}, 400, "JSON"),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": '[{"x": 1}]'}}, 422, "color"),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": "[" + " " * 60_000 + "]"}}, 431, "60,000"),
        (
            "/colorize",
            {"content": picture(), "headers": {"X-Hints": json.dumps([{"x": 1, "y": 2, "color": "#a03c28"}])}},
            422,
            "takes no hints",
        ),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": '[{"x": 1' + "0" * 400 + "}]"}}, 422, "color"),
        ("/colorize", {"content": picture(), "headers": {"X-Hints": '[{"x": 1' + "0" * 5000 + "}]"}}, 400, "too long"),
        ("/colorize", {"content": EPS}, 422, "format EPS is not read"),
        ("/colorize", {"content": picture(), "headers": {"Host": "evil.example"}}, 421, "this computer"),
        ("/colorize", {"content": picture(), "headers": {"Host": "["}}, 400, "no address"),
        ("/colorize", {"content": picture(), "headers": {"Origin": "http://["}}, 400, "no address"),
        ("/colorize", {"content": picture(), "headers": {"Origin": "http://evil.example"}}, 403, "another site"),
        ("/colorize", {"content": b"", "headers": {"Content-Length": "100000001"}}, 413, "100 MB"),
        ("/colourise", {"content": picture()}, 404, "POST /colorize"),
        ("/health", {"content": picture()}, 405, "GET /health"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_a_sentence(
    server: serve.Server, url: str, given: dict[str, Any], status: int, words: str
) -> None:
    answer = ask(server, "POST", url, **given)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert len(answer.text.splitlines()) == 1


def test_too_many_pixels_are_refused_before_they_are_decoded(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_PIXELS", 10_000)
    frames, moving = [Image.new("L", (100, 50), i) for i in range(3)], io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("imaging.decoders.walk", lambda *_: pytest.fail("decoded"))
    for content in (picture(size=(200, 100)), moving.getvalue()):
        answer = ask(server, "POST", "/colorize", content=content)
        assert (answer.status_code, "megapixels" in answer.text) == (422, True), answer.text


def test_too_many_frames_are_refused_however_small(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_FRAMES", 3)
    assert ask(server, "POST", "/colorize", content=film("GIF", 3)).status_code == 200
    answer = ask(server, "POST", "/colorize", content=film("GIF", 4))
    assert (answer.status_code, "4 frames" in answer.text) == (422, True), answer.text


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_the_first_frame_or_page_alone_is_coloured_where_it_is_asked_for(server: serve.Server, form: str) -> None:
    answer = ask(server, "POST", "/colorize?first=1&format=png", content=film(form, 3))
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as result:
        assert getattr(result, "n_frames", 1) == 1


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_picture_that_nobody_waits_for_ends_with_the_frame_that_is_coloured(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    job, seen = serve.Job(film(form, 3), "generator", 1.0, [], None), []

    def colourise(runner: object, frame: Any, layer: object) -> Any:
        seen.append(frame)
        job.dropped.set()
        return frame

    monkeypatch.setattr("inference.runner.Runner.colourise", colourise)
    with pytest.raises(serve.Refused, match="nobody waits"):
        server.colour(job)
    assert len(seen) == 1


def test_a_body_that_grows_or_never_ends_is_cut_off(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks(wait: float) -> Any:
        for _ in range(4):
            yield b"x" * 400
            await asyncio.sleep(wait)

    monkeypatch.setattr(serve, "MAX_UPLOAD", 1000)
    assert ask(server, "POST", "/colorize", content=chunks(0)).status_code == 413
    monkeypatch.setattr(serve, "MAX_UPLOAD", 10_000)
    monkeypatch.setattr(serve, "PATIENCE", 0.05)
    late = ask(server, "POST", "/colorize", content=chunks(30))
    assert (late.status_code, late.headers["connection"]) == (408, "close")
    assert (server.requests, server.held) == (0, 0)


def test_who_comes_when_all_places_are_taken_is_told_to_try_again(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_WAITING", 0)
    answer = ask(server, "POST", "/colorize", content=picture())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    monkeypatch.undo()
    assert ask(server, "POST", "/colorize", content=picture()).status_code == 200
    assert server.waiting == 0


def test_who_comes_while_too_many_are_on_their_way_is_told_to_try_again(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_REQUESTS", 0)
    assert ask(server, "POST", "/colorize", content=picture()).status_code == 429
    monkeypatch.undo()
    monkeypatch.setattr(serve, "MAX_HELD", 9)
    answer = ask(server, "POST", "/colorize", content=picture())
    assert (answer.status_code, "memory is full" in answer.text) == (429, True)
    assert ask(server, "GET", "/health").status_code == 200
    assert (server.requests, server.held) == (0, 0)


def test_the_bytes_of_a_picture_and_its_result_are_counted_until_it_is_answered(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, seen = picture(), []
    monkeypatch.setattr(serve.Server, "colour", lambda *_: (seen.append(server.held), (b"x" * 999, "image/png"))[1])
    assert ask(server, "POST", "/colorize", content=content).status_code == 200
    assert (seen, server.held) == ([len(content)], 0)
    monkeypatch.setattr(serve, "MAX_HELD", len(content))  # what is coloured is sent
    assert ask(server, "POST", "/colorize", content=content).status_code == 200


@pytest.mark.parametrize(("spent", "left"), [((10, 0), 20), ((10, 2_500_000), 30), ((5, 100_000), 26), ((40, 0), -10)])
def test_what_comes_through_gives_time_back(spent: tuple[float, int], left: float) -> None:
    allowance = serve.Allowance()
    allowance.spend(*spent)
    assert allowance.left == pytest.approx(left)


def test_a_picture_that_takes_too_long_keeps_its_place_until_it_ends(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(serve.Server, "colour", lambda *_: go_on.wait())
    monkeypatch.setattr(serve, "WAIT_SECONDS", 0.1)
    busy = serve.Server(server.models, server.records, "cpu")

    async def send() -> tuple[int, int, int]:
        transport = httpx.ASGITransport(serve.build_app(busy))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
            late = await client.post("/colorize", content=picture())
            behind = await client.post("/colorize", content=picture())  # which gives up before its turn comes
            while busy.waiting > 1:
                await asyncio.sleep(0.01)
            still = busy.waiting
            go_on.set()
            while busy.waiting:
                await asyncio.sleep(0.01)
            return late.status_code, behind.status_code, still

    with ThreadPoolExecutor(1) as other:
        assert other.submit(asyncio.run, send()).result(60) == (503, 503, 1)


def test_nothing_is_coloured_for_a_client_that_is_gone(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, coloured = threading.Event(), []
    monkeypatch.setattr(serve.Server, "colour", lambda _, job: (go_on.wait(), coloured.append(job.form)))
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.01)
    busy = serve.Server(server.models, server.records, "cpu")

    async def gone() -> bool:
        return True

    async def send() -> None:
        jobs = [serve.Job(b"x", "generator", 1.0, [], form) for form in ("png", "jpg")]
        for job in jobs:
            with pytest.raises(ClientDisconnect):
                await serve.answer(busy, job, gone)
            assert (job.dropped.is_set(), job.content) == (True, b"")  # which the queue would keep
        go_on.set()
        while busy.waiting:
            await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, send()).result(60)
    assert coloured == ["png"]  # which had begun


def test_after_a_picture_that_a_gpu_could_not_hold_the_next_one_has_full_precision_again(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colourise(runner: Any, frame: Any, layer: object) -> Any:
        runner.half = len(seen) == 0  # as where its memory was not enough
        seen.append(runner)
        return frame

    seen: list[Any] = []
    monkeypatch.setattr("inference.runner.Runner.colourise", colourise)
    for _ in range(3):
        assert ask(server, "POST", "/colorize", content=picture()).status_code == 200
    assert (seen[0] is seen[1], seen[1] is seen[2]) == (False, True)


def test_hints_that_take_long_to_draw_are_refused() -> None:
    few = [Point(5, 5, "#a03c28", 1e5)] * serve.MAX_COVER
    serve.check_cover(few, 1000, 1000)
    with pytest.raises(UserError, match="more than 20 times"):
        serve.check_cover([*few, *few], 1000, 1000)


def test_a_bug_is_told_on_the_terminal_alone(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "check_cover", lambda *_: 1 / 0)
    answer = ask(server, "POST", "/colorize", content=picture())
    assert (answer.status_code, "ZeroDivisionError" in answer.text) == (500, False)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_full_disk_is_told_in_a_sentence(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("imaging.files.write_frames", "tempfile.TemporaryDirectory"):
        with monkeypatch.context() as patch:
            patch.setattr(name, write)
            answer = ask(server, "POST", "/colorize", content=picture())
        assert answer.status_code == 507
        assert answer.text == "the server cannot write the result (No space left on device)"


def test_where_a_damaged_model_lies_is_told_on_the_terminal_alone(
    server: serve.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "generator.ts"
    path.write_bytes(b"no model")
    answer = ask(serve.Server({"generator": path}, server.records, "cpu"), "POST", "/colorize", content=picture())
    assert (answer.status_code, answer.text) == (503, "model generator cannot be loaded")
    assert str(path) in capsys.readouterr().err


def test_a_token_is_asked_for_where_there_is_one(server: serve.Server) -> None:
    closed = serve.Server(server.models, server.records, "cpu", token="secret")
    assert ask(closed, "GET", "/").status_code == 401
    assert ask(closed, "GET", "/?token=secret").status_code == 200
    assert ask(closed, "GET", "/health", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert ask(closed, "GET", "/health", headers={"Authorization": "Bearer other"}).status_code == 401


def test_the_page_and_health_are_served(server: serve.Server) -> None:
    home, health = ask(server, "GET", "/"), ask(server, "GET", "/health")
    assert "connect-src 'self'" in home.text
    assert "{{" not in home.text
    assert home.headers["x-frame-options"] == "DENY"
    assert health.json() == {"status": "ok", "waiting": 0, "models": list(server.models)}


def test_a_port_in_use_and_a_missing_model_are_one_sentence(tmp_path: Path) -> None:
    taken = serve.listen("127.0.0.1", 0)
    socket.create_connection(taken.getsockname(), timeout=10).close()  # who comes before all is ready waits
    with taken, pytest.raises(UserError, match="second serve"):
        serve.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="no model"):
        serve.find_models(tmp_path / "none.ts")


def test_models_lie_beside_the_first_and_what_is_none_is_named(
    server: serve.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = server.models.values()
    for name in ("b", "a"):
        shutil.copyfile(path, tmp_path / f"{name}.ts")
    (tmp_path / "c.ts").write_text("no model")
    models, records = serve.find_models(tmp_path / "b.ts")
    assert list(models) == list(records) == ["b", "a"]
    assert str(records["a"]) == str(read_record(path)) == str(load_exported(path, torch.device("cpu")).record)
    assert "left out: " in capsys.readouterr().out
    several = serve.Server(models, records, "cpu")
    assert ask(several, "POST", "/colorize?model=a", content=picture()).status_code == 200
    assert list(several.loaded) == ["a"]  # the others are loaded when they are asked for


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
def test_the_printed_address_can_be_opened(host: str, shown: str) -> None:
    assert serve.shown_address(host) == shown
    assert serve.is_address(serve.shown_address("0.0.0.0"))


@pytest.fixture
def address(server: serve.Server) -> Iterator[tuple[str, int]]:
    """Yield where a server listens that runs in a thread."""
    listening, running = serve.listen("127.0.0.1", 0), serve.build_http(server)
    with ThreadPoolExecutor(1) as other:
        ended = other.submit(running.run, sockets=[listening])
        yield listening.getsockname()
        running.should_exit = True
        ended.result(60)


def test_a_connection_on_which_no_request_comes_is_closed_also_after_its_first_one(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.5)
    with socket.create_connection(address, timeout=60) as client, suppress(ConnectionResetError):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        client.sendall(b"G")  # which ends the time that a connection is kept for its next request
        while client.recv(10_000):
            pass


@pytest.mark.parametrize(
    ("least", "pause", "ends"),
    [(10**8, None, "cut"), (10**8, 0.1, "cut"), (10**6, 0.0, "read")],
    ids=["not at all", "a tenth", "as fast as it can"],
)
def test_a_client_that_reads_too_slowly_is_not_held(
    server: serve.Server,
    address: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    pause: float | None,
    ends: str,
) -> None:
    monkeypatch.setattr(serve, "PATIENCE", 0.5)
    monkeypatch.setattr(serve, "MIN_RATE", least)
    size, received = 200_000_000, 0  # more than the system's buffers take
    monkeypatch.setattr(serve.Server, "colour", lambda *_: (bytes(size), "image/png"))
    with socket.create_connection(address, timeout=60) as client, suppress(ConnectionResetError):
        client.sendall(b"POST /colorize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
        received = len(client.recv(1000))
        if pause is None:
            wait_until(lambda: not server.requests)
        while received < size and (found := client.recv(1_000_000)):
            received += len(found)
            time.sleep(pause or 0)
    assert ("read" if received >= size else "cut") == ends
    wait_until(lambda: not server.requests and not server.held)


def test_the_last_part_of_an_answer_is_waited_for_too(server: serve.Server) -> None:
    app, sent = serve.build_app(server), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, app(scope, receive, send)).result()
    last = sent[-2:]  # the server waits before each part until the one before it has been read
    assert [(bool(part["body"]), part.get("more_body", False)) for part in last] == [(True, True), (False, False)]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /colorize HTTP/1.1\r\nHost: evil.example\r\n", 421),
        ("POST /colorize?strength=-1 HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("POST /nowhere HTTP/1.1\r\nHost: localhost\r\n", 404),
    ],
)
def test_who_is_refused_before_its_file_has_arrived_reads_why(address: tuple[str, int], head: str, status: int) -> None:
    size = 20_000_000
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        client.sendall(bytes(size))  # all of it, before a word is read
        assert client.recv(10_000).startswith(f"HTTP/1.1 {status} ".encode())
    with socket.create_connection(address, timeout=60) as client:  # as curl asks whether it may send
        client.sendall(f"{head}Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.recv(10_000).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_refused_file_that_never_ends_is_given_up(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REST_SECONDS", 0.2)
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx")
        assert client.recv(10_000).startswith(b"HTTP/1.1 404 ")


def test_the_refused_take_no_place_while_their_files_arrive(
    server: serve.Server, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned_away, real = [], serve.Exchange.turn_away

    async def turn_away(exchange: serve.Exchange, status: int) -> None:
        turned_away.append(status)
        await real(exchange, status)

    monkeypatch.setattr(serve.Exchange, "turn_away", turn_away)
    monkeypatch.setattr(serve, "MAX_REQUESTS", 2)
    lines = [socket.create_connection(address, timeout=60) for _ in range(4)]
    for line in lines:  # and send no more
        line.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx")
    wait_until(lambda: turned_away == [404] * 4 and not server.requests)
    assert httpx.get(f"http://localhost:{address[1]}/health").status_code == 200
    for line in lines:
        line.close()


BLOCKED = """
import threading
import imaging.files
import serve

serve.STOP_SECONDS = 0.2
imaging.files.write_frames = lambda *_: (print("coloured", flush=True), threading.Event().wait())
serve.command(serve.main)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_and_leaves_nothing_while_a_picture_is_coloured(
    server: serve.Server, sent: signal.Signals, tmp_path: Path
) -> None:
    call = [sys.executable, "-c", BLOCKED, "--model", *map(str, server.models.values()), "--port", "0"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env, content = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, picture()
    head = f"POST /colorize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with subprocess.Popen([*call, "--device", "cpu"], env=env, **piped) as process:
        try:
            port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(head.encode() + content)
                assert process.stdout.readline() == "coloured\n"
                process.send_signal(sent)
                said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert [line.partition(" ")[0] for line in said.splitlines()] == ["model"]  # which it says at its start
    assert list(tmp_path.iterdir()) == []
