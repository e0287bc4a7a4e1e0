"""Flags from the tables of `config.py`, so that a setting is written down once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import click

from ckptmesh.config import BrokerConfig, StoreConfig, flag

Function = Callable[..., Any]


def settings(*tables: type[BrokerConfig] | type[StoreConfig]) -> Callable[[Function], Function]:
    """A decorator that adds a flag for each setting of the tables, in their order.

    A flag that is not given arrives as None, so that `config.load` can look further.
    """
    found: dict[str, Field[Any]] = {}
    for table in tables:
        for setting in fields(table):
            found.setdefault(setting.name, setting)

    def decorate(function: Function) -> Function:
        for setting in reversed(found.values()):
            function = _option(setting)(function)
        return function

    return decorate


def _option(setting: Field[Any]) -> Callable[[Function], Function]:
    known = setting.metadata
    text = f"{known['help']}  [{known['env']}{_default(setting)}]"
    if isinstance(setting.default, bool):
        return click.option(flag(setting), is_flag=True, default=None, help=text)
    return click.option(flag(setting), default=None, metavar=_METAVARS[known["read"].__name__],
                        help=text)


_METAVARS = {"str": "TEXT", "size": "SIZE", "duration": "DURATION", "count": "N"}


def _default(setting: Field[Any]) -> str:
    value: Any = setting.default
    kind = setting.metadata["read"].__name__
    if value in ("", False):
        return ""
    units = {"size": _SIZES, "duration": _DURATIONS}.get(kind, {})
    for unit, amount in units.items():
        if value >= amount and value % amount == 0:
            return f"; default {value // amount}{unit}"
    return f"; default {value}"


_SIZES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_DURATIONS = {"d": 86_400, "h": 3_600}
