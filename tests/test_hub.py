"""A hub that refuses, hangs or is out of order is given up within seconds; what the cache has is found all the same."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from networks import TEXT, load

import mtl
from mtl.networks.backbones import hub

SECONDS = 5.0


def serve(answer: bytes | None) -> Iterator[str]:
    """A server that answers everybody alike; None says nothing at all."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            if answer is not None:
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=run, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for connection in held:
        connection.close()


def refusing() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


def hanging() -> Iterator[str]:
    yield from serve(None)


def broken() -> Iterator[str]:
    yield from serve(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def no_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    for endpoint in request.param():
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield endpoint


@pytest.mark.parametrize("no_hub", [refusing, hanging, broken], indirect=True)
@pytest.mark.parametrize("name", ["test_resnet", "nobody/nothing"])
def test_no_hub_is_told_within_seconds(no_hub: str, name: str):
    began = time.monotonic()
    with pytest.raises(OSError, match=rf"no weights for '{name}': {no_hub} does not answer, and the cache does not"):
        mtl.load_backbone(name)
    assert time.monotonic() - began < SECONDS
    assert not constants.HF_HUB_OFFLINE, "as it was"


@pytest.mark.parametrize("no_hub", [refusing], indirect=True)
def test_the_cache_is_searched_without_a_hub(no_hub: str, tmp_path: Path):
    """As a name, and with the tokenizer that is only wanted later."""
    files = tmp_path / "cache" / "models--some--encoder"
    (files / "refs").mkdir(parents=True)
    (files / "refs" / "main").write_text("0" * 40)
    folder = files / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    load("bert", folder).model.save_pretrained(folder)  # type: ignore[operator]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    began = time.monotonic()
    backbone: Any = mtl.load_backbone("some/encoder")
    assert backbone.width == TEXT["bert"]["hidden_size"]
    assert backbone.preprocess(["w1 w2"])["input_ids"].shape == (1, 4)
    assert time.monotonic() - began < 2 * SECONDS


@pytest.mark.parametrize("no_hub", [hanging], indirect=True)
def test_folders_and_random_weights_ask_nobody(no_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def asked(endpoint: str) -> bool:
        raise AssertionError(f"{endpoint} was asked")

    monkeypatch.setattr(hub, "_answers", asked)
    assert load("bert", tmp_path).width == 16
    assert load("test_resnet", tmp_path).width > 0


@pytest.mark.parametrize("no_hub", [refusing], indirect=True)
def test_an_answer_counts_for_a_while(no_hub: str, monkeypatch: pytest.MonkeyPatch):
    assert not hub._answers(no_hub)
    for endpoint in serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"):
        assert hub._answers(endpoint)
    assert hub._answers(endpoint), "it is closed by now"
