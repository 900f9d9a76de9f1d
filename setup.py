"""Package metadata; the tools are configured in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def version() -> str:
    """Returns `__version__` without importing the package."""
    text = (ROOT / 'lightpaff_jax' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if not match:
        raise RuntimeError("lightpaff_jax/version.py: must contain a line __version__ = '...'")
    return match[1]


def description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


# jax 0.10 is the last version for Python 3.11, and flax 0.12.8 the last that runs on it; flax 0.12.8
# breaks on jax 0.11.1 and later. The other lower bounds are the versions that were current; older
# ones are untested.
JAX = {
    "python_version < '3.12'": ('>=0.10.2,<0.11', '>=0.12.8,<0.12.9'),
    "python_version >= '3.12'": ('>=0.11.2', '>=0.12.9'),
}


def jax(extra: str = '') -> list[str]:
    return [f'jax{extra}{versions}; {python}' for python, (versions, _) in JAX.items()]


setup(
    name='lightpaff-jax',
    version=version(),
    description='Two-stage knowledge distillation of language models (LightPAFF) in JAX and Flax',
    long_description=description(),
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords=['jax', 'flax', 'tpu', 'knowledge distillation', 'language model', 'LightPAFF'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['lightpaff_jax', 'lightpaff_jax.*']),
    package_data={'lightpaff_jax': ['py.typed'], 'lightpaff_jax.report': ['page.html']},
    zip_safe=False,
    python_requires='>=3.11,<3.14',
    install_requires=[
        *jax(),
        *(f'flax{versions}; {python}' for python, (_, versions) in JAX.items()),
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'tensorflow-datasets>=4.9.10',
        'grain>=0.2.18',
        'array-record>=0.8.6',
        'filelock>=4.3.1',
        'sentencepiece>=0.2.3',
        'tokenizers>=0.23.3',
        'huggingface-hub>=2.4',
        'ml-collections>=1.1.0',
        'chex>=0.1.92',
        'jaxtyping>=0.3.11',
        'safetensors>=0.8.0',
        'sacrebleu>=2.6.0',
        'rouge-score>=0.1.2',
        'tensorboardX>=2.6.5',
        'rich>=15.0',
        'jinja2>=3.1.6',
        'matplotlib>=3.11',
        'numpy>=2.4',
        'scipy>=1.17',
        'etils[epath]>=1.15.0',
        'pyarrow>=26.0',
    ],
    extras_require={
        'compare': ['torch>=2.13', 'transformers>=5.23'],
        'tpu': jax('[tpu]'),
        'gpu': jax('[cuda12]'),  # runs on older drivers than jax[cuda13]
        'tf': ['tensorflow>=2.21'],
        'gs': ['gcsfs>=2026.8'],
        'test': [
            'hypothesis>=6.150',
            'import-linter>=2.17',
            'mypy>=2.4',
            'pre-commit>=4',
            'pytest>=9.1',
            'pytest-xdist>=3.8',
            'ruff==0.17.*',
        ],
    },
)
