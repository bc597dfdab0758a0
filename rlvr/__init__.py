"""RLVR: train a language model with reinforcement learning against verifiers."""

__version__ = "0.1.0"
