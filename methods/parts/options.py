"""Arguments of another library's class, as a setting holds them: a JSON object in text."""

import json
from typing import Any

from bench.errors import BenchError


def parsed(options: str, example: str) -> dict[str, Any]:
    """The arguments by name. Raises BenchError, with an example, where the text is no JSON object."""
    try:
        found = json.loads(options)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BenchError(f"options is a JSON object, as {example}; {options} is not.")
    return found
