"""The plain data of each objective; `config.objective` names one.

An objective has two records: `OBJECTIVES` here holds plain data, without jax or NumPy, and
`OBJECTIVES` in `lightpaff_jax.data.objectives` holds the functions that build its batches. To add
an objective, add both records. All other modules read the records; none compares an objective's name.
"""

import dataclasses

GENERATION_METRICS = ('bleu', 'rouge1', 'rouge2', 'rougeL')  # scores of generated text
# How these scores divide text into words. default: as published scores do (sacrebleu's 13a;
# rouge-score's words of a to z and 0 to 9); others: by this tokenizer of sacrebleu.
TOKENIZE = ('default', 'intl', 'zh', 'char')

# Keys of `config.data` that change training rows: probabilities of changes first, then how.
AUGMENT_CHANGES = ('augment_mask', 'augment_replace', 'augment_span', 'augment_pairs')
AUGMENTATION = ('augment', *AUGMENT_CHANGES, 'augment_keep_labels')

# Scores of a validation, which generates no text -> whether higher is better.
VALIDATION_SCORES = {
    **dict.fromkeys(('ce', 'perplexity', 'word_perplexity', 'kl', 'matching'), False),
    **dict.fromkeys(('accuracy', 'f1', 'agreement'), True),
}
_SCORES_OF_TEACHER = ('kl', 'agreement')
_SCORES_OF_OUTPUTS = {
    'sums': ('ce', 'perplexity', 'accuracy', *_SCORES_OF_TEACHER),
    'rows': ('ce', 'perplexity', 'word_perplexity', 'accuracy', *_SCORES_OF_TEACHER),
    'logits': ('ce', 'f1', 'accuracy', *_SCORES_OF_TEACHER),
    'matching': ('matching',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective, as validation, evaluation and reports see it."""

    families: tuple[str, ...]
    """Families of networks that can learn it, of `config.FAMILIES`."""
    example_type: str
    """'documents', 'classes' or 'targets'. Any source can supply documents, from its texts."""
    head: str = 'lm'
    """Head of the network, one of `config.HEADS`."""
    outputs: str
    """Output of an evaluation step: 'sums' (loss sums over the batch), 'rows' (the same sums for each
    example), 'logits' (for each example) or 'matching' (sums of the matching losses)."""
    metrics: tuple[str, ...] = ('perplexity',)
    """Scores that can compare runs; the first is the default."""
    unit: str = 'token'
    """Unit that the scores count: 'token' or 'example'."""
    perplexity_unit: str = 'token'
    """Unit of perplexity, as a report names it."""
    min_length: int = 4
    """Minimum `data.length`; special tokens take part of it."""
    min_target_length: int = 0
    """Minimum `data.target_length`; 0 for an objective without targets."""
    keys: tuple[str, ...]
    """Configuration keys that only some objectives accept, this one included."""
    protocol: str
    """How scores are measured: a format string with the fields `blocks` and the keys of `data`."""
    note: str = ''
    """Optional remark of a report about the scores."""

    @property
    def validation_scores(self) -> tuple[str, ...]:
        """Names of the scores of a validation; the first one is its loss."""
        return _SCORES_OF_OUTPUTS[self.outputs]

    @property
    def teacher_scores(self) -> tuple[str, ...]:
        """Those of the scores of a validation that compare with a teacher."""
        return tuple(name for name in self.validation_scores if name in _SCORES_OF_TEACHER)


# 'mass' names both the family and its pre-training objective.
OBJECTIVES = {
    'clm': Objective(
        families=('gpt2',),
        example_type='documents',
        outputs='rows',
        min_length=1,
        keys=('data.packing', 'eval.stride'),
        protocol='{blocks}',
    ),
    'mlm': Objective(
        families=('bert',),
        example_type='documents',
        outputs='sums',
        perplexity_unit='predicted token',
        keys=('data.packing', 'data.mask_rate', 'data.whole_words', 'teacher.cache_epochs'),
        protocol='{mask_rate:.3g} of the tokens of {blocks}',
        note='Perplexity and accuracy count the masked tokens. ',
    ),
    'match': Objective(
        families=('bert',),
        example_type='documents',
        head='none',
        outputs='matching',
        metrics=('matching',),
        unit='row',
        keys=('data.packing',),
        protocol='{blocks}',
    ),
    'mass': Objective(
        families=('mass',),
        example_type='documents',
        outputs='sums',
        perplexity_unit='predicted token',
        # It does not read target_length, but a recipe's fine-tuning runs, which share `data`, do.
        keys=('data.packing', 'data.span_rate', 'data.target_length', 'teacher.cache_epochs'),
        protocol='a fragment of {span_rate:.3g} of {blocks}',
        note='Perplexity and accuracy count the tokens of the masked span. ',
    ),
    'classify': Objective(
        families=('bert',),
        example_type='classes',
        head='classify',
        outputs='logits',
        metrics=('accuracy', 'f1'),
        unit='example',
        keys=(
            *('data.buckets', 'data.unlabelled', 'data.unlabelled_share'),
            *(f'data.{key}' for key in AUGMENTATION),
        ),
        protocol='every example once, at most {length} tokens of it',
        note=(
            'Binomial error: √(p (1 - p) / n), the standard error of accuracy p over n test examples, '
            'averaged over seeds; the error over seeds does not include it. The error of a '
            'difference treats two students as independent, although they share the test examples. '
        ),
    ),
    'seq2seq': Objective(
        families=('mass',),
        example_type='targets',
        outputs='rows',
        metrics=('perplexity', *GENERATION_METRICS),
        min_target_length=2,
        keys=('data.buckets', 'data.target_length', 'eval.tokenize'),
        protocol='the right target before each token, at most {target_length} tokens',
        note='Tokens and words are those of the targets. ',
    ),
}


def objectives_of(family: str) -> tuple[str, ...]:
    """Returns the objectives that a family of networks can learn."""
    return tuple(name for name, record in OBJECTIVES.items() if family in record.families)
