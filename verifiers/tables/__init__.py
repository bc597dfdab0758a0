"""Acceptance tables of the built-in verifiers, installed with them: `python -m rlvr verifiers test`."""
