"""A small JSON bridge for programs without gRPC: no keys, so loopback by default.

GET /health; POST /route, /score, /generate with {"text" or "ids", "run", "slot" or "model", ...}, /instantiate with
{"model", "run"}. /generate answers one JSON object a line, or server-sent events when the request accepts
text/event-stream. One request a connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from potluck import telemetry
from potluck.client_values import Generated
from potluck.errors import NotReachable, PotluckError, ResourceError, UsageError, UserError
from potluck.jsontext import read_json
from router.desk import Desk, Prompt, checked_sampling

MAX_HEADER_BYTES = 16_384
MAX_BODY_BYTES = 1 << 20
MAX_LENGTH_DIGITS = 20
"""Of a Content-Length; Python reads no more than some thousands, and then not as a refusal."""
READ_TIMEOUT_S = 10
"""Longest time a client may take to send its request."""
MAX_CONNECTIONS = 256

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_ROUTES = {"/health": "GET", "/route": "POST", "/score": "POST", "/instantiate": "POST", "/generate": "POST"}

log = telemetry.logger(__name__)


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    path: str
    accepts_events: bool
    body: Mapping[str, Any]


class _Wrong(Exception):
    def __init__(self, status: int, error: PotluckError) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


class HttpBridge:
    """Serves one desk over HTTP/1.1."""

    def __init__(self, desk: Desk, is_serving: Callable[[], bool]) -> None:
        self._desk = desk
        self._is_serving = is_serving
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port.

        Raises:
            ResourceError: ``resource.port-taken``.
        """
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=MAX_HEADER_BYTES)
        except OSError as error:
            fix = "stop the program that uses it, or choose another with --port"
            raise ResourceError("resource.port-taken", f"cannot listen on {host}:{port}: {error}", fix) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._tasks) > MAX_CONNECTIONS:
                busy = ResourceError("resource.busy", f"{MAX_CONNECTIONS} connections are open", "try again shortly")
                await _send_error(writer, _Wrong(429, busy))
                return
            await self._answer(reader, writer)
        except _Wrong as wrong:
            await _send_error(writer, wrong)
        except PotluckError as error:
            await _send_error(writer, _Wrong(_status_of(error), error))
        except ConnectionError:
            pass  # the client has gone; there is nobody to tell
        except Exception as error:
            log.failure("http-failed", error)
            await _send_error(
                writer, _Wrong(500, PotluckError("bug.internal", "failed inside", "see the router's log"))
            )
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                request = await _read_request(reader)
        except TimeoutError:
            raise _wrong(400, f"the request did not arrive within {READ_TIMEOUT_S} s") from None
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise _wrong(400, f"the request is cut off or its header exceeds {MAX_HEADER_BYTES} bytes") from None
        body = request.body
        match request.path:
            case "/health":
                serving = self._is_serving()
                await _send_json(writer, 200 if serving else 503, {"status": "SERVING" if serving else "NOT_SERVING"})
            case "/route":
                routed = await self._desk.route(_prompt(body), run=_field(body, "run", str, ""))
                await _send_json(writer, 200, dataclasses.asdict(routed))
            case "/score":
                run, slot, model = _answerer(body)
                scored = await self._desk.score(_prompt(body), run=run, slot=slot, model=model)
                await _send_json(writer, 200, dataclasses.asdict(scored))
            case "/instantiate":
                run, _, model = _answerer(body)
                await _send_json(writer, 200, dataclasses.asdict(await self._desk.instantiate(model, run=run)))
            case _:
                await self._generate(request, reader, writer)

    async def _generate(self, request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = request.body
        sampling = checked_sampling(
            max_tokens=_field(body, "max_tokens", int, 0),
            temperature=_number(body, "temperature"),
            top_k=_field(body, "top_k", int, 0),
            top_p=_number(body, "top_p"),
            seed=_field(body, "seed", int, 0),
        )
        run, slot, model = _answerer(body)
        answer = self._desk.generate(
            _prompt(body), run=run, slot=slot, model=model, sampling=sampling, stop=_stops(body)
        )
        streaming = asyncio.create_task(_stream(answer, writer, events=request.accepts_events))

        def hung_up(reading: asyncio.Task[bytes]) -> None:
            if not reading.cancelled():
                reading.exception()  # a reset is as good as an end
                streaming.cancel()

        gone = asyncio.create_task(reader.read(1))
        gone.add_done_callback(hung_up)
        try:
            await streaming
        except asyncio.CancelledError:
            if not gone.done():
                raise
        finally:
            gone.cancel()


async def _stream(answer: AsyncGenerator[Generated, None], writer: asyncio.StreamWriter, *, events: bool) -> None:
    """Writes pieces as they come. The status line waits for the first, so early errors keep their status."""
    started = False
    async with aclosing(answer) as pieces:
        try:
            async for piece in pieces:
                if not started:
                    kind = "text/event-stream" if events else "application/x-ndjson"
                    _write_head(writer, 200, kind, ("Transfer-Encoding: chunked",))
                    started = True
                await _write_piece(writer, dataclasses.asdict(piece), events=events)
        except PotluckError as error:
            if not started:
                raise
            await _write_piece(writer, _error_body(error), events=events)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _write_piece(writer: asyncio.StreamWriter, value: Mapping[str, Any], *, events: bool) -> None:
    text = json.dumps(value, ensure_ascii=False)
    line = (f"data: {text}\n\n" if events else f"{text}\n").encode()
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))
    await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    words = head[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _wrong(400, f"{head[0][:80]!r} is no HTTP/1 request line")
    method, path = words[0], words[1].partition("?")[0]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if path not in _ROUTES:
        raise _wrong(404, f"there is no {path[:80]}", f"use one of {', '.join(_ROUTES)}")
    if method != _ROUTES[path]:
        raise _wrong(405, f"{method[:16]} {path}", f"use {_ROUTES[path]}")
    if "origin" in headers:
        raise _wrong(403, "the request comes from a web page", "this bridge has no keys; call it from a program")
    length = headers.get("content-length", "0")
    is_number = length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS
    if not is_number or int(length) > MAX_BODY_BYTES or "transfer-encoding" in headers:
        raise _wrong(400, f"Content-Length {length[:20]!r}", f"send a body of known length, at most {MAX_BODY_BYTES}")
    raw = await reader.readexactly(int(length))
    try:
        body = read_json(raw) if method == "POST" else {}
    except ValueError as error:
        raise _wrong(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise _wrong(400, "the body is not a JSON object")
    return HttpRequest(path=path, accepts_events="text/event-stream" in headers.get("accept", ""), body=body)


def _prompt(body: Mapping[str, Any]) -> Prompt:
    if "ids" not in body:
        return str(_field(body, "text", str, ""))
    ids = body["ids"]
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise UsageError("usage.bad-value", "ids is not a list of token ids", "give integers from 0")
    return tuple(ids)


def _answerer(body: Mapping[str, Any]) -> tuple[str, str, str]:
    """Run, slot and model; empty where none is named."""
    run, slot, model = (str(_field(body, name, str, "")) for name in ("run", "slot", "model"))
    return run, slot, model


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stops = body.get("stop", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("usage.bad-value", "stop is not a list of strings", 'give a list, such as ["\\n"]')
    return tuple(stops)


def _field(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = body.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError("usage.bad-value", f"{name} = {str(value)[:80]!r} has the wrong type", "see router/README.md")
    return value


def _number(body: Mapping[str, Any], name: str) -> float:
    """Whole numbers have at most 20 digits by here, so that each is a float."""
    return float(_field(body, name, (int, float), 0.0))


def _wrong(status: int, message: str, fix: str = "") -> _Wrong:
    return _Wrong(status, UsageError("usage.bad-request", message, fix))


def _status_of(error: PotluckError) -> int:
    if isinstance(error, UserError):
        return 400
    if isinstance(error, ResourceError):
        return 429
    return 503 if isinstance(error, NotReachable) else 500


def _error_body(error: PotluckError) -> dict[str, Any]:
    return {"error": {"id": error.error_id, "message": error.message, "fix": error.fix}}


async def _send_error(writer: asyncio.StreamWriter, wrong: _Wrong) -> None:
    try:
        await _send_json(writer, wrong.status, _error_body(wrong.error))
    except ConnectionError:
        pass  # the client has gone; there is nobody to tell


async def _send_json(writer: asyncio.StreamWriter, status: int, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    _write_head(writer, status, "application/json", (f"Content-Length: {len(data)}",))
    writer.write(data)
    await writer.drain()


def _write_head(writer: asyncio.StreamWriter, status: int, kind: str, more: tuple[str, ...]) -> None:
    lines = (f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Type: {kind}", "Connection: close", *more)
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
