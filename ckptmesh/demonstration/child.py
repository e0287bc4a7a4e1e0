"""Runs a module as a process of the demo: `python -m ckptmesh.demonstration.child demo.pipeline`.

Only so that the module ends with the demo, however that one ends; in `demo/` itself, which is made
to be copied, nothing should need it.
"""

from __future__ import annotations

import runpy
import sys

from ckptmesh.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
