"""Fixtures that every suite shares. Each test has its own $OPTML_HOME; nothing touches the real one."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.s3"]


@pytest.fixture(autouse=True)
def optml_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "optml-home"
    monkeypatch.setenv("OPTML_HOME", str(home))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return home
