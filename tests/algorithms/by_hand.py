"""An algorithm on a /opt/ml tree that was made by hand, in this process: a job for each small case would take minutes."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_toolkit.container import Container, main


@dataclass(frozen=True)
class ByHand:
    """What a run left: exit code, what it printed, its tree."""

    code: int
    log: str
    root: Path

    @property
    def failure(self) -> str:
        return Container(self.root).failure_file.read_text()

    @property
    def scores(self) -> list[tuple[int, dict[str, float]]]:
        """Round and values of each line of metrics."""
        found = []
        for line in self.log.splitlines():
            if line.startswith("[") and "\t" in line:
                head, *cells = line.split("\t")
                pairs = (cell.rsplit(":", 1) for cell in cells)
                found.append((int(head.strip("[]")), {name: float(value) for name, value in pairs}))
        return found


def make_tree(
    root: Path,
    hyperparameters: Mapping[str, Any],
    channels: Mapping[str, Path],
    *,
    content_type: str = "text/csv",
    resources: Mapping[str, Any] | None = None,
    checkpoints: Path | None = None,
) -> Path:
    """`channels`: the folder of each. Values of hyperparameters become text, as SageMaker sends them."""
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "input" / "data").mkdir()
    for made in ("model", "output/data"):
        (root / made).mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({name: str(v) for name, v in hyperparameters.items()}))
    (config / "inputdataconfig.json").write_text(json.dumps({name: {"ContentType": content_type} for name in channels}))
    for name, folder in channels.items():
        (root / "input" / "data" / name).symlink_to(folder)
    if resources is not None:
        (config / "resourceconfig.json").write_text(json.dumps(resources))
    if checkpoints is not None:
        (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": str(checkpoints)}))
    return root


def run_by_hand(train: Callable[[Container], None], root: Path) -> ByHand:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(train, Container(root))
    return ByHand(code, printed.getvalue(), root)
