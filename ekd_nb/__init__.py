"""Ensemble Knowledge Distillation as notebooks: several teachers, one branched student, fastai training and measured results

A small image classifier, the **student**, learns from labels and several large ones, its **teachers**. It has a shared trunk and a **branch** for each teacher; the branches' mean is its prediction. This is *Ensemble Knowledge Distillation*, EKD ([Asif, Tang and Harrer](https://arxiv.org/abs/1909.08097)), for PyTorch and fastai."""

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
