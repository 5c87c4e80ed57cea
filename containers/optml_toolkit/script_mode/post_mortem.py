"""An exception that a script does not catch waits for a debugger, where PYTHONBREAKPOINT is `debug.post_mortem`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from optml_toolkit.container import Container

HOOK = "optml_toolkit.script_mode.debug.post_mortem"
SHIM = Path(__file__).with_name("shims") / "post_mortem"


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """What a script's environment has besides, if it is to be debugged."""
    if base.get("PYTHONBREAKPOINT") != HOOK:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(SHIM), base.get("PYTHONPATH")]))}


def install() -> None:
    sys.excepthook = uncaught


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback as ever; then, in a program of the user's, a debugger at its last line."""
    sys.__excepthook__(kind, error, trace)
    if issubclass(kind, Exception) and runs_users_code():
        from optml_toolkit.script_mode import debug

        debug.examine(trace, what=kind.__name__)


def runs_users_code() -> bool:
    """Rather than torchrun, pip, or another program that the script has started."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(Container.here().code_dir.resolve())
