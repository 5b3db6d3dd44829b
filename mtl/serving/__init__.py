"""Serving: many adapted tasks over one frozen network, and an app that answers over HTTP."""

from mtl.fewshot.predicting import Prediction
from mtl.serving.library import UnknownTask
from mtl.serving.server import Server

__all__ = ["Prediction", "Server", "UnknownTask"]
