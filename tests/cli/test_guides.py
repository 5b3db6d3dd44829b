"""The guides at the head of the README, typed as they stand there, on a small network and data made here."""

from __future__ import annotations

import csv
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mtl.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
WAIT = 120  # seconds for a server to start, on a busy machine


def guide(first: str) -> list[list[str]]:
    """Words of the lines of the block of commands that begins with a line."""
    [block] = [b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if b.startswith(first)]
    return [shlex.split(line) for line in block.splitlines()]


def test_own_images_to_predictions_in_three_commands(here: Path):
    install, adapt, predict = guide("pip install .\n")
    assert install == ["pip", "install", "."]
    assert (adapt[0], predict[0]) == ("mtl", "mtl")
    main([{"resnet18.a1_in1k": "mtl/glyphs"}.get(word, word) for word in adapt[1:]])
    main(predict[1:])
    with (here / "predictions.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["label"] for row in rows] == [Path(row["filename"]).parent.name for row in rows], "plain grey levels"


@pytest.mark.slow
def test_own_table_to_an_answer_over_http_in_four_commands(here: Path, encoder: str):
    pytest.importorskip("fastapi")
    _, adapt, serve, ask = guide('pip install ".[text,serve]"')
    (here / "labelled.csv").rename(here / "tickets.csv")
    rename = {"mtl/minilm": encoder}
    main([rename.get(word, word) for word in adapt[1:]] + ["--text-column", "note", "--label-column", "kind"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *serve, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        body, url = ask[ask.index("-d") + 1], f"http://127.0.0.1:{port}/{ask[-1].partition('/')[2]}"
        answer = asked(url, body, server)
    finally:
        server.terminate()
        server.wait(30)
    assert json.loads(answer)["answers"][0]["label"] in ("class 0", "class 1", "class 2")


def asked(url: str, body: str, server: subprocess.Popen[str]) -> str:
    """The answer of a server that is starting."""
    for _ in range(2 * WAIT):
        request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert server.poll() is None, f"the server ended: {server.stdout and server.stdout.read()}"
            time.sleep(0.5)
    pytest.fail("the server did not start")
