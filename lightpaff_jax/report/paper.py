"""What is known of the paper's own figures (LightPAFF, arXiv 2004.12817), each with how sure it is.

No code was released, and of the paper its abstract alone was read at the source. So a figure has a
mark, a cell that is not known stays empty, and nothing is filled in.
"""

from typing import NamedTuple

MARKS = {
    'A': 'in the abstract',
    'S': 'seen in another publication that reports it',
    'I': 'inferred by arithmetic',
    'U': 'remembered, not seen',
}
"""Mark -> where a figure comes from."""
CLAIM = (
    'The abstract of the paper says: nearly 5x smaller, 5x to 7x faster, at a similar accuracy '
    'over the nine tasks [A]'
)


class Cell(NamedTuple):
    """One figure as it is printed, its mark, and what it is of where the column does not say."""

    text: str
    mark: str
    of: str = ''

    def __str__(self) -> str:
        return f'{self.text} [{self.mark}]'


class Network(NamedTuple):
    """A model of the paper; None is not known."""

    name: str
    parameters: Cell | None
    ratio: Cell | None
    """The teacher's parameters over its own."""


class Task(NamedTuple):
    """A task of the paper: other names of it, and its two scores; None is not known."""

    aliases: tuple[str, ...] = ()
    teacher: Cell | None = None
    student: Cell | None = None


class Family(NamedTuple):
    """The paper's models and tasks of one architecture."""

    teacher: Network
    student: Network
    tasks: dict[str, Task]


_OF_MASS = 'of MASS itself'
FAMILIES = {
    'bert': Family(
        Network('BERT-base', Cell('110 M', 'I'), None),
        Network('LightPAFF', Cell('25.6 M', 'I'), Cell('4.27x', 'I')),
        {
            'SST-2': Task((), Cell('93.5', 'S', 'of the test server'), Cell('92.9', 'S')),
            'QQP': Task((), Cell('71.2 / 89.2', 'S'), Cell('- / 88.6', 'S')),
            'Polarity': Task(('Yelp polarity', 'MR')),
        },
    ),
    'gpt2': Family(
        Network('GPT-2 medium', Cell('355 M', 'I'), None),
        Network('LightPAFF', Cell('67 M', 'U'), Cell('5.24x', 'I')),
        {
            'WikiText-2': Task((), None, Cell('18.8', 'U')),
            'PTB': Task((), None, Cell('22.8', 'U')),
            'WikiText-103': Task((), None, Cell('16.4', 'U')),
        },
    ),
    'mass': Family(
        Network(
            'MASS',
            Cell('208 – 309 M', 'I', 'for summarization and dialogue, and for translation'),
            None,
        ),
        Network('LightPAFF', None, None),
        {
            'translation': Task(
                ('Ro-En', 'WMT16 Ro-En'),
                Cell('39.1', 'S', f'{_OF_MASS}, supervised, Romanian to English'),
            ),
            'summarization': Task(
                ('Gigaword', 'Gigaword summarization'),
                Cell('38.73 / 19.71 / 35.96', 'S', f'{_OF_MASS}, with 123 M parameters'),
            ),
            'dialogue': Task(
                ('Cornell', 'Cornell dialogue', 'Cornell movie dialogue'),
                Cell('23.52', 'S', _OF_MASS),
            ),
        },
    ),
}
"""Family -> what is known of it in the paper."""


def _plain(name: str) -> str:
    return ''.join(letter for letter in name.lower() if letter.isalnum())


def task(family: str, name: str) -> tuple[str, Task] | None:
    """The paper's task of this name and what it calls it, or None: case and signs do not count."""
    for own, found in FAMILIES[family].tasks.items():
        if _plain(name) in map(_plain, (own, *found.aliases)):
            return own, found
    return None
