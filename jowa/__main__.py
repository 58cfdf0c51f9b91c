"""`python -m jowa` is `jowa`."""

import sys

from jowa.cli import main

sys.exit(main())
