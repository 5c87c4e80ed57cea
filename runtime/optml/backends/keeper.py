"""Keeps one host of the process backend: run as a script, `python -I -S keeper.py LAUNCH STATUS PARENT`. Standard library only.

With namespaces there are two processes: the outer one watches its standard input, whose end means that the supervisor is
gone; the inner one is process 1 of a pid namespace, so that its death is the death of everything on the host, whoever caused
it. Without, one process does both, and ends what it finds. The program is a child of the keeper and never process 1 itself:
signals have their usual effect on it.

STATUS is a descriptor for JSON lines: {"started": ...} or {"error": ...}, later {"exit": code}; {"mounted": pid} when there is a
disk, whose answer is waited for, and {"disk": ""} or {"disk": "why not"} for each wish about it. Its end without an exit code
means that the host is lost. LAUNCH is a JSON file that process.py writes; standard output and error are the host's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Launch = dict[str, Any]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 4096, 16384, 1 << 18, 1 << 21
ST_RELATIME = 4096
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
TERMINATE, TERMINATE_ALL, SUSPEND, DISK_SEEN, FILL_DISK, FREE_DISK = b"T", b"A", b"S", b"D", b"F", b"R"
PARENT_GONE = signal.SIGUSR1
STAND_STILL, SIGTERM_TO_ALL = signal.SIGUSR2, signal.SIGALRM  # from the outer process to the inner one
DISK_TRIES = 200

SYS_MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1

libc = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class SetupError(Exception):
    """What could not be had, in words."""


def call(what: str, function: Any, *arguments: Any) -> None:
    """A libc call that fails with errno."""
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise SetupError(f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    call(
        f"cannot mount {kind or source} at {target}",
        libc.mount,
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )


def enter_namespaces(level: str, network: Launch | None) -> None:
    """A mount, a host name's and a pid namespace of its own (the last for children only), in a user namespace where needed;
    the network's as told."""
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID
    uid, gid = os.geteuid(), os.getegid()
    joined = network.get("join") if network else None
    if joined:
        kinds = (("user", CLONE_NEWUSER),) if level == "user" else ()
        descriptors = [
            (os.open(f"/proc/{joined}/ns/{kind}", os.O_RDONLY), flag) for kind, flag in (*kinds, ("net", CLONE_NEWNET))
        ]
        for descriptor, flag in descriptors:
            call("cannot join the network of the job's first host", libc.setns, descriptor, flag)
            os.close(descriptor)
    else:
        if level == "user":
            call("unshare(user)", libc.unshare, CLONE_NEWUSER)
            write("/proc/self/setgroups", "deny")
            write("/proc/self/uid_map", f"{uid} {uid} 1")
            write("/proc/self/gid_map", f"{gid} {gid} 1")
        if network:
            flags |= CLONE_NEWNET
    call("unshare(mount, host name, pid)", libc.unshare, flags)
    if network and not joined:
        bring_up_loopback()
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def write(path: str, text: str) -> None:
    try:
        with open(path, "w") as stream:
            stream.write(text)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from error


def bring_up_loopback() -> None:
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def make_mountpoint(target: str) -> None:
    """A folder to mount at, without touching the machine: over the nearest folder comes a tmpfs that shows what was there."""
    if os.path.isdir(target):
        return
    parent = os.path.dirname(target)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    if parent == "/":
        raise SetupError(
            f"{target} cannot be had: {os.path.dirname(target)} does not exist; as root, `mkdir {os.path.dirname(target)}`"
        )
    before = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    names = os.listdir(parent)
    mount("tmpfs", parent, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in names:
        old, new = f"/proc/self/fd/{before}/{name}", f"{parent}/{name}"
        kind = os.lstat(old).st_mode
        if stat.S_ISLNK(kind):
            os.symlink(os.readlink(old), new)
            continue
        if stat.S_ISDIR(kind):
            os.mkdir(new)
        else:
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY))
        mount(old, new, None, MS_BIND | MS_REC)
    os.close(before)
    os.makedirs(target)


def bind(source: str, target: str, read_only: bool) -> None:
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        make_read_only(target)


def make_read_only(target: str) -> None:
    """The mount at a folder, and where Linux can (5.12), all that is mounted below it."""
    wanted = MountAttributes(attr_set=MOUNT_ATTR_RDONLY)
    if libc.syscall(SYS_MOUNT_SETATTR, -1, os.fsencode(target), AT_RECURSIVE, ctypes.byref(wanted), 32) == 0:
        return
    flags = os.statvfs(target).f_flag  # a user namespace may not drop these
    kept = flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 1024 | 2048)
    if flags & ST_RELATIME:
        kept |= MS_RELATIME
    mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def mount_view(source: str, target: str, layer: str, *, read_only: bool, level: str) -> None:
    """An overlay of `source`; paths go through descriptors, so that no character in them means anything."""
    descriptors = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (source, f"{layer}/upper", f"{layer}/work")]
    lower, upper, work = (f"/proc/self/fd/{descriptor}" for descriptor in descriptors)
    data = f"lowerdir={lower},upperdir={upper},workdir={work}" + (",userxattr" if level == "user" else "")
    mount("overlay", target, "overlay", 0, data)
    for descriptor in descriptors:
        os.close(descriptor)
    if read_only:
        make_read_only(target)


def mount_everything(launch: Launch) -> None:
    make_mountpoint(launch["opt_ml"])
    bind(launch["ml"], launch["opt_ml"], False)
    if launch.get("hosts_file"):
        bind(launch["hosts_file"], "/etc/hosts", False)
        name = launch["host"].encode()
        call("cannot name the host", libc.sethostname, name, len(name))
    for each in sorted(launch["mounts"], key=lambda each: each["target"].count("/")):
        if each["target"].startswith(
            launch["opt_ml"] + "/"
        ):  # elsewhere it is there: nothing of this machine is changed
            os.makedirs(each["target"], exist_ok=True)
        if each["layer"] is None:
            bind(each["source"], each["target"], each["read_only"])
        else:
            mount_view(
                each["source"],
                each["target"],
                each["layer"],
                read_only=each["read_only"],
                level=launch["level"],
            )
    if launch.get("disk"):
        make_disk(launch["disk"], launch["disk"])  # its descriptor lives as long as this process
        launch["disk_bytes"] = disk_bytes(launch["disk"])[0]


# A disk that can be full: a filesystem in memory, which may be told to grow no more.


def make_disk(source: str, target: str) -> int:
    """Mount one at `target`, with what is in the folder `source`, which may be `target` itself. Gives a descriptor that keeps a
    page of it taken, for a limit of nothing would be none."""
    import shutil

    before = os.open(source, os.O_PATH | os.O_DIRECTORY)
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV)

    def copy(old: str, new: str) -> None:
        times = os.stat(old)  # before it is read here: whether the program reads it is of interest
        shutil.copyfile(old, new)
        shutil.copymode(old, new)
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))

    shutil.copytree(f"/proc/self/fd/{before}", target, symlinks=True, dirs_exist_ok=True, copy_function=copy)
    os.close(before)
    page = os.open(target, os.O_TMPFILE | os.O_RDWR)
    os.write(page, b"x")
    return page


def disk_bytes(target: str | int) -> tuple[int, int]:
    """In all, and taken."""
    found = os.statvfs(target)
    return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize


def limit_disk(set_size: Any, target: str | int, size_bytes: int | None) -> None:
    """None: to what it holds now. `set_size` is refused when something was written in between: then once more."""
    for attempt in range(1, DISK_TRIES + 1):
        try:
            set_size(disk_bytes(target)[1] if size_bytes is None else size_bytes)
        except SetupError:
            if attempt == DISK_TRIES:
                raise
        else:
            return


def change_disk(launch: Launch, status: int, *, full: bool) -> None:
    target = launch["disk"]

    def set_size(size_bytes: int) -> None:
        mount("tmpfs", target, "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size_bytes}")

    try:
        limit_disk(set_size, target, None if full else launch["disk_bytes"])
    except (SetupError, OSError) as error:
        tell(status, disk=str(error))
    else:
        tell(status, disk="")


def probe(folder: str) -> None:
    """Try each level in a child of its own; print what the best one can do, and why better ones can't be had."""
    reasons: list[str] = []
    for level in (["root"] if os.geteuid() == 0 else []) + ["user"]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, json.dumps(try_level(level, folder)).encode())
            os._exit(0)
        os.close(writer)
        found = json.loads(read_all(reader) or b'{"error": "the attempt died"}')
        os.waitpid(child, 0)
        if "error" not in found:
            print(json.dumps({"level": level, "reasons": reasons, **found}))
            return
        reasons.append(f"{level}: {found['error']}")
    print(json.dumps({"level": "none", "views": False, "host_names": False, "network": False, "reasons": reasons}))


def try_level(level: str, folder: str) -> Launch:
    try:
        enter_namespaces(level, None)
        make_mountpoint("/opt/ml")
        os.makedirs(f"{folder}/ml", exist_ok=True)
        bind(f"{folder}/ml", "/opt/ml", False)
    except (SetupError, OSError) as error:
        return {"error": str(error)}
    found = {"views": True, "host_names": os.path.exists("/etc/hosts"), "network": True, "view_error": ""}
    try:
        for name in ("lower", "layer/upper", "layer/work", "ml/view"):
            os.makedirs(f"{folder}/{name}", exist_ok=True)
        write(f"{folder}/lower/a", "a")
        mount_view(f"{folder}/lower", "/opt/ml/view", f"{folder}/layer", read_only=False, level=level)
        write("/opt/ml/view/a", "b")
        os.unlink("/opt/ml/view/a")
        if os.path.exists("/opt/ml/view/a") or not os.path.exists(f"{folder}/lower/a"):
            raise SetupError("an overlay mount does not hide what was removed from it")
    except (SetupError, OSError) as error:
        found.update(views=False, view_error=str(error))
    try:
        call("unshare(network)", libc.unshare, CLONE_NEWNET)
        bring_up_loopback()
    except (SetupError, OSError) as error:
        found.update(network=False, network_error=str(error))
    return found


def read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts)


def tell(status: int, **what: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(what).encode() + b"\n")


def exec_program(launch: Launch) -> None:
    """In the program's own process: never returns."""
    os.setsid()
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    if launch["cpus"] and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, launch["cpus"])
    if launch.get("data_limit"):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (launch["data_limit"], launch["data_limit"]))
    os.chdir(launch["working_dir"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, launch["first_free"])
    os.execvpe(launch["argv"][0], launch["argv"], launch["environment"])


def start_program(launch: Launch) -> int:
    """Fork and exec; the program's pid, or SetupError with exec's reason."""
    reader, writer = os.pipe()
    launch["first_free"] = min(reader, writer)
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(writer, launch["first_free"], inheritable=False)
            writer = launch["first_free"]
            exec_program(launch)
        except OSError as error:
            os.write(writer, json.dumps([error.errno, os.fsdecode(error.filename or "")]).encode())
        except (ValueError, TypeError) as error:  # a NUL in an argument
            os.write(writer, json.dumps([0, str(error)]).encode())
        finally:
            os._exit(127)
    os.close(writer)
    failed = read_all(reader)
    if not failed:
        return child
    os.waitpid(child, 0)
    code, detail = json.loads(failed)
    program = launch["argv"][0]
    if len(program) > 200:
        program = program[:200] + "..."
    if code and detail == launch["working_dir"]:
        raise SetupError(f"the working folder {detail} cannot be entered: {os.strerror(code).lower()}")
    if code == errno.ENOENT and "/" not in program:
        raise SetupError(f'exec: "{program}": executable file not found in $PATH')
    raise SetupError(f'exec: "{program}": {os.strerror(code).lower() if code else detail}')


def join_cgroup(launch: Launch) -> None:
    for file in launch["cgroups"]:
        write(file, str(os.getpid()))


def exit_code(wait_status: int) -> int:
    return 128 + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


def inner(launch: Launch, status: int, keeper: int) -> None:
    """Process 1 of the host: starts the program, reaps whatever ends, goes with the program.

    `keeper` is a pipe that only the outer process can write to: nothing comes, and its end is the keeper's.
    """
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if has_hung_up(keeper):  # before this process had asked to go with it
        os._exit(1)
    os.close(keeper)
    try:
        # Refused inside some containers: then the machine's own /proc stays visible.
        with contextlib.suppress(SetupError):
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        program = start_program(launch)
    except (SetupError, OSError) as error:
        tell(status, error=str(error), program=True)
        os._exit(1)
    signal.signal(signal.SIGTERM, lambda *_: send(program, signal.SIGTERM))
    # -1: all of the namespace but this process.
    signal.signal(STAND_STILL, lambda *_: send(-1, signal.SIGSTOP))
    signal.signal(SIGTERM_TO_ALL, lambda *_: send(-1, signal.SIGTERM))
    tell(status, program=program)
    while True:
        pid, wait_status = os.waitpid(-1, 0)
        if pid == program:
            tell(status, exit=exit_code(wait_status), by_signal=os.WIFSIGNALED(wait_status))
            os._exit(0)


def has_hung_up(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poller.poll(0))


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def keep(launch: Launch, status: int, parent: int) -> None:
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, PARENT_GONE):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started this one may have blocked some
    if sys.platform == "linux":
        # Linux also sends it when only the parent's thread ends, so it is no more than a reason to look.
        libc.prctl(PR_SET_PDEATHSIG, PARENT_GONE)
    join_cgroup(launch)
    if launch["level"] == "none":
        if sys.platform == "linux":
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            child = start_program(launch)
        except (SetupError, OSError) as error:
            tell(status, error=str(error), program=True)
            return
        tell(status, program=child)
    else:
        enter_namespaces(launch["level"], launch["network"])
        mount_everything(launch)
        if launch.get("disk"):
            tell(status, mounted=os.getpid())
            if not disk_is_seen(wake_reader, parent):
                return
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            os.close(wake_writer)
            inner(launch, status, wake_reader)
    tell(status, started=os.getpid(), init=child)
    watch(launch, status, child, wake_reader, parent)


def disk_is_seen(wake: int, parent: int) -> bool:
    """Before a program is started whose disk is gone with it: whether the supervisor has it open. False: it is gone."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(wake, select.POLLIN)
    while os.getppid() == parent:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready:
            return os.read(0, 1) == DISK_SEEN
    return False


def watch(launch: Launch, status: int, child: int, wake: int, parent: int) -> None:
    """Until the child has ended, or the supervisor is gone: then so is the host."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(wake, select.POLLIN)
    group = child
    while os.getppid() == parent:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready:
            wish = os.read(0, 1)
            if wish == TERMINATE:
                send(child, signal.SIGTERM)
            elif wish in (SUSPEND, TERMINATE_ALL) and launch["level"] == "none":
                send_to_descendants(group, signal.SIGSTOP if wish == SUSPEND else signal.SIGTERM)
            elif wish in (SUSPEND, TERMINATE_ALL):
                send(child, STAND_STILL if wish == SUSPEND else SIGTERM_TO_ALL)
            elif wish in (FILL_DISK, FREE_DISK):
                change_disk(launch, status, full=wish == FILL_DISK)
            else:
                break
        if reap(launch, status, child):
            child = 0
            break
    if child:
        send(child, signal.SIGKILL)
    if launch["level"] == "none":
        end_descendants(group)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    if launch.get("temporary"):
        remove_temporary(launch["temporary"], supervised=os.getppid() == parent)
    if launch["network"]:
        keep_network(status, poller, wake, parent)


def remove_temporary(folder: str, *, supervised: bool) -> None:
    """The host's temporary files, which its supervisor removes if there is one."""
    try:
        os.rmdir(folder)
    except OSError:
        if not supervised:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)


def keep_network(status: int, poller: Any, wake: int, parent: int) -> None:
    """An isolated network is there as long as a process is in it: stay, for a host that is yet to join it, until told to go."""
    os.close(status)
    while os.getppid() == parent:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready and not os.read(0, 1):
            return


def reap(launch: Launch, status: int, child: int) -> bool:
    """Collect the dead. True if the child is among them; without namespaces it is the program itself."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return False
            if pid == child:
                if launch["level"] == "none":
                    tell(status, exit=exit_code(wait_status), by_signal=os.WIFSIGNALED(wait_status))
                return True
    return True


def send_to_descendants(group: int, number: int) -> None:
    if not os.path.isdir("/proc/self"):
        with contextlib.suppress(OSError):
            os.killpg(group, number)  # there is no way to find those who left it
        return
    for pid in children_of(os.getpid()):
        send(pid, number)


def end_descendants(group: int) -> None:
    """SIGKILL to everything below this process, again and again, for it may fork meanwhile."""
    if not os.path.isdir("/proc/self"):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)  # there is no way to find those who left it
        return
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = children_of(os.getpid())
        if not children:
            return
        for pid in children:
            send(pid, signal.SIGKILL)
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    """All descendants, deepest last."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Bytes: a program's name need not be UTF-8, and the kernel cuts it in the middle of a character.
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as stream:
                parents.setdefault(int(stream.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    found, to_read = [], [pid]
    while to_read:
        children = parents.get(to_read.pop(), [])
        found += children
        to_read += children
    return found


def main() -> None:
    if sys.argv[1] == "--probe":
        probe(sys.argv[2])
        return
    with open(sys.argv[1]) as stream:
        launch = json.load(stream)
    status, parent = int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(status, False)
    try:
        keep(launch, status, parent)
    except (SetupError, OSError) as error:
        tell(status, error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
