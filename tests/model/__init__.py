"""State machines of hypothesis over stores of our own, against `ckptmesh.testing.model`."""
