"""Slots: jobs that run at once on one network meet at ports of their own."""

import socket
import subprocess
import sys

import pytest

from optml import meeting
from optml.meeting import MASTER_PORT, take_slot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="slots are names in Linux's abstract namespace")


@pytest.fixture(autouse=True)
def ports_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of other tests hold slots too: these look at others' ports, and only at what is ours."""
    with socket.create_server(("", 0)) as probe:
        monkeypatch.setattr(meeting, "MASTER_PORT", probe.getsockname()[1])


def test_jobs_at_once_have_slots_of_their_own_and_give_them_back() -> None:
    first, second = take_slot(), take_slot()
    assert first.number < second.number
    first.give_back()
    again = take_slot()
    assert again.number < second.number
    again.give_back()
    second.give_back()


def test_a_slot_whose_port_somebody_listens_on_is_passed_over() -> None:
    slot = take_slot()
    slot.give_back()
    with socket.create_server(("", meeting.MASTER_PORT + slot.number)):
        other = take_slot()
    assert other.number != slot.number
    other.give_back()


def test_a_supervisor_that_is_killed_holds_no_slot() -> None:
    held = subprocess.run(
        [sys.executable, "-c", "import os; from optml.meeting import take_slot; s = take_slot(); print(s.number, flush=True);"
         "os.kill(os.getpid(), 9)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    number = int(held.stdout)
    with socket.socket(socket.AF_UNIX) as holder:
        for _ in range(1000):
            try:
                holder.bind(f"\0optml-slot-{number}")
                return
            except OSError:  # another test's job was quicker; it will go
                import time

                time.sleep(0.1)
    pytest.fail(f"slot {number} is held for ever")


def test_the_first_slot_has_sagemakers_port() -> None:
    assert MASTER_PORT == 7777
