"""RLVR: train a language model with reinforcement learning against verifiers."""
