"""maskbench: benchmarking and reproduction of mask-based industrial anomaly detectors.

From Python, `run`, `report`, `compare` and `check` do what the commands of these names do; `records` returns the stored
records, and `load` a saved model; see `bench.api`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import check, compare, load, records, report, run

__all__ = ["check", "compare", "load", "records", "report", "run"]

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():  # a checkout: methods/ next to this folder is bench.methods
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """Import these functions on first access, so that commands that need none start fast."""
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    from bench import api

    return getattr(api, name)
