"""Following the hosts' log files, from the supervisor and from other processes."""

import itertools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optml.clock import Clock, FastClock
from optml.jobdir import JobDir
from optml.logs import CHUNK_BYTES, LOOK_BYTES, LogReader, follow


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def read(reader: LogReader, *, final: bool = False) -> list[str]:
    return list(itertools.chain.from_iterable(reader.read(final=final)))


def test_lines_are_given_once_and_when_they_are_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader = LogReader(log)
    assert read(reader) == [], "no file yet"
    append(log, b"one\ntw")
    assert read(reader) == ["one"]
    assert read(reader) == []
    append(log, b"o\n\nfour")
    assert read(reader) == ["two", ""]
    assert read(reader, final=True) == ["four"]
    assert read(reader, final=True) == []


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"caf\xc3\xa9 \xff\xfe\n\x00ok\n")
    assert read(LogReader(log)) == ["café \ufffd\ufffd", "\x00ok"]


def test_a_character_written_in_two_halves_stays_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader = LogReader(log)
    append(log, b"caf\xc3")
    assert read(reader) == []
    append(log, b"\xa9\n")
    assert read(reader) == ["café"]


def test_only_newlines_and_returns_end_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, "a\u2028b\x0cc\x85d\n".encode())
    assert read(LogReader(log)) == ["a\u2028b\x0cc\x85d"]


def test_a_progress_bar_shows_as_it_goes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader = LogReader(log)
    append(log, b"start\n\r 10%|#   |\r 20%|##  |")
    assert read(reader) == ["start", " 10%|#   |"]
    append(log, b"\r 30%|### |")
    assert read(reader) == [" 20%|##  |"]
    append(log, b"\r100%|####|\ndone\n")
    assert read(reader) == [" 30%|### |", "100%|####|", "done"]


def test_crlf_ends_one_line_even_if_it_comes_in_two_pieces(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader = LogReader(log)
    append(log, b"one\r\n\r\ntwo\r")
    assert read(reader) == ["one", ""]
    append(log, b"\nthree\r\r\n")
    assert read(reader) == ["two", "three"]


def test_a_line_longer_than_a_megabyte_comes_in_pieces_between_characters(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = "x" + "é" * (2 * CHUNK_BYTES)
    append(log, text.encode() + b"\nnext\n")
    pieces = read(LogReader(log), final=True)
    assert "".join(pieces[:-1]) == text
    assert pieces[-1] == "next"
    assert max(len(piece.encode()) for piece in pieces) <= CHUNK_BYTES + 4


def test_a_log_that_its_program_empties_is_read_on_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader = LogReader(log)
    append(log, b"first\nsecond\n")
    assert read(reader) == ["first", "second"]
    log.write_bytes(b"third\n")
    assert read(reader) == ["third"]


def test_one_look_at_a_host_that_never_stops_printing_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"0123456789abcde\n" * (LOOK_BYTES // 16 + 100))
    reader = LogReader(log)
    seen = 0
    for lines in reader.read():
        seen += len(lines)
        append(log, b"0123456789abcde\n" * CHUNK_BYTES)  # faster than it is read
        assert seen <= LOOK_BYTES // 16
    assert seen == LOOK_BYTES // 16


def test_a_burst_comes_in_pieces_of_about_a_megabyte(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"0123456789abcde\n" * (3 * LOOK_BYTES // 16))
    pieces = [len(lines) for lines in LogReader(log).read(final=True)]
    assert sum(pieces) == 3 * LOOK_BYTES // 16
    assert max(pieces) <= CHUNK_BYTES // 16 + 1


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", "é".encode(), b"\xff", b"bc"]), max_size=30),
    st.integers(1, 5),
)
def test_it_does_not_matter_in_which_pieces_a_log_is_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], size: int
) -> None:
    folder = tmp_path_factory.mktemp("logs", numbered=True)
    data = b"".join(parts)
    whole, pieces = folder / "whole", folder / "pieces"
    whole.write_bytes(data)
    pieces.touch()
    reader = LogReader(pieces)
    seen: list[str] = []
    for begin in range(0, len(data), size):
        append(pieces, data[begin : begin + size])
        seen += read(reader)
    seen += read(reader, final=True)
    assert seen == read(LogReader(whole), final=True)


def test_tail_begins_with_the_last_lines(tmp_path: Path) -> None:
    for text, count, expected in (
        (b"1\n2\n3\n", 2, ["2", "3"]),
        (b"1\n2\n3", 2, ["2", "3"]),
        (b"1\n2\n3\n", 9, ["1", "2", "3"]),
        (b"1\n2\n3\n", 0, []),
        (b"\n\n\n", 2, ["", ""]),
        (b"", 2, []),
        (b"a\n" + b"x" * (2 * CHUNK_BYTES) + b"\nb\n", 1, ["b"]),
    ):
        log = tmp_path / "log"
        log.write_bytes(text)
        reader = LogReader(log)
        reader.skip_to_last(count)
        assert read(reader, final=True) == expected


class Steps(Clock):
    """Something happens at each pause of the follower."""

    def __init__(self, *steps: Callable[[], object]):
        self.steps = list(steps)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.steps.pop(0)()


def job_with_logs(tmp_path: Path, **texts: str) -> JobDir:
    job_dir = JobDir(tmp_path / "job")
    job_dir.logs.mkdir(parents=True)
    for host, text in texts.items():
        append(job_dir.log_file(host.replace("_", "-"), started=1000.0), text.encode())
    return job_dir


def flat(found: Iterable[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    return [(host, line) for host, lines in found for line in lines]


def test_each_host_has_a_stream_of_its_own_c66(tmp_path: Path) -> None:
    job_dir = job_with_logs(tmp_path, algo_1="a\nb", algo_2="c\n")
    assert sorted(path.name for path in job_dir.logs.iterdir()) == ["algo-1-1000.log", "algo-2-1000.log"]
    assert flat(follow(job_dir, clock=Clock())) == [("algo-1", "a"), ("algo-1", "b"), ("algo-2", "c")]
    assert flat(follow(job_dir, hosts=["algo-2"], clock=Clock())) == [("algo-2", "c")]


def test_a_follower_sees_lines_as_they_come_new_attempts_and_the_last_words(tmp_path: Path) -> None:
    job_dir = job_with_logs(tmp_path, algo_1="one\nbroken o")
    first, second = job_dir.log_file("algo-1", started=1000.0), job_dir.log_file("algo-1", started=2000.0)
    other = job_dir.log_file("algo-2", started=2000.0)
    finished: list[bool] = []

    def retry() -> None:
        append(first, b"ff")
        append(second, b"again\n")
        append(other, b"hello\n")

    def end() -> None:
        append(second, b"the last words")
        finished.append(True)

    clock = Steps(retry, end)
    seen = flat(follow(job_dir, follow=True, is_finished=lambda: bool(finished), clock=clock))
    assert seen == [
        ("algo-1", "one"),
        ("algo-1", "broken off"),
        ("algo-1", "again"),
        ("algo-2", "hello"),
        ("algo-1", "the last words"),
    ]


def test_a_follower_with_a_tail_skips_what_is_old_and_misses_nothing_new(tmp_path: Path) -> None:
    job_dir = job_with_logs(tmp_path, algo_1="0\n", algo_2="0\n1\n2\n3\n")
    append(job_dir.log_file("algo-1", started=2000.0), b"4\n5\n6\n")
    finished: list[bool] = []

    def more() -> None:
        append(job_dir.log_file("algo-1", started=2000.0), b"7\n8\n9\n")
        finished.append(True)

    seen = flat(follow(job_dir, follow=True, tail=1, is_finished=lambda: bool(finished), clock=Steps(more)))
    assert seen == [("algo-2", "3"), ("algo-1", "6"), ("algo-1", "7"), ("algo-1", "8"), ("algo-1", "9")]


def test_files_that_are_no_streams_are_passed_over(tmp_path: Path) -> None:
    job_dir = job_with_logs(tmp_path, algo_1="a\n")
    (job_dir.logs / "notes.log").write_text("not a host's")
    assert flat(follow(job_dir, clock=Clock())) == [("algo-1", "a")]


def test_a_hundred_thousand_lines_of_each_of_two_hosts_are_all_followed_in_order(tmp_path: Path) -> None:
    job_dir = job_with_logs(tmp_path)
    count = 100_000
    finished = threading.Event()

    def print_lines(host: str) -> None:
        with job_dir.log_file(host, started=1000.0).open("w") as log:
            for number in range(count):
                log.write(f"step {number}\n")
            log.write("crash")

    writers = [threading.Thread(target=print_lines, args=(host,)) for host in ("algo-1", "algo-2")]

    def end() -> None:
        for writer in writers:
            writer.join()
        finished.set()

    for thread in [*writers, threading.Thread(target=end)]:
        thread.start()
    seen: dict[str, list[str]] = {"algo-1": [], "algo-2": []}
    for host, lines in follow(job_dir, follow=True, is_finished=finished.is_set, clock=FastClock(20)):
        seen[host] += lines
    expected = [*(f"step {number}" for number in range(count)), "crash"]
    assert seen == {"algo-1": expected, "algo-2": expected}
