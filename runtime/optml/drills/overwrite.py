"""The names of a drill's two jobs: free, or made free by removing an earlier drill's."""

import json
from pathlib import Path

from optml import jobs, objects, transfers
from optml import record as records
from optml.console import Console
from optml.errors import ResourceInUse, UserError
from optml.jobdir import JobDir


def make_free(names: tuple[str, ...], *, overwrite: bool, console: Console) -> None:
    """ResourceInUse if a job has one of the names; with `overwrite`, only if it is no drill's, or runs.

    An earlier drill's jobs go with their records, logs and checkpoints. What they left in the output path stays.
    """
    taken = [name for name in names if records.exists(name)]
    if taken and not overwrite:
        raise ResourceInUse(
            f"an earlier drill has this name: the job {taken[0]} exists already; give another --name, or --overwrite to remove "
            "that drill's jobs and their checkpoints first"
        )
    for name in taken:
        if not _is_of_a_drill(name):
            raise ResourceInUse(f"--overwrite: the job {name} was not run by a drill; give another --name")
    uris = {name: _checkpoint_uri(name) for name in taken}
    for name in taken:
        jobs.find(name).delete()  # ResourceInUse while it runs
        if (uri := uris[name]) is not None:
            _remove_all(uri)
        console.say(f"--overwrite: the job {name} of an earlier drill and its checkpoints are removed")


def _is_of_a_drill(name: str) -> bool:
    try:
        return bool(json.loads(JobDir.of(name).options_file.read_bytes()).get("evidence"))
    except (OSError, ValueError, AttributeError):
        return False


def _checkpoint_uri(name: str) -> str | None:
    """Where a drill's job kept its checkpoints: a prefix of its own name, else it is not the drill's to remove."""
    uri = records.read(JobDir.of(name))["describe"].get("CheckpointConfig", {}).get("S3Uri")
    return uri if uri is not None and uri.rstrip("/").endswith(f"/{name}") else None


def _remove_all(uri: str) -> None:
    """Of a folder, what is in it and nothing that links lead to."""
    if uri.startswith("file://"):
        folder = Path(objects.local_path(uri))
        if folder.is_symlink():
            raise UserError(f"--overwrite: {folder} is a link; remove it, or give another --name")
        if folder.is_dir():
            records.remove_tree(folder)
        return
    for info in objects.list_if_any(objects.join(uri, "")):
        transfers.delete(info.uri)
