"""Measurements. Run one from the root of the checkout: `python -m benchmarks.verifiers`."""
