"""The datasets, one short file of facts each; in a checkout they lie in the top-level folder `datasets/`."""
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "datasets")]
