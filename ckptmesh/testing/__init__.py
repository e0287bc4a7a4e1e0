"""What users test with: the conformance kit, an asyncio client seen from plain code, disks that
fail, and in `ckptmesh.testing.checkers` what judges recorded histories (linearizability, one order,
once, watches):

    from ckptmesh.testing.checkers import Recorder, check_linearizable
"""
