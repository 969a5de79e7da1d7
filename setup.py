"""Packaging. The folders trainers/, datasets/ and configs/ become p2c.trainers, p2c.datasets and p2c.configs."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
FOLDERS = {f"p2c.{name}": name for name in ("trainers", "datasets", "configs")}

setup(
    name="p2c",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "p2c/__init__.py").read_text(encoding="utf-8"))[1],
    description="P2C: robust prompt learning for CLIP, as a Dassl plugin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["p2c", "p2c.*"]),
    package_dir={"p2c": "p2c", **FOLDERS},
    package_data={
        "p2c": ["py.typed"],
        "p2c.clip": ["builtin/*"],
        "p2c.tables": ["reference_results.yaml", "report.html"],
        "p2c.configs": ["defaults.txt", "datasets/*.yaml", "trainers/*/*.yaml", "studies/*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "open_clip_torch>=2.32,<4",
        "ftfy>=6.1",
        "numpy>=1.26",
        "pillow>=10",
        "yacs>=0.1.8",
        "pyyaml>=6",
        "pydantic>=2",
        "safetensors>=0.4",
        "scikit-learn>=1.3",
        "scipy>=1.10",
        "tabulate>=0.9",
        "tensorboard>=2.14",
        "tqdm>=4.65",
        "gdown>=5",
        "filelock>=3.30",
        "huggingface_hub>=0.20",
        "packaging>=23",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    entry_points={"console_scripts": ["p2c = p2c.__main__:main"]},
    extras_require={
        "onnx": ONNX,
        "test": ["pytest>=8", "pytest-xdist>=3", "hypothesis>=6.100", "ruff>=0.6", "import-linter>=2", "mypy>=1.13",
                 "types-PyYAML", "types-tabulate", "types-tqdm", "build>=1", "setuptools>=68", "wheel", *ONNX],
    },
)
