"""Tables of things by name: methods, students, losses, augmentations, generator classes."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dimdata.errors import ArgumentError, DimdataError, NotFoundError, nearest

T = TypeVar("T")

_LOADING = threading.RLock()  # one for all tables, which may look into one another while they are filled


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
        self._loading = self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def add(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise ArgumentError(f"There is already a {self.what} called {name!r}.", "Choose another name.")
            self._entries[name] = entry
            return entry

        return add

    def _load(self) -> None:
        """Fill the table at its first use, whole or not at all: another thread waits, and a failure is told each time.

        Raises:
            DimdataError: If another package cannot be imported.
        """
        if self._loaded:
            return
        with _LOADING:
            if self._loading or self._loaded:  # loading: what is being imported looks a name up
                return
            self._loading = True
            try:
                for module in self._modules:
                    importlib.import_module(module)
                for point in entry_points(group=self.group):
                    before = dict(self._entries)
                    try:
                        point.load()
                    except Exception as error:  # whatever a package does on import
                        self._entries = before  # it will register them again
                        package = point.dist.name if point.dist else point.value
                        raise DimdataError(
                            f"The package {package} adds the {self.what} {point.name!r:.80}, and cannot be imported "
                            f"({type(error).__name__}: {error!s:.200}).",
                            "Mend it, or uninstall it.",
                        ) from error
                self._loaded = True
            finally:
                self._loading = False

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
