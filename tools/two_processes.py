"""Two processes train one student, beside one process with the same batches.

nbs/results/reliability.ipynb shows it, tests/test_distributed.py tests it.

    python tools/two_processes.py [--json out.json] [case ...]
    python tools/two_processes.py --record        # curves and batchnorm, to results/distributed

Every rank is a process of its own (gloo on the CPU, forked, so that it starts at once); what each returns is written
as JSON.
"""
import argparse, hashlib, json, os, random, signal, socket, sys, tempfile, time
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import numpy as np
import torch
from torch import nn
torch.set_num_threads(1)
import fastai.distributed
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.distributed import DistributedDL
from children import in_child
from compat import data, folder_dls, learner, teachers, three
from ekd_nb.callbacks import NonFiniteLoss
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.data import crop_flip, image_dls, stratified_subset
from ekd_nb.losses import EKDLoss


# ---- starting ranks

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(f, rank, world, port, out):
    "One rank; its process id"
    def run():
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                              MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        out.write_text(json.dumps(f()))
    return in_child(run, quiet=False, errors=f'{out}.err')


def launch(f, world=2, timeout=300):
    "`f` in every rank: for each `(exit status, what it returned, what it said)`; a rank that hangs is killed"
    with tempfile.TemporaryDirectory() as tmp:
        port, outs = free_port(), [Path(tmp)/f'{r}.json' for r in range(world)]
        pids, end, codes = [start(f, r, world, port, o) for r, o in enumerate(outs)], time.monotonic()+timeout, {}
        while len(codes) < world and time.monotonic() < end:
            for r, pid in enumerate(pids):
                if r in codes: continue
                if (done := os.waitpid(pid, os.WNOHANG))[0]: codes[r] = os.waitstatus_to_exitcode(done[1])
            time.sleep(.01)
        for r in set(range(world))-set(codes):
            os.kill(pids[r], signal.SIGKILL); os.waitpid(pids[r], 0)
            codes[r] = 'hung'
        answer = lambda r, o: json.loads(o.read_text()) if codes[r] == 0 else None
        return [(codes[r], answer(r, o), Path(f'{o}.err').read_text()) for r, o in enumerate(outs)]


def answers(f, world=2, **kw):
    "What each rank returned"
    out = launch(f, world, **kw)
    for code, _, err in out:
        if code: raise RuntimeError(f'a rank of {world} ended with {code}: {err[-800:]}')
    return [v for _, v, _ in out]


# ---- what they train

def rank(): return int(os.environ.get('RANK', 0))
def world(): return int(os.environ.get('WORLD_SIZE', 1))


def no_norm(drop=0., n_out=10):
    "A student without BatchNorm"
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Dropout(drop)),
                         nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
                         nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_out))


@contextmanager
def together(learn):
    "fastai's `distrib_ctx`, where there is more than one process"
    ctx = learn.distrib_ctx(cpu=True, sync_bn=False) if world() > 1 else nullcontext()
    with ctx, learn.no_bar(), redirect_stdout(StringIO()): yield learn


def make(seed=0, arch=None, n=16, bs=16, n_views=2, **kw):
    "A learner whose step has `bs` images, whatever the number of processes"
    torch.manual_seed(seed); np.random.seed(seed); random.seed(seed)
    dls = image_dls(data(), stratified_subset(data().y_train, n_per_class=n), bs=bs//world(), val_bs=400//world(),
                    n_views=n_views, seed=seed, device='cpu')
    loss = EKDLoss(1., .1, .1, hint_error='mse', hint_schedule=None)   # standardised hints use a process's own images
    defaults = dict(memo=True, loss_func=loss, split=1)   # heads would have a BatchNorm
    return learner(dls, arch or no_norm(), teachers(), **(defaults | kw))


class Curve(Callback):
    "The loss of every step, as the callbacks of this rank see it"
    run_valid, order, seen = False, 45, ()
    def before_train(self): self.seen = [*self.seen]
    def after_batch(self): self.seen.append(float(self.learn.loss))


def weights(learn): return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])
def digest(learn): return hashlib.sha256(weights(learn).numpy().tobytes()).hexdigest()[:16]
def rows(learn): return [[None if v is None else float(v) for v in r] for r in learn.recorder.values]


# ---- runs

def train(epochs=4):
    "A student without BatchNorm: the loss of each step, the record, the weights, the predictions, the memo"
    l, cb = make(), Curve()
    with together(l):
        l.fit_one_cycle(epochs, 1e-2, cbs=cb)
        record, (preds, targs) = rows(l), l.get_preds()
    memo = l.distill.memo
    return dict(losses=cb.seen, record=record, columns=list(l.recorder.metric_names[1:-1]),
                weights=weights(l).tolist(), preds=preds.flatten().tolist(), targs=targs.tolist(),
                misses=memo.misses, hits=memo.hits, known=int(memo.n_filled.sum()),
                entries=len(memo.images)*memo.n_views)


def norm(seeds=range(3), epochs=10):
    """A student with BatchNorm, each rank with the statistics of its own batches.
    Returns the loss of each epoch and the accuracy after the last, seed by seed."""
    out = []
    for s in seeds:
        l = make(s, 'resnet8-w8', n=30, bs=32, split=2)
        with together(l): l.fit_one_cycle(epochs, 2e-2)
        col = lambda k: l.recorder.metric_names.index(k)-1
        out.append(dict(seed=s, losses=[r[col('train_loss')] for r in rows(l)], accuracy=rows(l)[-1][col('accuracy')]))
    return out


def checkpointed(folder, *cbs, epochs=4):
    "A run with checkpoints, a CSV log and dropout, which throws other dice in each rank"
    l = make(arch=no_norm(.2), cbs=[Checkpoint(folder/'run')], path=folder)
    torch.manual_seed(100+rank())
    with together(l): l.fit_one_cycle(epochs, 1e-2, cbs=[CSVLogger('log.csv'), *cbs])
    return dict(weights=digest(l), record=rows(l))


class Die(Callback):
    "The last rank is killed in the middle of an epoch"
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == (2, 3) and rank() == world()-1:
            os.kill(os.getpid(), signal.SIGKILL)


def poisoned():
    "The loss of one rank becomes NaN: what each rank says"
    class Poison(Callback):
        order, run_valid = 5, False
        def after_loss(self):
            if self.iter == 2 and rank() == 0: self.learn.loss = self.learn.loss*float('nan')
    l = make()
    try:
        with together(l): l.fit(1, cbs=Poison())
    except NonFiniteLoss as e: return str(e)


def folders():
    "Images from files, with fastai's loaders and transforms"
    torch.manual_seed(0)
    l = learner(folder_dls(bs=4), ts=three())
    with together(l):
        l.fit(2, 1e-2)
        record, (preds, targs) = rows(l), l.get_preds()
    want = [int(y) for _, y in l.dls.valid_ds]
    return dict(weights=digest(l), record=record, n=len(preds), targs=targs.tolist(), want=want)


def wrapped():
    "Our loader in fastai's own DistributedDL, as a plain Learner would have it: the keys of two epochs"
    class OnCpu(DistributedDL):
        def _broadcast(self, t, rank): return t
    dl, keys = make().dls.train, []
    for epoch in range(2):
        seen = []
        for x, y in OnCpu(dl, rank=rank(), world_size=world()):
            want = dl.after_batch((dl.dataset.image_type(crop_flip(dl.store.x[x.key.idx], x.key.view, dl.views)), y))[0]
            assert torch.equal(x, want) and torch.equal(y, dl.store.y[x.key.idx])
            seen += list(zip(x.key.idx.tolist(), x.key.view.tolist()))
        keys.append(seen)
    return dict(keys=keys, epoch=dl.epoch)


# ---- cases: what a page or a test looks at

CASES = {}
def case(f):
    CASES[f.__name__] = f
    return f


@case
def curves(): return dict(one=answers(train, 1)[0], two=answers(train, 2))


@case
def batchnorm(): return dict(one=answers(lambda: norm(range(5)), 1)[0], two=answers(lambda: norm(range(5)), 2))


@case
def resume():
    "An undisturbed run of two processes, one whose second process is killed, the same started again"
    with tempfile.TemporaryDirectory() as tmp:
        whole, run = Path(tmp)/'whole', Path(tmp)/'run'
        out = dict(whole=answers(lambda: checkpointed(whole)))
        begin = time.monotonic()
        out['killed'] = [c for c, *_ in launch(lambda: checkpointed(run, Die()))]
        out['seconds'] = time.monotonic()-begin
        out['again'] = answers(lambda: checkpointed(run))
        code, _, err = launch(lambda: checkpointed(run), 1)[0]
        names = lambda folder: (p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
        files = lambda folder: sorted(n.split('-')[:2] for n in names(folder))
        log = lambda folder: (folder/'log.csv').read_text().splitlines()
        return dict(out, alone=err.strip().splitlines()[-1] if code else '', files=files(run), files_whole=files(whole),
                    log=log(whole), log_again=log(run))


@case
def nan(): return dict(said=answers(poisoned))


@case
def from_files(): return dict(two=answers(folders))


@case
def fastais_own(): return dict(two=answers(wrapped))


def far(a, b): return max(abs(x-y) for x, y in zip(a, b, strict=True))


def record(out, folder):
    "What one and two processes did, as a sealed record; its path"
    from ekd_nb.study.records import provenance
    from ekd_nb.core import add_digest, write_json
    c, b = out['curves'], out['batchnorm']
    one, two = c['one'], c['two']
    farthest = {k: max(far(one[k], r[k]) for r in two) for k in ('losses', 'weights', 'preds')}
    calls = dict(one=one['misses'], two=[r['misses'] for r in two], entries=one['entries'])
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_json(Path(folder)/'gloo-2.json', add_digest(dict(
        schema=1, **provenance('cpu'), processes=2, backend='gloo',
        curves=dict(one=one['losses'], two=[r['losses'] for r in two], farthest=farthest, teacher_calls=calls),
        batchnorm=dict(one=b['one'], two=b['two'][0], ranks_agree=b['two'][0] == b['two'][1]))))


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('cases', nargs='*', help=', '.join(CASES))
    p.add_argument('--json', help='where the answers go')
    p.add_argument('--record', action='store_true',
                   help='run what a page shows (curves, batchnorm) and write the record to results/distributed')
    a, out = p.parse_args(args), {}
    for name in ['curves', 'batchnorm'] if a.record else a.cases or CASES:
        begin = time.perf_counter()
        out[name] = CASES[name]()
        print(f'{name:14}{time.perf_counter()-begin:5.0f} s', flush=True)
    if a.record: print(record(out, HERE.parent/'results'/'distributed'))
    if a.json: Path(a.json).write_text(json.dumps(out))


if __name__ == '__main__': sys.exit(main())
