"""`train` of the framework images: python -m optml_toolkit.script_mode."""

import sys

from optml_toolkit.script_mode.main import main

sys.exit(main())
