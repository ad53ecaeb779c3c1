"""Random combinations of data, student, teachers, loss, callbacks and export: `make fuzz` tries 500 and records it.

    python tools/fuzz.py [--n 500] [--seed 0] [--only I] [--out results/fuzz]

Each combination must either train, or be refused with one sentence before training. What trains must give the same
outputs with and without the cache of teacher outputs, after a resume, and after an export. Any other end is a fault.
"""
import argparse, copy, io, json, os, random, re, sys, tempfile, time, traceback, warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import fuzz_parts as parts
from ekd_nb.callbacks import NonFiniteLoss
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError, add_digest, eval_mode, output_distance, same_answers, write_json
from ekd_nb.deploy import deploy, export_student, load_student, save_student
from ekd_nb.learner import ekd_learner
from ekd_nb.student import StudentOutput

SHARE_ODD = .035 # of the draws of each part
PARTS = dict(data=parts.DATA, student=parts.STUDENTS, split=parts.SPLITS, branches=parts.BRANCHES, fusion=parts.FUSIONS,
             loss=parts.LOSSES, cbs=parts.CALLBACKS, memo=parts.MEMOS, precision=parts.PRECISIONS, fit=parts.FITS,
             layers=parts.HINT_LAYERS)
EXPORTS = ['learner', 'save_student', 'keep', 'fold', 'fused', 'resume', 'none', 'onnx', 'pt2']


class Fault(Exception): "Something was accepted or computed that should not have been"


class Stop(Exception): "Ends a run after its first epoch, as a killed process would"


def pick(rng, table):
    "A name of a table: mostly a usual one; names that begin with '?' may be refused, those with '!' have to be"
    odd = rng.random()<SHARE_ODD
    names = [n for n in table if (n[0] in '?!')==odd]
    return rng.choice(names or list(table))


def draw(seed, i):
    "Combination `i`: the name of each part"
    rng = random.Random(f'{seed}-{i}')
    case = dict(i=i, seed=seed, size=rng.choice([8, 12, 16, 16, 24, 32]))
    case |= dict(channels=rng.choice([1, 3, 3]), classes=rng.choice([2, 4, 10]))
    case |= {k: pick(rng, table) for k,table in PARTS.items()}
    case['teachers'] = [pick(rng, parts.TEACHERS) for _ in range(rng.choice([1, 2, 2, 3]))]
    if rng.random()<.1: case['teachers'] = pick(rng, parts.TEACHER_SETS)
    case['export'] = rng.choices(EXPORTS, [4, 4, 3, 3, 3, 3, 2, 1, 1])[0]
    return fitting(case) if rng.random()<.9 else case


def fitting(case):
    "Most draws of parts that never go together are changed"
    if case['loss'] in parts.ONE_BRANCH: case['branches'] = '1'
    if case['loss'] in parts.ONE_BRANCH | parts.PEERS and 'list' in case['student']: case['student'] = 'resnet8-w4'
    if case['loss']=='one': case['fusion'] = 'gate'
    if case['student'].startswith(('finished', '?Learner')): case |= dict(split='None', branches='None')
    if 'list' in case['student']: case['branches'] = 'None'
    return case


def must_refuse(case):
    "The wrong values of a combination"
    names = [v for k,v in case.items() if isinstance(v, str)]
    names += case['teachers'] if isinstance(case['teachers'], list) else []
    return [n for n in names if n[0]=='!']


class Watch(Callback):
    "Compare the cache of teacher outputs with the teachers themselves, batch by batch"
    order,run_valid = -4,False   # just after the teachers' outputs were put in
    def __init__(self): self.steps,self.worst = 0,0.
    def after_step(self): self.steps += 1
    def after_pred(self):
        distill = getattr(self.learn, 'distill', None)
        if distill is None or not distill.memo or not isinstance(self.learn.pred, StudentOutput): return
        live,got = distill.teachers(self.learn.xb[0]),self.learn.pred.teacher
        short = torch.is_autocast_enabled('cpu') or any(p.dtype.itemsize<4 for p in distill.teachers.parameters())
        tol = .05 if short else 5e-3
        pairs = [(live.logits, got.logits), *(zip(live.features, got.features) if distill.memo.features else [])]
        self.worst = max([self.worst, *[output_distance(a.float(), b.float())/tol for a,b in pairs]])


def build(case, folder, cbs=()):
    "The Learner of a combination, the same at every call"
    torch.manual_seed(case['i'])
    np.random.seed(case['i'])
    random.seed(case['i'])
    c = parts.Context(folder, *(case[k] for k in ('size', 'channels', 'classes', 'i')))
    c.dls = PARTS['data'][case['data']](c)
    names = case['teachers']
    c.teachers = parts.TEACHER_SETS[names](c) if isinstance(names, str) else [parts.TEACHERS[n](c) for n in names]
    arch,split,n = (PARTS[k][case[k]](c) for k in ('student', 'split', 'branches'))
    made = {k: PARTS[k][case[k]](c) for k in ('fusion', 'loss', 'memo', 'layers')}
    cbs = [*PARTS['cbs'][case['cbs']](c), *PARTS['precision'][case['precision']](c), *cbs]
    kw = dict(n_out=c.n_out) if c.n_out else {}
    kw |= dict(n_branches=n, split=split, fusion=made['fusion'], loss_func=made['loss'], memo=made['memo'],
              hints=made['layers'])
    return ekd_learner(c.dls, arch, c.teachers, cbs=cbs, path=folder, **kw)


def train(case, learn):
    with learn.no_bar(), learn.no_logging(): PARTS['fit'][case['fit']](learn)
    return learn


def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]


def expect_same(far, tol, what):
    if not far<=tol: raise Fault(f'{what}: outputs differ by {far:.2g} of their size')


def check_trained(learn, watch, before, fingerprint):
    "What must be true after every training"
    if not watch.steps: raise Fault('nothing was trained')
    if not all(p.isfinite().all() for p in weights(learn)): raise Fault('weights that are not finite')
    free = any(p.requires_grad for p in learn.model.parameters())
    if free and all(torch.equal(a, b) for a,b in zip(before, weights(learn))): raise Fault('no weight has moved')
    expect_same(watch.worst, 1., 'the cache of teacher outputs, in shares of what rounding allows')
    if fingerprint and learn.distill.teachers.fingerprint()!=fingerprint: raise Fault('a teacher has changed')


class StopAfterOne(Callback):
    def before_epoch(self):
        if self.learn.epoch==1: raise Stop('after one epoch')


def check_resume(case, folder):
    "A run that is stopped after its first epoch and started again ends as one that was not"
    whole = train(case, build(case, folder/'a', [Checkpoint(folder/'a'/'ck')]))
    stopped = build(case, folder/'b', [Checkpoint(folder/'b'/'ck'), StopAfterOne()])
    try: train(case, stopped)
    except Stop: pass
    resumed = train(case, build(case, folder/'b', [Checkpoint(folder/'b'/'ck')]))
    expect_same(output_distance(weights(whole), weights(resumed)), 1e-6, 'the resumed run')


def check_export(how, learn, x, folder):
    "What is exported and read back computes the same"
    model = learn.model
    with torch.no_grad(), eval_mode(model):
        want = model(x)
        z = model.trunk(x)
        branches = torch.stack([b(z)[0] for b in model.branches])
    if how=='learner':
        learn.export('l.pkl')
        same_answers(model, load_learner(folder/'l.pkl').model, x, 'the exported Learner')
    elif how=='save_student':
        path = save_student(learn, folder/'student')
        blank = model.keep(range(model.n_branches))
        for p in blank.parameters(): p.data.zero_()
        named = json.loads(path.with_suffix('.json').read_text())['arch'] is not None
        same_answers(model, load_student(path) if named else load_student(path, blank), x, 'the saved student')
    elif how=='keep':
        k = 1 + len(branches)//2
        kept = learn.keep(k)
        far = output_distance(branches[:k].mean(0), kept.model.eval()(x).detach())
        if model.fusion.name=='mean': expect_same(far, 1e-3, 'keep')
        same_answers(model, learn.keep(len(branches)).model, x, 'all branches kept')
        with kept.no_bar(), kept.no_logging(): kept.validate()
    elif how in ('fold', 'fused'):
        same_answers(model, deploy(model, fused=how=='fused'), x, 'the deployed student')
    elif how in ('onnx', 'pt2'): export_student(model, folder/f's.{how}', x)
    with torch.no_grad(), eval_mode(model): far = output_distance(want, model(x))
    expect_same(far, 1e-5, 'the student after its export')


def check(case, folder):
    "Train a combination and check it; returns the sentence with which its export was refused, or ''"
    watch = Watch()
    try:
        learn = build(case, folder, [watch])
        wrong,before = must_refuse(case),weights(learn)
        distill = getattr(learn, 'distill', None)
        fingerprint = distill.teachers.fingerprint() if distill else None
        train(case, learn)
    except EKDError as e:
        if watch.steps and not isinstance(e, NonFiniteLoss): raise Fault(f'refused after training began: {e}') from e
        raise
    if wrong: raise Fault(f'accepted: {", ".join(wrong)}')
    check_trained(learn, watch, before, fingerprint)
    if case['export']=='resume': check_resume(case, folder)
    x = next(iter(learn.dls.train))[0][:6].as_subclass(torch.Tensor)
    try: check_export(case['export'], learn, x, folder)
    except EKDError as e: return str(e)
    return ''


def kind(sentence):
    "A sentence without its numbers, names and shapes, to count by"
    s = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\(.*\)|/\S+", '…', sentence)
    return re.sub(r'-?\d[\d.,e+-]*', '#', s)[:140]


def outcome(case):
    "('trained', '' or why the export was refused), ('refused', sentence) or ('fault', what went wrong)"
    quiet = io.StringIO()
    with (tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings(),
          redirect_stdout(quiet), redirect_stderr(quiet)):
        warnings.simplefilter('ignore')
        try: return 'trained',check(case, Path(tmp))
        except EKDError as e:
            sentence = str(e).split(':\n\t', 1)[-1]   # fastai puts the callback's name before it
            return 'fault' if '\n' in sentence else 'refused',sentence
        except Exception as e:
            at = [f for f in traceback.extract_tb(e.__traceback__) if 'ekd_nb/' in f.filename]
            where = f' ({Path(at[-1].filename).name}:{at[-1].lineno})' if at else ''
            first = (str(e).splitlines() or [''])[0]
            return 'fault',f'{type(e).__name__}{where}: {first[:200]}'


def counted(sentences): return dict(Counter(kind(s) for s in sentences).most_common())


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=500, help='how many combinations')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--start', type=int, default=0, help='the first one')
    p.add_argument('--minutes', type=float, default=1e6, help='stop after so many, with a record of what was tried')
    p.add_argument('--only', type=int, help='run one combination again and show it')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'fuzz', help='folder of records')
    a = p.parse_args(args)
    torch.set_num_threads(1)
    if a.only is not None:
        print(json.dumps(draw(a.seed, a.only), indent=1), *outcome(draw(a.seed, a.only)), sep='\n')
        return
    from ekd_nb.study.records import provenance   # slow to import, and not needed by tests
    where,start,results = provenance('cpu'),time.perf_counter(),[]
    for i in range(a.start, a.start+a.n):
        case,began = draw(a.seed, i),time.perf_counter()
        if began-start>60*a.minutes: break
        results.append((case, *outcome(case)))
        if results[-1][1]=='fault': print(f'{i:4} {results[-1][2]}', flush=True)
        elif (secs := time.perf_counter()-began)>10: print(f'{i:4} took {secs:.0f} s', flush=True)
    ends = {end: [(c, text) for c,e,text in results if e==end] for end in ('trained', 'refused', 'fault')}
    print(', '.join(f'{len(v)} {k}' for k,v in ends.items()))
    a.out.mkdir(parents=True, exist_ok=True)
    write_json(a.out/f'n{len(results)}-s{a.seed}{f"-from{a.start}"*(a.start>0)}.json', add_digest(dict(
        schema=1, **where, seconds=round(time.perf_counter()-start, 1), seed=a.seed, start=a.start, n=len(results),
        trained=len(ends['trained']),
        refused=counted(text for _,text in ends['refused']), other=[dict(c, what=text) for c,text in ends['fault']],
        exported=dict(Counter(c['export'] for c,text in ends['trained'] if not text)),
        export_refused=counted(text for _,text in ends['trained'] if text),
        drawn={k: dict(sorted(Counter(str(c[k]) for c,*_ in results).items())) for k in PARTS if k!='teachers'})))
    return bool(ends['fault'])


if __name__ == '__main__': sys.exit(main())
