"""State backends: one small interface, chosen by URL.

    with open_backend("file:./state") as state:
        state.put("orders", 42, expect=None)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ckptmesh.backends.base import Capability, StateBackend
from ckptmesh.errors import InvalidUrl

__all__ = ["SCHEMES", "Capability", "StateBackend", "open_backend"]

SCHEMES = {
    "tcp": "ckptmesh.client:connect",
    "ipc": "ckptmesh.client:connect",
    "file": "ckptmesh.client:connect",
    "memory": "ckptmesh.client:connect",
}
"""URL scheme → module:function that opens a backend. Imported when it is first asked for, since
each may need libraries of its own."""


def open_backend(url: str, **options: Any) -> StateBackend:
    """The backend that a URL names; `options` are those of its own function.

    Raises `InvalidUrl`, and what that function raises.
    """
    scheme = url.partition(":")[0]
    where = SCHEMES.get(scheme)
    if where is None:
        raise InvalidUrl(f"{url!r} names no backend that ckptmesh knows",
                         hint=f"schemes: {', '.join(SCHEMES)}", url=url)
    module, _, function = where.partition(":")
    found: StateBackend = getattr(import_module(module), function)(url, **options)
    return found
