"""Prompt learners as modules with plain arguments, which return prompts as tensors; independent of CLIP and the cfg."""
