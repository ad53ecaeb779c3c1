"Parts of the loss and branches reach TensorBoard and Weights & Biases"
import json, sys
from pathlib import Path
from types import SimpleNamespace
import pytest
from fastai.callback.core import Callback
from fastai.learner import Recorder
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import learner
from ekd_nb.losses import EKDLoss


def fitted(*cbs, epochs=2):
    l = learner(loss_func=EKDLoss())   # hints whose weight follows a schedule
    l.fit(epochs, cbs=list(cbs))
    names = l.recorder.metric_names[1:-1]
    rows = [dict(zip(names, map(float, row))) for row in l.recorder.values]
    assert {*l.loss_func.term_names, 'gamma', 'accuracy', 'branch_0', 'branch_1'} <= set(names)
    return l, rows


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    l, rows = fitted(TensorBoardCallback(tmp_path, n_preds=2))
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in rows[0]:
        if name == 'train_loss': continue   # of every batch, not of the epoch
        got = [e.value for e in events.Scalars(name)]
        assert got == pytest.approx([r[name] for r in rows], abs=1e-5), name
    steps = [e.step for e in events.Scalars('branch_0')]
    assert steps == [len(l.dls.train)*(i+1) for i in range(2)]
    assert len(events.Scalars('train_loss')) >= 2*len(l.dls.train) and events.Tags()['graph']


class StandIn:
    "What fastai's callback uses of the package wandb"
    def __init__(self):
        self.run = SimpleNamespace(step=0, summary={})
        self.config, self.logged = SimpleNamespace(update=lambda *args, **kw: None), []
    def log(self, row, step=None):
        self.logged.append((step, row))
        self.run.summary.update(row)


def skip_config(monkeypatch):
    "fastai 2.8.12 with its fastcore cannot log the configuration of any Learner (`init_args` of a number)"
    monkeypatch.setattr('fastai.callback.wandb._format_config', lambda config: config)


def check_wandb(summary, rows):
    for name, value in rows[-1].items():
        if name != 'train_loss': assert float(summary[name]) == pytest.approx(value, abs=1e-6), name


def recipe(wandb):
    "The callback of the page"
    page = json.loads((Path(__file__).resolve().parents[1]/'nbs/tutorials/tracking.ipynb').read_text())
    cell = next(''.join(c['source']) for c in page['cells'] if 'class WandbRows' in ''.join(c['source']))
    names = dict(Callback=Callback, Recorder=Recorder, wandb=wandb)
    exec(cell, names)
    return names['WandbRows']()


def test_the_recipe_for_wandb_at_its_boundary():
    wandb = StandIn()
    l, rows = fitted(recipe(wandb))
    assert len(wandb.logged) == len(rows) == 2
    for i, (_, got) in enumerate(wandb.logged):
        assert got.pop('epoch') == i and got.keys() == rows[i].keys()
        assert got == pytest.approx(rows[i])
    l.add_cb(recipe(wandb))
    l.validate()
    l.lr_find(num_it=10, show_plot=False)
    assert len(wandb.logged) == 2   # epochs of training, nothing else


def test_the_recipe_for_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='Weights & Biases is not installed')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = wandb.init(project='ekd', mode='offline', dir=tmp_path)
    try:
        _, rows = fitted(recipe(wandb))
        summary = dict(run.summary)
        assert {k: float(summary[k]) for k in rows[-1]} == pytest.approx(rows[-1])
    finally: run.finish()
    assert list(Path(tmp_path).rglob('*.wandb'))


def test_fastais_callback_for_wandb(monkeypatch):
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    from fastai.callback.wandb import WandbCallback
    skip_config(monkeypatch)
    try: l, rows = fitted(WandbCallback(log_preds=False))
    finally: sys.modules.pop('fastai.callback.wandb', None)
    check_wandb(wandb.run.summary, rows)
    epochs = [row for _, row in wandb.logged if 'branch_1' in row]
    assert [row['branch_1'] for row in epochs] == pytest.approx([r['branch_1'] for r in rows])
    assert sum('raw_loss' in row for _, row in wandb.logged) == 2*len(l.dls.train)


def test_fastais_callback_for_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='Weights & Biases is not installed')
    from fastai.callback.wandb import WandbCallback
    skip_config(monkeypatch)
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = wandb.init(project='ekd', mode='offline', dir=tmp_path)
    try:
        _, rows = fitted(WandbCallback(log_preds=False))
        check_wandb(dict(run.summary), rows)
    finally: run.finish()
    assert list(Path(tmp_path).rglob('*.wandb'))
