"""Two-stage knowledge distillation of language models on TPU, GPU and CPU (LightPAFF)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightpaff_jax.pretrained import load, save

__all__ = ['load', 'save']
__version__ = '0.1.0'


def __getattr__(name: str):
    """`load` and `save` import jax when they are first used, the package itself does not."""
    if name in __all__:
        from lightpaff_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
