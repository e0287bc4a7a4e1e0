"""Fuzz one target with atheris, or give it one input.

    python -m tests.fuzz envelope -max_total_time=60 CORPUS_FOLDER   (options are libFuzzer's)
    python -m tests.fuzz envelope --input BASE64                     (needs no atheris)

Besides the names of targets.py, `module:function` names a target.
"""

from __future__ import annotations

import base64
import gc
import importlib
import sys
from collections.abc import Callable

from tests.fuzz.coverage import MODULES


def main(arguments: list[str]) -> int:
    """Run; returns the exit code: 2 for a wrong use, or where atheris is missing."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    name, *options = arguments
    if options[:1] == ["--input"]:
        _find(name)(base64.b64decode(options[1]))
        return 0
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install -e '.[prove]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=list(MODULES.get(name, ("ckptmesh",)))):
        target = _find(name)
    target(b"")  # what is made once is made now
    atheris.Setup([name, *options], target)
    gc.freeze()
    atheris.Fuzz()
    return 0


def _find(name: str) -> Callable[[bytes], None]:
    if ":" in name:
        module, function = name.split(":")
        found: Callable[[bytes], None] = getattr(importlib.import_module(module), function)
        return found
    targets = importlib.import_module("tests.fuzz.targets").TARGETS
    if name not in targets:
        raise SystemExit(f"there is no target {name!r}; there are {', '.join(targets)}")
    return targets[name].run  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
