"""The web server: a page to try a model, POST /generate, GET /health."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import importlib.resources
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from aiohttp import web

from t5x_lite import console
from t5x_lite.api import Model
from t5x_lite.decoding import Decoder
from t5x_lite.errors import UserError, first_line
from t5x_lite.inference import Row, Unusable, check_prefix
from t5x_lite.serving.batching import Batcher, Full
from t5x_lite.serving.protocol import Limits, Refused, Request, parse

# Nothing comes from elsewhere, and the page asks nobody else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BODY_SECONDS = 10.0  # for a request's body to come

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A model, served.

    Args:
      name: what the page calls the model.
      prefixes: the beginnings of texts to choose from on the page.
      decoder: the settings that a request does not name.
      queue_limit: texts that may wait, of all requests.
      gather_seconds: see `Batcher`.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        prefixes: Sequence[str],
        decoder: Decoder,
        limits: Limits,
        queue_limit: int,
        gather_seconds: float,
    ):
        self._model, self._decoder, self._limits = model, decoder, limits
        self._name = name
        self._batcher_of = functools.partial(
            Batcher, model.answerer.predict, model.answerer.batch_size, queue_limit, gather_seconds
        )
        self.batcher: Batcher | None = None
        self._open = True
        self._page = _page(name, prefixes, decoder, limits)

    def app(self) -> web.Application:
        """For aiohttp to run."""
        app = web.Application(client_max_size=self._limits.bytes, middlewares=[_in_json])
        app.router.add_get("/", self._index)
        app.router.add_get("/health", self._health)
        app.router.add_post("/generate", self._generate)
        app.cleanup_ctx.append(self._batching)
        return app

    async def run(self, listening: socket.socket, say: Callable[[str], None] = print) -> None:
        """Answers until SIGTERM or Ctrl-C; then what has come already, and no more."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        # What is under way may take its time; then it is broken off.
        runner = web.AppRunner(
            self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=self._limits.seconds
        )
        await runner.setup()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        try:
            await web.SockSite(runner, listening).start()
            await stop.wait()
        finally:
            for number in signals:  # whoever sends a second one does not want to wait
                loop.remove_signal_handler(number)
            self._open = False
            say(f"serve: stopping; {self.batcher.waiting if self.batcher else 0} texts are in the queue")
            await runner.cleanup()
        say(f"serve: {self.batcher.rows:,} texts answered in {self.batcher.batches:,} batches")

    async def _batching(self, app: web.Application) -> AsyncIterator[None]:
        self.batcher = self._batcher_of()
        yield
        await self.batcher.close()

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(
            text=self._page,
            content_type="text/html",
            headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
        )

    async def _health(self, request: web.Request) -> web.Response:
        b = self.batcher
        status = {"status": "ok" if self._open else "stopping", "model": self._name, "step": self._model.step}
        counts = {"waiting": b.waiting, "batches": b.batches, "texts": b.rows}
        return web.json_response(status | counts, status=200 if self._open else 503)

    async def _generate(self, request: web.Request) -> web.Response:
        if not self._open:
            raise Refused(503, "the server is stopping: ask another")
        # A page of another site can send JSON under no other name without asking first.
        if request.content_type != "application/json":
            raise Refused(415, "the body must be JSON: send it with Content-Type: application/json")
        try:
            body = await asyncio.wait_for(request.read(), BODY_SECONDS)
        except TimeoutError as e:
            raise Refused(408, f"the body did not come in {BODY_SECONDS:g} s") from e
        asked = parse(body, self._decoder, self._limits)
        # In a thread: long texts take a while to be made ids of, and others are waiting.
        rows = await asyncio.to_thread(self._rows, asked)
        try:
            answers = await asyncio.wait_for(self.batcher.answer(rows), self._limits.seconds)
        except Full as e:
            raise Refused(503, str(e)) from e
        except TimeoutError as e:
            raise Refused(504, f"no answer in {self._limits.seconds:g} s: ask for less, or again later") from e
        for answer in answers:
            if answer.error is not None:
                raise Refused(500, answer.error)
        found = [
            [{"text": text, "score": score} for text, score in zip(answer.texts, answer.scores, strict=True)]
            for answer in answers
        ]
        if asked.decoder.num_return_sequences == 1:
            found = [one[0] for one in found]
        return web.json_response({"answer": found[0]} if asked.single else {"answers": found})

    def _rows(self, asked: Request) -> list[Row]:
        answerer = self._model.answerer
        prefix = tuple(self._model.vocabulary.encode(asked.decoder_prefix))
        rows = []
        try:
            check_prefix(prefix, asked.decoder)
            for i, text in enumerate(asked.texts):
                rows.append(answerer.read(text, row_id=i, decoder=asked.decoder, prefix=prefix))
        except (UserError, Unusable) as e:
            raise Refused(400, str(e)) from e
        for i, row in enumerate(rows):
            if row.truncated:
                which = "the text" if asked.single else f"texts[{i}]"
                raise Refused(
                    413, f"{which} has more than {answerer.max_input_length} tokens, EOS included: shorten it"
                )
        return rows


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes one that is free.

    Raises:
      UserError: the port is in use, or not to be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(listening.close)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()  # now: two that only bind do not notice each other
            on_failure.pop_all()
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use: stop what uses it, or set serve.port (--port=…)") from e
        raise UserError(
            f"cannot listen on port {port} of {host} ({e.strerror or e}): set serve.host, serve.port"
        ) from e
    return listening


@web.middleware
async def _in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is one line of JSON, {"error": …}."""
    try:
        return await handler(request)
    except Refused as e:
        status, message = e.status, e.message
    except web.HTTPException as e:
        status, message = e.status, {404: "nothing is here", 413: "the request is too large"}.get(e.status, e.reason)
        if e.status == 405:
            message = f"{request.path} does not take {request.method}"
    except Exception as e:
        console.say(f"serve: error: {type(e).__name__}: {first_line(e)}", console.ERROR)
        status, message = 500, f"{type(e).__name__}: {first_line(e)}"
    headers = {"Retry-After": "1"} if status == 503 else {}
    # What is left of a body that was not read would be taken for the next request.
    response = web.json_response({"error": message}, status=status, headers=headers)
    if status in (408, 413):
        response.force_close()
    return response


def _page(name: str, prefixes: Sequence[str], decoder: Decoder, limits: Limits) -> str:
    page = (importlib.resources.files("t5x_lite.serving") / "page.html").read_text(encoding="utf-8")
    told = {
        "name": name,
        "prefixes": list(prefixes),
        "decoder": dataclasses.asdict(decoder),
        "limits": {"length": limits.length, "beams": limits.beams},
    }
    # Within a script's element, "<" is the only sign that could end it.
    return page.replace('"@SETTINGS@"', json.dumps(told).replace("<", "\\u003c"))
