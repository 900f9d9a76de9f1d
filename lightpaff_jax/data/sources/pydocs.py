"""The source `pydocs`, the built-in corpus: the documentation in the installed Python packages.

The project ships no text, but every machine that can run it has this one. The docstrings of a
fixed list of packages are read with `ast`; no package is imported. They are built into a TFDS
dataset, which is deterministic for given versions of Python and of the packages. Its metadata
names these versions.
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
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, pydocs_views, splits
from lightpaff_jax.data.sources.pydocs_views import Document, SplitDocuments
from lightpaff_jax.data.sources.splits import SPLITS, Example, OnError
from lightpaff_jax.errors import UserError, nearest
from lightpaff_jax.runtime import storage

# Name in `config.data.packages` -> (module, distribution that has its version).
# Only default dependencies, so that installing an extra never changes the corpus.
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

_TOPICS_FILE = 'pydoc_data/topics.py'  # the language reference
_SKIPPED_FOLDERS = frozenset(
    ('test', 'tests', 'site-packages', 'dist-packages', 'idlelib', 'lib2to3', 'turtledemo')
)
_MIN_WORDS = 5  # shorter docstrings are dropped
_HELD_OUT = 20  # one in so many documents is for validation, and one for test


def examples(c: ConfigDict, split: str, on_error: OnError) -> Iterator[Example]:
    """Reads the examples of `config.data.view`, in the order of package and path.

    Args:
      c: the configuration; `config.data.packages` restricts the packages unless it is empty.
      split: one of SPLITS.
      on_error: unused, as no row is malformed.

    Raises:
      UserError: a package is unknown, or the packages have no example.
    """
    del on_error
    packages = _packages(c)
    rows = load(c.data.cache, c.data.view).as_data_source(split)
    chosen = (row for row in rows if not packages or row['package'].decode() in packages)
    message = (
        f'config.data.packages = {tuple(c.data.packages)}: empty corpus, '
        f'no {c.data.view!r} of pydocs in split {split!r}'
    )
    for row in splits.require_any(chosen, message):
        if c.data.view == 'text':
            yield Example(row['text'].decode())
        else:
            yield Example(row['first'].decode(), row['second'].decode(), int(row['label']))


def identity(c: ConfigDict, wanted: Sequence[str]) -> dict:
    """Returns the values on which the examples depend, as JSON values."""
    del wanted  # the digest is over all splits
    metadata = load(c.data.cache, c.data.view).info.metadata
    return {
        'packages': _packages(c),
        'digest': metadata['digest'],
        'versions': dict(metadata['versions']),
    }


def check(c: ConfigDict, wanted: Sequence[str]) -> None:
    """Raises UserError if a package is unknown."""
    del wanted  # every split exists
    _packages(c)


def classes(c: ConfigDict) -> int:
    """Returns the number of classes of the view; 0 if it has none."""
    return {'topic': len(PACKAGES), 'pairs': 2}.get(c.data.view, 0)


def _packages(c: ConfigDict) -> list[str]:
    for name in c.data.packages:
        if name not in PACKAGES:
            raise UserError(
                f'config.data.packages = {tuple(c.data.packages)}: {name!r} must be one of '
                f'{", ".join(PACKAGES)}{nearest(name, list(PACKAGES))}'
            )
    return sorted(set(c.data.packages))


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the corpus, one config for each view. Use `load` to build and open it."""

    VERSION = tfds.core.Version('1.1.0')
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
        tfds.core.BuilderConfig(name=name, description=(view.__doc__ or '').partition('\n')[0])
        for name, view in pydocs_views.VIEWS.items()
    ]
    code_path = None  # else TFDS looks for checksums, citations and tags next to this file
    pkg_dir_path = pathlib.Path(__file__).parent
    documents: SplitDocuments  # set by `_build`, which reads them once for all views

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
        rows = pydocs_views.VIEWS[self.builder_config.name](self.documents, list(PACKAGES))
        self.info.metadata['digest'] = digest(rows)
        return {split: self._generate_examples(rows[split]) for split in SPLITS}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def load(cache: str, view: str = 'text') -> Pydocs:
    """Opens a view of the corpus, and builds all views if the cache does not have them.

    Args:
      cache: the folder below which the corpus is kept.
      view: one of `pydocs_views.VIEWS`.

    Returns:
      The builder. Its `info.metadata` holds `versions` and `digest` (16 hex digits of the content),
      `as_data_source(split)` the rows of a split, in the order of package and path.

    Raises:
      UserError: no document was found, or the folder is in a bucket or cannot be written.
    """
    inputs = json.dumps([str(Pydocs.VERSION), versions()], sort_keys=True)
    name = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    folder = storage.local_folder('config.data.cache = ', cache) / 'tfds' / name
    if not folder.exists():
        storage.publish(folder, _build)
    return Pydocs(data_dir=str(folder), config=view)


def _build(folder: pathlib.Path) -> None:
    tfds.disable_progress_bar()
    gc_was_enabled = gc.isenabled()
    gc.disable()  # saves a third of the time: syntax trees are large and have no cycles
    try:
        documents = split_documents(read_documents())
        for view in pydocs_views.VIEWS:
            builder = Pydocs(data_dir=str(folder), config=view)
            builder.documents = documents
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the folders it creates
                builder.download_and_prepare(file_format='array_record')
    finally:
        if gc_was_enabled:
            gc.enable()


def versions() -> dict[str, str]:
    """Returns the version of each installed package of the corpus."""
    result = {}
    for name, (_, distribution) in PACKAGES.items():
        if name == 'stdlib':
            result[name] = platform.python_version()
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(distribution)
    return result


def digest(rows: pydocs_views.SplitRows) -> str:
    """Computes 16 hex digits over the content of a view."""
    hasher = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            hasher.update(json.dumps([split, *row.values()]).encode())
    return hasher.hexdigest()[:16]


def split_documents(documents: Sequence[Document]) -> SplitDocuments:
    """Divides documents into SPLITS by a hash of their path, package by package.

    If a package has n >= 3 documents, the first max(1, n // 20) of them in the order of the hash
    are the test split and as many the validation split, so that neither is empty.
    """
    held_out: dict[str, str] = {}
    for package in PACKAGES:
        paths = [d.path for d in documents if d.package == package]
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).hexdigest())
        share = max(1, len(paths) // _HELD_OUT) if len(paths) >= 3 else 0
        held_out |= dict.fromkeys(paths[:share], 'test')
        held_out |= dict.fromkeys(paths[share : 2 * share], 'validation')
    return {
        split: [d for d in documents if held_out.get(d.path, 'train') == split] for split in SPLITS
    }


def read_documents() -> list[Document]:
    """Reads all documents, ordered by package and path, each docstring once.

    Raises:
      UserError: no document was found.
    """
    documents, seen = [], set()
    for package, (module, _) in PACKAGES.items():
        root = _stdlib() if package == 'stdlib' else _module_folder(module)
        if root is None:
            continue
        base = root.parents[module.count('.')] if module else root
        for file in _list_files(root):
            path = file.relative_to(base).as_posix()
            is_reference = package == 'stdlib' and path == _TOPICS_FILE
            for suffix, texts in _read_file(file, is_reference):
                new = [text for text in dict.fromkeys(texts) if text not in seen]
                seen.update(new)
                if new:
                    documents.append(Document(package, path + suffix, tuple(new)))
    if not documents:
        raise UserError(f'empty corpus: no documentation found in {", ".join(PACKAGES)}')
    return documents


def _stdlib() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path('stdlib'))


def _module_folder(module: str) -> pathlib.Path | None:
    """Returns the folder of an installed package; imports only the parents of a dotted name."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _list_files(root: pathlib.Path) -> list[pathlib.Path]:
    def is_source(file: pathlib.Path) -> bool:
        *folders, name = file.relative_to(root).parts
        is_test = name.startswith('test_') or name.endswith('_test.py') or name == 'conftest.py'
        return not is_test and _SKIPPED_FOLDERS.isdisjoint(folders)

    return sorted(filter(is_source, root.rglob('*.py')), key=lambda file: file.as_posix())


def _read_file(file: pathlib.Path, is_reference: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields (suffix of the path, texts) for each document of a file; none if it is not Python."""
    try:
        with warnings.catch_warnings():  # the parser warns about escapes in other people's strings
            warnings.simplefilter('ignore')
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    if is_reference:
        for name, text in sorted(_dict_literal(tree).items()):
            yield f'#{name}', _clean([text])
    else:
        yield '', _clean(_docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Yields the docstrings below a node, in the order of the file."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    for field in ('body', 'cases', 'handlers', 'orelse', 'finalbody'):
        for child in getattr(node, field, ()):
            yield from _docstrings(child)


def _dict_literal(tree: ast.Module) -> dict[str, str]:
    """Returns the value of the first assignment of a dictionary: topic -> text."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def _clean(texts: Iterable[str]) -> list[str]:
    """Removes indentation, and drops short and malformed texts."""
    cleaned = [inspect.cleandoc(text).strip() for text in texts]
    return [text for text in cleaned if len(text.split()) >= _MIN_WORDS and files.is_utf8(text)]
