"""Trained runs on new images."""
