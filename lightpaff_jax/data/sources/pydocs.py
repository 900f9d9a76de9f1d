"""`pydocs`: the documentation inside the installed Python packages, as a TFDS data set.

The project ships no text; this one is on every machine that can run it. Docstrings of a fixed
list of packages are read with `ast`; no package is imported. Deterministic for given versions
of Python and of the packages, which the built set names in its metadata.
"""

import ast
import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import pathlib
import platform
import sysconfig
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from lightpaff_jax.data.sources import pydocs_views
from lightpaff_jax.data.sources.pydocs_views import Document
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

# Name in `data.packages` -> (module that is looked for, distribution that has its version).
# Default dependencies only, so that an extra never changes the corpus.
PACKAGES = {
    'chex': ('chex', 'chex'),
    'etils': ('etils', 'etils'),
    'flax': ('flax', 'flax'),
    'grain': ('grain', 'grain'),
    'jax': ('jax', 'jax'),
    'ml_collections': ('ml_collections', 'ml-collections'),
    'numpy': ('numpy', 'numpy'),
    'optax': ('optax', 'optax'),
    'orbax': ('orbax.checkpoint', 'orbax-checkpoint'),
    'scipy': ('scipy', 'scipy'),
    'stdlib': ('', ''),
    'tensorflow_datasets': ('tensorflow_datasets', 'tensorflow-datasets'),
}
SPLITS = ('train', 'validation', 'test')

_TOPICS = 'pydoc_data/topics.py'
_SKIPPED_FOLDERS = frozenset(
    ('test', 'tests', 'site-packages', 'dist-packages', 'idlelib', 'lib2to3', 'turtledemo')
)
_FEWEST_WORDS = 5  # a shorter docstring is dropped
_HELD_OUT = 20  # one document in so many is for validation, another for test


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """Builder of `pydocs`, one config a form; call `opened`, which also makes it safe and silent."""

    VERSION = tfds.core.Version('1.1.0')
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
        tfds.core.BuilderConfig(name=name, description=(make.__doc__ or '').partition('\n')[0])
        for name, make in pydocs_views.VIEWS.items()
    ]
    code_path = None  # no checksums, citations or tags in files beside this one
    pkg_dir_path = pathlib.Path(__file__).parent
    parts: pydocs_views.Parts  # what it is built from; read once for all forms

    def _info(self) -> tfds.core.DatasetInfo:
        texts = ('text',) if self.builder_config.name == 'text' else ('first', 'second')
        features = {name: tfds.features.Text() for name in (*texts, 'package', 'path')}
        if self.builder_config.name != 'text':
            features['label'] = tfds.features.Scalar(np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description='Docstrings of the packages this project depends on.',
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(versions=versions()),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        rows = pydocs_views.VIEWS[self.builder_config.name](self.parts, list(PACKAGES))
        self.info.metadata['digest'] = digest(rows)
        return {name: self._generate_examples(rows[name]) for name in SPLITS}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def load(cache: str, form: str = 'text') -> Pydocs:
    """The built data set below the folder `cache`; builds every form there the first time.

    Its `info.metadata` holds `versions` and `digest` (16 hex digits of the content),
    `as_data_source(split)` the examples of a split, in the order of package and path.

    Raises:
      UserError: no document was found, or the folder is in a bucket or cannot be written.
    """
    made_from = json.dumps([str(Pydocs.VERSION), versions()], sort_keys=True)
    identity = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    folder = storage.local_folder('config.data.cache = ', cache) / 'tfds' / identity
    if not folder.exists():
        storage.publish(folder, _build)
    return Pydocs(data_dir=str(folder), config=form)


def _build(folder: pathlib.Path) -> None:
    tfds.disable_progress_bar()
    collects = gc.isenabled()
    gc.disable()  # a third of the time otherwise: syntax trees are large and have no cycles
    try:
        parts = split(documents())
        for form in pydocs_views.VIEWS:
            builder = Pydocs(data_dir=str(folder), config=form)
            builder.parts = parts
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it makes, and where
                builder.download_and_prepare(file_format='array_record')
    finally:
        if collects:
            gc.enable()


def versions() -> dict[str, str]:
    """Version of every package of the corpus that is installed."""
    found = {}
    for name, (_, distribution) in PACKAGES.items():
        if name == 'stdlib':
            found[name] = platform.python_version()
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(distribution)
    return found


def digest(rows: pydocs_views.Rows) -> str:
    """16 hex digits that name the content of the corpus in one form."""
    hasher = hashlib.sha256()
    for name in SPLITS:
        for row in rows[name]:
            hasher.update(json.dumps([name, *row.values()]).encode())
    return hasher.hexdigest()[:16]


def split(documents: Sequence[Document]) -> pydocs_views.Parts:
    """Parts the documents into SPLITS by a hash of their path, package by package.

    Of the n >= 3 documents of a package, ordered by the hash, the first max(1, n // 20)
    are the test split and as many the validation split: so neither is empty.
    """
    held_out: dict[str, str] = {}
    for package in PACKAGES:
        paths = [d.path for d in documents if d.package == package]
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).hexdigest())
        share = max(1, len(paths) // _HELD_OUT) if len(paths) >= 3 else 0
        held_out |= dict.fromkeys(paths[:share], 'test')
        held_out |= dict.fromkeys(paths[share : 2 * share], 'validation')
    return {
        name: [d for d in documents if held_out.get(d.path, 'train') == name] for name in SPLITS
    }


def documents() -> list[Document]:
    """Every document, ordered by package and path, without repeated docstrings.

    Raises:
      UserError: there is none.
    """
    found, seen = [], set()
    for package, (module, _) in PACKAGES.items():
        root = _stdlib() if package == 'stdlib' else _folder(module)
        if root is None:
            continue
        base = root.parents[module.count('.')] if module else root
        for file in _files(root):
            path = file.relative_to(base).as_posix()
            for suffix, texts in _read(file, topics=package == 'stdlib' and path == _TOPICS):
                new = [t for t in dict.fromkeys(texts) if t not in seen]
                seen.update(new)
                if new:
                    found.append(Document(package, path + suffix, tuple(new)))
    if not found:
        raise UserError(f'empty corpus: no documentation found in {", ".join(PACKAGES)}')
    return found


def _stdlib() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path('stdlib'))


def _folder(module: str) -> pathlib.Path | None:
    """Where a package is installed; only the parents of a dotted name are imported."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    def wanted(file: pathlib.Path) -> bool:
        *folders, name = file.relative_to(root).parts
        is_test = name.startswith('test_') or name.endswith('_test.py') or name == 'conftest.py'
        return not is_test and _SKIPPED_FOLDERS.isdisjoint(folders)

    return sorted(filter(wanted, root.rglob('*.py')), key=lambda file: file.as_posix())


def _read(file: pathlib.Path, topics: bool) -> Iterator[tuple[str, list[str]]]:
    """(suffix of the path, its texts) for each document of a file."""
    try:
        with warnings.catch_warnings():  # of the parser, about the escapes of others
            warnings.simplefilter('ignore')
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    if topics:
        for name, text in sorted(_dict_literal(tree).items()):
            yield f'#{name}', _clean([text])
    else:
        yield '', _clean(_docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings below a node, in the order of the file."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    for field in ('body', 'cases', 'handlers', 'orelse', 'finalbody'):
        for child in getattr(node, field, ()):
            yield from _docstrings(child)


def _dict_literal(tree: ast.Module) -> dict[str, str]:
    """The value of the module's one assignment, {name: text}."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def _clean(texts: Iterator[str] | list[str]) -> list[str]:
    cleaned = [inspect.cleandoc(text).strip() for text in texts]
    return [t for t in cleaned if len(t.split()) >= _FEWEST_WORDS and pydocs_views.is_unicode(t)]
