"""Every row of the contract holds whatever a host is: the suite runs on processes, and again in containers."""

import pytest
from tests import harness


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A few tests are about what only a process host has, as a keeper that can be killed."""
    unwanted = [
        item
        for item in items
        if item.get_closest_marker("process_host") and item.get_closest_marker("docker") is not None
    ]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(autouse=True, params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that the test runs on."""
    name: str = request.param
    if name == "docker":
        request.getfixturevalue("docker_image")("python")
    monkeypatch.setattr(harness, "backend_in_use", name)
    return name
