"""Tables of classes by name: what a saved file or a command line names, and where classes of your own are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

Class = TypeVar("Class", bound=type)


class Registry(dict[str, Any]):
    """Classes by name, with one line of help each. The built-in classes and yours are rows of the same kind.

    Args:
        kind: what the classes are, for error messages ("estimator").
        name: where the registry lives, for error messages ("mtl.metagrad.ESTIMATORS").

    >>> SHAPES = Registry("shape", "SHAPES")
    >>> @SHAPES.register("circle", help="Round.")
    ... class Circle: ...
    >>> SHAPES["circle"] is Circle, SHAPES.name_of(Circle()), SHAPES.help("circle")
    (True, 'circle', 'Round.')
    >>> SHAPES["square"]
    Traceback (most recent call last):
    ValueError: unknown shape 'square': expected one of ['circle']; add yours with SHAPES.register('square', YourClass)
    """

    def __init__(self, kind: str, name: str) -> None:
        super().__init__()
        self.kind, self.name = kind, name
        self._help: dict[str, str] = {}

    @overload
    def register(self, name: str, cls: Class, *, help: str = "") -> Class: ...
    @overload
    def register(self, name: str, cls: None = None, *, help: str = "") -> Callable[[Class], Class]: ...
    def register(self, name: str, cls: Any = None, *, help: str = "") -> Any:
        """Add a class, as ``register("name", Class)`` or as a decorator.

        Defining the same class again, as a notebook does, replaces it.

        Args:
            help: one line of plain text; by default the first line of the class's docstring.

        Raises:
            ValueError: when the name belongs to another class, or what is registered is no class.
        """
        if cls is None:
            return lambda cls: self.register(name, cls, help=help)
        if not isinstance(cls, type):
            raise ValueError(f"{self.name}.register({name!r}, {cls!r}): expected a class, not an instance of one")
        if name in self and _path(self[name]) != _path(cls):
            raise ValueError(
                f"{self.name}.register({name!r}, {cls.__name__}): the name belongs to {_path(self[name])}; "
                "choose another"
            )
        self[name] = cls
        self._help[name] = help or (cls.__doc__ or "").strip().partition("\n")[0]
        return cls

    def help(self, name: str) -> str:
        """The line of help of a row."""
        return self._help[name] if name in self else self[name]

    def name_of(self, value: object) -> str:
        """The name under which a class, or the class of an instance, is registered.

        Raises:
            ValueError: when it is not registered, with the line that registers it.
        """
        cls = value if isinstance(value, type) else type(value)
        for name, registered in self.items():
            if registered is cls:
                return name
        raise ValueError(
            f"{cls.__name__} is no registered {self.kind}, so no file can name it; "
            f"add {self.name}.register({cls.__name__.lower()!r}, {cls.__name__}) where the class is defined"
        )

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"unknown {self.kind} {name!r}: expected one of {sorted(self)}; "
            f"add yours with {self.name}.register({name!r}, YourClass)"
        )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
