"""Print the notes of a release, which are its section of CHANGELOG.md: `python .github/release_notes.py v0.1.0`.

The exit code is 1, and the release stops, if CHANGELOG.md or CITATION.cff does not have the version.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def release_notes(version: str, changelog: str, citation: str) -> str:
    """Return the section of a version. Raises ValueError if a file does not have the version."""
    match = re.search(
        rf"^## {re.escape(version)} - \d{{4}}-\d{{2}}-\d{{2}}\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE
    )
    if not match:
        raise ValueError(f"CHANGELOG.md must have a section '## {version} - YYYY-MM-DD'. Rename 'Unreleased'.")
    if not re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE):
        raise ValueError(f"CITATION.cff must have 'version: {version}'. Update it.")
    return match[1].strip() + "\n"


def main(tag: str) -> int:
    """Print the notes of a tag and return the exit code."""
    try:
        texts = ((ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
        sys.stdout.write(release_notes(tag.removeprefix("v"), *texts))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
