"""What the store is tested with, for whoever builds on it or beside it:

conformance   one suite of tests for every store behind `StateBackend`
model         what a store ought to hold, as dicts
stateful      rule-based machines that hold a store against the model (needs hypothesis)
checkers      judges of recorded histories: one order, once, linearizability, complete watches
disks, images disks that fail and forget; every disk that a power failure may leave
simulation    clients, broker, store, watchers, network, disk and clocks in one thread, by seed
chaos         a proxy on loopback that delays, holds and cuts connections
blocking      an asyncio client seen from plain code
"""
