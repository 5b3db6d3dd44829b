"""The app answers a real HTTP client: mixed batches of many callers, tasks that come and go, errors in one line."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served_tasks import items_for, network, task_on, tasks_on
from tiny import backbone as tiny_backbone

import mtl

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")


@contextmanager
def client_of(server: mtl.Server, **options: Any) -> Iterator[Any]:
    """A client of the app, which answers at a port of its own."""
    from mtl.serving.app import make_app

    runner = uvicorn.Server(uvicorn.Config(make_app(server, **options), port=0, log_level="warning"))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not runner.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = runner.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        runner.should_exit = True
        thread.join()


def encoded(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_texts_over_http(tmp_path: Path):
    backbone = network("texts, norms", tmp_path)
    tasks, items = tasks_on(backbone), items_for(backbone, 12)
    names = list(tasks) * 2
    server = mtl.Server(backbone, tasks, max_wait=50)
    with client_of(server) as client:
        assert client.get("/health").json() | {"in_memory": 0} == {
            "status": "ok", "backbone": backbone.name, "reads": "texts", "device": "cpu", "tasks": 6, "in_memory": 0,
        }  # fmt: skip
        assert client.get("/tasks").json() == {"tasks": sorted(tasks)}
        told = client.get("/tasks/plain").json()
        assert (told["classes"], told["values"]) == (list(tasks["plain"].class_names), tasks["plain"].values)
        found = client.post("/predict", json={"task": names, "items": items, "top": 2}).json()["answers"]
        for answer, (first, second) in zip(found, server.predict_top(items, names, 2), strict=True):
            assert (answer["label"], answer["top"][0]["label"], answer["top"][1]["label"]) == (
                first.label, first.label, second.label,
            )  # fmt: skip
            assert answer["probability"] == pytest.approx(first.probability, rel=1e-4)
        one = client.post("/predict", json={"task": "unit", "items": items[:1]}).json()
        assert [a["label"] for a in one["answers"]] == tasks["unit"].predict(items[:1])
        refused = {"task": "all", "items": items, "reject": 0.9}
        labels = [a["label"] for a in client.post("/predict", json=refused).json()["answers"]]
        assert labels == tasks["all"].predict(items, reject=0.9)
        assert None in labels
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(items[0], "unit")


def test_many_callers_at_once_share_passes(tmp_path: Path, monkeypatch):
    backbone = network("texts, norms", tmp_path)
    tasks, items = tasks_on(backbone), items_for(backbone, 16)
    names = [list(tasks)[i % 6] for i in range(16)]
    server = mtl.Server(backbone, tasks, max_wait=20_000, max_batch=16)
    expected, batches = server.predict(items, names), []
    answer_each = server._gatherer._answer
    monkeypatch.setattr(server._gatherer, "_answer", lambda asked: batches.append(len(asked)) or answer_each(asked))
    with client_of(server) as client, ThreadPoolExecutor(16) as pool:
        ask = lambda pair: client.post("/predict", json={"task": pair[1], "items": [pair[0]]})  # noqa: E731
        found = list(pool.map(ask, zip(items, names, strict=True)))
    assert [response.json()["answers"][0]["label"] for response in found] == expected
    assert batches == [16]


def test_images_over_http(tmp_path: Path):
    backbone = network("images, readout", tmp_path)
    task, images = task_on(backbone, 0), items_for(backbone, 3)
    (tmp_path / "secret.png").write_bytes(encoded(images[0]))
    expected = task.predict(images)
    with client_of(mtl.Server(backbone, {"a": task})) as client:
        plain = [base64.b64encode(encoded(image)).decode() for image in images]
        urls = [f"data:image/png;base64,{item}" for item in plain]
        for items in (plain, urls):
            found = client.post("/predict", json={"task": "a", "items": items}).json()["answers"]
            assert [answer["label"] for answer in found] == expected
        files = [("files", (f"{i}.png", encoded(image), "image/png")) for i, image in enumerate(images)]
        found = client.post("/predict/files", data={"task": "a", "top": 2}, files=files).json()["answers"]
        assert [answer["label"] for answer in found] == expected
        assert len(found[0]["top"]) == 2
        path = client.post("/predict", json={"task": "a", "items": [str(tmp_path / "secret.png")]})
        assert path.status_code == 422, "a path is never read"
        assert path.json()["detail"].startswith("item 0: no image in base64")
        broken = client.post("/predict/files", data={"task": "a"}, files=[*files, ("files", ("x.png", b"no image"))])
        assert broken.status_code == 422
        assert broken.json()["detail"].startswith("item 3: ")


def test_tasks_are_put_and_deleted_over_http(tmp_path: Path):
    backbone, folder = tiny_backbone(), tmp_path / "tasks"
    task, other = task_on(backbone, 0), task_on(tiny_backbone(depth=1), 0)
    task.save(tmp_path / "task.mtl")
    other.save(tmp_path / "other.mtl")
    content = (tmp_path / "task.mtl").read_bytes()
    image = base64.b64encode(encoded(items_for(backbone, 1)[0])).decode()
    with client_of(mtl.Server(backbone), folder=folder) as client:
        made = client.put("/tasks/returns", content=content)
        assert (made.status_code, made.json()["classes"]) == (201, list(task.class_names))
        assert (folder / "returns.mtl").read_bytes() == content
        answer = client.post("/predict", json={"task": "returns", "items": [image]})
        assert answer.json()["answers"][0]["label"] in task.class_names
        for body, why in (
            (content[:-3], "the file of task 'x'"),
            ((tmp_path / "other.mtl").read_bytes(), "differs from it"),
        ):
            refused = client.put("/tasks/x", content=body)
            assert refused.status_code == 422
            assert why in refused.json()["detail"]
            assert str(tmp_path) not in refused.json()["detail"]
        assert client.put("/tasks/..%2Fx", content=content).status_code in (404, 422)
        assert client.put("/tasks/.x", content=content).status_code == 422
        assert client.get("/tasks").json() == {"tasks": ["returns"]}
        assert client.delete("/tasks/returns").status_code == 204
        assert client.delete("/tasks/returns").status_code == 404
        assert list(folder.iterdir()) == []
    with client_of(mtl.Server(backbone)) as client:
        for refused in (client.put("/tasks/returns", content=content), client.delete("/tasks/returns")):
            assert refused.status_code == 405
            assert "mtl serve --changes allows it" in refused.json()["detail"]


def test_what_cannot_be_answered_over_http(tmp_path: Path):
    backbone = network("texts, readout", tmp_path)
    text = items_for(backbone, 1)[0]
    with client_of(mtl.Server(backbone, {"returns": task_on(backbone, 0)}), max_items=2, max_megabytes=0.01) as client:
        for asked, status, why in [
            ({"task": "retruns", "items": [text]}, 404, "no task is named 'retruns'; did you mean 'returns'?"),
            ({"task": ["returns"], "items": [text, text]}, 422, "1 names of tasks for 2 items"),
            ({"task": "returns", "items": [text] * 3}, 413, "3 items: expected at most 2"),
            ({"task": "returns", "items": [text, ""], "reject": 0.1}, 422, "no examples were left out"),
            ({"task": "returns", "items": ["a" * 20_000]}, 413, "expected at most 0.01 MiB"),
        ]:
            response = client.post("/predict", json=asked)
            assert response.status_code == status
            assert why in response.json()["detail"]
        for asked, why in [
            ({"task": "returns", "items": []}, "items: List should have at least 1 item"),
            ({"task": "returns", "items": [text, 3]}, "items.1: Input should be a valid string"),
            ({"items": [text], "top": 0}, "task: Field required; top: Input should be greater than"),
        ]:
            response = client.post("/predict", json=asked)
            assert response.status_code == 422
            assert why in response.json()["detail"], "one line, not a list"
        untyped = client.post("/predict", content=b'{"task": "returns", "items": ["a"]}').json()["detail"]
        assert untyped.endswith("expected JSON, with content-type: application/json"), "as curl -d sends it"
        assert client.get("/tasks/nobody").status_code == 404
        files = [("files", ("x.png", b"x"))]
        assert client.post("/predict/files", data={"task": "returns"}, files=files).status_code == 422
