"""Frozen parts of a network, whose tensors are not stored with what a method learns."""

from typing import Any

from torch import Tensor, nn


def exclude_from_state(module: nn.Module) -> None:
    """Leave the tensors of `module` out of every state dict, and do not require them when one is loaded.

    The module may be a part of another one. It keeps the tensors that it was constructed with.
    """
    prefixes = [""]  # prefixes of the names of its tensors in the state dict that is loaded

    def remove_tensors(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]

    def store_prefix(_module: nn.Module, _state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        prefixes[0] = prefix

    def accept_missing(_module: nn.Module, incompatible_keys: Any) -> None:
        missing: list[str] = incompatible_keys.missing_keys
        missing[:] = [key for key in missing if not key.startswith(prefixes[0])]

    module.register_state_dict_post_hook(remove_tensors)
    module.register_load_state_dict_pre_hook(store_prefix)
    module.register_load_state_dict_post_hook(accept_missing)
