"""Inference with trained runs on new images."""
