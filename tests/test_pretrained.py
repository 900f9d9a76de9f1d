"""Networks from workdirs and folders: read, written, started from, taught by."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from helpers import corpus
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import lightpaff_jax
from lightpaff_jax import config, models, pretrained, teacher, train
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import checkpoint_dir
from lightpaff_jax.runtime import fingerprint

SHAPE = {'layers': 3, 'width': 16, 'heads': 2, 'ffn': 24, 'positions': 32}
OBJECTIVES = {'gpt2': 'clm', 'bert': 'mlm', 'mass': 'mass'}


def configured(cache, workdir, family='gpt2', **student):
    c = corpus.tiny_config(cache)
    c.workdir = str(workdir)
    c.objective = OBJECTIVES[family]
    c.student.update({**SHAPE, 'family': family, 'decoder_layers': 2 * (family == 'mass')})
    c.student.update(student)
    c.eval.batches = 1
    c.optim.warmup, c.mesh.data = 1, 1
    c.train.update({'updates': 2, 'save_every': 2, 'log_every': 1, 'grad_accum_steps': 1})
    return c


def folder_of(cache, path, family='gpt2', **changes):
    """A Hugging Face folder with a network of random parameters, and the tokenizer of the tests."""
    c = configured(cache, '', family, **changes)
    model = models.build(c.student)
    params = model.init(jax.random.key(5))
    tokenizer = selection.load(c)
    lightpaff_jax.save(str(path), model, params, tokenizer)
    return model, params


@pytest.fixture(scope='module')
def places(data_cache, tmp_path_factory):
    """A folder of each family."""
    root = tmp_path_factory.mktemp('folders')
    return {family: (root / family, *folder_of(data_cache, root / family, family))
            for family in OBJECTIVES}  # fmt: skip


@pytest.mark.parametrize('family', OBJECTIVES)
def test_what_is_saved_is_loaded_bit_for_bit(places, family):
    path, model, params = places[family]
    again, found = lightpaff_jax.load(str(path))
    assert again.network == model.network
    chex.assert_trees_all_equal(found, params)
    names = {file.name for file in path.iterdir()}
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= names
    assert not [file for file in path.parent.iterdir() if file.name.startswith('.')]


def test_saving_again_replaces_the_files_and_keeps_others(data_cache, tmp_path):
    folder_of(data_cache, tmp_path / 'm')
    (tmp_path / 'm' / 'README.md').write_text('mine')
    folder_of(data_cache, tmp_path / 'm', width=32)
    assert lightpaff_jax.load(str(tmp_path / 'm'))[0].network.width == 32
    assert (tmp_path / 'm' / 'README.md').read_text() == 'mine'


def test_a_tokenizer_of_another_size_is_not_saved_beside_a_model(data_cache, tmp_path):
    c = configured(data_cache, '')
    model = models.build(config.network(vocab_size=300))
    params = model.init(jax.random.key(0))
    with pytest.raises(UserError, match="512 ids, must have at most the model's 300"):
        lightpaff_jax.save(str(tmp_path / 'm'), model, params, selection.load(c))
    assert not (tmp_path / 'm').exists()


@pytest.mark.e2e
@pytest.mark.parametrize('family', OBJECTIVES)
def test_a_student_is_pre_trained_with_an_imported_folder_and_loaded_from_its_workdir(
    data_cache, places, tmp_path, family
):
    path, _, params = places[family]
    c = configured(data_cache, tmp_path / 'run', family, layers=1, width=8, ffn=8)
    c.teacher.path = str(path)
    result = train.train(c)
    assert result['teacher_hash'] == fingerprint.fingerprint(params)
    assert {'kl', 'agreement'} <= set(result['scores']['test'])
    model, found = lightpaff_jax.load(c.workdir)
    assert (model.network.family, model.network.layers) == (family, 1)
    tokenizer = tokenizers.read(f'{c.workdir}/tokenizer')
    assert tokenizer.fingerprint == result['tokenizer_hash']
    lightpaff_jax.save(str(tmp_path / 'out'), model, found, tokenizer)
    chex.assert_trees_all_equal(lightpaff_jax.load(str(tmp_path / 'out'))[1], found)


def start(c, data_cache):
    """What the student of `c` starts from."""
    mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokenizer = selection.load(c)
        frozen = teacher.load(c, mesh, tokenizer)
        return teacher.load_initial(c, mesh, tokenizer, frozen)


@pytest.mark.parametrize('family', OBJECTIVES)
def test_a_student_may_start_from_layers_of_its_teacher(data_cache, places, family):
    path, model, params = places[family]
    c = configured(data_cache, '', family, layers=2)
    c.teacher.path, c.student.init = str(path), 'teacher_layers'
    if family == 'mass':
        c.student.decoder_layers, c.student.init_decoder_layers = 1, (1,)
    lowest = start(c, data_cache)
    c.student.init_layers = (0, 2)
    chosen = start(c, data_cache)
    theirs = fingerprint.flatten(params)
    stacked = {row.path for row in model.table if '{layer}' in row.name}
    for name, x in fingerprint.flatten(lowest).items():
        taken = theirs[name]
        if name in stacked:
            taken = taken[1:2] if name.startswith('decoder/') else taken[:2]
        np.testing.assert_array_equal(x, taken, name)
    name = next(name for name in stacked if 'ffn/up/kernel' in name and 'decoder' not in name)
    np.testing.assert_array_equal(fingerprint.flatten(chosen)[name], theirs[name][np.array([0, 2])])


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('width', 32, "config.student.width = 32: must equal the teacher's 16 for student.init"),
        ('init_layers', (0,), 'config.student.init_layers = 0: must name 2 layers'),
        ('init_layers', (0, 3), 'init_layers = 0,3: must be layers of the teacher, 0 to 2'),
    ],
)
def test_layers_that_a_teacher_cannot_give_are_named(data_cache, places, key, value, message):
    c = configured(data_cache, '', layers=2)
    c.teacher.path, c.student.init = str(places['gpt2'][0]), 'teacher_layers'
    c.student[key] = value
    with pytest.raises(UserError) as error:
        start(c, data_cache)
    assert message in str(error.value)


def classifier(data_cache, workdir):
    c = configured(data_cache, workdir, 'bert')
    c.objective, c.data.view = 'classify', 'pairs'
    c.data.packages = ('etils', 'optax')
    c.student.update({'head': 'classify', 'classes': 2})
    return c


@pytest.mark.e2e
def test_a_missing_head_begins_fresh_only_when_the_configuration_says_so(
    data_cache, places, tmp_path
):
    path, _, params = places['bert']
    c = classifier(data_cache, tmp_path / 'run')
    c.student.init = str(path)
    with pytest.raises(UserError, match=r'- classifier.weight'):
        train.train(c)
    assert not (tmp_path / 'run' / 'checkpoints').exists()
    c.student.init_new_head = True
    begun = start(c, data_cache)
    np.testing.assert_array_equal(
        begun['token_embedding']['table'], params['token_embedding']['table']
    )
    assert begun['classifier']['table'].shape == (2, 16)
    result = train.train(c)
    assert 0 <= result['scores']['test']['accuracy'] <= 1
    # And from a run: another number of classes needs a new head again.
    c = classifier(data_cache, tmp_path / 'topic')
    c.student.classes, c.data.view = 12, 'topic'
    c.student.init = str(tmp_path / 'run')
    with pytest.raises(
        UserError, match=r"its head 'classify' lacks classifier/bias.*init_new_head = True"
    ):
        train.train(c)
    c.student.init_new_head = True
    assert train.train(c)['scores']['test']['examples'] > 0


def test_a_folder_of_other_classes_needs_a_new_head_too(data_cache, tmp_path):
    folder_of(data_cache, tmp_path / 'three', 'bert', head='classify', classes=3)
    c = classifier(data_cache, '')
    c.student.init = str(tmp_path / 'three')
    with pytest.raises(UserError, match=r'classifier.weight: \(3, 16\) does not fit \(2, 16\)'):
        start(c, data_cache)
    c.student.init_new_head = True
    assert start(c, data_cache)['classifier']['table'].shape == (2, 16)


@pytest.mark.e2e
def test_a_run_of_a_classifier_teaches_and_leaves_as_a_folder(data_cache, places, tmp_path):
    c = classifier(data_cache, tmp_path / 'teacher')
    train.train(c)
    c = classifier(data_cache, tmp_path / 'student')
    c.student.layers = 1
    c.teacher.path = str(tmp_path / 'teacher')
    result = train.train(c)
    assert result['scores']['test']['kl'] >= 0
    model, params = lightpaff_jax.load(c.workdir)
    tokenizer = tokenizers.read(f'{c.workdir}/tokenizer')
    lightpaff_jax.save(str(tmp_path / 'out'), model, params, tokenizer)
    again, found = lightpaff_jax.load(str(tmp_path / 'out'))
    batch = next(batches.evaluation(c, prepare.prepare(c, tokenizer), tokenizer, 'test'))
    np.testing.assert_array_equal(model.logits(params, batch), again.logits(found, batch))
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['architectures'] == [
        'BertForSequenceClassification'
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'family': 'bert', 'objective': 'mlm'}, "config.student.family = bert: must equal that of the teacher"),
        ({'vocab_size': 300}, 'config.student.vocab_size = 300: must be at least the 512 ids'),
    ],
)  # fmt: skip
def test_a_teacher_of_another_kind_is_refused(data_cache, places, tmp_path, change, message):
    c = configured(data_cache, tmp_path / 'run')
    c.teacher.path = str(places['gpt2'][0])
    for key, value in change.items():
        (c if key == 'objective' else c.student)[key] = value
    with pytest.raises(UserError) as error:
        train.train(c)
    assert message in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_teacher_and_student_with_different_tokenizers_are_refused(data_cache, places, tmp_path):
    shutil.copytree(places['gpt2'][0], tmp_path / 'teacher')
    c = configured(data_cache, '')
    other = tmp_path / 'other.model'
    tokenizers.train(['other words, another vocabulary of the same size ' * 9], 300, other)
    c.teacher.path, c.tokenizer.path, c.student.vocab_size = (
        str(tmp_path / 'teacher'),
        str(other),
        300,
    )
    with pytest.raises(UserError, match=r'vocab_size = 300: must equal'):
        train.train(c)
    c = configured(data_cache, '', 'bert', vocab_size=512)
    c.tokenizer.path = str(places['mass'][0])
    c.teacher.path = str(places['bert'][0])
    with pytest.raises(UserError, match=r'its tokenizer has hash \w{16}, the data here \w{16}'):
        train.train(c)


@pytest.mark.parametrize('lowercase', [True, False])
def test_a_vocab_txt_without_settings_is_read_as_the_configuration_says(tmp_path, lowercase):
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


def test_saving_leaves_no_tokenizer_of_before_and_no_half_of_a_folder(
    data_cache, places, tmp_path, monkeypatch
):
    path, model, params = places['bert']
    shutil.copytree(path, tmp_path / 'm')
    (tmp_path / 'words').mkdir()
    words = corpus.wordpiece_tokenizer(tmp_path / 'words')
    assert (tmp_path / 'm' / 'tokenizer.model').exists()
    (tmp_path / 'm' / 'model_ema.safetensors').write_bytes(b'mine')
    lightpaff_jax.save(str(tmp_path / 'm'), model, params, words)
    assert tokenizers.read(str(tmp_path / 'm')).fingerprint == words.fingerprint
    assert (tmp_path / 'm' / 'model_ema.safetensors').read_bytes() == b'mine'

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_dir, 'write', interrupted)
    with pytest.raises(KeyboardInterrupt):
        lightpaff_jax.save(str(tmp_path / 'm'), model, params, words)
    with pytest.raises(UserError, match='must be the workdir of a finished run, or a folder'):
        lightpaff_jax.load(str(tmp_path / 'm'))


@pytest.mark.parametrize(('family', 'kept'), [('bert', 'cls a sep'), ('mass', 'a sep')])
def test_an_exported_word_piece_frames_a_text_as_the_family_reads_it(tmp_path, family, kept):
    words = corpus.wordpiece_tokenizer(tmp_path)
    words.save(tmp_path / 'out', family)
    fast = Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    ids = {'cls': [words.cls_id], 'sep': [words.sep_id], 'a': words.encode(['the dog'])[0]}
    assert fast.encode('the dog').ids == [i for name in kept.split() for i in ids[name]]


def test_a_tokenizer_left_by_an_attempt_that_came_to_nothing_is_replaced(data_cache, tmp_path):
    c = configured(data_cache, tmp_path / 'run')
    other = tmp_path / 'other.model'
    tokenizers.train(['other words, another vocabulary of the same size ' * 9], 300, other)
    tokenizers.read(str(other)).save(tmp_path / 'run' / 'tokenizer')
    result = train.train(c)
    kept = tokenizers.read(f'{c.workdir}/tokenizer')
    assert kept.fingerprint == result['tokenizer_hash'] != tokenizers.read(str(other)).fingerprint


def test_more_tokens_than_positions_are_refused(places):
    _, model, params = places['gpt2']
    ids = np.zeros((1, 33), np.int32)
    with pytest.raises(ValueError, match='33 tokens, must be at most the 32 positions'):
        model.features(params, Batch(ids, ids, np.ones(ids.shape, np.float32)))


def test_half_a_head_begins_fresh_as_a_whole(data_cache, tmp_path):
    folder_of(data_cache, tmp_path / 'm', 'bert', head='classify', classes=2)
    file = tmp_path / 'm' / 'model.safetensors'
    tensors = load_file(file)
    del tensors['classifier.bias']
    save_file(tensors, file, {'format': 'pt'})
    c = classifier(data_cache, '')
    c.student.init, c.student.init_new_head = str(tmp_path / 'm'), True
    begun = start(c, data_cache)['classifier']['table']
    assert not np.array_equal(begun, tensors['classifier.weight'])


def test_a_teacher_without_its_tokenizer_is_refused(data_cache, places, tmp_path):
    shutil.copytree(places['gpt2'][0], tmp_path / 'teacher')
    for file in (tmp_path / 'teacher').glob('tokenizer*'):
        file.unlink()
    c = configured(data_cache, tmp_path / 'run')
    c.teacher.path = str(tmp_path / 'teacher')
    with pytest.raises(UserError, match=r'must hold the tokenizer of the network'):
        train.train(c)


def test_a_teacher_in_a_narrow_type_is_there_once():
    wide = jax.numpy.arange(8.0)
    assert teacher._cast(wide, jax.numpy.dtype('float32')) is wide
    narrow = teacher._cast(wide, jax.numpy.dtype('bfloat16'))
    assert narrow.dtype == 'bfloat16'
    assert narrow.tolist() == [*range(8)]
    assert wide.is_deleted()


def test_a_folder_in_a_bucket_is_not_written_here(places, data_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, model, params = places['gpt2']
    tokenizer = selection.load(corpus.tiny_config(data_cache))
    with pytest.raises(UserError, match=r'^gs://bucket/student: must be a local folder$'):
        lightpaff_jax.save('gs://bucket/student', model, params, tokenizer)
    assert not [*tmp_path.iterdir()]
