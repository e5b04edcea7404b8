"""Tables of things by name: methods, students, losses, augmentations, generator classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dimdata.errors import ArgumentError, NotFoundError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries, extended by other packages through an entry-point group.

    Args:
        what: The word for an entry, in messages.
        group: The entry-point group, such as `dimdata.methods`; an entry point's module registers itself on import.
        modules: Modules of ours that register entries on import.
    """

    def __init__(self, what: str, group: str, modules: tuple[str, ...] = ()) -> None:
        self.what = what
        self.group = group
        self._modules = modules
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def add(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise ArgumentError(f"There is already a {self.what} called {name!r}.", "Choose another name.")
            self._entries[name] = entry
            return entry

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._modules:
            importlib.import_module(module)
        for point in entry_points(group=self.group):
            point.load()

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise NotFoundError(f"There is no {self.what} called {name!r:.80}.", nearest(name, self._entries))
        return self._entries[name]
