"""Two-stage knowledge distillation of language models on TPU, GPU and CPU (LightPAFF)."""

__version__ = '0.1.0'
