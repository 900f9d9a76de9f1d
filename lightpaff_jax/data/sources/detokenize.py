"""Removes the spaces that WikiText and Penn Treebank files have around punctuation.

The rules are regular expressions, applied line by line; `<unk>` and the N of numbers stay as they
are. Tokenization loses information, so the result is close to the original text, not equal to it.
"""

import re

_CONTRACTION = r'(?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)\b'


def _rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


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
    """Returns a text of WikiText-2 or WikiText-103 as Wikipedia has it."""
    return '\n'.join(_apply(_WIKITEXT, line) for line in text.split('\n'))


def ptb(text: str) -> str:
    """Returns a text of the Penn Treebank, as in Mikolov's files or with its punctuation."""
    return '\n'.join(_apply(_PTB, line) for line in text.split('\n'))


def _apply(rules: list[tuple[re.Pattern[str], str]], line: str) -> str:
    line = line.strip(' ')
    for pattern, replacement in rules:
        line = pattern.sub(replacement, line)
    return line


# The functions of config.DETOKENIZERS.
DETOKENIZERS = {'none': lambda text: text, 'wikitext': wikitext, 'ptb': ptb}
