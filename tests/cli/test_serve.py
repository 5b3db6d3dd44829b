"""mtl serve: own texts to an answer over HTTP, in four commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

import mtl
from mtl.cli.main import main

httpx = pytest.importorskip("httpx")
app_module = pytest.importorskip("mtl.serving.app")


def typed(line: str) -> None:
    main(line.split())


def test_texts_to_an_answer_over_http(here: Path, encoder: str, monkeypatch, capsys):
    columns = "--text-column note --label-column kind"
    typed(f"adapt --backbone {encoder} --data labelled.csv {columns} --max-length 8")
    served: list[Any] = []
    monkeypatch.setattr(app_module, "run_app", lambda app, host, port: served.append((app, host, port)))
    typed("serve adapted/ --port 8123 --capacity 5")
    said = capsys.readouterr().out
    assert "http://127.0.0.1:8123/predict" in said
    [(app, host, port)] = served
    assert (host, port) == ("127.0.0.1", 8123)

    async def ask() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post("/predict", json={"task": "labelled", "items": ["a text of a kind"]})
            put = await client.put("/tasks/x", content=b"")
            return answer.json()["answers"], put.status_code

    [answer], put = asyncio.run(ask())
    assert answer["label"] == mtl.load_task("adapted/labelled.mtl").predict("a text of a kind")[0]
    assert put == 405, "nobody changes tasks without --changes"
    typed("serve adapted/labelled.mtl --changes")
    assert "1, over" in capsys.readouterr().out


def test_a_port_that_is_taken_is_said_before_the_network_is_loaded(here: Path, encoder: str, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit):
            typed(f"serve adapted/ --port {port}")
    said = capsys.readouterr()
    assert said.err.startswith(f"--host 127.0.0.1 --port {port}: cannot answer there (Address already in use)")
    assert "answers" not in said.out, "no address where another one answers"
    typed(f"adapt --backbone {encoder} --data labelled.csv --text-column note --label-column kind --max-length 8")
    served: list[Any] = []
    monkeypatch.setattr(app_module, "run_app", lambda app, host, port: served.append(port))
    typed("serve adapted/ --port 0")
    assert f"http://127.0.0.1:{served[0]}/predict" in capsys.readouterr().out
    assert served[0] > 0


def test_what_cannot_be_served_is_said_in_one_line(here: Path, capsys):
    (here / "nothing").mkdir()
    for line, why in [
        ("serve nothing", "no .mtl file there; mtl adapt writes one"),
        ("serve nowhere", "nowhere: expected a folder of .mtl files"),
        ("serve nothing --port 70000", "--port 70000"),
    ]:
        with pytest.raises(SystemExit):
            typed(line)
        assert why in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_answers(here: Path, encoder: str):
    typed(f"adapt --backbone {encoder} --data labelled.csv --text-column note --label-column kind --max-length 8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "mtl", "serve", "adapted/", "--port", str(port)])
    try:
        asked = json.dumps({"task": "labelled", "items": ["a text of a kind"]}).encode()
        request = Request(f"http://127.0.0.1:{port}/predict", asked, {"content-type": "application/json"})
        deadline, found = time.monotonic() + 120, None
        while found is None and process.poll() is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(URLError), urlopen(request, timeout=60) as response:
                found = json.load(response)
            time.sleep(0.2)
        assert found is not None
        assert found["answers"][0]["label"] == mtl.load_task("adapted/labelled.mtl").predict("a text of a kind")[0]
    finally:
        process.terminate()
        process.wait()
