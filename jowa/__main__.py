"""`python -m jowa` is `jowa`; torchrun starts processes of a job so."""

import os
import sys

from jowa.cli import main

code = main()
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    from jowa.learning.distributed import leave

    leave(code)
sys.exit(code)
