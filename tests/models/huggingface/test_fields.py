"""docs/hugging_face.md decides every field of transformers' files, and refused ones are refused."""

import inspect
import pathlib
import re

import pytest
from helpers.networks import network

import lightpaff_jax
from lightpaff_jax import generate
from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import config_json, generation_config

pytestmark = pytest.mark.compare

PAGE = pathlib.Path(lightpaff_jax.__file__).parents[1] / 'docs' / 'hugging_face.md'
FAMILIES = {'bert': 'BERT', 'gpt2': 'GPT-2', 'bart': 'BART'}
ARCHITECTURES = {
    'bert': 'BertForSequenceClassification',
    'gpt2': 'GPT2LMHeadModel',
    'bart': 'BartForConditionalGeneration',
}
# A value of another kind than the documented ones; other fields get 'odd'.
ODD = {'id2label': {'0': 'a', '1': 'b'}, 'label2id': {'x': 0, 'y': 1}}
DECISIONS = ('followed', 'refused', 'no effect')


def decisions(section: str, family: str = '') -> dict[str, set[str]]:
    """Returns field -> decisions of a section's tables, of one family if they name families."""
    text = PAGE.read_text(encoding='utf-8').split(f'\n## {section}\n')[1].split('\n## ')[0]
    fields: dict[str, set[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if not line.startswith('| `'):
            continue
        decision = next(cell for cell in cells if cell in DECISIONS)
        families = cells[1] if family else 'all'
        if families == 'all' or FAMILIES[family] in families.split(', '):
            for name in re.findall(r'`([^`]+)`', cells[0]):
                fields.setdefault(name, set()).add(decision)
    return fields


def config_class(family: str):
    transformers = pytest.importorskip('transformers')
    return {
        'bert': transformers.BertConfig,
        'gpt2': transformers.GPT2Config,
        'bart': transformers.BartConfig,
    }[family]


@pytest.mark.parametrize('family', FAMILIES)
def test_every_field_of_a_config_class_is_decided(family):
    kind = config_class(family)
    fields = {*inspect.signature(kind).parameters, *kind.attribute_map} - {'kwargs', 'self'}
    fields |= {name for name in vars(kind()) if not name.startswith('_')}
    assert not fields - decisions('config.json', family).keys()


@pytest.mark.parametrize('family', FAMILIES)
def test_refused_fields_of_config_json_are_refused(family):
    base = {'architectures': [ARCHITECTURES[family]], 'num_labels': 2}
    config_json.read('here', base)
    for field, kinds in decisions('config.json', family).items():
        if kinds != {'refused'}:
            continue
        values = base | ODD | {field: ODD.get(field, 'odd')}
        if field == 'tie_word_embeddings' and family == 'bert':
            values['architectures'] = ['BertForMaskedLM']
        if field != 'label2id':
            values.pop('label2id')
        with pytest.raises(UserError, match=rf'config.json has {field} = '):
            config_json.read('here', values)


def test_every_field_of_generation_config_is_decided():
    transformers = pytest.importorskip('transformers')
    fields = {name for name in vars(transformers.GenerationConfig()) if not name.startswith('_')}
    assert fields <= decisions('generation_config.json').keys()


def test_refused_fields_of_generation_config_are_refused():
    options = flags.arguments([], generate.FLAGS, config=False).options
    for field, kinds in decisions('generation_config.json').items():
        if kinds == {'refused'}:
            values = {'do_sample': True, field: 'odd'}
            with pytest.raises(UserError, match=rf'here has {field} = '):
                generate._settings(options, generation_config.read('here', values, network('gpt2')))


def test_every_argument_of_a_tokenizer_class_is_decided():
    transformers = pytest.importorskip('transformers')
    fields = decisions('The tokenizer').keys()
    for name in ('BertTokenizer', 'GPT2Tokenizer', 'RobertaTokenizer'):
        arguments = inspect.signature(getattr(transformers, name)).parameters
        assert {*arguments} - {'kwargs', 'self', 'args'} <= fields, name
    source = inspect.getsource(transformers.PreTrainedTokenizerBase.__init__)
    named = {*re.findall(r'kwargs\.pop\(\s*"(\w+)"', source)}
    internal = {'verbose', 'response_template', 'response_schema', 'chat_control_tokens'}
    internal |= {'model_specific_special_tokens', 'files_loaded', _FORCED_CLEAN_UP}
    assert named - internal <= fields


_FORCED_CLEAN_UP = 'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output'
