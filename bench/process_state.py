"""The state of the process that a plug-in may change: saved before its code runs, restored afterwards.

A method that sets the default dtype of torch, the working folder or a signal handler would otherwise change the numbers
of the methods that run after it.
"""

import decimal
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_TORCH_FLAGS = (
    # The older names of the float32 precision come first, because setting them also sets the newer ones.
    "backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32", "backends.fp32_precision",
    "backends.cuda.matmul.fp32_precision", "backends.cudnn.fp32_precision", "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision", "backends.mkldnn.fp32_precision", "backends.mkldnn.matmul.fp32_precision",
    "backends.mkldnn.conv.fp32_precision", "backends.mkldnn.rnn.fp32_precision",
    "backends.mkldnn.enabled", "backends.mkldnn.deterministic",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction", "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.benchmark_limit",
    "backends.cudnn.deterministic", "backends.opt_einsum.enabled", "backends.opt_einsum.strategy",
    "utils.deterministic.fill_uninitialized_memory",
)  # fmt: skip


_SET_BY_IMPORTS = frozenset({
    "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",  # scikit-learn
    "LD_LIBRARY_PATH",  # OpenCV
    "PYTORCH_NVML_BASED_CUDA_CHECK",  # Lightning
    "TORCHINDUCTOR_CACHE_DIR",  # timm
})  # fmt: skip
"""Environment variables that libraries set when they are imported; they are not restored."""


_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_SIGNALS = tuple(map(int, signal.valid_signals()))


class _Entry(NamedTuple):
    """A value of the state: how it is read, and how it is set."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]

    def value(self) -> Any:
        """Return its value, or the text of the error if it cannot be read, for example a removed working folder."""
        try:
            return self.read()
        except Exception as error:  # noqa: BLE001  torch raises if the older and the newer names of flags are mixed
            return repr(error)


@contextmanager
def restored_state(owner: str, threads: int = 0) -> Iterator[list[str]]:
    """Restore the state of the process at the end of the block, and log a warning that names what was changed.

    Args:
        owner: name of the plug-in, for the warning.
        threads: CPU threads that torch uses inside the block; 0 leaves their number as it is.

    Returns:
        A list that is filled at the end with the names of what the block changed. The random generators and the filters
        of warnings are restored but not named, because every fit draws and many imports add a filter.
    """
    entries, restore_generators = _python_entries() | _torch_entries() | _library_entries(), _saved_generators()
    before = {name: entry.value() for name, entry in entries.items()}
    expected = dict(before)
    if threads:
        entries["number of threads of torch"].write(threads)
        expected["number of threads of torch"] = threads
    changed: list[str] = []
    try:
        with warnings.catch_warnings():
            yield changed
    finally:
        after = {name: entry.value() for name, entry in entries.items()}
        changed += [name for name in entries if after[name] != expected[name]]
        for name, entry in entries.items() if after != before else ():
            if entry.value() != before[name]:  # read again, because setting one may set others
                with suppress(Exception):  # the others must be restored
                    entry.write(before[name])
        restore_generators()
        if changed:
            names = ", ".join(changed)
            _log.warning("%s changed the state of the process: %s. It is restored; fix the plug-in.", owner, names)


def _python_entries() -> dict[str, _Entry]:
    entries = {
        "logging": _Entry(_read_logging, _write_logging),  # first, so that errors of the others can be logged
        "working folder": _Entry(os.getcwd, os.chdir),
        "environment variables": _Entry(_read_environment, _write_environment),
        "umask": _Entry(_read_umask, os.umask),
        "sys.path": _Entry(lambda: list(sys.path), partial(sys.path.__setitem__, slice(None))),
        "standard streams": _Entry(lambda: (sys.stdin, sys.stdout, sys.stderr), _write_streams),
        "recursion limit": _Entry(sys.getrecursionlimit, sys.setrecursionlimit),
        "decimal context": _decimal_entry(),
        "garbage collection": _Entry(gc.isenabled, lambda is_enabled: gc.enable() if is_enabled else gc.disable()),
        "locale": _Entry(partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    }
    numpy = sys.modules.get("numpy")
    if numpy:
        entries["NumPy's handling of errors"] = _Entry(numpy.geterr, lambda values: numpy.seterr(**values))
    socket = sys.modules.get("socket")
    if socket:
        entries["default time-out of sockets"] = _Entry(socket.getdefaulttimeout, socket.setdefaulttimeout)
    if hasattr(signal, "setitimer"):  # before the handlers, without which the alarm of a timer ends the process
        entries["interval timer"] = _Entry(_has_timer, _stop_timer)
    if threading.current_thread() is threading.main_thread():  # only this thread may set them
        entries["signal handlers"] = _Entry(_read_signals, _write_signals)
    if hasattr(os, "sched_getaffinity"):
        entries["CPU affinity"] = _Entry(partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0))
    if resource is not None:
        entries["resource limits"] = _Entry(_read_limits, _write_limits)
    return entries


def _torch_entries() -> dict[str, _Entry]:
    """Return the state of torch; none if it is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cpu = torch.device("cpu")
    entries = {
        "default dtype": _Entry(torch.get_default_dtype, torch.set_default_dtype),
        "default device": _Entry(  # None and not the CPU, which would be set by a slower mode
            torch.get_default_device, lambda device: torch.set_default_device(None if device == cpu else device)
        ),
        "inference mode": _Entry(torch.is_inference_mode_enabled, _write_inference_mode),
        "grad mode": _Entry(torch.is_grad_enabled, torch.set_grad_enabled),
        "anomaly detection of torch": _Entry(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "deterministic algorithms of torch": _Entry(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda modes: torch.use_deterministic_algorithms(modes[0], warn_only=modes[1]),
        ),
        "number of threads of torch": _Entry(torch.get_num_threads, torch.set_num_threads),
        "denormal numbers": _Entry(
            lambda: bool(torch.tensor(1e-310, dtype=torch.float64, device=cpu).mul(2) == 0), torch.set_flush_denormal
        ),
        "float32 matmul precision": _Entry(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "flag of NNPACK": _Entry(_read_nnpack, lambda is_enabled: torch.backends.nnpack.set_flags(_enabled=is_enabled)),
    }
    for kind in ("cpu", "cuda"):
        entries[f"autocast on {kind}"] = _Entry(
            partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)
        )
    for flag in _TORCH_FLAGS:
        owner, _, name = flag.rpartition(".")
        with suppress(AttributeError):  # a flag of another version of torch
            attrgetter(owner)(torch)
            entries[f"torch.{flag}"] = _Entry(
                partial(attrgetter(flag), torch), partial(setattr, attrgetter(owner)(torch), name)
            )
    return entries


def _library_entries() -> dict[str, _Entry]:
    """Return the settings of those of matplotlib and scikit-learn that are imported.

    Those of Pillow are not here: `data.decoding` depends on none, and changes two while any thread reads an image.
    """
    entries = {}
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib:  # the methods of dict, because those of RcParams choose a backend
        values = matplotlib.rcParams
        entries["settings of matplotlib"] = _Entry(lambda: dict(dict.items(values)), partial(dict.update, values))
    sklearn = sys.modules.get("sklearn")
    if sklearn:
        entries["settings of scikit-learn"] = _Entry(sklearn.get_config, lambda values: sklearn.set_config(**values))
    return entries


def _decimal_entry() -> _Entry:
    """Return the precision, rounding and traps of the module decimal."""
    context = decimal.getcontext().copy()
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")

    def read() -> tuple[Any, ...]:
        current = decimal.getcontext()
        return (*(getattr(current, name) for name in names), dict(current.traps))

    return _Entry(read, lambda _: decimal.setcontext(context))


def _has_timer() -> bool:
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _stop_timer(was_running: bool) -> None:
    """Stop a timer that a plug-in started; one that it stopped cannot be restored."""
    if not was_running:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read_limits() -> dict[int, tuple[int, int]]:
    return {number: resource.getrlimit(number) for number in _LIMITS}


def _write_limits(limits: dict[int, tuple[int, int]]) -> None:
    for number, limit in limits.items():
        with suppress(ValueError, OSError):  # a lower hard limit is final
            resource.setrlimit(number, limit)


def _saved_generators() -> Callable[[], None]:
    """Save the states of all global random generators, and return a function that restores them."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    python = random.getstate()
    numpy_generator = numpy.random.get_bit_generator() if numpy else None
    numpy_state = numpy.random.get_state() if numpy else None
    cpu_state = torch.get_rng_state() if torch else None
    cuda_states = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        if numpy:
            numpy.random.set_bit_generator(numpy_generator)
            numpy.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(cpu_state)
            if cuda_states:
                torch.cuda.set_rng_state_all(cuda_states)

    return restore


def _read_nnpack() -> bool:
    import torch

    (is_enabled,) = torch.backends.nnpack.set_flags(_enabled=True)  # the only function that returns the flag
    torch.backends.nnpack.set_flags(_enabled=is_enabled)
    return bool(is_enabled)


_inference_guards: list[Any] = []
"""Torch leaves a mode when the object that entered it is deleted, so these are kept."""


def _write_inference_mode(mode: bool) -> None:
    import torch

    guard = torch.inference_mode(mode=mode)
    guard.__enter__()
    _inference_guards.append(guard)


def _read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _read_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _SET_BY_IMPORTS}


def _write_environment(variables: dict[str, str]) -> None:
    for name in _read_environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _write_streams(streams: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _read_signals() -> dict[int, Any]:
    """Return the handler of each signal; those that were not set from Python cannot be restored and are left out."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _write_signals(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _read_logging() -> tuple[Any, ...]:
    """Return what decides whether a warning of bench is shown."""
    loggers = (logging.getLogger(), logging.getLogger("bench"))
    states = tuple((each.level, each.disabled, each.propagate, tuple(each.handlers)) for each in loggers)
    return (logging.root.manager.disable, states)


def _write_logging(state: tuple[Any, ...]) -> None:
    disabled, states = state
    logging.disable(disabled)
    for logger, values in zip((logging.getLogger(), logging.getLogger("bench")), states, strict=True):
        logger.setLevel(values[0])
        logger.disabled, logger.propagate, logger.handlers = values[1], values[2], list(values[3])
