"""The trainers, one file each; in a checkout they lie in the top-level folder `trainers/`."""
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "trainers")]
