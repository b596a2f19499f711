"""Colour pictures on a page in the browser, or over HTTP, with any generator.ts.

    python serve.py                                       # http://127.0.0.1:8765, with pretrained/photo.ts
    python serve.py --model runs/manga/generator.ts       # every generator.ts beside it can be chosen on the page
    python serve.py --host 0.0.0.0 --token                # for anyone who has the printed address

    curl --data-binary @old.jpg 'http://127.0.0.1:8765/colorize?strength=1.2' --output colour.jpg

Needs pip install -r requirements-web.txt. docs/web.md has the page, the API and its limits. One picture is coloured
at a time; a few wait, and those that come after them are told to try again (429). No part of a request becomes a path
on disk.
"""

import asyncio
import errno
import ipaddress
import json
import math
import os
import secrets
import shutil
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from config import UserError
from runtime.cli import INTERRUPTED, DeviceOption, command
from runtime.progress import say, write

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from inference.checkpoint import ExportRecord
    from inference.hint_files import Point
    from inference.runner import Runner

MAX_UPLOAD = 100_000_000  # bytes
MAX_PIXELS = 100_000_000  # of a file, all its frames together
MAX_FRAMES = 1000  # of a file; each is a pass of the network, however small
MAX_HINTS = 60_000  # bytes of the header X-Hints; uvicorn takes 131,072 of all headers
MAX_COVER = 20  # times that hints may cover the picture
MAX_WAITING = 8  # pictures that wait or are coloured
MAX_REQUESTS = 64  # that are received, wait, are coloured or sent
MAX_HELD = 1_000_000_000  # bytes of files and results in memory, of all requests together
HEADER_SECONDS = 20.0  # from a connection to its request, and from the first byte of a later one to its last header
PATIENCE = 30.0  # seconds that a file or a result may stand still, or come too slowly
MIN_RATE = 100_000  # bytes a second that a client sends or reads at least, besides its PATIENCE
REST_SECONDS = 20.0  # for the rest of a file that is refused before it has arrived
WAIT_SECONDS = 300.0  # for a result, from the last byte of a body
STOP_SECONDS = 5.0  # from Ctrl-C, for what is still coloured and sent
PIECE = 2**18  # bytes
LOOK_SECONDS = 1.0  # between two looks whether a client is still there
TYPES = {
    "PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff", "GIF": "image/gif",
    "BMP": "image/bmp", "PPM": "image/x-portable-pixmap", "AVIF": "image/avif",
}  # fmt: skip


class Refused(Exception):
    """An answer that is no picture: a status of HTTP, and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Allowance:
    """The time that a client has: each byte that comes through gives some back, up to PATIENCE."""

    left: float = field(default_factory=lambda: PATIENCE)  # seconds

    def spend(self, seconds: float, count: int) -> None:
        """Note that `count` bytes came through in so many seconds."""
        self.left = min(PATIENCE, self.left - seconds + count / MIN_RATE)


@dataclass
class Job:
    """What a request asks for."""

    content: bytes  # of an image file
    model: str  # one of Server.models
    strength: float
    hints: "list[Point]"
    form: str | None  # of the result, one of imaging.files.FORMS; None: as the file
    first: bool = False  # of its frames or pages, the first alone
    dropped: threading.Event = field(default_factory=threading.Event)  # nobody waits for it any more


@dataclass
class Server:
    """Models by name, one thread that colours, and the places of those that wait for it."""

    models: dict[str, Path]
    records: "dict[str, ExportRecord]"
    device: str
    token: str = ""
    names: tuple[str, ...] = ("localhost",)  # of this computer, besides its addresses
    loaded: "dict[str, Runner]" = field(default_factory=dict)
    waiting: int = 0
    requests: int = 0
    held: int = 0  # bytes of files and results
    folder: str = ""  # of the result that is written
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def leave(self) -> None:
        """Give back the place of a picture that was coloured."""
        self.waiting -= 1

    def runner(self, name: str) -> "Runner":
        """Return the Runner of a model; it is loaded once. Raises UserError."""
        from inference.runner import Runner
        from runtime.device import pick_device

        if name not in self.loaded:
            self.loaded[name] = Runner(self.models[name], pick_device(self.device))
        return self.loaded[name]

    def colour(self, job: Job) -> tuple[bytes, str]:
        """Return the coloured file and its type; runs in the one thread that colours.

        Raises:
            UserError: the content is no image that is read here, too large, or its hints do not fit it.
            Refused: the model cannot be loaded, the result cannot be written, or the job was dropped meanwhile.
        """
        import tempfile

        from imaging.files import FORMATS as ENDINGS
        from imaging.files import read_frames, scan, write_frames
        from inference.hint_files import draw_points

        try:
            runner = self.runner(job.model)
        except (UserError, OSError) as error:  # it names a path, which is nothing for others
            write(str(error), "stderr")
            raise Refused(503, f"model {job.model} cannot be loaded") from None
        found = scan(Path("the picture"), job.content, MAX_PIXELS)
        if found.form not in {*ENDINGS.values(), "HEIF", "JPEG2000", "PCX", "TGA"}:  # others may start programs, as EPS
            raise UserError(f"a picture in the format {found.form} is not read here")
        if found.count > MAX_FRAMES:
            raise UserError(f"the picture has {found.count:,} frames, and at most {MAX_FRAMES:,} are taken here")
        if job.first:
            found = replace(found, count=1, durations=(), others=())
        suffix = next((suffix for suffix, form in ENDINGS.items() if form == found.form), ".png")
        suffix = f".{job.form}" if job.form else suffix
        runner.set("strength", job.strength)

        def colourise(frame: Any) -> Any:
            if job.dropped.is_set():
                raise Refused(503, "nobody waits for this picture any more")
            height, width = frame.pixels.shape[:2]
            check_cover(job.hints, height, width)
            layer = draw_points(job.hints, height, width) if job.hints else None
            return runner.colourise(frame, layer)

        try:
            with tempfile.TemporaryDirectory() as self.folder:
                result = Path(self.folder, f"colour{suffix}")
                write_frames(result, map(colourise, read_frames(found)), found)
                return result.read_bytes(), TYPES[ENDINGS[suffix]]
        except OSError as error:
            raise Refused(507, f"the server cannot write the result ({error.strerror or error})") from None
        finally:
            if runner.half:  # a GPU's memory was not enough for this picture: the next one has full precision again
                self.loaded.pop(job.model, None)


@dataclass
class Exchange:
    """A request and its answer, between the application and a client that may be slow."""

    server: Server
    scope: dict[str, Any]
    receive_: Callable[[], Awaitable[dict[str, Any]]]
    send_: Callable[[dict[str, Any]], Awaitable[None]]
    held: int = 0  # bytes that count in Server.held
    is_counted: bool = True  # in Server.requests
    begun: bool = False  # the body
    ended: bool = False
    until: float = math.inf  # of the loop's time: when the answer has to be read

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, as ASGI has it."""
        self.begun = True
        message = await self.receive_()
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Send a part of the answer; the connection of a client that reads it too slowly is ended."""
        if message.get("body") and not message.get("more_body"):  # the last part waits too until it has gone
            await self.send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b""}
        loop = asyncio.get_running_loop()
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self.turn_away(message["status"])
            size = int(dict(message["headers"]).get(b"content-length", 0))
            self.until = loop.time() + PATIENCE + size / MIN_RATE
        try:
            await asyncio.wait_for(self.send_(message), min(PATIENCE, self.until - loop.time()))
        except asyncio.TimeoutError:
            if transport := self.scope["state"].get("transport"):  # see Connection
                transport.abort()
                await asyncio.sleep(0)  # in which uvicorn is told

    async def turn_away(self, status: int) -> None:
        """Give back what the request held, and read the rest of its body: who sends it all first finds the answer."""
        self.release()
        waits = b"expect" in dict(self.scope["headers"]) and not self.begun  # for a word before it sends its body
        if waits or status == 408:
            return

        async def discard() -> None:
            while not self.ended:
                await self.receive()

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(discard(), REST_SECONDS)

    def hold(self, count: int) -> None:
        """Note that so many bytes stay in memory until the answer is sent."""
        self.held += count
        self.server.held += count

    def release(self) -> None:
        """Give back what the request held."""
        self.server.held -= self.held
        self.server.requests -= self.is_counted
        self.held, self.is_counted = 0, False


def check_cover(hints: "list[Point]", height: int, width: int) -> None:
    """Raise UserError where hints are so many and large that drawing them would take long."""
    covered = sum(min(2 * hint.radius + 1, height) * min(2 * hint.radius + 1, width) for hint in hints)
    if covered > MAX_COVER * max(height * width, 10_000):
        raise UserError(f"the hints cover the picture more than {MAX_COVER} times: send fewer, or smaller ones")


def read_job(server: Server, request: "Request", content: bytes) -> Job:
    """Return what a request asks for. Raises Refused or UserError where it is invalid."""
    from imaging.files import FORMS
    from inference.hint_files import parse_points

    query, hints = request.query_params, request.headers.get("x-hints", "")
    if unknown := set(query) - {"strength", "format", "model", "first", "token"}:
        raise Refused(400, f"no parameter {min(unknown)}: there are strength, format, model and first")
    name, form = query.get("model", next(iter(server.models))), query.get("format")
    if name not in server.models:
        raise Refused(400, f"no model of that name: there are {' '.join(server.models)}")
    if form not in (None, *FORMS):
        raise Refused(400, f"format is one of {' '.join(FORMS)}")
    if query.get("first", "0") not in ("0", "1"):
        raise Refused(400, "first is 1, for the first frame or page alone, or 0")
    try:
        strength = float(query.get("strength", 1))
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= 100:  # also true of NaN
        raise Refused(400, "strength is a number from 0 to 100; 1 is as predicted")
    if len(hints) > MAX_HINTS:
        raise Refused(431, f"X-Hints has more than {MAX_HINTS:,} bytes")
    try:
        points = parse_points(json.loads(hints), "X-Hints") if hints else []
    except (json.JSONDecodeError, RecursionError):
        raise Refused(400, "X-Hints is not JSON") from None
    except UserError:
        raise
    except ValueError:  # a number of thousands of digits
        raise Refused(400, "X-Hints has a number that is too long") from None
    if points and not server.records[name].recipe.hints:
        raise Refused(422, f"{name} takes no hints")
    return Job(content, name, strength, points, form, query.get("first") == "1")


async def receive(server: Server, request: "Request") -> bytes:
    """Return the body of a request. Raises Refused where it is too large or too slow."""
    too_large = Refused(413, f"a file has at most {MAX_UPLOAD // 1_000_000} MB here")
    if int(request.headers.get("content-length", "0") or 0) > MAX_UPLOAD:
        raise too_large
    content, stream, allowance = bytearray(), request.stream(), Allowance()
    clock = asyncio.get_running_loop().time
    start = clock()
    try:
        while chunk := await asyncio.wait_for(anext(stream), allowance.left):  # empty at the end
            allowance.spend(clock() - start, len(chunk))
            content += chunk
            if len(content) > MAX_UPLOAD:
                raise too_large
            request.state.exchange.hold(len(chunk))
            if server.held > MAX_HELD:
                raise Refused(429, "the server's memory is full of pictures: try again in a moment")
            start = clock()
        return bytes(content)
    except asyncio.TimeoutError:
        raise Refused(408, f"the file came too slowly: {len(content):,} bytes of it arrived") from None
    finally:
        content.clear()  # or it would stay as long as the traceback of an error


async def answer(server: Server, job: Job, is_gone: Callable[[], Awaitable[bool]]) -> tuple[bytes, str]:
    """Return what Server.colour returns, in its turn.

    Where nobody waits for it any more it ends with the frame that is coloured, and keeps its place until then.

    Raises Refused, ClientDisconnect where the client is gone, and what Server.colour raises.
    """
    from starlette.requests import ClientDisconnect

    if server.waiting >= MAX_WAITING:
        raise Refused(429, f"{server.waiting} pictures are waiting already: try again in a moment")
    loop, until = asyncio.get_running_loop(), asyncio.get_running_loop().time() + WAIT_SECONDS
    server.waiting += 1
    future = server.worker.submit(server.colour, job)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(server.leave))
    ended = asyncio.wrap_future(future)
    while not (await asyncio.wait([ended], timeout=min(LOOK_SECONDS, max(0.0, until - loop.time()))))[0]:
        gone = await is_gone()
        if not gone and loop.time() < until:
            continue
        job.dropped.set()
        job.content = b""  # a job that has not begun stays in the queue
        future.cancel()  # unless it has begun
        ended.cancel()
        if gone:
            raise ClientDisconnect
        raise Refused(503, f"no result within {WAIT_SECONDS:.0f} s: try a smaller picture, or later")
    return await ended


async def colorize(server: Server, request: "Request") -> "Response":
    """Answer POST /colorize: an image file in, the coloured file out, or one sentence."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response, StreamingResponse

    job = None
    try:
        read_job(server, request, b"")  # before a large file is received for nothing
        job = read_job(server, request, await receive(server, request))
        if not job.content:
            raise Refused(400, "the body is empty: send the bytes of an image file, as curl --data-binary @FILE does")
        picture, kind = await answer(server, job, request.is_disconnected)
        request.state.exchange.hold(len(picture))
        parts = (picture[start : start + PIECE] for start in range(0, len(picture), PIECE))
        return StreamingResponse(parts, headers={"Content-Length": str(len(picture))}, media_type=kind)
    except Refused as refused:
        return refuse(refused)
    except UserError as error:
        return refuse(Refused(422, str(error)))
    except MemoryError:
        return refuse(Refused(413, "the picture does not fit into the memory of this server"))
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    except Exception:  # a bug: its traceback is for those who run the server
        traceback.print_exc()
        return refuse(Refused(500, "the server failed on this picture; its terminal says why"))
    finally:
        if job:
            job.content = b""  # or it would stay as long as the traceback of an error


def refuse(refused: Refused, headers: Mapping[str, str] | None = None) -> "Response":
    """Return an answer of one sentence, which ends the connection."""
    from starlette.responses import PlainTextResponse

    again = {"Retry-After": "2"} if refused.status == 429 else {}
    return PlainTextResponse(str(refused), refused.status, {"Connection": "close", **again, **(headers or {})})


def build_app(server: Server) -> "Starlette":
    """Return the ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    from imaging.files import EXTENSIONS
    from inference.web import build_page

    models = [
        {"model": name, "said": f"Model: {record}.", "hints": record.recipe.hints}
        for name, record in server.records.items()
    ]
    config = {"server": True, "models": models, **models[0], "token": server.token, "endings": sorted(EXTENSIONS)}
    config["most"] = MAX_UPLOAD
    page = build_page(config, {}, "'self'")
    headers = {
        "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }  # fmt: skip

    async def home(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "waiting": server.waiting, "models": list(server.models)})

    async def post(request: Request) -> "Response":
        return await colorize(server, request)

    async def not_found(_: Request, error: Any) -> "Response":
        return refuse(Refused(error.status_code, "there are GET /, GET /health and POST /colorize here"), error.headers)

    routes = [Route("/", home), Route("/health", health), Route("/colorize", post, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={404: not_found, 405: not_found})

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        request, exchange = Request(scope), Exchange(server, scope, receive, send)
        request.state.exchange = exchange
        server.requests += 1
        refused = refusal(server, request)
        try:
            with suppress(ClientDisconnect):
                await (refuse(refused) if refused else app)(scope, exchange.receive, exchange.send)
        finally:
            exchange.release()

    return guarded


def refusal(server: Server, request: "Request") -> Refused | None:
    """Return why a request is not answered at all, whatever it asks: one too many, another site's, or no token."""
    if server.requests > MAX_REQUESTS:
        return Refused(429, f"{MAX_REQUESTS} requests are open already: try again in a moment")
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name, site = urlsplit(f"//{host}").hostname or "", urlsplit(origin).netloc if origin else host
    except ValueError:
        return Refused(400, "the header Host or Origin is no address")
    if not is_address(name) and name not in server.names:  # another site's name may lead to this computer
        return Refused(
            421, f"{name or 'no name'} is no name of this computer: open its address, or start it with --name"
        )
    if site != host:
        return Refused(403, "another site may not use this server")
    given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query_params.get("token", "")
    if server.token and not secrets.compare_digest(given.encode(), server.token.encode()):
        return Refused(401, "this server asks for the token that it printed: add ?token=... to the address")
    return None


def is_address(name: str) -> bool:
    """Tell whether a host is given by its IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def find_models(model: Path | None) -> "tuple[dict[str, Path], dict[str, ExportRecord]]":
    """Return the model by its name, first, and those that lie beside it, with what they say of themselves.

    Raises UserError where there is none, or it cannot be read; of the others one sentence is printed.
    """
    from inference.checkpoint import find_model, read_record

    path = find_model(model)
    if not path.is_file():
        raise UserError(f"no model {path}; name one with --model FILE, or write one with: python export.py")
    models, records = {path.stem: path}, {path.stem: read_record(path)}
    for other in sorted({*path.parent.glob("*.ts")} - {path}):
        try:
            records[other.stem] = read_record(other)
            models[other.stem] = other
        except (UserError, OSError) as error:
            say(f"left out: {error}")
    return models, records


def shown_address(host: str) -> str:
    """Return an address of this computer under which others, or its own browser, find what listens at `host`."""
    if host in ("0.0.0.0", "::"):
        family, far = (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((far, 9))  # nothing is sent: the system says from which address it would be
            host = asked.getsockname()[0]
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UserError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # on Windows it lets a second program take the address
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()  # at once: until then a second program may bind it, and a page that is opened early is refused
    except OSError as error:
        found.close()
        taken = error.errno == errno.EADDRINUSE
        why = "another program uses it, perhaps a second serve.py" if taken else error
        other = "--port" if taken else "--host or --port"
        raise UserError(f"cannot listen at {host}:{port} ({why}); choose another with {other}") from None
    return found


def build_http(server: Server) -> "uvicorn.Server":
    """Return what speaks HTTP; it closes connections that uvicorn would keep, and ends as soon as Ctrl-C says so."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        """Is closed where no request comes; Exchange finds its transport in the state of a request."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(0)  # what is sent waits until the part before it has gone
            self.app_state = {**self.app_state, "transport": transport}
            self.late = None
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def watch(self) -> None:
            answered = self.cycle is None or self.cycle.response_complete
            if answered and not self.late:
                self.late = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
            elif self.late and not answered:
                self.late.cancel()
                self.late = None

    class HttpServer(uvicorn.Server):
        """Ends some seconds after Ctrl-C, or at a second one, whatever is still coloured."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(super().shutdown(sockets), STOP_SECONDS)
            if server.waiting or self.server_state.tasks:  # Python would wait for the thread that colours
                shutil.rmtree(server.folder, ignore_errors=True)
                os._exit(INTERRUPTED)

    return HttpServer(
        uvicorn.Config(
            build_app(server), log_level="warning", access_log=False, limit_concurrency=8 * MAX_REQUESTS,
            timeout_keep_alive=5, h11_max_incomplete_event_size=2**17, http=Connection, ws="none", proxy_headers=False,
        )
    )  # fmt: skip


def main(
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="A generator.ts; default: photo.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: for other computers, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    token: Annotated[bool, typer.Option("--token", help="Only those who know the printed address may use it.")] = False,
    name: Annotated[str, typer.Option(help="Name of this computer, or of the proxy before it.")] = "",
    device: DeviceOption = "auto",
) -> None:
    """Serve the page and the API until Ctrl-C."""
    try:
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError("serve.py needs two packages more: pip install -r requirements-web.txt") from None

    names = ("localhost", socket.gethostname().lower(), *([name.lower()] if name else []))
    server = Server(*find_models(model), device, secrets.token_urlsafe(16) if token else "", names)
    listening = listen(host, port)
    runner = server.runner(next(iter(server.models)))
    write(f"model {runner.path}: {runner.record}; on {runner.device}", "stderr")
    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        say("every computer that reaches this one can use it; with --token only those who know the address")
    address = f"http://{shown_address(host)}:{listening.getsockname()[1]}/"
    say(f"open {address}{f'?token={server.token}' if token else ''} (Ctrl-C ends)")
    build_http(server).run(sockets=[listening])


if __name__ == "__main__":
    command(main)
