"""The job `serve`: a model behind HTTP on this machine, with a page to try it."""

import asyncio
from collections.abc import Sequence

import gin
from t5x_lite import configuration, console, vocabularies
from t5x_lite.api import Model
from t5x_lite.decoding import Decoder
from t5x_lite.errors import UserError
from t5x_lite.partitioning import MeshConfig


@gin.configurable(module="t5x_lite")
def serve(
    checkpoint: str = gin.REQUIRED,
    host: str = "127.0.0.1",
    port: int | str = 8080,
    decoder: Decoder | None = None,
    prefixes: Sequence[str] = (),
    batch_size: int = 16,
    max_input_length: int = 512,
    max_length: int = 256,
    max_beams: int = 8,
    max_texts: int = 64,
    max_bytes: int = 2**20,
    queue_limit: int = 256,
    timeout_seconds: float = 60.0,
    gather_seconds: float = 0.005,
    warm_up: bool = True,
    vocabulary: vocabularies.Vocabulary | None = None,
    mesh: MeshConfig | None = None,
    dry_run: bool = False,
) -> int:
    """Answers until SIGTERM or Ctrl-C, which let it finish what has come already.

    `GET /` is a page. `POST /generate` takes a JSON object: `"text"`, or `"texts"` with a list; `"decoder_prefix"`; and
    settings of `Decoder` by their names. It gives `{"answer": {"text", "score"}}`, or `{"answers": […]}` in the order
    of the texts; with `"num_return_sequences"` over 1 a list of these for each text, the best first. The answers are
    those of `t5x_lite.Model.generate` with these texts. `GET /health` says how many texts wait and were answered.

    What is wrong is one line, `{"error": …}`: 400 for what cannot be understood or asks for too much, 413 for too many
    or too long texts (nothing is cut), 415 for another Content-Type than application/json, 503 with Retry-After where
    the queue is full or the server stops, 504 where the answer took too long.

    Texts of concurrent requests share batches; those of one batch have in common how they are decoded (greedily; by
    sampling with one `top_k`; by one kind of beam search). There is no password and no encryption: whoever can reach
    the port can ask.

    Args:
      checkpoint: MODEL_DIR, its `checkpoints` folder, one step's folder, a Hugging Face folder, or a checkpoint of
        another system.
      host: the address to listen on; "0.0.0.0" is every network of this machine.
      port: 0 takes a free one.
      decoder: the settings that a request does not name; by default `Decoder()`, with its bindings.
      prefixes: beginnings of texts to choose from on the page, such as "summarize: ".
      batch_size: texts at a time, at most.
      max_input_length: tokens of a text, EOS included.
      max_length, max_beams: the largest `Decoder.max_length` and `num_beams` that are answered.
      max_texts, max_bytes: of a request.
      queue_limit: texts that may wait, of all requests.
      timeout_seconds: for an answer, with the time in the queue; and for what is under way when the server is stopped.
      gather_seconds: how long the first text that comes to an idle model waits for others.
      warm_up: compile for short texts before listening.
      vocabulary: for a checkpoint that has none, or instead of its own.
      mesh: devices; by default `Mesh()`, with its bindings.
      dry_run: say what would be served, and stop.

    Returns:
      0.

    Raises:
      UserError: no model, a port that is in use, a limit that makes no sense, or aiohttp is not installed.
    """
    try:
        from t5x_lite.serving.app import Server, listen
        from t5x_lite.serving.protocol import Limits
    except ModuleNotFoundError as e:
        if e.name != "aiohttp":
            raise
        raise UserError("serve needs aiohttp, which is not installed: pip install 't5x-lite[serve]'") from e

    # 1. What was asked.
    decoder = decoder or Decoder()
    port = _port(port)
    for name, value in (
        ("max_length", max_length),
        ("max_beams", max_beams),
        ("max_texts", max_texts),
        ("max_bytes", max_bytes),
        ("queue_limit", queue_limit),
    ):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"serve.{name} must be a whole number of at least 1, not {value!r}")
    for name, value, ok in (
        ("timeout_seconds", timeout_seconds, timeout_seconds > 0),
        ("gather_seconds", gather_seconds, 0 <= gather_seconds < timeout_seconds),
    ):
        if not ok:
            raise UserError(f"serve.{name} = {value!r} makes no sense: give seconds, as in gin/runs/serve.gin")
    if decoder.max_length > max_length:
        raise UserError(
            f"Decoder.max_length = {decoder.max_length} is over serve.max_length = {max_length}: lower it or raise that"
        )
    configuration.check_all_read()

    # 2. The port before the model, which may take minutes to load.
    listening = listen(host, port)
    with listening:
        model = Model.load(
            checkpoint, vocabulary=vocabulary, mesh=mesh, batch_size=batch_size, max_input_length=max_input_length
        )
        console.show(f"serve: {checkpoint}: {model!r}")
        if dry_run:
            console.show(f"serve: would listen on {host}, port {port}")
            return 0
        server = Server(
            model,
            name=str(checkpoint),
            prefixes=prefixes,
            decoder=decoder,
            limits=Limits(max_bytes, max_texts, max_length, max_beams, timeout_seconds),
            queue_limit=queue_limit,
            gather_seconds=gather_seconds,
        )
        if warm_up:
            model.answerer.predict([model.answerer.read("", decoder=decoder)])
        # The port too: it may have been chosen just now.
        at = listening.getsockname()
        address = f"[{at[0]}]" if ":" in at[0] else at[0]
        console.show(f"serve: listening on http://{address}:{at[1]}/ (Ctrl-C stops it)")
        asyncio.run(server.run(listening))
    return 0


def _port(port: int | str) -> int:
    """What a flag gives is text."""
    number = int(port) if isinstance(port, str) and port.isdecimal() else port
    if not isinstance(number, int) or not 0 <= number < 2**16:
        raise UserError(f"serve.port must be a number from 0 to 65535, not {port!r}")
    return number
