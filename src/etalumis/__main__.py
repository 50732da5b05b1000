"""``python -m etalumis``: the command line, for launchers that start modules, as torchrun."""

import sys

from etalumis.cli import main

sys.exit(main())
