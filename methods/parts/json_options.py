"""Arguments of another library's class, given as a JSON object in the text of a setting."""

import json
from typing import Any

from bench.errors import BenchError


def parse_json_object(text: str, example: str) -> dict[str, Any]:
    """Return the arguments by name. Raises BenchError, with the example, if the text is not a JSON object."""
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise BenchError(f"options must be a JSON object, got {text}. Pass for example --set options='{example}'.")
    return arguments
