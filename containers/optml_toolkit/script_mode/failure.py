"""Why the user's program failed, in the words that a person needs first: its exception, its file and line, its exit code."""

import re
import shlex
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optml_toolkit.script_mode.processes import Ended
from optml_toolkit.script_mode.user_code import UserCode

# What torch and mpirun put before the lines of a rank.
RANK = re.compile(r"(?P<rank>\[rank\d+\]:|\[\d+,\d+\]<std(?:err|out)>:?) ?")
RULE = re.compile(r"-{40,}")  # above and below what mpirun has to say
BANNER = re.compile(r"={40,}")  # above and below what torchrun has to say
ELASTIC_LOG = re.compile(r"[DIWEC]\d{4} [\d:.]+ .*\btorch/distributed/")  # what torchrun logs meanwhile
# What is said on standard error all the time, and is not why a program ended: rules, warnings with the line of code that Python
# shows below each, log lines of no consequence, progress bars. Unless it speaks of trouble.
CHATTER = re.compile(r"[\W_]*$|\s|.*\w*Warning: |.*(?<![A-Z])(?:DEBUG|INFO|WARNING)(?![A-Z])|.*\d%\|")
TROUBLE = re.compile(r"error|fatal|fail|cannot|abort", re.IGNORECASE)
# What C++ says of a thread that is ended in its middle, as Python does with those that want its lock when it has begun to end.
ABORTED_AT_END = "terminate called without an active exception"
AT_END_REMEDY = (
    "PyTorch's gloo may do that when all work is done and the machine is busy: end the script with sys.stdout.flush() and "
    "os._exit(0)"
)
HEADER = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
PLACE = re.compile(r'\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
EXCEPTION = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
GROUP = re.compile(r"  [+|] ")  # before the lines of an exception group
SYNTAX = ("SyntaxError", "IndentationError", "TabError")
CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
LAUNCHERS_OWN = ("ChildFailedError", "SignalException", "RendezvousConnectionError")
# A rank whose peer has died says this; why the peer died is what matters.
SYMPTOMS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted", "Broken pipe")
ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.*?rank\s*:\s*(?P<rank>\d+).*?exitcode\s*:\s*(?P<code>-?\d+)", re.DOTALL
)
SHOWN_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Raised:
    """An exception that was not caught, as Python printed it."""

    rank: str  # `[rank1]:`, or nothing
    name: str
    text: str  # `ValueError: of what`
    trace: tuple[str, ...]

    def place(self, folder: Path) -> str:
        """`train.py, line 12`: the last place of the user's own code in the traceback, if any."""
        own = [match for line in self.trace if (match := PLACE.match(line)) and is_below(match["file"], folder)]
        return f"{(folder / own[-1]['file']).relative_to(folder)}, line {own[-1]['line']}" if own else ""


def is_below(file: str, folder: Path) -> bool:
    """A name without a folder is that of a program started from the code's folder, by `python -m mpi4py train.py`."""
    return not file.startswith("<") and (folder / file).is_relative_to(folder)


def exit_code(ended: Ended, *, by_torchrun: bool) -> int:
    """The user's own: torchrun ends with 1 whatever its processes ended with, but says what that was."""
    if by_torchrun and ended.exit_code == 1 and (root := ROOT_CAUSE.search(ended.said)):
        code = int(root["code"])
        return 128 - code if code < 0 else code
    return ended.exit_code


def explain(
    ended: Ended, code: UserCode, argv: Sequence[str], *, final_code: int, by_torchrun: bool, trouble: str = ""
) -> str:
    """The failure file: first line what happened, then command and exit code, then the traceback or the last lines.

    `trouble` is what happened if no exception of the program's says it.
    """
    raised = choose(list(find_raised(ended.said)), ended.said, by_torchrun=by_torchrun)
    command = f"Command: {shlex.join(argv)}\nExit code: {final_code}"
    if raised is None:
        said = ended.said.splitlines()
        own = [line for line in without_reports(without_boxes(said)) if line.strip()]
        rank = f" in rank {root['rank']}" if by_torchrun and (root := ROOT_CAUSE.search(ended.said)) else ""
        last = last_words(own)
        what = trouble or without_exception(code, final_code, rank=rank, last=last, memory_ran_out=ended.memory_ran_out)
        if final_code == 128 + signal.SIGABRT and ABORTED_AT_END in ended.said:
            what += f': "{ABORTED_AT_END}". {AT_END_REMEDY}'
        return f"{what}\n\n{command}\n\n" + "\n".join(own[-SHOWN_LINES:])
    place = raised.place(code.folder)
    first = raised.text + (f" ({place})" if place and place not in raised.text else "")
    if hidden := hidden_module(raised, code):
        first = f"{hidden} in your code hides Python's own module of that name, rename it: {first}"
    return f"{first}\n\n{command}\n\n" + "\n".join(raised.trace)


def without_boxes(lines: Sequence[str]) -> Iterator[str]:
    """All but what mpirun says by itself: in boxes between lines of dashes, and that it could not do twice what is done."""
    rules = [place for place, line in enumerate(lines) if RULE.fullmatch(RANK.sub("", line).strip())]
    boxed = {place for begin, end in zip(rules[::2], rules[1::2], strict=False) for place in range(begin, end + 1)}
    return (line for place, line in enumerate(lines) if place not in boxed and "plm:ssh: Warning: setpgid" not in line)


def without_reports(lines: Iterable[str]) -> Iterator[str]:
    """All but what torchrun says by itself: its log, and its traceback with the report that names the rank."""
    trace: list[str] = []  # perhaps torchrun's
    banners_to_come = 0
    for line in lines:
        if banners_to_come:
            banners_to_come -= BANNER.fullmatch(line) is not None
        elif ELASTIC_LOG.match(line):
            pass
        elif trace and line.partition(":")[0].rpartition(".")[2] in LAUNCHERS_OWN:
            banners_to_come = 2 if "ChildFailedError" in line else 0
            trace = []
        elif trace and line.startswith((" ", "\t")):
            trace.append(line)
        else:
            yield from trace
            trace = [line] if HEADER.match(line) else []
            if not trace:
                yield line
    yield from trace


def last_words(lines: Sequence[str]) -> str:
    """The last line that may say why, after a colon; nothing if there is none."""
    said = (RANK.sub("", line).rstrip().rpartition("\r")[2] for line in reversed(lines))
    return next((f": {line.strip()}" for line in said if TROUBLE.search(line) or not CHATTER.match(line)), "")


def without_exception(code: UserCode, final_code: int, *, rank: str, last: str, memory_ran_out: bool) -> str:
    if final_code <= 128:
        return f"{code.program} ended with exit code {final_code}{rank}{last}"
    number = final_code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"{code.program} ended with exit code {final_code}{rank}{last}"
    if number == signal.SIGKILL:
        when = " when memory ran out" if memory_ran_out else ""
        return f"{code.program} was killed ({name}, exit code {final_code}){rank}{when}"
    return f"{code.program} was ended by {name} (exit code {final_code}){rank}"


def hidden_module(raised: Raised, code: UserCode) -> str | None:
    """A file of the user's that is named like a module of Python's, if that may be why."""
    files = [match["file"] for line in raised.trace if (match := PLACE.match(line))]
    library = next((place for place, file in enumerate(files) if not is_below(file, code.folder)), len(files))
    for name in code.shadowing:
        imported_by_library = any(is_below(file, code.folder / name) for file in files[library:])
        is_named = re.search(rf"'{re.escape(name.removesuffix('.py'))}[.']", raised.text)
        if imported_by_library or (
            is_named and raised.name in ("ImportError", "ModuleNotFoundError", "AttributeError")
        ):
            return name
    return None


def choose(found: Sequence[Raised], said: str, *, by_torchrun: bool) -> Raised | None:
    """Of all uncaught exceptions the one to tell of: a script's last one, of several ranks the first that is no symptom."""
    own = [raised for raised in found if raised.name.rpartition(".")[2] not in LAUNCHERS_OWN]
    if not own:
        return None
    if not by_torchrun and not any(raised.rank for raised in own):
        return own[-1]
    if root := ROOT_CAUSE.search(said):
        of_root = [raised for raised in own if raised.rank == f"[rank{root['rank']}]:"]
        own = of_root or own
    causes = [raised for raised in own if not any(symptom in raised.text for symptom in SYMPTOMS)]
    return (causes or own)[0]


def find_raised(said: str) -> Iterator[Raised]:
    """Every traceback that ends in an exception which no other one followed, ranks kept apart, in the order of their ends."""
    by_rank: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(said.splitlines()):
        match = RANK.match(line)
        rank = match["rank"] if match else ""
        by_rank.setdefault(rank, []).append((number, line[match.end() :] if match else line))
    found = [each for rank, lines in by_rank.items() for each in raised_in(rank, lines)]
    return (raised for _, raised in sorted(found, key=lambda each: each[0]))


def raised_in(rank: str, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Raised]]:
    texts = [GROUP.sub("", text) for _, text in lines]
    at = 0
    while at < len(texts):
        begin = at
        at += 1
        is_traceback = HEADER.match(texts[begin]) is not None
        if not is_traceback and not PLACE.match(texts[begin]):
            continue
        while at < len(texts) and texts[at].startswith((" ", "\t")):
            at += 1
        match = EXCEPTION.match(texts[at]) if at < len(texts) else None
        if match is None or not (is_traceback or match["name"] in SYNTAX):
            continue
        end = at + 1
        while end < len(texts) and texts[end].startswith((" ", "\t")):  # the rest of a long message
            end += 1
        following = next((text for text in texts[end : end + 3] if text.strip()), "")
        if following.strip() not in CHAINED:
            yield (
                lines[at][0],
                Raised(rank=rank, name=match["name"], text=texts[at].strip(), trace=tuple(texts[begin:end])),
            )
        at = end
