"""Options."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a profile, a campaign or a call may say. None and empty mean "not said".

    Attributes:
        method: names of methods or aliases; "all" is every one of them.
        dataset: name of a data set.
        protocol: name of a protocol.
        k: training images a category; several are several runs. Only for kshot.
        category: only these; none means all.
        seed: several are several fits, and several draws under kshot.
        limit: at most so many training, good and defect images a category; 0 is all.
        selection: "last", "oracle" (best on the test set) or "both".
        every: the oracle looks every so many epochs.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "float32", "bfloat16" or "float16".
        compile: predict with networks as torch.compile makes them; on a GPU one CUDA graph.
        threads: of torch on the CPU; 0 leaves torch's own choice.
        preprocessing: "shared" (the profile's, the same for all methods) or "paper" (of each method's paper).
        batch: images a predict call.
        maps: "float16", "float32" or "none".
        calibrate: hold good images out of training and set a threshold by them at this false positive rate; 0: don't.
        resolution: judge the pixels of the prepared images ("input"), or of each image's own file ("original").
        keep_model: whether to store the fitted methods.
        time: whether to measure latency.
        one_at_a_time: whether a sweep varies one setting from the defaults at a time, or lays out the product.
        executor: "local" (this process), "process" (a child process) or "ray" (a cluster).
        timeout: seconds a fit may take, 0 is no limit; with one, a local fit is done in a child process.
        address: of a Ray cluster that runs, as "auto" or "ray://head:10001"; "" starts one on this machine.
        gpus_per_task: GPUs that a fit on Ray asks for; below 1 several fits share one, and no latency is measured.
        ship_data: whether images are sent to the nodes of a cluster, which else read them at the caller's paths.
    """

    method: tuple[str, ...] = ("aminet",)
    dataset: str = "demo"
    protocol: str = "one-for-one"
    k: tuple[int, ...] = (4,)
    category: tuple[str, ...] = ()
    seed: tuple[int, ...] = (0,)
    limit: int = 0
    selection: Literal["last", "oracle", "both"] = "last"
    eval_every: int = 10
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    threads: int = 0
    preprocessing: Literal["shared", "paper"] = "shared"
    batch: int = 8
    maps: Literal["float16", "float32", "none"] = "float16"
    calibrate: float = 0.0
    resolution: Literal["input", "original"] = "input"
    keep_model: bool = False
    time: bool = True
    one_at_a_time: bool = False
    executor: Literal["local", "process", "ray"] = "local"
    timeout: float = 0.0
    address: str = ""
    gpus_per_task: float = 1.0
    ship_data: bool = False
