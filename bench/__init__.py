"""maskbench: benchmarking and reproduction of mask-based industrial anomaly detectors."""

from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():  # a checkout: methods/ beside this folder is bench.methods
    __path__.append(str(_root))
