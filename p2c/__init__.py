"""P2C: robust prompt learning for CLIP as a Dassl plugin (arXiv 2511.22897)."""

__version__ = "0.1.0"
