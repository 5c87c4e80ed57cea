"""Before there is a machine: the image is fetched, and what the channels hold is listed."""

from collections.abc import Mapping

from optml import objects, stage
from optml.console import count_text, duration_text, size_text
from optml.running import Run, check_stop
from optml.spec import InputMode, ObjectSource


def fetch_image(it: Run) -> None:
    """Have the image on this machine; most often it is."""
    began = it.clock.monotonic()
    pulled = False

    def progress(step: str, done_bytes: int, total_bytes: int | None) -> None:
        nonlocal pulled
        pulled = True
        check_stop(it)
        it.console.progress(step, done_bytes, total_bytes)

    for warning in it.backend.fetch(it.image, progress):
        it.console.say(f"warning: {warning}", important=True)
        it.record.local["warnings"].append(warning)
    if pulled:
        it.console.step_done()
        it.console.say(f"Image {it.image.reference} pulled ({duration_text(it.clock.monotonic() - began)})")


def find_inputs(it: Run) -> Mapping[str, stage.Listing]:
    """List what the channels hold, before anything is moved: an empty prefix fails the job here."""
    for uri in it.job.destinations:
        check_stop(it)
        objects.check_destination(uri)
    it.record.training_started()
    if it.job.channels:
        it.record.transition("Downloading")
    began = it.clock.monotonic()
    listings: dict[str, stage.Listing] = {}
    for channel in it.job.channels:
        check_stop(it)
        if isinstance(channel.source, ObjectSource):
            listings[channel.name] = stage.list_channel(channel, manifest_paths=it.job.options.manifest_paths)
    if listings:
        it.console.say(f"Input: {found_text(listings)} ({duration_text(it.clock.monotonic() - began)} to list)")
    return listings


def found_text(listings: Mapping[str, stage.Listing]) -> str:
    return "; ".join(
        f"{name} {count_text(len(listing.objects), 'object')}, {size_text(listing.size_bytes)}"
        + (f" ({listing.channel.input_mode})" if listing.channel.input_mode is not InputMode.FILE else "")
        for name, listing in listings.items()
    )
