"""The YAML files of datasets and trainers; in a checkout they lie in the top-level folder `configs/`."""
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "configs")]
