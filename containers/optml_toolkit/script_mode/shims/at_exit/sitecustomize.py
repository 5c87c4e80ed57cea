"""On the PYTHONPATH of torchrun's ranks, behind all else: before the interpreter ends, PyTorch's threads come to rest
(`optml_toolkit/torch_threads.py` says why). What it hides is imported all the same."""

import atexit
import importlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - every Python pays for what is imported here


def rest() -> None:
    if "torch" not in sys.modules:
        return
    import importlib.util

    # By its file: the script's Python need not have the toolkit.
    file = os.path.join(HERE, "..", "..", "..", "torch_threads.py")  # noqa: PTH118
    spec = importlib.util.spec_from_file_location("optml_torch_threads", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.wait_for_torch_threads()


atexit.register(rest)
sys.path = [place for place in sys.path if os.path.abspath(place) != HERE]  # noqa: PTH100
own = sys.modules.pop("sitecustomize")
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
    sys.modules["sitecustomize"] = own  # whoever imports it looks for it there
