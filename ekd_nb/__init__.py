"""Ensemble Knowledge Distillation as notebooks: several teachers, one branched student, fastai training and measured results

A large network knows more than a small one can learn from labels alone. *Knowledge distillation* lets the small network, the **student**, also learn from the probabilities of a large one, its **teacher**. *Ensemble knowledge distillation*
([Asif, Tang and Harrer](https://arxiv.org/abs/1909.08097)) uses several different teachers and gives the student a **branch** for each: branches share a trunk, each learns from its own teacher and the labels, and their mean is the prediction."""

from importlib.metadata import version as _version
__version__ = _version('ekd_nb')
