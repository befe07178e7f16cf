"""What all commands share: where they print, and the configuration that they begin with."""

from rich.console import Console

from bench import config, registry

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)


def configured() -> config.Config:
    """bench.toml, with the user's own folders of methods found."""
    known = config.read()
    for folder in known.methods():
        registry.add("methods", folder)
    return known
