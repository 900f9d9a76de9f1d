"""Undoes the spaces that WikiText and Penn Treebank files put around punctuation.

Rules of regular expressions, line by line; `<unk>` and the N of numbers stay as they are. What a
tokenizer took apart cannot always be told, so this is close to the original text, not equal to it.
"""

import re

_CONTRACTION = r'(?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)\b'


def _rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), to) for pattern, to in pairs]


_WIKITEXT = _rules(
    (r' @([-,.])@ ', r'\1'),  # red @-@ tipped, 20 @,@ 000, 0 @.@ 59
    (r'(?<==) (?==)', ''),  # = = Heading = =
    (rf" '({_CONTRACTION})", r"'\1"),  # Valkyria 's, couldn 't
    (r"(?<=[sS]) '(?= |$)", "'"),  # the players ' union
    (r"(?<!\S)' ([^']+?) '(?!\w)", r"'\1'"),
    (r'" ([^"]+?) "', r'"\1"'),
    (r'([(\[{]) ', r'\1'),
    (r' ([)\]}])', r'\1'),
    (r' ([.,;:!?%]|\.\.\.)(?=[ "\')\]}]|$)', r'\1'),
    (r'([$£€¥]) (?=[\d<])', r'\1'),
)
_PTB = _rules(
    (rf" (n't|'{_CONTRACTION})(?![\w'])", r'\1'),
    (r"(?<=s) '(?= |$)", "'"),  # the traders ' pit
    (r'-lrb- ?', '('),
    (r' ?-rrb-', ')'),
    (r'-lcb- ?', '{'),
    (r' ?-rcb-', '}'),
    (r'`` ?', '"'),
    (r" ?''", '"'),
    (r'([$#]) (?=[\dN]\b|[\d.]+|<)', r'\1'),
    (r' %', '%'),
    (r' ([.,;:!?])(?= |$)', r'\1'),
    (r'(?<=\w) & (?=\w\b)', '&'),  # s & p, a & e; not johnson & johnson
)


def wikitext(text: str) -> str:
    """Text of WikiText-2 or WikiText-103 as Wikipedia has it."""
    return '\n'.join(_apply(_WIKITEXT, line) for line in text.split('\n'))


def ptb(text: str) -> str:
    """Text of the Penn Treebank, of Mikolov's files or with their punctuation."""
    return '\n'.join(_apply(_PTB, line) for line in text.split('\n'))


def _apply(rules: list[tuple[re.Pattern[str], str]], line: str) -> str:
    line = line.strip(' ')
    for pattern, to in rules:
        line = pattern.sub(to, line)
    return line


# Of DETOKENIZERS in config.py, which has 'none' too.
DETOKENIZERS = {'none': lambda text: text, 'wikitext': wikitext, 'ptb': ptb}
