"""`python -m astrollava_jax` is the command `astrollava`."""

import sys

from astrollava_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
