"""The server on real sockets: its answers, its batches, its limits, and how it stops."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from infer_runs import sentences
from processes import one_device
from served import LIMITS, ask, make, while_served

from t5x_lite import cli, configuration
from t5x_lite.errors import UserError
from t5x_lite.inference import Answerer
from t5x_lite.jobs.serve import serve


class Gate:
    """Holds the first batch until it is opened, and notes the size of each."""

    def __init__(self, monkeypatch):
        self.sizes, self.entered, self.open = [], threading.Event(), threading.Event()
        predict = Answerer.predict

        def watched(answerer, rows):
            self.sizes.append(len(rows))
            self.entered.set()
            assert self.open.wait(200)
            return predict(answerer, rows)

        monkeypatch.setattr(Answerer, "predict", watched)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def wait_until(condition):
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def waiting(port):
    return ask(port, b"", "/health", "GET")[1]["waiting"]


def asked_for(texts):
    """Requests of all kinds, as (what is sent, arguments of `Model.generate`)."""
    for i, text in enumerate(texts):
        settings = [
            {},
            {"max_length": 1 + i % 8},
            {"method": "sample", "temperature": 0.5 + i / 10, "top_p": 0.9, "seed": i},
            {"method": "sample", "temperature": 1.5, "top_p": 0.5, "max_length": 8, "seed": -i},
        ][i % 4]
        yield {"text": text, **settings}, [text], {"max_length": 6, **settings}


def test_concurrent_requests_get_the_models_own_answers(small, gate):
    cases = list(asked_for(" ".join(text.split()[:4]) for text in sentences(40, seed=11)))
    cases.append(({"texts": ["fox", "a dog"], "decoder_prefix": "the"}, ["fox", "a dog"], {"decoder_prefix": "the"}))

    def client(port):
        with ThreadPoolExecutor(len(cases)) as pool:
            found = [pool.submit(ask, port, body) for body, _, _ in cases]
            wait_until(lambda: waiting(port) >= len(cases) + 1 - small.answerer.batch_size)
            gate.open.set()
            return [future.result()[:2] for future in found]

    found, batches = while_served(make(small), client), list(gate.sizes)
    for (status, answer), (body, texts, settings) in zip(found, cases, strict=True):
        assert status == 200, answer
        expected = small.generate(texts, **{"max_length": 6} | settings)
        answers = [answer["answer"]] if "text" in body else answer["answers"]
        assert [a["text"] for a in answers] == expected
    assert len({str(answer) for _, answer in found}) > 25
    # Every text was answered once, in batches that are full but for the first and the last of each kind.
    assert sum(batches) == len(cases) + 1 and max(batches) == small.answerer.batch_size
    assert len(batches) <= 1 + 3 + 3 + 1


@pytest.mark.slow
def test_beams_and_several_answers(small):
    body = {"texts": ["the fox", "over"], "method": "beam", "num_beams": 3, "num_return_sequences": 2, "max_length": 7}
    status, found, _ = while_served(make(small), lambda port: ask(port, body))
    settings = {name: body[name] for name in ("method", "num_beams", "num_return_sequences", "max_length")}
    assert status == 200
    assert [[a["text"] for a in answers] for answers in found["answers"]] == small.generate(body["texts"], **settings)
    assert all(answers[0]["score"] >= answers[1]["score"] for answers in found["answers"])


MISTAKES = [
    (b"{", 400, "not JSON"),
    (b"[" * 3000, 400, "not JSON"),
    (b"\xff", 400, "not JSON"),
    ([], 400, "not a JSON object"),
    ({}, 400, "one of the fields 'text' and 'texts' is needed"),
    ({"text": "a", "texts": ["b"]}, 400, "not both"),
    ({"text": 3}, 400, "field 'text' is not text"),
    ({"text": None}, 400, "field 'text' is not text"),
    ({"texts": "a"}, 400, "field 'texts' is not a list of texts"),
    ({"texts": []}, 400, "field 'texts' is not a list of texts"),
    ({"texts": ["a", 1]}, 400, "field 'texts' is not a list of texts"),
    ({"texts": ["a"] * 6}, 413, "6 texts are more than the 5"),
    ({"text": "a", "temprature": 1}, 400, "unknown field 'temprature' (did you mean temperature?)"),
    ({"text": "a", "max_length": 9}, 400, "max_length = 9 is over 8"),
    ({"text": "a", "max_length": 0}, 400, "max_length must be at least 1, not 0"),
    ({"text": "a", "max_length": 2.5}, 400, "field 'max_length' is not a whole number"),
    ({"text": "a", "max_length": True}, 400, "field 'max_length' is not a whole number"),
    ({"text": "a", "temperature": "hot"}, 400, "field 'temperature' is not a number"),
    ({"text": "a", "temperature": 0}, 400, "temperature must be above 0"),
    ({"text": "a", "temperature": float("nan")}, 400, "temperature must be above 0"),
    ({"text": "a", "temperature": 10**400}, 400, "too large"),
    ({"text": "a", "seed": 2**32}, 400, "seed = 4294967296 is over 4294967295"),
    ({"text": "a", "method": "guess"}, 400, "method must be"),
    ({"text": "a", "num_beams": 4}, 400, "num_beams = 4 is over 3"),
    ({"text": "a", "decoder_prefix": 1}, 400, "field 'decoder_prefix' is not text"),
    ({"text": "a", "decoder_prefix": "\ud800"}, 400, "lone surrogate"),
    ({"text": "a", "decoder_prefix": "the lazy dog jumps over the fox"}, 400, "leaves none of max_length=6"),
    ({"text": "\ud800 fox"}, 400, "lone surrogate at character 1"),
    ({"text": "fox " * 70}, 413, "the text has more than 64 tokens"),
    ({"texts": ["fox", "fox " * 70]}, 413, "texts[1] has more than 64 tokens"),
    ({"text": "fox " * 2000}, 413, "the request is too large"),
]


def test_what_is_wrong_is_one_line_of_json_and_the_server_goes_on(small):
    def client(port):
        found = [ask(port, body) for body, _, _ in MISTAKES]
        others = [
            ask(port, {"text": "a"}, headers={"Content-Type": "text/plain"}),
            ask(port, {"text": "a"}, headers={}),
            ask(port, b"", "/generate", "GET"),
            ask(port, b"", "/nothing", "GET"),
        ]
        return found, others, ask(port, {"text": "the fox"}), ask(port, b"", "/health", "GET")

    found, others, answer, health = while_served(make(small), client)
    for (status, said, _), (body, expected, message) in zip(found, MISTAKES, strict=True):
        assert status == expected and list(said) == ["error"], (body, said)
        assert message in said["error"] and "\n" not in said["error"], (body, said)
    assert [status for status, _, _ in others] == [415, 415, 405, 404]
    assert all(list(said) == ["error"] for _, said, _ in others)
    assert answer[1]["answer"]["text"] == small.generate(["the fox"], max_length=6)[0]
    assert health[1] == {"status": "ok", "model": "<a model>", "step": 3, "waiting": 0, "batches": 1, "texts": 1}


def test_a_full_queue_is_said_at_once_and_drops_nothing(small, gate):
    def client(port):
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(ask, port, {"text": "fox"})
            assert gate.entered.wait(200)
            some = [pool.submit(ask, port, {"text": f"fox {i}"}) for i in range(4)]
            wait_until(lambda: waiting(port) == 4)
            refused = ask(port, {"text": "one more"})
            gate.open.set()
            return refused, [future.result() for future in (first, *some)]

    (status, said, headers), answered = while_served(make(small, queue_limit=4), client)
    assert status == 503 and headers["Retry-After"] == "1"
    assert said == {"error": "4 texts are waiting, of at most 4: ask again later"}
    texts = ["fox", *(f"fox {i}" for i in range(4))]
    assert [found["answer"]["text"] for _, found, _ in answered] == small.generate(texts, max_length=6)


def test_who_left_is_not_answered(small, gate):
    def client(port):
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(ask, port, {"text": "fox"})
            assert gate.entered.wait(200)
            gone = socket.create_connection(("127.0.0.1", port))
            body = b'{"text": "nobody waits for this"}'
            gone.sendall(
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            wait_until(lambda: waiting(port) == 1)
            gone.close()
            wait_until(lambda: waiting(port) == 0)
            gate.open.set()
            return first.result()[0], ask(port, {"text": "a dog"})[0]

    assert while_served(make(small), client) == (200, 200)
    assert gate.sizes == [1, 1]


def test_who_waits_too_long_is_told(small, gate):
    def client(port):
        late = ask(port, {"text": "a dog"})
        gate.open.set()
        return late

    limits = dataclasses.replace(LIMITS, seconds=0.5)
    status, said, _ = while_served(make(small, limits=limits), client)
    assert (status, said) == (504, {"error": "no answer in 0.5 s: ask for less, or again later"})


def test_a_failure_of_the_model_is_told_and_the_server_goes_on(small, monkeypatch, capsys):
    predict, failures = Answerer.predict, iter([True])

    def failing(answerer, rows):
        if next(failures, False):
            raise MemoryError("out of memory\nwith a trace")
        return predict(answerer, rows)

    monkeypatch.setattr(Answerer, "predict", failing)
    bad, good = while_served(make(small), lambda port: (ask(port, {"text": "fox"}), ask(port, {"text": "fox"})))
    assert bad[:2] == (500, {"error": "MemoryError: out of memory"}) and good[0] == 200
    assert capsys.readouterr().err == "serve: error: MemoryError: out of memory\n"


def test_told_to_stop_it_answers_what_has_come(small, gate):
    said = []

    def client(port):
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(ask, port, {"text": "fox 0"})]
            assert gate.entered.wait(200)
            found += [pool.submit(ask, port, {"text": f"fox {i}"}) for i in range(1, 6)]
            wait_until(lambda: waiting(port) == 5)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: said)
            with pytest.raises(ConnectionError):
                wait_until(lambda: socket.create_connection(("127.0.0.1", port)).close())
            time.sleep(0.5)  # the model takes its time
            gate.open.set()
            return [future.result() for future in found]

    found = while_served(make(small), client, said.append, stops=True)
    expected = small.generate([f"fox {i}" for i in range(6)], max_length=6)
    assert [answer["answer"]["text"] for _, answer, _ in found] == expected
    assert said == ["serve: stopping; 5 texts are in the queue", "serve: 6 texts answered in 2 batches"]


def test_the_page_comes_whole_and_asks_nobody_else(small):
    status, page, headers = while_served(make(small), lambda port: ask(port, b"", "/", "GET"))
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page and "@SETTINGS@" not in page
    assert page.count("</script>") == 1  # a prefix with that text does not end the script


def test_mistakes_of_the_job_are_one_line_with_the_remedy(checkpoint, capsys):
    def error(*flags):
        configuration.clear()
        assert cli.main(["serve", f"--checkpoint={checkpoint}", *flags]) == 2
        configuration.clear()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        return line.removeprefix("t5x-lite: error: ")

    assert cli.main(["serve", "--gin_file=runs/serve.gin", f"--checkpoint={checkpoint}", "--port=0", "--dry_run"]) == 0
    assert "serve: would listen on 127.0.0.1, port 0" in capsys.readouterr().out
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert error(f"--port={port}").startswith(f"port {port} of 127.0.0.1 is in use: stop what uses it, or set")
    assert error("--port=eighty") == "serve.port must be a number from 0 to 65535, not 'eighty'"
    assert error("--host=999.1.1.1", "--port=0").startswith("cannot listen on port 0 of 999.1.1.1")
    assert error("--gin.serve.queue_limit=0").startswith("serve.queue_limit must be a whole number of at least 1")
    assert error("--gin.serve.timeout_seconds=0").startswith("serve.timeout_seconds = 0 makes no sense")
    assert error("--gin.Decoder.max_length=300").startswith("Decoder.max_length = 300 is over serve.max_length = 256")


def test_without_aiohttp_it_says_what_to_install(checkpoint, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("t5x_lite.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"pip install 't5x-lite\[serve\]'"):
        serve(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_from_its_start_to_its_end(small, checkpoint, tmp_path, number):
    """Without TensorFlow."""
    code = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "tensorflow_text", "t5x_lite.tasks"):
    sys.modules[name] = None
from t5x_lite import cli
sys.exit(cli.main(sys.argv[1:]))
"""
    flags = ["serve", "--gin_file=runs/serve.gin", f"--checkpoint={checkpoint}", "--port=0"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_device(),
        cwd=tmp_path,
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if "listening on http://127.0.0.1:" in line)
        port = int(address.split("127.0.0.1:")[1].split("/")[0])
        found = ask(port, {"text": "the fox", "max_length": 6})
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert found[1]["answer"]["text"] == small.generate(["the fox"], max_length=6)[0]
    assert process.returncode == 0 and "serve: 1 texts answered in 1 batches" in out, out + err
    assert "Traceback" not in err
