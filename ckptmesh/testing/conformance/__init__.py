"""The conformance kit: what whatever calls itself a checkpoint store has to do.

    # conftest.py
    import pytest
    pytest.register_assert_rewrite("ckptmesh.testing.conformance")

    # test_my_store.py
    import pytest
    from ckptmesh.testing.conformance import BackendConformance

    class TestMyStore(BackendConformance):
        @pytest.fixture
        def connect(self, tmp_path):
            return lambda: MyStore(tmp_path)

`BackendConformance` is for anything that meets `ckptmesh.backends.StateBackend`;
`StoreConformance` adds the whole of `ckptmesh.Client`.

`connect` makes one more client of one store that holds nothing yet: a store of this test's own, or
one that many tests share under prefixes that they do not. The tests close what it makes. What a
store does not declare in its `capabilities` is skipped, and says so. No test waits longer than
`PATIENCE` seconds for anything. Needs pytest, which ckptmesh itself does not.

Rule 1: a test names one promise, as a sentence, and uses what users use.
Rule 2: no test knows which revision comes next, only that revisions grow.
"""

try:
    import pytest  # noqa: F401
except ImportError as missing:
    raise ImportError("ckptmesh.testing.conformance needs pytest: "
                      "install it beside ckptmesh (pip install pytest)") from missing

from ckptmesh.testing.conformance.backend import BackendConformance
from ckptmesh.testing.conformance.base import PATIENCE
from ckptmesh.testing.conformance.committing import Committing
from ckptmesh.testing.conformance.expiring import Expiring
from ckptmesh.testing.conformance.following import Following
from ckptmesh.testing.conformance.holding import Holding
from ckptmesh.testing.conformance.many import Many
from ckptmesh.testing.conformance.reading import Reading
from ckptmesh.testing.conformance.transacting import Transacting

__all__ = ["PATIENCE", "BackendConformance", "StoreConformance"]


class StoreConformance(BackendConformance, Committing, Many, Reading, Transacting, Expiring,
                       Holding, Following):
    """All of it. Subclass it and give a `connect` fixture."""
