"""A server on a real socket in this process, and what asks it."""

import asyncio
import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.decoding import Decoder
from t5x_lite.serving.app import Server, listen
from t5x_lite.serving.protocol import Limits

LIMITS = Limits(bytes=4000, texts=5, length=8, beams=3, seconds=400.0)


def make(model, decoder=Decoder(6), limits=LIMITS, queue_limit=100, gather_seconds=0.01) -> Server:  # noqa: B008
    return Server(
        model,
        name="<a model>",
        prefixes=["the ", "</script> "],
        decoder=decoder,
        limits=limits,
        queue_limit=queue_limit,
        gather_seconds=gather_seconds,
    )


def while_served(server: Server, client: Callable[[int], Any], say=lambda line: None, stops=False) -> Any:
    """What `client` returns, which runs in a thread and is given the port; then SIGTERM ends the server.

    The server has the main thread, as it needs for its signals.

    Args:
      stops: `client` sends the signal itself.
    """
    found: list[Any] = []

    def ask():
        try:
            found.append(client(listening.getsockname()[1]))
        except BaseException as e:
            found.append(e)
        finally:
            if not stops:
                os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=ask)
        thread.start()
        asyncio.run(asyncio.wait_for(server.run(listening, say), 500))
        thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def ask(port: int, body: Any, path="/generate", method="POST", headers=None) -> tuple[int, Any, Mapping[str, str]]:
    """(status, what the JSON says, headers)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=450)
    try:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body, {"Content-Type": "application/json"} if headers is None else headers)
        response = connection.getresponse()
        said = response.read().decode()
        if "json" in response.headers["Content-Type"]:
            said = json.loads(said)
        return response.status, said, response.headers
    finally:
        connection.close()
