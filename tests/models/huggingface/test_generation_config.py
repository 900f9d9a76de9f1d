"""generation_config.json: settings that are followed, refused or overridden by flags."""

import pytest
from helpers import transformers_reference
from helpers.networks import network

from lightpaff_jax import config, generate, workdir
from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import generation_config

BART_LARGE_CNN = {
    'bos_token_id': 0,
    'decoder_start_token_id': 2,
    'early_stopping': True,
    'eos_token_id': 2,
    'forced_bos_token_id': 0,
    'forced_eos_token_id': 2,
    'length_penalty': 2.0,
    'max_length': 142,
    'min_length': 56,
    'no_repeat_ngram_size': 3,
    'num_beams': 4,
    'pad_token_id': 1,
    'transformers_version': '4.33.2',
}


def read(values, family='mass all'):
    return generation_config.read('here', values, network(family))


def settings(values, *arguments, family='mass all'):
    options = flags.arguments(arguments, generate.FLAGS, config=False).options
    return generate._settings(options, read(values, family))


def test_settings_of_a_summarizer_are_followed():
    generation = read(BART_LARGE_CNN)
    assert (generation.start_id, generation.eos_ids) == (2, (2,))
    assert settings(BART_LARGE_CNN) == generate.Settings(
        max_length=141,
        min_length=55,
        beams=4,
        length_penalty=2.0,
        early_stop=True,
        no_repeat_ngram_size=3,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )


@pytest.mark.parametrize(
    ('values', 'arguments', 'expected'),
    [
        ({}, [], {'max_length': 64}),
        ({'max_length': 9, 'max_new_tokens': 5}, [], {'max_length': 5}),
        ({'max_length': 9}, ['--max-length=3'], {'max_length': 3}),
        ({'num_beams': 3}, [], {'beams': 3, 'early_stop': False}),
        ({'num_beams': 3}, ['--beams=1'], {}),
        ({'num_beams': 3, 'length_penalty': 2.0}, ['--length-penalty=0'], {'length_penalty': 0}),
        ({'min_length': 9}, ['--min-length=0'], {'min_length': 0}),
        (
            {'num_beams': 3, 'length_penalty': 2},
            ['--sample', '--beams=1', '--top-k=4'],
            {'top_k': 4},
        ),
        ({}, ['--beams=4'], {'beams': 4, 'early_stop': False}),
        ({'early_stopping': True, 'length_penalty': 0.5}, ['--beams=4'], {'early_stop': True}),
        ({'early_stopping': True}, ['--beams=4', '--no-early-stop'], {'early_stop': False}),
        ({'early_stopping': 'never'}, [], {'beams': 1}),
        ({'early_stopping': 'never'}, ['--beams=2', '--no-early-stop'], {'early_stop': False}),
        ({}, ['--sample'], {'top_k': 50, 'top_p': 1.0, 'temperature': 1.0}),
        ({'temperature': 0.5, 'top_k': 9, 'top_p': 0.8}, ['--sample'], {'top_k': 9, 'top_p': 0.8}),
        (
            {'temperature': 0.5, 'top_k': 9},
            ['--sample', '--top-k=0'],
            {'top_k': 0, 'temperature': 0.5},
        ),
        ({'do_sample': True, 'temperature': 0.5}, [], {'top_k': 50, 'temperature': 0.5}),
        ({'do_sample': True, 'top_p': 0.9, 'top_k': 0}, [], {'top_p': 0.9}),
        ({'do_sample': True, 'top_p': 0.9}, ['--beams=1'], {'top_p': 0.9}),
        ({'do_sample': False, 'temperature': 0.5, 'top_k': 9, 'min_p': 0.1}, [], {}),
        ({'repetition_penalty': 1.5}, ['--no-repeat-ngram-size=2'], {'repetition_penalty': 1.5}),
        ({'eos_token_id': [3, 4], 'num_return_sequences': 1, 'use_cache': False}, [], {}),
    ],
)
def test_flags_precede_the_settings_of_a_folder(values, arguments, expected):
    chosen = settings(values, *arguments)
    for name, value in expected.items():
        assert getattr(chosen, name) == value, name
    assert chosen.sample == bool('--sample' in arguments or values.get('do_sample'))
    if 'num_beams' not in values and not any(word.startswith('--beams') for word in arguments):
        assert chosen.beams == 1


@pytest.mark.compare
@pytest.mark.parametrize(
    ('values', 'flags', 'arguments'),
    [
        ({'early_stopping': True, 'length_penalty': 0.5}, ['--beams=4'], {'num_beams': 4}),
        ({'temperature': 0.5}, ['--beams=4'], {'num_beams': 4}),
        ({'temperature': 0.5, 'top_k': 9, 'top_p': 0.8}, ['--sample'], {'do_sample': True}),
        ({'early_stopping': True}, ['--sample', '--top-p=0.7'], {'do_sample': True, 'top_p': 0.7}),
        ({'do_sample': True, 'temperature': 2.0}, ['--beams=1'], {'num_beams': 1}),
        ({'do_sample': True, 'min_p': 0.1}, ['--no-sample'], {'do_sample': False}),
        (
            {'do_sample': True, 'num_beams': 2, 'top_k': 3},
            ['--no-sample', '--beams=4'],
            {'do_sample': False, 'num_beams': 4},
        ),
        (
            {'num_beams': 3, 'top_k': 7},
            ['--sample', '--beams=1'],
            {'do_sample': True, 'num_beams': 1},
        ),
    ],
)
def test_flags_act_as_arguments_of_generate(values, flags, arguments):
    transformers = pytest.importorskip('transformers')
    reference = transformers_reference.make('GPT2LMHeadModel')
    reference.generation_config = transformers.GenerationConfig(**values)
    expected, _ = reference._prepare_generation_config(None, **arguments)
    chosen = settings(values, *flags, family='gpt2')
    assert (chosen.sample, chosen.beams) == (expected.do_sample, expected.num_beams)
    names = {'length_penalty': 'length_penalty', 'early_stop': 'early_stopping'}
    if chosen.sample:
        names = {name: name for name in ('temperature', 'top_k', 'top_p')}
    assert {name: getattr(chosen, name) for name in names} == {
        name: getattr(expected, key) for name, key in names.items()
    }


@pytest.mark.parametrize(
    ('values', 'flag', 'message'),
    [
        (
            {'early_stopping': 'never'},
            '--beams=4',
            "early_stopping = 'never': must be None or True or",
        ),
        ({'min_p': 0.1}, '--sample', 'min_p = 0.1: must be None'),
        ({'typical_p': 0.9}, '--sample', 'typical_p = 0.9: must be None or 1'),
        ({'num_beams': 3}, '--sample', 'num_beams = 3: must be 1 to sample, or give --beams=1'),
        (
            {'do_sample': True},
            '--beams=3',
            'do_sample = True: --beams=3 needs --no-sample',
        ),
    ],
)
def test_settings_that_a_flag_makes_effective_are_refused(values, flag, message):
    settings(values)
    with pytest.raises(UserError) as error:
        settings(values, flag)
    assert str(error.value).startswith(f'here has {message}')


@pytest.mark.parametrize(
    ('family', 'values', 'message'),
    [
        ('gpt2', {'max_length': 50}, 'max_length = 50, which counts the prompt too: give --max-l'),
        ('gpt2', {'min_length': 5}, 'min_length = 5, which counts the prompt too: give --min-le'),
        ('gpt2', {'forced_bos_token_id': 3}, 'forced_bos_token_id = 3: must be None without an'),
        ('mass all', {'num_beams': 2, 'early_stopping': 'never'}, 'must be None or True or'),
        ('mass all', {'num_beams': 2.5}, 'num_beams = 2.5: must be a whole number'),
        ('mass all', {'max_new_tokens': True}, 'max_new_tokens = True: must be a whole number'),
        ('mass all', {'length_penalty': '2'}, "length_penalty = '2': must be a number"),
        ('mass all', {'forced_eos_token_id': 201}, 'must be an id below vocab_size = 201'),
        ('mass all', {'decoder_start_token_id': -1}, 'must be an id below vocab_size = 201'),
        ('mass all', {'eos_token_id': ['2']}, "['2']: must be an id or a list of ids"),
        ('mass all', {'bad_words_ids': [[3]]}, 'bad_words_ids = [[3]]: must be None'),
        ('mass all', {'suppress_tokens': [3]}, 'suppress_tokens = [3]: must be None or []'),
        ('mass all', {'num_beam_groups': 2}, 'num_beam_groups = 2: must be None or 1'),
        ('mass all', {'do_sample': True, 'num_beams': 2}, 'num_beams = 2: must be 1 to sample'),
        ('mass all', {'do_sample': True, 'min_p': 0.1}, 'min_p = 0.1: must be None'),
    ],
)
def test_settings_without_our_counterpart_are_refused(family, values, message):
    with pytest.raises(UserError) as error:
        settings(values, family=family)
    assert str(error.value).startswith('here has ')
    assert message in str(error.value)


def test_settings_that_change_scores_are_in_the_protocol():
    c = config.default()
    c.objective, c.eval.metric, c.data.target_length = 'seq2seq', 'bleu', 9
    own = workdir.protocol(c)

    def protocol(**values):
        return workdir.protocol(c, read(values).settings)

    assert protocol(repetition_penalty=1.0, no_repeat_ngram_size=0, forced_bos_token_id=None) == own
    # `config.generate` has these too, and evaluation never samples.
    assert protocol(num_beams=3, length_penalty=2.0, max_length=7, do_sample=False, top_k=4) == own
    changes = [
        {'repetition_penalty': 1.2},
        {'repetition_penalty': 1.2000001},
        {'no_repeat_ngram_size': 3},
        {'forced_bos_token_id': 3},
        {'forced_eos_token_id': 3},
        {'forced_bos_token_id': 3, 'forced_eos_token_id': 3},
    ]
    protocols = [protocol(**values) for values in changes]
    assert len({own, *protocols}) == 1 + len(changes)
    assert ', 0 to 9 tokens, no_repeat_ngram_size 3; BLEU of sacrebleu' in protocols[2]
    c.eval.metric = ''  # scores no generated text
    assert protocol(**changes[0]) == workdir.protocol(c)
