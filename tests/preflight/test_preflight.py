"""The command preflight, with the CPU compiler; test_tpu.py runs the TPU compiler."""

import json

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import config, models, sharding
from lightpaff_jax.data import batches
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.preflight import __main__ as preflight, compilation
from lightpaff_jax.preflight.compilation import Program
from lightpaff_jax.runtime import chips
from lightpaff_jax.runtime.chips import GIB

NET = {'layers': 1, 'width': 32, 'heads': 2, 'ffn': 64, 'vocab_size': 256, 'positions': 32}


def configured(**student):
    c = config.default()
    c.student.update(NET | student)
    c.teacher.update(NET | {'width': 64, 'layers': 2} | student)
    c.data.length, c.data.batch_size = 32, 16
    return c


@pytest.fixture(autouse=True)
def restore_environment(monkeypatch):
    """Restores the variables that the command sets."""
    monkeypatch.setenv('JAX_NUM_PROCESSES', '')
    monkeypatch.setenv('JAX_PROCESS_ID', '')


@pytest.fixture
def cpu_chips(monkeypatch):
    """Replaces the chips of a slice by the 8 devices of this process."""
    monkeypatch.setattr(chips, 'devices', lambda topology, slices=1: jax.devices())


@pytest.mark.parametrize(
    ('family', 'objective', 'keys'),
    [
        ('gpt2', 'clm', {}),
        ('bert', 'mlm', {}),
        ('bert', 'classify', {'head': 'classify', 'classes': 3}),
        pytest.param('mass', 'mass', {'decoder_layers': 1}, marks=pytest.mark.slow),
        pytest.param('mass', 'seq2seq', {'decoder_layers': 1}, marks=pytest.mark.slow),
    ],
)
def test_objective_compiles_without_data(cpu_chips, family, objective, keys):
    c = configured(family=family, **keys)
    c.objective = objective
    c.data.target_length = 16 * (objective == 'seq2seq')
    c.data.view = {'classify': 'topic', 'seq2seq': 'summary'}.get(objective, 'text')
    result = preflight.preflight(c, 'v5e:2x4', largest=False)
    assert result['fits']
    assert result['sequences'] == 2
    assert {collective['kind'] for collective in result['collectives']} == {'all-reduce'}
    student = models.build(c.student)
    held = result['held']
    parameters = sum(np.prod(x.shape) for x in jax.tree.leaves(student.abstract_params)) * 4
    assert held['parameters'] == parameters
    assert held['optimizer'] == 2 * parameters + 4  # two moments and a counter
    assert 'not measured' in preflight.summary(result)


def shapes_of(batch):
    return str(jax.tree.map(lambda x: (*x.shape, x.dtype.name), batch))


@pytest.mark.parametrize('view', ['blocks', 'documents', 'topic', 'summary'])
def test_abstract_batches_have_the_shapes_of_real_batches(data_cache, view):
    documents = view in ('blocks', 'documents')
    c = corpus.tiny_config(data_cache) if documents else corpus.examples_config(data_cache, view)
    c.data.packing = 'best_fit' if view == 'documents' else 'contiguous'
    c.data.buckets = () if documents else (16, 32)
    prepared, tokenizer = corpus.prepare_dataset(c), selection.load(c)
    shapes = {shapes_of(corpus.batch_at(c, prepared, tokenizer, index)) for index in range(12)}
    assert shapes <= {shapes_of(batch) for batch in batches.abstract_batches(c)}
    assert len(batches.abstract_batches(c)) == (1 if documents else 2)


def test_flops_count_student_three_times_and_teacher_once():
    c = configured()
    flops = preflight.flops(c, c.teacher)
    shape = preflight.networks.shapes(c)[0]
    student, teacher = (models.build(net).flops(shape) for net in (c.student, c.teacher))
    assert sum(flops.values()) == pytest.approx(16 * (3 * student + teacher))
    assert preflight.flops(c, None)['teacher'] == 0


@pytest.mark.parametrize(
    ('fixed', 'per_row', 'first'), [(2.0, 0.1, 8), (1.0, 0.03, 64), (15.0, 1.0, 1)]
)
def test_largest_batch_fills_the_memory(monkeypatch, fixed, per_row, first):
    chip = chips.CHIPS['v5e']
    tried = []

    def compile_step(c, mesh, net):
        rows = c.data.batch_size // 8
        tried.append(rows)
        total = (fixed + per_row * rows) * GIB
        return Program(total, 0.0, 'program' if total <= chip.hbm else '', 1.0)

    monkeypatch.setattr(compilation, 'compile_step', compile_step)
    c = configured()
    c.data.batch_size = 8 * first
    mesh = sharding.make_mesh(c)
    program = compile_step(c, mesh, None)
    largest = preflight.find_largest(c, mesh, None, program, chip)
    limit = (chip.hbm / GIB - fixed) / per_row
    if first == 1:
        assert largest['sequences'] == 0
    else:
        assert limit - 9 < largest['sequences'] <= limit
    assert len(tried) <= 5


@pytest.mark.parametrize(('total', 'fitting'), [(16.0, 0), (15.0, 8)])
def test_equal_memory_of_two_batches_ends_the_search(monkeypatch, total, fitting):
    """The compiler rounds the memory in its message, so two batches can appear equal."""
    program = Program(total * GIB, 0.0, 'program' if fitting else '', 1.0)
    monkeypatch.setattr(compilation, 'compile_step', lambda c, mesh, net: program)
    c = configured()
    c.data.batch_size = 64
    mesh = sharding.make_mesh(c)
    largest = preflight.find_largest(c, mesh, None, program, chips.CHIPS['v5e'])
    assert largest['sequences'] == fitting


def test_step_beyond_the_memory_exits_with_1_and_advice(cpu_chips, monkeypatch, tmp_path, capsys):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        'from lightpaff_jax import config\n\ndef get_config(preset=""):\n'
        '    c = config.default()\n    c.data.batch_size = 16\n    c.eval.batch_size = 16\n    return c\n'
    )
    monkeypatch.setattr(
        compilation, 'compile_step', lambda c, mesh, net: Program(20 * GIB, None, '', 1.0)
    )
    out = tmp_path / 'out.json'
    arguments = ['--topology=v5e:2x4', f'--config={recipe}', f'--out={out}', '--quick']
    assert preflight.main(arguments) == 1
    summary = capsys.readouterr().out
    assert '4.25 GiB too much' in summary
    assert "train.remat = 'block'" in summary
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert not result['fits']
    assert result['temporary'] is None


@pytest.mark.parametrize(
    ('message', 'needed'),
    [
        ('RESOURCE_EXHAUSTED: Used 17.70G of 15.75G hbm. Exceeded', 17.7),
        ('the total memory required for HLO temporaries (16.50G) exceeds available HBM', 17.5),
        ('RESOURCE_EXHAUSTED: Used 1.50T of 15.75G hbm. Exceeded', 1536),
    ],
)
def test_required_bytes_are_parsed_from_the_message(message, needed):
    held = {'parameters': 0.5 * GIB, 'teacher': 0.5 * GIB}
    assert compilation.required_bytes(message, held) == pytest.approx(needed * GIB)


def test_other_compiler_error_is_one_line():
    with pytest.raises(UserError, match='the compiler for TPUs: INTERNAL: no'):
        compilation.required_bytes('INTERNAL:\n no', {})


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--topology=CHIP:SHAPE: must be given'),
        (['--topology=v5x:2x2'], 'must be CHIP:SHAPE with a chip of v4, v5e, v5p, v6e'),
        (['--topology=v5e'], 'must be CHIP:SHAPE'),
        (['--topology=v5e:2x2', '--slices=0'], '--slices=0: must be a whole number'),
        (['--topology=v5e:2x2', '--topology=v4:2x2'], 'must be given once'),
        (['--topology=v5e:2x2', '--quick=yes'], '--quick: takes no value'),
        (['--topology=v5e:2x2', '--out=/nowhere/x.json'], 'its folder must exist'),
    ],
)
def test_invalid_argument_is_refused_in_one_line(arguments, message, capsys):
    assert preflight.main([*arguments, '--config=configs/gpt2_stage1.py']) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_missing_tpu_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='the extra tpu'):
        chips.devices('v5e:2x2')


def test_teacher_with_another_head_is_refused(cpu_chips):
    c = configured(family='bert')
    c.objective, c.teacher.head = 'mlm', 'none'
    with pytest.raises(UserError, match=r"config\.teacher\.head = 'none': must equal"):
        preflight.preflight(c, 'v5e:2x4', largest=False)


def test_compiler_error_at_a_larger_batch_keeps_the_result(cpu_chips, monkeypatch):
    def fail(*_):
        raise UserError('the compiler for TPUs: INTERNAL: no')

    monkeypatch.setattr(preflight, 'find_largest', fail)
    result = preflight.preflight(configured(), 'v5e:2x4')
    assert result['fits']
    assert 'unknown, the compiler for TPUs: INTERNAL: no' in preflight.summary(result)


def test_teacher_without_files_and_shape_is_refused(cpu_chips):
    c = configured()
    c.teacher.update({'layers': 0, 'path': 'nowhere/teacher'})
    with pytest.raises(UserError, match='set the shape of the teacher'):
        preflight.preflight(c, 'v5e:2x4', largest=False)


@pytest.mark.parametrize('remat', ['none', pytest.param('block', marks=pytest.mark.slow)])
def test_distillation_takes_at_most_25_percent_more_memory(remat):
    """The optimizations that tests disable change the temporary memory by less than 0.1%."""
    c = configured()
    c.student.update({'layers': 4, 'width': 192, 'heads': 3, 'ffn': 768, 'vocab_size': 8192})
    c.teacher.update({'layers': 6, 'width': 384, 'heads': 6, 'ffn': 1536, 'vocab_size': 8192})
    for net in (c.student, c.teacher):
        net.positions = 128
    c.data.length, c.data.batch_size, c.mesh.data = 128, 8, 1
    c.train.update({'attention': 'xla', 'remat': remat})
    c.teacher.dtype = 'float32'
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    with_teacher, without_teacher = (
        compilation.compile_step(c, mesh, net).temporary for net in (c.teacher, None)
    )
    assert with_teacher <= 1.25 * without_teacher
