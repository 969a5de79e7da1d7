"""Prompt learners as modules: plain arguments in, prompts as tensors out. They know nothing of CLIP's towers or cfg."""
