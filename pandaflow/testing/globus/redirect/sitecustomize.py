"""Sends the Globus Compute SDK of a Python process to a local stand-in.

Python imports a module of this name at its start when its folder is on ``PYTHONPATH``. The SDK
knows the addresses of the hosted service, and of "local" services at a fixed port, but no
variable for any other address; so its module of addresses is changed when it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "globus_compute_sdk.sdk._environments"
_VARIABLE = "PANDAFLOW_GLOBUS_URL"


class _Redirect(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.__dict__["get_web_service_url"] = lambda envname=None: os.environ[_VARIABLE]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _VARIABLE in os.environ:
    sys.meta_path.insert(0, _Redirect())
