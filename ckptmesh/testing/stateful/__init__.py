"""Hypothesis plays with a store and with a model of it, step by step, until they differ.

    import ckptmesh
    from ckptmesh.testing.stateful import StoreMachine

    class MyMachine(StoreMachine):
        def connect(self):
            return ckptmesh.connect("memory://")

    TestMyStore = MyMachine.TestCase

`connect` makes a client of a store that holds nothing yet; it is called once for each example, and
what it gives is closed in the end. `BackendMachine` is for anything that meets
`ckptmesh.backends.StateBackend`; `StoreMachine` adds what a `ckptmesh.Client` has, and plays with
history, time travel, leases and watches where the store declares them in its `capabilities`.
A failing example is shrunk by hypothesis to the shortest story that still fails. How many examples
there are and how long: `TestMyStore.settings = hypothesis.settings(max_examples=…,
stateful_step_count=…)`. Needs hypothesis, which ckptmesh itself does not.

Rule 1: after every step the whole content is compared, types of values included.
Rule 2: no rule knows which revision comes next, only that revisions grow.
Rule 3: a refusal has to be the model's refusal, and has to change nothing.
"""

try:
    import hypothesis  # noqa: F401
except ImportError as missing:
    raise ImportError("ckptmesh.testing.stateful needs hypothesis: "
                      "install it beside ckptmesh (pip install hypothesis)") from missing

from ckptmesh.testing.stateful.backend import BackendMachine
from ckptmesh.testing.stateful.drawing import KEYS, POSITIONS, PREFIXES, VALUES
from ckptmesh.testing.stateful.store import StoreMachine

__all__ = ["KEYS", "POSITIONS", "PREFIXES", "VALUES", "BackendMachine", "StoreMachine"]
