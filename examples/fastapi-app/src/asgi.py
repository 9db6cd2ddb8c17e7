"""Serves an ASGI 3 application as a component of `wasi:http/incoming-handler@0.2`.

`asyncio`'s own event loop does the work; only its selector is ours, and waits for WASI's pollables instead of
file descriptors. Not offered: lifespan events, websockets, threads (what would run in one runs inline).

WASI traps when a resource is dropped before what was made from it, so everything here is closed children first:
pollable, stream, body.
"""

import asyncio
import sys
import traceback
from asyncio import base_events
from urllib.parse import unquote

import anyio.to_thread
import wit_world.exports
from componentize_py_types import Err, Ok
from wit_world.imports import monotonic_clock, poll
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import (
    Fields,
    IncomingBody,
    Method_Other,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Https,
)

READ_BYTES = 64 * 1024


def drop(resource):
    """Gives a WASI resource back to the host."""
    resource.__exit__(None, None, None)


class PollableSelector:
    """The part of `selectors.BaseSelector` that asyncio's loop uses, over `wasi:io/poll`."""

    def __init__(self):
        self.waiting = []  # pairs of a pollable and the future that it resolves

    def select(self, timeout=None):
        pollables = [pollable for pollable, _ in self.waiting]
        timer = None
        if timeout is not None:
            timer = monotonic_clock.subscribe_duration(max(0, int(timeout * 1e9)))
            pollables.append(timer)
        if not pollables:
            raise RuntimeError("the application waits for something that can never happen")
        ready = set(poll.poll(pollables))
        if timer is not None:
            drop(timer)
        still, events = [], []
        for index, entry in enumerate(self.waiting):
            (events if index in ready else still).append(entry)
        self.waiting = still
        return events

    def close(self):
        for pollable, _ in self.waiting:
            drop(pollable)
        self.waiting = []


class WasiEventLoop(base_events.BaseEventLoop):
    """asyncio's loop on one thread, without sockets."""

    def __init__(self):
        super().__init__()
        self._selector = PollableSelector()

    def _process_events(self, events):
        for pollable, future in events:
            drop(pollable)
            if not future.done():
                future.set_result(None)

    def _write_to_self(self):
        """Another thread would wake the loop by this; there is none."""

    def run_in_executor(self, executor, function, *arguments):
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    async def wait(self, pollable):
        """Waits until `pollable` is ready, and drops it."""
        future = self.create_future()
        self._selector.waiting.append((pollable, future))
        await future

    def close(self):
        self._selector.close()
        super().close()


async def run_sync_inline(function, *arguments, **_options):
    return function(*arguments)


anyio.to_thread.run_sync = run_sync_inline


class Exchange:
    """One request and its response, as the `receive` and `send` of ASGI."""

    def __init__(self, loop, request, response_out):
        self.loop, self.request, self.response_out = loop, request, response_out
        self.body = request.consume()
        self.input = self.body.stream()
        self.start = None
        self.outgoing = None
        self.output = None
        self.ended = False

    def scope(self):
        target = self.request.path_with_query() or "/"
        path, _, query = target.partition("?")
        fields = self.request.headers()
        headers = [(name.lower().encode("latin-1"), bytes(value)) for name, value in fields.entries()]
        drop(fields)
        authority = self.request.authority() or ""
        if authority and all(name != b"host" for name, _ in headers):
            headers.insert(0, (b"host", authority.encode()))
        method = self.request.method()
        https = isinstance(self.request.scheme(), Scheme_Https)
        host, _, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method.value if isinstance(method, Method_Other) else type(method).__name__.removeprefix("Method_").upper(),
            "scheme": "https" if https else "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": (host, int(port) if port else 443 if https else 80),
            "state": {},
        }

    async def receive(self):
        while self.input is not None:
            try:
                chunk = self.input.read(READ_BYTES)
            except Err as error:
                self.end_input()
                if not isinstance(error.value, StreamError_Closed):
                    break
                return {"type": "http.request", "body": b"", "more_body": False}
            if chunk:
                return {"type": "http.request", "body": bytes(chunk), "more_body": True}
            await self.loop.wait(self.input.subscribe())
        return {"type": "http.disconnect"}

    async def send(self, event):
        if event["type"] == "http.response.start":
            self.start = event
        elif event["type"] == "http.response.body" and not self.ended:
            if self.outgoing is None:
                self.answer()
            await self.write(event.get("body", b""))
            if not event.get("more_body", False):
                self.end_output()

    def answer(self):
        fields = Fields.from_list([(bytes(name).decode("latin-1"), bytes(value)) for name, value in self.start.get("headers", [])])
        response = OutgoingResponse(fields)
        response.set_status_code(self.start["status"])
        self.outgoing = response.body()
        self.output = self.outgoing.write()
        ResponseOutparam.set(self.response_out, Ok(response))

    async def write(self, data):
        view = memoryview(data)
        try:
            while view and self.output is not None:
                room = self.output.check_write()
                if room == 0:
                    await self.loop.wait(self.output.subscribe())
                    continue
                self.output.write(bytes(view[:room]))
                view = view[room:]
        except Err as error:
            # The host closes the stream when the declared length is reached or the client has left.
            if not isinstance(error.value, StreamError_Closed):
                raise
            self.end_output()

    def end_input(self):
        if self.input is not None:
            drop(self.input)
            self.input = None
            drop(IncomingBody.finish(self.body))

    def end_output(self):
        self.ended = True
        if self.output is not None:
            drop(self.output)
            self.output = None
            try:
                OutgoingBody.finish(self.outgoing, None)
            except Err:
                pass  # Shorter than its declared length: the host has told the client.

    async def serve(self, application):
        try:
            await application(self.scope(), self.receive, self.send)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if self.outgoing is None:
                await self.send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]})
                await self.send({"type": "http.response.body", "body": b"Internal Server Error"})


def incoming_handler(application):
    """The class that componentize-py exports for `application`."""

    class IncomingHandler(wit_world.exports.IncomingHandler):
        def handle(self, request, response_out):
            loop = WasiEventLoop()
            exchange = Exchange(loop, request, response_out)
            try:
                loop.run_until_complete(exchange.serve(application))
            finally:
                loop.close()  # Its pollables first: they are children of the streams.
                exchange.end_input()
                exchange.end_output()

    return IncomingHandler
