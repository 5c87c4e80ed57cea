"""The image that ours are built on: prints its name.

$OPTML_BASE_IMAGE, or the Dockerfiles' own, there or pulled. Where no registry can be reached, `local/python:3.x`: this machine's
Python with pip, a shell, some tools, and the libraries that these and binary wheels need.
"""

import io
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

from optml.backends.docker_images import has_image, pull
from optml.console import Console, duration_text, size_text
from optml.engine import connect
from optml.errors import OptmlError
from optml.image_build import recipes
from optml.images import BASE_IMAGE_VARIABLE

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LOCAL_IMAGE = f"local/python:{VERSION}"
TOOLS = (
    *(
        "bash",
        "sh",
        "env",
        "id",
        "ps",
        "kill",
        "sleep",
        "timeout",
        "date",
        "uname",
        "hostname",
        "getent",
        "nproc",
        "seq",
    ),
    *(
        "cat",
        "head",
        "tail",
        "wc",
        "sort",
        "tr",
        "cut",
        "tee",
        "sed",
        "grep",
        "find",
        "xargs",
        "tar",
        "gzip",
        "sha256sum",
    ),
    *(
        "ls",
        "cp",
        "mv",
        "rm",
        "ln",
        "mkdir",
        "rmdir",
        "mkfifo",
        "mktemp",
        "touch",
        "chmod",
        "chown",
        "stat",
        "df",
        "du",
    ),
    *("basename", "dirname", "readlink"),
)
# What binary wheels expect of any Linux, and the C library loads by name.
LIBRARIES = re.compile(r"lib(c|m|dl|pthread|rt|util|resolv|gcc_s|stdc\+\+|gomp|nss_dns|nss_files)\.so\.\d+")
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "EXTERNALLY-MANAGED"}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def main() -> str:
    client, console = connect(), Console(sys.stderr)
    chosen = os.environ.get(BASE_IMAGE_VARIABLE)
    wanted = chosen or recipes()["python"].base_image
    for image in [wanted] if chosen else [wanted, LOCAL_IMAGE]:
        if has_image(client, image):
            console.say(f"Base image {image}, which is there")
            return image
    try:
        pull(client, wanted, console.progress)
        console.say(f"Base image {wanted}, pulled")
        return wanted
    except OptmlError as error:
        if chosen:
            raise
        console.say(str(error))
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            fill(tar)
        file.flush()
        size_bytes = Path(file.name).stat().st_size
        settings = ["ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin", f"ENV PIP_CERT={CERTIFICATES}", 'CMD ["python3"]']
        repository, _, tag = LOCAL_IMAGE.partition(":")
        client.api.import_image_from_file(file.name, repository=repository, tag=tag, changes=settings)
    took = duration_text(time.monotonic() - began)
    console.say(f"Base image {LOCAL_IMAGE}, made of {sys.base_prefix}, {size_text(size_bytes)} ({took})")
    return LOCAL_IMAGE


def fill(tar: tarfile.TarFile) -> None:
    """The whole filesystem. A path stands in it once: engines refuse a second time."""
    python = Path(sys.base_prefix, "bin", f"python{VERSION}")
    made = {"."}
    for name in ("bin", "sbin", "lib", "lib64"):
        tar.addfile(entry(name, tarfile.SYMTYPE, target=f"usr/{name}"))
        make_folder(tar, f"usr/{name}", made)
    for name in ("dev", "etc", "home", "opt", "proc", "root", "run", "sys", "tmp", "var/tmp", "usr/local/bin"):
        make_folder(tar, name, made, mode=0o1777 if name.endswith("tmp") else 0o755)
    for name in ("python", "python3"):
        tar.addfile(entry(f"usr/local/bin/{name}", tarfile.SYMTYPE, target=f"/{inside(python)}"))
    text_file(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    text_file(tar, "etc/group", "root:x:0:\nnogroup:x:65534:\n")
    text_file(tar, "etc/nsswitch.conf", "hosts: files dns\n")
    for name, path in sorted(files_of(python).items()):
        make_folder(tar, str(Path(name).parent), made)
        info = entry(name, tarfile.REGTYPE, mode=0o755 if os.access(path, os.X_OK) else 0o644)
        state = path.stat()
        info.size, info.mtime = state.st_size, int(state.st_mtime)  # compiled modules name the time of their source
        with path.open("rb") as content:
            tar.addfile(info, content)


def files_of(python: Path) -> dict[str, Path]:
    """Where each file lies in the image, and on this machine."""
    library = tree(Path(sysconfig.get_path("stdlib")))
    tools = [Path(found) for tool in TOOLS if (found := shutil.which(tool, path="/usr/bin:/bin:/usr/sbin:/sbin"))]
    common = wanted_libraries()
    linked = libraries_of([python, *tools, *common, *(path for path in library if path.suffix == ".so")])
    files = {inside(path): path for path in [python, *tools, *library]}
    files |= {shared_inside(path): path for path in [*common, *linked]}
    # pip is the virtual environment's: that of a distribution may be in parts.
    site, packages = Path(sysconfig.get_path("purelib")), packages_inside(python)
    files |= {f"{packages}/{path.relative_to(site)}": path for path in tree(site / "pip")}
    certificates = Path(ssl.get_default_verify_paths().cafile or CERTIFICATES)
    return files | ({CERTIFICATES.lstrip("/"): certificates} if certificates.is_file() else {})


def make_folder(tar: tarfile.TarFile, name: str, made: set[str], *, mode: int = 0o755) -> None:
    if name not in made:
        make_folder(tar, str(Path(name).parent), made)
        made.add(name)
        tar.addfile(entry(name, tarfile.DIRTYPE, mode=mode))


def entry(name: str, kind: bytes, *, mode: int = 0o755, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, target
    return info


def text_file(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = entry(name, tarfile.REGTYPE, mode=0o644)
    info.size = len(text.encode())
    tar.addfile(info, io.BytesIO(text.encode()))


def inside(path: Path) -> str:
    """Where a file of this machine lies in the image: Python of /opt/anything in /usr/local; /bin is /usr/bin."""
    if sys.base_prefix != "/usr" and path.is_relative_to(sys.base_prefix):
        return str(Path("usr/local") / path.relative_to(sys.base_prefix))
    name = str(path).lstrip("/")
    return name if name.startswith(("usr/", "etc/")) else f"usr/{name}"


def shared_inside(path: Path) -> str:
    """Libraries lie where the loader looks without a cache."""
    usual = str(path).startswith(("/lib", "/usr/lib"))
    return inside(path) if usual else f"usr/lib/{path.name}"


def packages_inside(python: Path) -> str:
    """Where this Python, outside of a virtual environment, has its packages."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return inside(Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()))


def tree(folder: Path) -> list[Path]:
    """The files that a container needs, compiled modules too: without them every start takes half a second more."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name in LEFT_OUT or path.name.startswith("config-") or re.search(r"\.opt-\d\.pyc$", path.name):
            continue
        found += tree(path) if path.is_dir() else [path] if path.is_file() else []
    return found


def wanted_libraries() -> list[Path]:
    """From the loader's cache: `libm.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libm.so.6`."""
    ours = {"x86_64": "x86-64", "aarch64": "AArch64"}[platform.machine()]
    program = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin") or "ldconfig"
    listed = subprocess.run([program, "-p"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if ours in line]
    return [Path(row[-1]) for row in rows if LIBRARIES.fullmatch(row[0])]


def libraries_of(programs: list[Path]) -> set[Path]:
    """By ldd, which says `libm.so.6 => /lib/.../libm.so.6 (0x...)`, and names the loader by its path alone."""
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return {Path(found[1]) for found in re.finditer(r"(?:=>|^)\s*(/\S+) \(0x", listed, re.MULTILINE)}


if __name__ == "__main__":
    try:
        print(main())
    except OptmlError as error:
        sys.exit(f"docker-engine: {error}")
