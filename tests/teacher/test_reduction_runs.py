"""Runs with a reduced vocabulary from both stages to scores, speed and an export for transformers."""

import json

import jax
import numpy as np
import pytest
import tokenizers as library
from helpers import corpus, reductions

import lightpaff_jax
from lightpaff_jax import config, evaluate, models, speed, train
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


def classification(c, folder):
    """Returns the run of `c` with the classification of short texts."""
    (folder / 'classes').mkdir()
    for split, count in (('train', 40), ('validation', 12), ('test', 12)):
        rows = [f'{text}\t{i % 2}\n' for i, text in enumerate(reductions.TEXTS[:count])]
        (folder / 'classes' / f'{split}.tsv').write_text(''.join(['text\tclass\n', *rows]))
    c = config.copy(c)
    c.objective = 'classify'
    c.student.update({'head': 'classify', 'classes': 2, 'init_new_head': True})
    c.data.update({'source': 'table', 'path': str(folder / 'classes'), 'classes': 2})
    c.data.columns = ('text', '', 'class')
    return c


@pytest.mark.e2e
def test_reduced_student_runs_through_both_stages(tmp_path):
    reductions.write_teacher(tmp_path / 'teacher')
    reductions.write_teacher(tmp_path / 'classifier', head='classify', classes=2)
    c = reductions.make_config(tmp_path)
    c.workdir, c.tokenizer.path = str(tmp_path / 'stage1'), ''
    c.teacher.path = str(tmp_path / 'teacher')
    first = train.train(c)
    assert first['scores']['test']['kl'] > 0
    c = classification(c, tmp_path)
    c.student.init, c.teacher.path = c.workdir, str(tmp_path / 'classifier')
    c.workdir = str(tmp_path / 'stage2')
    second = train.train(c)
    assert first['tokenizer_hash'] == second['tokenizer_hash']
    saved = tokenizers.read(f'{c.workdir}/tokenizer')
    assert (saved.fingerprint, saved.vocab_size) == (second['tokenizer_hash'], reductions.SIZE)

    evaluate.run(config.copy(c), c.workdir, str(tmp_path / 'scores'))
    scores = json.loads((tmp_path / 'scores' / 'scores.json').read_text())
    assert scores['scores']['test'] == pytest.approx(second['scores']['test'], rel=1e-6)
    alone = config.copy(c)
    alone.teacher.path = ''
    evaluate.run(alone, c.workdir, str(tmp_path / 'alone'))
    evaluate.run(config.copy(c), str(tmp_path / 'classifier'), str(tmp_path / 'whole'))
    whole = json.loads((tmp_path / 'whole' / 'scores.json').read_text())
    assert whole['tokenizer_hash'] != second['tokenizer_hash']
    assert whole['scores']['test']['kl'] == pytest.approx(0, abs=1e-5)

    comparison = speed.compare(c)
    counts = {
        name: lightpaff_jax.load(path)[0].parameter_count
        for name, path in (('teacher', c.teacher.path), ('student', c.workdir))
    }
    assert {name: comparison[name]['parameters'] for name in counts} == counts


def train_wordpiece(folder, texts):
    """Writes a BERT vocabulary of 1,500 pieces that is trained on some texts."""
    fast = library.Tokenizer(library.models.WordPiece(unk_token='[UNK]'))
    fast.normalizer = library.normalizers.BertNormalizer()
    fast.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=SPECIAL, show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    folder.mkdir()
    pieces = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    (folder / 'vocab.txt').write_text(''.join(f'{piece}\n' for piece, _ in pieces))


@pytest.mark.compare
def test_exported_classifier_equals_transformers_pipeline(data_cache, tmp_path):
    transformers = pytest.importorskip('transformers')
    source = pydocs.load(data_cache).as_data_source('train')
    documents = [source[i]['text'].decode() for i in range(300)]
    train_wordpiece(tmp_path / 'whole', documents)
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / 'train.txt').write_text('\n\n'.join(documents))
    c = corpus.tiny_config(str(tmp_path / 'cache'))
    c.tokenizer.path = str(tmp_path / 'whole')
    c.tokenizer.reduce = (f'text:{tmp_path / "text"}',)
    c.student.update(reductions.SHAPE | {'family': 'bert', 'vocab_size': 900, 'positions': 64})
    c.student.update({'head': 'classify', 'classes': 2})
    tokenizer = selection.load(c)
    assert tokenizer.vocab_size == 900
    model = models.build(c.student)
    params = jax.tree.map(lambda x: 4 * x, model.init(jax.random.key(0)))
    lightpaff_jax.save(str(tmp_path / 'saved'), model, params, tokenizer)

    texts = [' '.join(documents[i].split()[:30]) for i in range(200)]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
    inputs = [[tokenizer.cls_id, *ids[:62], tokenizer.sep_id] for ids in tokenizer.encode(texts)]
    assert reference(texts, truncation=True)['input_ids'] == inputs
    ids = np.full((len(texts), 64), tokenizer.pad_id, np.int32)
    for row, values in zip(ids, inputs, strict=True):
        row[: len(values)] = values
    segments = (np.arange(64) < np.array([[len(values)] for values in inputs])).astype(np.int32)
    first = np.zeros((len(texts), 1), np.int32)
    batch = Batch(ids, first, np.ones(first.shape, np.float32), first, segments)
    labels = np.asarray(model.logits(params, batch))[:, 0].argmax(-1)
    assert {*labels.tolist()} == {0, 1}
    pipeline = transformers.pipeline(
        'text-classification', model=str(tmp_path / 'saved'), truncation=True, device='cpu'
    )
    assert [int(answer['label'][-1]) for answer in pipeline(texts)] == labels.tolist()
