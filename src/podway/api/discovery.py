"""Modules of a package that are found by being there: a file more is all that it takes to add one."""

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


def modules_of(package: str, path: Iterable[str]) -> tuple[ModuleType, ...]:
    """Import all modules of a package, in the order of their names; `path` is the package's `__path__`."""
    names = sorted(module.name for module in pkgutil.iter_modules(path))
    return tuple(import_module(f"{package}.{name}") for name in names)
