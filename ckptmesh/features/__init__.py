"""What pipelines are built with: ordinary clients of a store, without a private door.

Each feature stands on the methods of a client (`backends/base.py`) and on nothing below it. What it
does is a flow (`flows.py`), so that plain and asyncio clients share it.
"""
