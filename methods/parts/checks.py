"""Checks that methods share: ranges of settings, and the size of the images."""

from torch import Tensor

from bench.errors import BenchError

LARGEST_SMOOTHING = 1000  # pixels


def check_at_least(minimum: float, settings: object, *names: str) -> None:
    """Raise BenchError for the first of these settings of a method that is below `minimum`."""
    for name in names:
        check_setting(getattr(settings, name) >= minimum, settings, name, f"must be >= {minimum}")


def check_smoothing(settings: object, name: str = "smoothing") -> None:
    """Raise BenchError if the sigma of the Gaussian over the map, in pixels, is not in [0, LARGEST_SMOOTHING]."""
    sigma = getattr(settings, name)
    check_setting(0 <= sigma <= LARGEST_SMOOTHING, settings, name, f"must be in [0, {LARGEST_SMOOTHING}] pixels")


def check_setting(condition: bool, settings: object, name: str, requirement: str) -> None:
    """Raise BenchError if the condition is False.

    Args:
        condition: whether the value is valid.
        settings: settings of a method.
        name: name of the setting.
        requirement: the requirement, for example "must be in [0, 1)".
    """
    if not condition:
        method = type(settings).__module__.rpartition(".")[2]
        value = getattr(settings, name)
        raise BenchError(f"{method}: {name} {requirement}, got {value}. Change it with --set {name}=VALUE.")


def check_image_size(images: Tensor, size: tuple[int, int]) -> None:
    """Raise BenchError if images (b, 3, h, w) do not have the size (h, w) that a method was constructed for."""
    height, width = images.shape[2:]
    if (height, width) != size:
        raise BenchError(
            f"Images must be {size[0]} x {size[1]} pixels as in training, got {height} x {width}. Resize them."
        )
