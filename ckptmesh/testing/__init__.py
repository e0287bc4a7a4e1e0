"""What users test with: the conformance kit, and an asyncio client seen from plain code."""
