"""Trained networks in workdirs and folders: loaded, saved, as teachers and as starts of students."""

import dataclasses
import json
import os
import pathlib
import shutil

import chex
import jax
import numpy as np
import pyarrow
import pytest
from helpers import corpus, folders as folder_helpers
from helpers.disks import small_files
from pyarrow import parquet
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import lightpaff_jax
from lightpaff_jax import config, models, pretrained, teacher, train, workdir
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import NotSaved, UserError
from lightpaff_jax.models.huggingface import checkpoint_dir, config_json
from lightpaff_jax.runtime import fingerprint, storage

SHAPE = {'layers': 3, 'width': 16, 'heads': 2, 'ffn': 24, 'positions': 32}
OBJECTIVES = {'gpt2': 'clm', 'bert': 'mlm', 'mass': 'mass'}


def make_config(cache, workdir, family='gpt2', **student):
    """Returns a run of two updates of a 3-layer network on one device."""
    c = corpus.tiny_config(cache)
    c.workdir = str(workdir)
    c.objective = OBJECTIVES[family]
    c.student.update({**SHAPE, 'family': family, 'decoder_layers': 2 * (family == 'mass')})
    c.student.update(student)
    c.eval.batches = 1
    c.optim.warmup, c.mesh.data = 1, 1
    c.train.update({'updates': 2, 'save_every': 2, 'log_every': 1, 'grad_accum_steps': 1})
    return c


def write_folder(cache, path, family='gpt2', **changes):
    """Writes a Hugging Face folder with random parameters and the tokenizer of the tests."""
    c = make_config(cache, '', family, **changes)
    model = models.build(c.student)
    params = model.init(jax.random.key(5))
    tokenizer = selection.load(c)
    lightpaff_jax.save(str(path), model, params, tokenizer)
    return model, params


@pytest.fixture(scope='module')
def folders(data_cache, tmp_path_factory):
    """Returns (folder, model, parameters) of each family."""
    root = tmp_path_factory.mktemp('folders')
    return {
        family: (root / family, *write_folder(data_cache, root / family, family))
        for family in OBJECTIVES
    }


@pytest.fixture(scope='module')
def classifier_run(data_cache, folders, tmp_path_factory):
    """Returns (workdir, result) of a classifier that starts from BERT with a new head."""
    c = classifier(data_cache, tmp_path_factory.mktemp('runs') / 'classifier')
    c.student.init, c.student.init_new_head = str(folders['bert'][0]), True
    return pathlib.Path(c.workdir), train.train(c)


@pytest.mark.parametrize('family', OBJECTIVES)
def test_saved_network_loads_bitwise_equal(folders, family):
    path, model, params = folders[family]
    loaded_model, loaded_params = lightpaff_jax.load(str(path))
    assert loaded_model.network == model.network
    chex.assert_trees_all_equal(loaded_params, params)
    names = {file.name for file in path.iterdir()}
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= names
    assert not [file for file in path.parent.iterdir() if file.name.startswith('.')]


def test_save_replaces_its_files_and_keeps_others(data_cache, tmp_path):
    write_folder(data_cache, tmp_path / 'm')
    (tmp_path / 'm' / 'README.md').write_text('kept')
    write_folder(data_cache, tmp_path / 'm', width=32)
    assert lightpaff_jax.load(str(tmp_path / 'm'))[0].network.width == 32
    assert (tmp_path / 'm' / 'README.md').read_text() == 'kept'


@pytest.mark.parametrize('path', ['.', '..', 'other/..', 'other/../'])
def test_save_in_a_parent_folder_writes_there(folders, data_cache, tmp_path, monkeypatch, path):
    here = tmp_path / 'a' / 'b'
    (here / 'other').mkdir(parents=True)
    monkeypatch.chdir(here)
    _, model, params = folders['gpt2']
    tokenizer = selection.load(make_config(data_cache, ''))
    lightpaff_jax.save(path, model, params, tokenizer)
    folder = (here / path).resolve()
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {*map(str, os.listdir(folder))}
    assert not list(tmp_path.rglob('.*'))
    # A run's config.json, or that of a program, is kept.
    storage.write_json(folder / 'config.json', {'train': {'updates': 1}})
    with pytest.raises(
        UserError, match=r'its config.json is not that of a network, choose another'
    ):
        lightpaff_jax.save(path, model, params, tokenizer)
    assert json.loads((folder / 'config.json').read_text()) == {'train': {'updates': 1}}


@pytest.mark.parametrize('path', ['', '/', 'a\0b', 'file', 'file/', 'loop', 300 * 'a'])
def test_save_refuses_what_is_no_folder(folders, data_cache, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('kept')
    (tmp_path / 'loop').symlink_to('loop')
    _, model, params = folders['gpt2']
    with pytest.raises(UserError, match=r'must (name|be) a folder|loop: |File name too long'):
        lightpaff_jax.save(path, model, params, selection.load(make_config(data_cache, '')))
    assert sorted(os.listdir(tmp_path)) == ['file', 'loop']


def test_save_rejects_tokenizer_larger_than_model(data_cache, tmp_path):
    c = make_config(data_cache, '')
    model = models.build(config.network(vocab_size=300))
    params = model.init(jax.random.key(0))
    with pytest.raises(UserError, match="512 ids, must have at most the model's 300"):
        lightpaff_jax.save(str(tmp_path / 'm'), model, params, selection.load(c))
    assert not (tmp_path / 'm').exists()


@pytest.mark.e2e
@pytest.mark.parametrize('family', OBJECTIVES)
def test_student_of_folder_teacher_loads_and_exports(data_cache, folders, tmp_path, family):
    path, _, params = folders[family]
    c = make_config(data_cache, tmp_path / 'run', family, layers=1, width=8, ffn=8)
    c.teacher.path = str(path)
    result = train.train(c)
    assert result['teacher_hash'] == fingerprint.fingerprint(params)
    assert {'kl', 'agreement'} <= set(result['scores']['test'])
    model, student_params = lightpaff_jax.load(c.workdir)
    assert (model.network.family, model.network.layers) == (family, 1)
    tokenizer = tokenizers.read(f'{c.workdir}/tokenizer')
    assert tokenizer.fingerprint == result['tokenizer_hash']
    lightpaff_jax.save(str(tmp_path / 'out'), model, student_params, tokenizer)
    chex.assert_trees_all_equal(lightpaff_jax.load(str(tmp_path / 'out'))[1], student_params)


def load_initial(c):
    """Returns the parameters that the student of `c` starts from."""
    mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokenizer = selection.load(c)
        frozen = teacher.load(c, mesh, tokenizer)
        return teacher.load_initial(c, mesh, tokenizer, frozen)


@pytest.mark.parametrize('family', OBJECTIVES)
def test_student_starts_from_chosen_teacher_layers(data_cache, folders, family):
    path, model, params = folders[family]
    c = make_config(data_cache, '', family, layers=2)
    c.teacher.path, c.student.init = str(path), 'teacher_layers'
    if family == 'mass':
        c.student.decoder_layers, c.student.init_decoder_layers = 1, (1,)
    lowest = load_initial(c)
    c.student.init_layers = (0, 2)
    chosen = load_initial(c)
    teacher_arrays = fingerprint.flatten(params)
    stacked = {row.path for row in model.table if '{layer}' in row.name}
    for name, x in fingerprint.flatten(lowest).items():
        expected = teacher_arrays[name]
        if name in stacked:
            expected = expected[1:2] if name.startswith('decoder/') else expected[:2]
        np.testing.assert_array_equal(x, expected, name)
    name = next(name for name in stacked if 'ffn/up/kernel' in name and 'decoder' not in name)
    expected = teacher_arrays[name][np.array([0, 2])]
    np.testing.assert_array_equal(fingerprint.flatten(chosen)[name], expected)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('width', 32, "config.student.width = 32: must equal the teacher's 16 for student.init"),
        ('init_layers', (0,), 'config.student.init_layers = 0: must name 2 layers'),
        ('init_layers', (0, 3), 'init_layers = 0,3: must be layers of the teacher, 0 to 2'),
    ],
)
def test_impossible_teacher_layers_are_errors(data_cache, folders, key, value, message):
    c = make_config(data_cache, '', layers=2)
    c.teacher.path, c.student.init = str(folders['gpt2'][0]), 'teacher_layers'
    c.student[key] = value
    with pytest.raises(UserError) as error:
        load_initial(c)
    assert message in str(error.value)


@pytest.mark.parametrize('family', OBJECTIVES)
def test_student_starts_from_projected_teacher_embeddings(data_cache, folders, family):
    path, _, params = folders[family]
    c = make_config(data_cache, '', family, layers=1, width=8, positions=32)
    c.teacher.path, c.student.init = str(path), 'teacher_embeddings'
    c.student.decoder_layers = min(c.student.decoder_layers, 1)
    initial = load_initial(c)
    tokens = np.asarray(params['token_embedding']['table'], np.float64)
    left, values, right = np.linalg.svd(tokens, full_matrices=False)
    closest = left[:, :8] * values[:8] @ right[:8]
    own = np.asarray(initial['token_embedding']['table'], np.float64)
    # Products of rows do not depend on the signs of the singular vectors.
    np.testing.assert_allclose(own @ own.T, closest @ closest.T, atol=1e-6 * values[0] ** 2)
    name = 'encoder_position' if family == 'mass' else 'position_embedding'
    positions = np.asarray(params[name]['table'], np.float64)
    product = np.asarray(initial[name]['table'], np.float64) @ own.T
    np.testing.assert_allclose(product, positions @ closest.T, atol=1e-6 * values[0] ** 2)
    assert {*initial} <= {'token_embedding', 'type_embedding', name, 'decoder_position'}


def test_student_wider_than_its_teacher_is_refused(data_cache, folders):
    c = make_config(data_cache, '', layers=1, width=32)
    c.teacher.path, c.student.init = str(folders['gpt2'][0]), 'teacher_embeddings'
    with pytest.raises(UserError, match="width = 32: must be at most the teacher's 16"):
        load_initial(c)
    c.student.width, c.student.positions = 8, 64
    with pytest.raises(
        UserError, match=r"student\.positions = 64: must be at most the teacher's 32"
    ):
        load_initial(c)


def classifier(data_cache, workdir):
    c = make_config(data_cache, workdir, 'bert')
    c.objective, c.data.view = 'classify', 'pairs'
    c.data.packages = ('etils', 'optax')
    c.student.update({'head': 'classify', 'classes': 2})
    return c


@pytest.mark.e2e
def test_missing_head_is_initialized_only_on_request(data_cache, folders, classifier_run, tmp_path):
    path, _, params = folders['bert']
    c = classifier(data_cache, tmp_path / 'run')
    c.student.init = str(path)
    with pytest.raises(UserError, match=r'- classifier.weight'):
        train.train(c)
    assert not (tmp_path / 'run' / 'checkpoints').exists()
    c.student.init_new_head = True
    initial = load_initial(c)
    np.testing.assert_array_equal(
        initial['token_embedding']['table'], params['token_embedding']['table']
    )
    assert initial['classifier']['table'].shape == (2, 16)
    workdir, result = classifier_run
    assert 0 <= result['scores']['test']['accuracy'] <= 1
    assert result['class_names'] == []  # those of pydocs are numbers
    # A run with another number of classes needs a new head too.
    c = classifier(data_cache, tmp_path / 'topic')
    c.student.classes, c.data.view = 12, 'topic'
    c.student.init = str(workdir)
    with pytest.raises(
        UserError, match=r"its head 'classify' lacks classifier/bias.*init_new_head = True"
    ):
        train.train(c)
    c.student.init_new_head = True
    initial, trained = load_initial(c), lightpaff_jax.load(str(workdir))[1]
    assert initial['classifier']['table'].shape == (12, 16)
    chex.assert_trees_all_equal(initial['blocks'], trained['blocks'])


def test_head_of_other_classes_requires_init_new_head(data_cache, tmp_path):
    write_folder(data_cache, tmp_path / 'three', 'bert', head='classify', classes=3)
    c = classifier(data_cache, '')
    c.student.init = str(tmp_path / 'three')
    with pytest.raises(UserError, match=r'classifier.weight: \(3, 16\) does not fit \(2, 16\)'):
        load_initial(c)
    c.student.init_new_head = True
    assert load_initial(c)['classifier']['table'].shape == (2, 16)


@pytest.mark.e2e
def test_classifier_run_teaches_and_exports(data_cache, classifier_run, tmp_path):
    c = classifier(data_cache, tmp_path / 'student')
    c.student.layers = 1
    c.teacher.path = str(classifier_run[0])
    result = train.train(c)
    assert result['scores']['test']['kl'] >= 0
    model, params = lightpaff_jax.load(c.workdir)
    tokenizer = tokenizers.read(f'{c.workdir}/tokenizer')
    lightpaff_jax.save(str(tmp_path / 'out'), model, params, tokenizer)
    exported, exported_params = lightpaff_jax.load(str(tmp_path / 'out'))
    batch = next(batches.evaluation(c, prepare.prepare(c, tokenizer), tokenizer, 'test'))
    logits, expected = exported.logits(exported_params, batch), model.logits(params, batch)
    np.testing.assert_array_equal(logits, expected)
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['architectures'] == [
        'BertForSequenceClassification'
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'family': 'bert', 'objective': 'mlm'},
            'config.student.family = bert: must equal that of the teacher',
        ),
        ({'vocab_size': 300}, 'config.student.vocab_size = 300: must be at least the 512 ids'),
    ],
)
def test_teacher_of_other_family_or_vocabulary_is_an_error(
    data_cache, folders, tmp_path, change, message
):
    c = make_config(data_cache, tmp_path / 'run')
    c.teacher.path = str(folders['gpt2'][0])
    for key, value in change.items():
        (c if key == 'objective' else c.student)[key] = value
    with pytest.raises(UserError) as error:
        train.train(c)
    assert message in str(error.value)
    assert not any((tmp_path / 'run').iterdir())


def test_teacher_with_other_tokenizer_is_an_error(data_cache, folders, tmp_path):
    shutil.copytree(folders['gpt2'][0], tmp_path / 'teacher')
    c = make_config(data_cache, '')
    other = tmp_path / 'other.model'
    tokenizers.train(['other words, another vocabulary of the same size ' * 9], 300, other)
    c.teacher.path, c.tokenizer.path, c.student.vocab_size = (
        str(tmp_path / 'teacher'),
        str(other),
        300,
    )
    with pytest.raises(UserError, match=r'is no reduction of it: both must be WordPiece'):
        train.train(c)
    c.student.vocab_size = 600
    with pytest.raises(UserError, match=r'vocab_size = 600: must equal'):
        train.train(c)
    c = make_config(data_cache, '', 'bert', vocab_size=512)
    c.tokenizer.path = str(folders['mass'][0])
    c.teacher.path = str(folders['bert'][0])
    with pytest.raises(UserError, match=r'its tokenizer has hash \w{16}, the data here \w{16}'):
        train.train(c)


@pytest.mark.parametrize('lowercase', [True, False])
def test_bare_vocab_txt_follows_config_lowercase(tmp_path, lowercase):
    vocabulary = corpus.wordpiece_tokenizer(tmp_path)
    c = config.default()
    c.student.update({**SHAPE, 'family': 'bert', 'vocab_size': vocabulary.vocab_size})
    model = models.build(c.student)
    checkpoint_dir.write(tmp_path, model, model.init(jax.random.key(0)))
    c.student.init, c.tokenizer.lowercase = str(tmp_path), lowercase
    tokenizer = selection.load(c)
    source = pretrained.open('config.student.init', str(tmp_path))
    source.check_tokenizer(tokenizer, lowercase)
    with pytest.raises(UserError, match='its tokenizer has hash'):
        source.check_tokenizer(tokenizer, not lowercase)


def test_save_removes_old_tokenizer_and_is_never_partial(
    data_cache, folders, tmp_path, monkeypatch
):
    path, model, params = folders['bert']
    shutil.copytree(path, tmp_path / 'm')
    (tmp_path / 'words').mkdir()
    words = corpus.wordpiece_tokenizer(tmp_path / 'words')
    assert (tmp_path / 'm' / 'tokenizer.model').exists()
    (tmp_path / 'm' / 'model_ema.safetensors').write_bytes(b'kept')
    lightpaff_jax.save(str(tmp_path / 'm'), model, params, words)
    assert tokenizers.read(str(tmp_path / 'm')).fingerprint == words.fingerprint
    assert (tmp_path / 'm' / 'model_ema.safetensors').read_bytes() == b'kept'

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, 'commit', interrupted)
    with pytest.raises(KeyboardInterrupt):
        lightpaff_jax.save(str(tmp_path / 'm'), model, params, words)
    with pytest.raises(UserError, match='must be the workdir of a finished run, or a folder'):
        lightpaff_jax.load(str(tmp_path / 'm'))


@pytest.mark.parametrize('limit', [1 << 10, 1 << 14])  # less than the tokenizer, than the weights
def test_save_on_a_full_disk_keeps_the_old_folder(folders, tmp_path, limit):
    path, model, params = folders['bert']
    target = shutil.copytree(path, tmp_path / 'm')
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    words = corpus.wordpiece_tokenizer(tmp_path)
    with small_files(limit), pytest.raises(NotSaved, match=f'^{target}: cannot be written: File '):
        lightpaff_jax.save(str(target), model, params, words)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before


@pytest.mark.parametrize(('family', 'tokens'), [('bert', 'cls a sep'), ('mass', 'a sep')])
def test_exported_wordpiece_adds_special_tokens_of_family(tmp_path, family, tokens):
    words = corpus.wordpiece_tokenizer(tmp_path)
    words.save(tmp_path / 'out', family)
    fast = Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    ids = {'cls': [words.cls_id], 'sep': [words.sep_id], 'a': words.encode(['the dog'])[0]}
    assert fast.encode('the dog').ids == [i for name in tokens.split() for i in ids[name]]


def test_tokenizer_of_an_abandoned_run_is_replaced(data_cache, tmp_path):
    c = corpus.tiny_config(data_cache)  # the programs of this run are those of test_train.py
    c.workdir = str(tmp_path / 'run')
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'positions': 32})
    c.data.batch_size, c.train.grad_accum_steps = 8, 1
    c.eval.batches, c.eval.test, c.optim.warmup = 1, False, 2
    c.train.update({'updates': 4, 'save_every': 4, 'log_every': 1})
    other = tmp_path / 'other.model'
    tokenizers.train(['other words, another vocabulary of the same size ' * 9], 300, other)
    tokenizers.read(str(other)).save(tmp_path / 'run' / 'tokenizer')
    result = train.train(c)
    saved = tokenizers.read(f'{c.workdir}/tokenizer').fingerprint
    assert saved == result['tokenizer_hash'] != tokenizers.read(str(other)).fingerprint


def test_more_tokens_than_positions_is_an_error(folders):
    _, model, params = folders['gpt2']
    ids = np.zeros((1, 33), np.int32)
    with pytest.raises(ValueError, match='33 tokens, must be at most the 32 positions'):
        model.features(params, Batch(ids, ids, np.ones(ids.shape, np.float32)))


def test_partial_head_is_initialized_completely(data_cache, tmp_path):
    write_folder(data_cache, tmp_path / 'm', 'bert', head='classify', classes=2)
    file = tmp_path / 'm' / 'model.safetensors'
    tensors = load_file(file)
    del tensors['classifier.bias']
    save_file(tensors, file, {'format': 'pt'})
    c = classifier(data_cache, '')
    c.student.init, c.student.init_new_head = str(tmp_path / 'm'), True
    table = load_initial(c)['classifier']['table']
    assert not np.array_equal(table, tensors['classifier.weight'])


def test_teacher_without_tokenizer_is_an_error(data_cache, folders, tmp_path):
    shutil.copytree(folders['gpt2'][0], tmp_path / 'teacher')
    for file in (tmp_path / 'teacher').glob('tokenizer*'):
        file.unlink()
    c = make_config(data_cache, tmp_path / 'run')
    c.teacher.path = str(tmp_path / 'teacher')
    with pytest.raises(UserError, match=r'must hold the tokenizer of the network'):
        train.train(c)


def test_cast_frees_the_wide_array():
    wide = jax.numpy.arange(8.0)
    assert teacher._cast(wide, jax.numpy.dtype('float32')) is wide
    narrow = teacher._cast(wide, jax.numpy.dtype('bfloat16'))
    assert narrow.dtype == 'bfloat16'
    assert narrow.tolist() == [*range(8)]
    assert wide.is_deleted()


def test_save_to_a_bucket_is_an_error(folders, data_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, model, params = folders['gpt2']
    tokenizer = selection.load(corpus.tiny_config(data_cache))
    with pytest.raises(UserError, match=r'^gs://bucket/student: must be a local folder$'):
        lightpaff_jax.save('gs://bucket/student', model, params, tokenizer)
    assert not [*tmp_path.iterdir()]


def test_huggingface_folder_in_a_bucket_is_an_error(folders, monkeypatch):
    monkeypatch.setattr(storage, 'check_reachable', lambda path: None)
    monkeypatch.setattr(storage, 'to_path', lambda path: folders['gpt2'][0])
    with pytest.raises(UserError) as error:
        lightpaff_jax.load('gs://bucket/gpt2')
    assert str(error.value).startswith(
        'path = gs://bucket/gpt2: a Hugging Face folder must be local'
    )


def head_of(source, model, names, seed=None):
    """Returns the head of a classifier whose data has classes of these names."""
    mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return source.read_params(model, mesh, seed, names)['classifier']


def test_classes_are_mapped_by_name(data_cache, tmp_path):
    c = make_config(data_cache, '', 'bert', head='classify', classes=3)
    model = dataclasses.replace(models.build(c.student), class_names=('good', 'bad', 'So So'))
    params = model.init(jax.random.key(2))
    lightpaff_jax.save(str(tmp_path / 'm'), model, params, selection.load(c))
    loaded, _ = lightpaff_jax.load(str(tmp_path / 'm'))
    assert loaded.class_names == model.class_names
    source = pretrained.open('--model', str(tmp_path / 'm'))
    own, order = params['classifier'], np.array([1, 2, 0])
    permuted = {name: x[order] for name, x in own.items()}
    chex.assert_trees_all_equal(head_of(source, model, ('BAD', 'so so', 'Good')), permuted)
    for names in ((), model.class_names):  # by position
        chex.assert_trees_all_equal(head_of(source, model, names), own)
    message = 'has the classes good, bad, So So, the data good, bad, ugly: must be the same names'
    with pytest.raises(UserError, match=message):
        head_of(source, model, ('good', 'bad', 'ugly'))
    new = head_of(source, model, ('good', 'bad', 'ugly'), seed=5)
    chex.assert_trees_all_equal(new, model.init(jax.random.key(5))['classifier'])
    # The default names of transformers say nothing.
    file = tmp_path / 'm' / 'config.json'
    values = json.loads(file.read_text()) | {'id2label': None, 'label2id': None, 'num_labels': 3}
    file.write_text(json.dumps(values))
    source = pretrained.open('--model', str(tmp_path / 'm'))
    chex.assert_trees_all_equal(head_of(source, model, ('BAD', 'so so', 'Good')), own)


def test_run_keeps_its_class_names_without_its_data(tmp_path):
    c = config.default()
    c.data.source, c.data.path, c.objective = 'table', str(tmp_path / 'data'), 'classify'
    c.data.columns, c.data.classes = ('text', '', 'label'), 2
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': 2})
    feature = {'_type': 'ClassLabel', 'names': ['cold', 'warm']}
    metadata = {'huggingface': json.dumps({'info': {'features': {'label': feature}}})}
    table = pyarrow.table({'text': ['a', 'b'], 'label': [0, 1]}).replace_schema_metadata(metadata)
    (tmp_path / 'data').mkdir()
    for split in ('train', 'validation', 'test'):
        parquet.write_table(table, tmp_path / f'data/{split}.parquet')
    run = tmp_path / 'run'
    (run / 'checkpoints').mkdir(parents=True)
    workdir.write_config(c, run)
    keys = workdir.task_keys(c)
    storage.write_json(run / 'result.json', keys)
    shutil.rmtree(tmp_path / 'data')
    assert pretrained.open('--model', str(run)).class_names == ('cold', 'warm')
    for names, message in (
        (['cold'], "its result.json has class_names = ['cold']: must be 2 different names"),
        (
            None,
            'its result.json has no class_names, and its data cannot be read (config.data.path = ',
        ),
    ):
        storage.write_json(run / 'result.json', {} if names is None else {'class_names': names})
        with pytest.raises(UserError) as error:
            pretrained.open('--model', str(run))
        assert str(error.value).startswith(f'--model={run}: {message}')


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'id2label': {'0': 'a', '2': 'b'}}, 'must name the classes 0, 1, ...'),
        ({'id2label': {'0': 'a', '1': 3}}, 'must name the classes 0, 1, ...'),
        ({'id2label': ['a', 'b']}, 'must name the classes 0, 1, ...'),
        ({'id2label': {'0': 'a', '1': 'a'}}, 'must name no class twice'),
        ({'num_labels': 3}, 'has num_labels = 3: must be 2, the number of classes in id2label'),
        (
            {'label2id': ['a', 'b']},
            "['a', 'b']: must be the inverse of id2label = {'0': 'a', '1': 'b'}",
        ),
        (
            {'label2id': {'LABEL_0': 1, 'LABEL_1': 0}},
            "must be the inverse of id2label = {'0': 'a', '1': 'b'}",
        ),
        (
            {'label2id': {'a': 0, 'LABEL_1': 1}},
            "must be the inverse of id2label = {'0': 'a', '1': 'b'}",
        ),
        (
            {'id2label': None, 'label2id': {'a': 1, 'b': 0}},
            "must be the inverse of id2label = {'0': 'LABEL_0', '1': 'LABEL_1'}",
        ),
        ({'label2id': {'a': 1, 'b': 0}}, "must be the inverse of id2label = {'0': 'a', '1': 'b'}"),
        ({'id2label': None, 'num_labels': 10**9}, 'must be at most 1000000'),
    ],
)
def test_contradicting_class_names_are_refused(values, message):
    names = {'architectures': ['BertForSequenceClassification'], 'id2label': {'0': 'a', '1': 'b'}}
    with pytest.raises(UserError) as error:
        config_json.read('here', names | values)
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ('case', 'head'),
    [
        ('bert lm', 'lm'),
        ('bert pretraining', 'pretraining'),
        ('bert none', 'none'),
        ('bert classify', 'classify'),
        ('gpt2', 'lm'),
        ('mass all', 'lm'),
    ],
)
def test_tensors_decide_the_head_without_architectures(case, head, tmp_path):
    folder_helpers.write_folder(tmp_path, case)
    folder_helpers.reconfigure(tmp_path, architectures=None)
    assert pretrained.open('--model', str(tmp_path)).network.head == head


def test_folder_with_an_adapter_is_refused(tmp_path):
    folder_helpers.write_folder(tmp_path, 'gpt2')
    (tmp_path / 'adapter_config.json').write_text('{}')
    with pytest.raises(UserError, match=r'has adapter_config\.json: merge the adapter'):
        pretrained.open('--model', str(tmp_path))
