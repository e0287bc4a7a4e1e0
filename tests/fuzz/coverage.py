"""Which modules are instrumented for each target. Imports nothing of the package: atheris must come
before it."""

_WIRE = ("ckptmesh.protocol", "ckptmesh.commands", "ckptmesh.envelope", "ckptmesh.limits")
_STORE = (*_WIRE, "ckptmesh.machine", "ckptmesh.transactions", "ckptmesh.queries",
          "ckptmesh.engine")
_STATE = ("ckptmesh.state", "ckptmesh.timeline")

MODULES: dict[str, tuple[str, ...]] = {
    "envelope": _WIRE,
    "body": _WIRE,
    "replies": _WIRE,
    "handshake": _STORE,
    "session": _STORE,
    "segment": ("ckptmesh.framing",),
    "records": ("ckptmesh.records", *_STATE),
    "snapshot": ("ckptmesh.snapshots", *_STATE),
    "manifest": ("ckptmesh.manifest",),
    "names": ("ckptmesh.manifest", "ckptmesh.limits"),
    "peer": ("ckptmesh.zmtp",),
    "values": ("ckptmesh.values", "ckptmesh.shape"),
}
"""Those that read the bytes: their branches count as coverage. What only checks the outcome stays
fast."""
