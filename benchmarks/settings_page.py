"""Write the reference of all settings: `python benchmarks/settings_page.py > docs/settings.md`.

Names, types, defaults and comments come from the class `Settings` in the file of each method, the values of the
profiles from its constant PROFILES. No file is imported.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from typing import Any

from bench import registry
from bench.config.method_metadata import FAMILIES, MethodMetadata, method_metadata

HEAD = """# Settings of the methods

`--set KEY=VALUE` changes a setting of all methods of a command, `--set METHOD.KEY=VALUE` of one; `--sweep KEY=VALUES`
runs several values. In `bench.toml`: `[campaign.NAME.set.METHOD]` and `[category.DATASET.CATEGORY.METHOD]`.
`bench run ... --dry-run` prints every value with its origin. "demo" and "paper" are the values of these profiles, if
they differ from the default; profile `code` has the defaults. The comments are those of the method's file; the
docstring of that file has the meaning and the source of each value.

This page is generated: `python benchmarks/settings_page.py > docs/settings.md`.
"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    metadata = {name: method_metadata(name) for name in registry.names("methods")}
    for family in FAMILIES:
        for name in (name for name, values in metadata.items() if values.family == family):
            print(f"## {metadata[name].title.replace('{model}', 'Models')}\n")
            page = f"methods/{name}.md" if not metadata[name].is_external else "other-libraries.md"
            print(f"`{name}`, {family}: [page of the method]({page}).\n")
            print("| setting | type | default | demo | paper | meaning |\n| --- | --- | --- | --- | --- | --- |")
            for row in rows(name, metadata[name]):
                print(f"| {' | '.join(row)} |")
            print()


def rows(name: str, metadata: MethodMetadata) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each setting of a method."""
    file = registry.source_file("methods", name)
    assert file is not None
    text = file.read_text("utf-8")
    (settings,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    comments = trailing_comments(text)
    for entry in settings.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            setting = entry.target.id
            default = ast.unparse(entry.value) if entry.value else "required"
            profiles = [metadata.profiles.get(profile, {}) for profile in ("demo", "paper")]
            values = [code(repr(profile[setting])) if setting in profile else "" for profile in profiles]
            meaning = comments.get(entry.end_lineno or 0, "")
            yield code(setting), code(ast.unparse(entry.annotation)), code(default), *values, meaning


def trailing_comments(text: str) -> dict[int, str]:
    """Return the comments of a Python file by line, without those for linters."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            parts = (part.strip() for part in token.string.lstrip("# ").split("# "))
            parts = (part for part in parts if not part.startswith(("noqa", "type:", "fmt:")))
            comments[token.start[0]] = escaped("; ".join(parts).partition("noqa")[0].strip())
    return comments


def code(value: Any) -> str:
    """Return a value as code in a cell."""
    return f"`{value}`" if "|" not in str(value) else f"<code>{escaped(str(value))}</code>"


def escaped(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("*", "\\*").replace("_", "\\_")
    )


if __name__ == "__main__":
    main()
