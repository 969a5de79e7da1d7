"""Checkpoints of prompts in the layouts of published code."""
