"""The command `python -m lightpaff_jax.report`."""

import sys

from lightpaff_jax import report

sys.exit(report.main())
