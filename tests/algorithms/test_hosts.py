"""The hosts of a job meet, tell each other things, bring arrays to the first, hear of whoever fails. Here each is a thread."""

import contextlib
import functools
import os
import secrets
import socket
import threading
import time
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")

from tests.hosts import PATIENCE_SECONDS  # noqa: E402

from optml_algorithms import hosts  # noqa: E402
from optml_algorithms.hosts import FailedElsewhere, HostLost, Hosts  # noqa: E402
from optml_toolkit.container import Resources, UserError  # noqa: E402

NAMES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")  # names that every Linux resolves, to itself


@pytest.fixture(autouse=True)
def a_job_of_its_own(monkeypatch: pytest.MonkeyPatch) -> str:
    """All tests of this machine share 127.0.0.1: by the name of their job, hosts know who belongs to whom."""
    name = f"test-{secrets.token_hex(6)}"
    monkeypatch.setenv("TRAINING_JOB_NAME", name)
    return name


def resources(me: str, *names: str) -> Resources:
    return Resources(current_host=me, hosts=names, network_interface="lo")


def in_thread(action: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run_it() -> None:
        try:
            found.append(action())
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            found.append(error)

    thread = threading.Thread(target=run_it)
    thread.start()
    return thread, found


def told(me: str, names: tuple[str, ...], value: Any) -> Any:
    with Hosts.meet(resources(me, *names), seconds=PATIENCE_SECONDS) as those:
        return those.all_of(value), those.all_of("again"), those.is_first


def test_hosts_that_meet_hear_of_each_other_whoever_comes_first() -> None:
    threads = [in_thread(functools.partial(told, name, NAMES, {"from": name})) for name in reversed(NAMES)]
    for thread, _ in threads:
        thread.join()
    expected = [{"from": name} for name in NAMES]
    assert [found[0] for _, found in reversed(threads)] == [
        (expected, ["again"] * 3, name == NAMES[0]) for name in NAMES
    ]


def test_hosts_are_in_the_order_of_their_numbers() -> None:
    names = [f"algo-{number}" for number in range(1, 12)]
    assert sorted(set(names), key=hosts.in_order) == names


def test_one_host_needs_no_network() -> None:
    with Hosts.meet(resources("no-such-name", "no-such-name")) as those:
        assert those.is_first
        assert those.all_of(7) == [7]


def test_arrays_come_to_the_first_as_they_are() -> None:
    sent = numpy.arange(6, dtype=numpy.float32).reshape(3, 2), numpy.zeros((0, 1))

    def first() -> Any:
        with Hosts.meet(resources(NAMES[0], *NAMES[:2]), seconds=PATIENCE_SECONDS) as those:
            return those.peers[0].receive()

    thread, found = in_thread(first)
    with Hosts.meet(resources(NAMES[1], *NAMES[:2]), seconds=PATIENCE_SECONDS) as those:
        those.peers[0].send({"rows": 3}, *sent)
    thread.join()
    ((value, arrays),) = found
    assert value == {"rows": 3}
    for array, expected in zip(arrays, sent, strict=True):
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert (array == expected).all()


def test_a_host_that_never_comes_is_named_in_bounded_time() -> None:
    began = time.monotonic()
    with pytest.raises(HostLost, match=r"^127.0.0.2 did not come to 127.0.0.1"):
        Hosts.meet(resources("127.0.0.1", "127.0.0.1", "127.0.0.2"), seconds=1)
    with pytest.raises(HostLost, match=r"could not reach 127\.0\.0\.1"):
        Hosts.meet(resources("127.0.0.2", "127.0.0.1", "127.0.0.2"), seconds=1)
    with pytest.raises(HostLost, match=r"no-such-host\.invalid cannot listen"):
        Hosts.meet(resources("no-such-host.invalid", "no-such-host.invalid", "zzz"), seconds=1)
    assert time.monotonic() - began < 30


def test_a_host_that_goes_away_is_named_by_those_who_wait_for_it() -> None:
    thread, found = in_thread(functools.partial(told, NAMES[0], NAMES[:2], 1))
    Hosts.meet(resources(NAMES[1], *NAMES[:2]), seconds=PATIENCE_SECONDS).close()
    thread.join()
    assert isinstance(found[0], HostLost)
    assert str(found[0]).startswith("127.0.0.2 has gone")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("row 3 is bad"), "row 3 is bad (on host 127.0.0.2)"),
        (KeyError("x"), "KeyError: 'x' (on host 127.0.0.2)"),
    ],
)
def test_all_hear_why_one_fails_whatever_they_are_about(error: Exception, text: str) -> None:
    def failing() -> None:
        with Hosts.meet(resources(NAMES[1], *NAMES), seconds=PATIENCE_SECONDS):
            raise error

    def sending() -> Any:
        """Not at once: the others may be gone by then, and have left only their words."""
        with Hosts.meet(resources(NAMES[2], *NAMES), seconds=PATIENCE_SECONDS) as those:
            for thread, _ in threads:
                thread.join()
            return those.all_of("x" * 1_000_000)

    threads = [in_thread(functools.partial(told, NAMES[0], NAMES, 1)), in_thread(failing)]
    last, heard = in_thread(sending)
    last.join()
    assert threads[1][1] == [error]
    for found in (threads[0][1], heard):
        assert isinstance(found[0], FailedElsewhere), found
        assert str(found[0]) == text


def test_who_fails_stays_until_the_others_have_heard() -> None:
    """A platform ends all hosts when one has ended."""

    def failing() -> None:
        with Hosts.meet(resources(NAMES[1], *NAMES[:2]), seconds=PATIENCE_SECONDS):
            raise UserError("row 3 is bad")

    def hearing() -> None:
        with Hosts.meet(resources(NAMES[0], *NAMES[:2]), seconds=PATIENCE_SECONDS) as those:
            time.sleep(0.3)
            assert thread.is_alive()
            those.all_of(1)

    thread, _ = in_thread(failing)
    with pytest.raises(FailedElsewhere, match="row 3 is bad"):
        hearing()
    thread.join(4)
    assert not thread.is_alive()


def test_strangers_and_other_jobs_at_the_door_do_not_matter(
    a_job_of_its_own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone sits on the first port and says nothing; another sends garbage to the first host; a third is of another job."""
    monkeypatch.setattr(hosts, "GREETING_SECONDS", 0.3)
    silent_door, door, *_ = hosts.ports(a_job_of_its_own)
    with socket.create_server((NAMES[0], silent_door)):
        thread, found = in_thread(functools.partial(told, NAMES[0], NAMES[:2], 1))
        for words in (b"GET / HTTP/1.1\r\n\r\n", None):
            with knocking((NAMES[0], door)) as stranger:
                if words is None:
                    hosts.Peer(NAMES[0], stranger).send(["another", NAMES[1]])
                else:
                    stranger.sendall(words)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(10) == b"", "turned away"
        other, also_found = in_thread(functools.partial(told, NAMES[1], NAMES[:2], 2))
        thread.join()
        other.join()
    assert found == [([1, 2], ["again"] * 2, True)]
    assert also_found == [([1, 2], ["again"] * 2, False)]


def knocking(door: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(door, timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, os.environ["TRAINING_JOB_NAME"]
            time.sleep(0.01)
