"""An image name or ECR URI -> how to start it, from containers/images/*/container.toml.

The process backend runs what these files describe. In containers any image runs; ours are those that `optml images build` makes.
"""

import contextlib
import functools
import importlib.util
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optml.errors import PlatformError, UserError
from optml.shapes import near
from optml.spec import MetricDefinition

ECR_URI = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[^./]+)\.amazonaws\.com(\.cn)?/(?P<repository>[^:@]+)(:(?P<tag>[^@]+))?(@.+)?"
)

BASE_IMAGE_VARIABLE = "OPTML_BASE_IMAGE"  # what ours are built on, if not what their Dockerfiles say
# Of our images: the versions of what they are about, `torch==2.13.0 python==3.11.7`.
VERSIONS_LABEL = "optml.framework-versions"
OURS = "optml/"  # the namespace of our images in a container engine; never pulled from a registry


@dataclass(frozen=True, kw_only=True)
class Image:
    """One of ours, or, in a container engine, any other.

    `program` is what `train` is in our container, with `{python}` for the interpreter.
    """

    name: str
    answers_to: tuple[str, ...]
    summary: str
    program: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # what the program imports
    extra: str | None = None  # the pip extra that brings the modules
    working_dir: str = "/"  # or "caller": the folder in which the job was submitted
    metrics: tuple[MetricDefinition, ...] = ()  # what a built-in algorithm publishes without being asked
    environment: Mapping[str, str] = field(default_factory=dict)  # what its Dockerfile sets with ENV
    script_mode: str = ""  # "always" or "asked": whether it runs the script that sagemaker_program names
    versions_of: tuple[str, ...] = ()  # the packages whose versions the tag of an ECR URI gives, in its order
    has_gpu_variant: bool = False
    cpu_only: str = ""  # where it would not use a GPU that it has: always, or in containers
    reference: str = ""  # the image in a container engine
    ours: bool = True

    @property
    def missing_modules(self) -> tuple[str, ...]:
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    @property
    def remedy(self) -> str:
        return f"pip install 'optml[{self.extra}]'" if self.extra else f"pip install {' '.join(self.missing_modules)}"


def images_dir() -> Path:
    """Where containers/images lies: in the installed package, or in the checkout."""
    packaged = Path(__file__).parent / "_images"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "containers" / "images"


@functools.cache
def known_images() -> tuple[Image, ...]:
    return tuple(_read(file) for file in sorted(images_dir().glob("*/container.toml")))


def _read(file: Path) -> Image:
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return Image(
        name=table["name"],
        answers_to=tuple(table["answers_to"]),
        summary=table.get("summary", ""),
        program=tuple(table.get("program", ())),
        modules=tuple(table.get("modules", ())),
        extra=table.get("extra"),
        working_dir=table.get("working_dir", "/"),
        metrics=_published(table["published"]) if "published" in table else (),
        environment=table.get("environment", {}),
        script_mode=table.get("script_mode", ""),
        versions_of=tuple(table.get("versions_of", ())),
        has_gpu_variant=(file.parent / "requirements-gpu.txt").exists(),
        cpu_only=table.get("cpu_only", ""),
    )


def _published(table: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[MetricDefinition, ...]:
    """`train:rmse` and so on: every metric of every data set, found by one expression. Several tables have one each; `names` are
    those of the metrics where a log line has others."""
    if not isinstance(table, Mapping):
        return tuple(metric for each in table for metric in _published(each))
    return tuple(
        MetricDefinition(
            name=f"{data_set}:{name}",
            regex=table["regex"].replace("{set}", data_set).replace("{metric}", metric),
        )
        for data_set in table["sets"]
        for metric, name in zip(table["metrics"], table.get("names", table["metrics"]), strict=True)
    )


def repository_of(image: str) -> str:
    """`123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1` -> `sagemaker-xgboost`; others as they are."""
    match = ECR_URI.fullmatch(image)
    if match:
        return match["repository"]
    return image.removeprefix("optml/").partition(":")[0]


def wanted_versions(image: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions that a tag asks for, by package; `python` too. `2.1.0-transformers4.36.0-gpu-py310` has three."""
    match = ECR_URI.fullmatch(image)
    tag = match["tag"] if match else image.removeprefix(OURS).partition(":")[2]
    if not tag or not packages or not (first := re.match(r"\d+\.\d+(\.\d+)?", tag)):
        return {}
    found = {packages[0]: first[0]}
    for package in packages[1:]:
        if other := re.search(rf"{re.escape(package)}(\d+\.\d+(?:\.\d+)?)", tag):
            found[package] = other[1]
    if python := re.search(r"-py(\d)(\d+)", tag):
        found["python"] = f"{python[1]}.{python[2]}"
    return found


def other_versions(wanted: Mapping[str, str], having: Mapping[str, str]) -> list[str]:
    """`scikit-learn 1.9.1 instead of 1.2`: where what is had is not of the version (two numbers) asked for."""
    return [
        f"{package} {having[package]} instead of {version}"
        for package, version in wanted.items()
        if package in having and having[package].split(".")[:2] != version.split(".")[:2]
    ]


def distributions(package: str) -> tuple[str, ...]:
    """What pip may know a package as: xgboost-cpu is xgboost without CUDA."""
    return (package, f"{package}-cpu")


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Of this Python and of those packages that it has: a missing module is told of elsewhere."""
    import importlib.metadata
    import platform

    found = {"python": platform.python_version()}
    for package in packages:
        for name in distributions(package):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(name)
    return found


def find_image(image: str) -> Image | None:
    repository = repository_of(image)
    return next((known for known in known_images() if repository in known.answers_to), None)


def image_for_process(image: str) -> Image:
    """The description of an image that the process backend can run, or UserError saying what can be done instead."""
    found = find_image(image)
    names = ", ".join(known.name for known in known_images())
    if found is None:
        raise UserError(
            f"AlgorithmSpecification.TrainingImage {image!r} is not one that runs without a container engine"
            f"{near(image, [known.name for known in known_images()])}: "
            f"optml knows {names} (and the ECR URIs of the built-in ones). For a program of your own use the image "
            f"'python' with ContainerEntrypoint, or on the command line: optml train -- python train.py"
        )
    if found.missing_modules:
        raise UserError(
            f"the image {found.name!r} needs {', '.join(found.missing_modules)}, which this Python does not have: "
            f"{found.remedy}"
        )
    return found


def image_for_containers(image: str, *, gpu: bool = False) -> Image:
    """The same for a backend that runs images: ours by their short name, ECR URI or `optml/` name, any other as it is."""
    plain = not (":" in image or "@" in image or "/" in image)
    if plain or image.startswith(OURS) or ECR_URI.fullmatch(image):
        found = find_image(image)
        if found is not None:
            built = f"{OURS}{found.name}" + (":gpu" if gpu and found.has_gpu_variant else "")
            return replace(found, reference=image if image.startswith(OURS) else built)
    return Image(name=image, answers_to=(), summary="", reference=image, working_dir="", ours=False)


def package_folder(package: str) -> Path:
    """Found, not imported: the platform shares no module with the containers."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PlatformError(
            f"this installation of optml lacks {package}, which the images are made of: install it again"
        )
    return Path(next(iter(spec.submodule_search_locations)))
