"""The sub-commands of ``mtl``. Each has a ``Config`` of options and a ``main``."""
