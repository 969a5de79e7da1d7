"""Prompts in files: published layouts."""
