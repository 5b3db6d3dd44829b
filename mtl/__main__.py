"""``python -m mtl``: the command ``mtl``, also for ``accelerate launch -m mtl train``."""

from mtl.cli.main import main

if __name__ == "__main__":
    main()
