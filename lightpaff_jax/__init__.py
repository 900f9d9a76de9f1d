"""Two-stage knowledge distillation of language models on TPU, GPU and CPU (LightPAFF)."""

import sys
from typing import TYPE_CHECKING

from lightpaff_jax.runtime import interrupts
from lightpaff_jax.version import __version__

if TYPE_CHECKING:
    from lightpaff_jax.pretrained import load, save

if sys.argv[:1] == ['-m'] and 'lightpaff_jax.' in ' '.join(sys.orig_argv):
    interrupts.exit_on_signals()  # as early as possible: the imports of a command take seconds

__all__ = ['__version__', 'load', 'save']


def __getattr__(name: str):
    """`load` and `save` import jax when they are first used, the package itself does not."""
    if name in ('load', 'save'):
        from lightpaff_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
