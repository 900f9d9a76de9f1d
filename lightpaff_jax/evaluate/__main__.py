"""The command `python -m lightpaff_jax.evaluate`."""

import sys

from lightpaff_jax import evaluate

sys.exit(evaluate.main())
