"""maskbench: benchmarking and reproduction of mask-based industrial anomaly detectors.

From Python, `run` does what `bench run` does and `records` reads what stands in the store; see `bench.api`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import records, run

__all__ = ["records", "run"]

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():  # a checkout: methods/ beside this folder is bench.methods
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """`run` and `records`, loaded when they are first asked for: a command that needs neither starts at once."""
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    from bench import api

    return getattr(api, name)
