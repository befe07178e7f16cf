"""Write runs for Weights & Biases without network; `wandb sync` uploads them."""

import tempfile
from pathlib import Path

import wandb

from bench.tracking.tracked_run import PROJECT, TrackedRun, file_name


class WandbOfflineTracker:
    """The offline runs in a folder. W&B itself records neither the machine nor the user here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.absolute()
        self._settings = wandb.Settings(
            mode="offline",
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )

    def has(self, run: TrackedRun) -> bool:
        """Return whether a complete run with this id is in the folder."""
        return self._marker(run).is_file()

    def write(self, run: TrackedRun) -> None:
        """Write curves, final metrics, parameters, and the files as an artifact."""
        files = run.read_files()
        offline = wandb.init(
            project=PROJECT,
            id=run.id,
            name=run.name,
            group=run.experiment,
            notes="\n".join([*run.caveats, *([f"failed: {run.failure}"] if run.failure else [])]),
            config={**run.params, "record": run.path},
            dir=str(self._folder),
            settings=self._settings,
        )
        try:
            offline.define_metric("epoch")
            offline.define_metric("*", step_metric="epoch")
            by_epoch: dict[int, dict[str, float]] = {}
            for point in run.curves:
                by_epoch.setdefault(point.epoch, {})[point.name] = point.value
            for epoch, values in sorted(by_epoch.items()):
                offline.log({"epoch": epoch, **values})
            offline.summary.update(run.metrics)
            artifact = wandb.Artifact(f"record-{run.id}", type="record", metadata={"path": run.path})
            with tempfile.TemporaryDirectory(prefix="maskbench-") as folder:
                for name, content in files.items():
                    file = Path(folder, file_name(name))
                    file.write_bytes(content)
                    artifact.add_file(str(file))
                offline.log_artifact(artifact)
                offline.finish(exit_code=1 if run.failure else 0)
        except BaseException:
            offline.finish(exit_code=1)
            raise
        self._marker(run).touch()

    def _marker(self, run: TrackedRun) -> Path:
        return self._folder / "wandb" / f".maskbench-{run.id}"
