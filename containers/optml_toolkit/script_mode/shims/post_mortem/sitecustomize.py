"""On the PYTHONPATH of a script that is debugged: Python imports this as it starts. What it hides is imported all the same."""

import importlib
import sys
from pathlib import Path

from optml_toolkit.script_mode import post_mortem

post_mortem.install()
sys.path = [place for place in sys.path if Path(place) != Path(__file__).parent]
own = sys.modules.pop("sitecustomize")
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
    sys.modules["sitecustomize"] = own  # whoever imports it looks for it there
