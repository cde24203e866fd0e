"""Testbeds whose memorised prompts are known: the ground truth that the audit is held against."""
