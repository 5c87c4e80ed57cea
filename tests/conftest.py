"""Fixtures that every suite shares. Each test has its own $OPTML_HOME; nothing touches the real one."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def optml_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "optml-home"
    monkeypatch.setenv("OPTML_HOME", str(home))
    return home
