"""Adapted tasks over HTTP, many over one network; single requests of many callers make mixed batches.

mtl serve tasks/
mtl serve tasks/ --port 8080 --changes
curl --json '{"task": "tickets", "items": ["Where is my parcel?"]}' http://127.0.0.1:8000/predict
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import mtl
from mtl.cli.commands.closing import closing
from mtl.cli.options import Checked, Count, Device, Folder, PositiveOrZero, Range
from mtl.serving.library import task_files

Port = Annotated[int, Range(0, 65535)]


@dataclass(frozen=True)
class Config(Checked):
    tasks: Annotated[Folder, tyro.conf.Positional]  # folder of .mtl files, each a task of its name; or one file
    host: str = "127.0.0.1"  # who may ask: this machine alone; 0.0.0.0 for everybody who reaches it
    port: Port = 8000  # where to listen
    changes: bool = False  # let callers put tasks into the folder, and delete them
    capacity: Count = 1000  # tasks whose numbers are kept in memory
    max_batch: Count = 256  # single requests that are answered together
    max_wait: PositiveOrZero = 5.0  # milliseconds that a single request waits for others
    backbone: str | None = None  # the network, where it is not where the files say: a folder or a name
    checkpoint: str | None = None  # file of its weights, likewise
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"  # where to run


def main(config: Config) -> None:
    """Answer until interrupted."""
    from mtl.serving.app import make_app, run_app

    port = free_port(config.host, config.port)
    server = open_server(config)
    tasks = Path(config.tasks)
    app = make_app(server, folder=tasks if config.changes and tasks.is_dir() else None)
    url = f"http://{config.host}:{port}"
    closing({"tasks": f"{len(server)}, over {server.backbone.name}", "answers": f"{url}/predict"}, [f"{url}/docs"])
    run_app(app, host=config.host, port=port)


def free_port(host: str, port: int) -> int:
    """The port, or one that is free for 0.

    Raises:
        OSError: nobody can listen there; said before the network is loaded.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            return taken.getsockname()[1]
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(f"--host {host} --port {port}: cannot answer there ({why}); choose another --port") from error


def open_server(config: Config) -> mtl.Server:
    """A server of the folder, over the network of its first file.

    Raises:
        FileNotFoundError: there is no file of a task.
    """
    tasks = Path(config.tasks)
    files = [tasks] if tasks.is_file() else task_files(tasks)
    if not files:
        raise FileNotFoundError(f"{tasks}: no .mtl file there; mtl adapt writes one")
    backbone = mtl.load_task(files[0], config.backbone, checkpoint=config.checkpoint).backbone.to(config.device)
    options = {"capacity": config.capacity, "max_batch": config.max_batch, "max_wait": config.max_wait}
    return mtl.Server(backbone, {tasks.stem: tasks} if tasks.is_file() else tasks, **options)
