"""Ensemble Knowledge Distillation as notebooks: several teachers, one branched student, fastai training and measured results

A large network knows more than a small one can learn from labels alone. *Knowledge distillation* lets the small network, the **student**, also learn from the probabilities of a large one, its **teacher**. *Ensemble knowledge distillation*
([Asif, Tang and Harrer](https://arxiv.org/abs/1909.08097)) uses several different teachers and gives the student a **branch** for each: branches share a trunk, each learns from its own teacher and the labels, and their mean is the prediction."""

import warnings as _warnings
from importlib import import_module as _import_module
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec

__version__ = _version('ekd_nb')

# What importing fastai warns of, and no user of this package can change.
for _text in (r'`torch\.jit\.script` is deprecated', "The 'mode.chained_assignment' option is deprecated"):
    _warnings.filterwarnings('ignore', _text)

def __getattr__(name):
    "A module of the package, or a name of `ekd_nb.all`, imported when it is first used"
    if name.startswith('_'): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if _find_spec(f'{__name__}.{name}'): return _import_module(f'{__name__}.{name}')
    return getattr(_import_module(f'{__name__}.all'), name)
