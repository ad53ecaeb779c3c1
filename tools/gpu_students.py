"""Runs the plan of protocol `full` on one GPU, several students at a time: records, and logits of main methods.

    python tools/gpu.py students --data cifar100,cifar10 --graph --deadline 540 --out students --pack "$OUT"
    python tools/gpu.py students --tiny --out /tmp/students

The teachers' outputs are computed once for a data set and kept in a file in `work`, best in memory (/dev/shm). Then
the speed of one student is measured, and worker processes share the GPU. The order is that of
`ekd_nb.study.full`: the first methods, the candidates of other methods on held-out images, the rest. A run writes its
record when it ends. A second call goes on where the first stopped; what has a record in `have` is not run again. No run
begins that would not end before `deadline`. `pack` gets all records in one file and the logits of each data set in
another, every half minute. Without git, `EKD_COMMIT` names the commit. `--tiny` goes the same way with digits. The CUDA
graph of a student could not be tried where this was written: it is off by default.
"""
import time
START = time.perf_counter()
import gc, multiprocessing as mp, os, tarfile, threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from fastcore.script import call_parse

from ekd_nb.core import write_atomic, write_json
from ekd_nb.study.full import plan_jobs
from ekd_nb.study.grid import GridConfig, make_job, run_job, uses_memo
from ekd_nb.study.methods import method
from ekd_nb.study.protocols import PROTOCOLS, protocol, training_rows
from ekd_nb.study.records import load_records, provenance, record_name
from ekd_nb.study.runs import method_learner
from ekd_nb.study.static import StaticStep, epoch_batches
from ekd_nb.study.training import fill_memo, get_teachers, make_memo, prepare_learner, run_dls

FILL_BS = 1024   # images at a time while the cache is filled
GUESS = 40.      # seconds of a run, before one has ended
PARTS = 'first', 'choices', 'rest'


def elapsed(): return time.perf_counter() - START
def log(text): print(f'[{elapsed():6.1f} s] {text}', flush=True)
def quiet(*args): pass


def add_tiny():
    "A protocol `full` of digits: the same way in seconds"
    full = protocol('cifar10', 'full')
    same = {k: getattr(full, k) for k in ('tau', 'alpha', 'beta', 'gamma', 'lam', 'hint_error', 'hint_schedule')}
    small = dict(teachers=('resnet8-w8', 'wrn_10_1'), epochs=2, teacher_epochs=1, n_views=2, hint_cells=2, bs=128)
    PROTOCOLS['digits', 'full'] = replace(protocol('digits'), preset='full', per_class=None, **small, **same)


def setup(tiny):
    "What every process does first"
    if tiny: add_tiny()
    torch.backends.cudnn.allow_tf32 = False   # training is in bfloat16, evaluation in float32


class Prepared:
    "Teachers and the cache of their outputs for one data set at a time"
    def __init__(self, config, paths): self.config, self.paths, self.name, self.ready = config, paths, None, None

    def get(self, name):
        "(teachers, manifests, cache); the last data set's are let go of first"
        if name == self.name: return self.ready
        self.ready, self.name = None, None
        c, p, data = self.config, protocol(name, 'full'), self.config.images(name)
        where = c.work/'teachers', 1., 'full', c.device
        teachers, manifests = get_teachers(p, data, 0, *where, quiet)
        rows, _ = training_rows(p, data.y_train, 0)
        memo = make_memo(p, data, rows, teachers, c.device, True)
        fill_memo(memo, replace(p, bs=FILL_BS), data, rows, 0, self.paths[name], c.device, quiet)
        self.name, self.ready = name, (teachers, manifests, memo)
        return self.ready

    def of(self, job):
        "What a job needs of it"
        if not method(job.method).has_teacher: return None, (), None
        teachers, manifests, memo = self.get(job.protocol.data)
        return teachers, manifests, memo if uses_memo(job) else None


def work(tasks, results, config, paths, threads, tiny):
    "A worker: runs jobs until it gets None"
    setup(tiny)
    torch.set_num_threads(threads)
    prepared = Prepared(config, paths)
    for i, job in iter(tasks.get, None):
        start, lines = time.perf_counter(), []
        try: _, record, error = run_job(job, config, lines.append, ready=prepared.of(job))
        except Exception as e: record, error = None, f'{type(e).__name__}: {e}'
        graph = next((s for s in lines if 'CUDA graph' in s), '')
        accuracy = record['test_accuracy'] if record else None
        gc.collect()   # a graph keeps its memory until it is gone
        if config.device == 'cuda': torch.cuda.empty_cache()
        results.put((i, accuracy, error, time.perf_counter()-start, graph))


def profile(name, config, prepared, seconds):
    "Seconds of a step of `plain` and `ekd`, as it is and as a graph"
    p, data, rows = protocol(name, 'full'), config.images(name), {}
    train, valid = training_rows(p, data.y_train, 0)
    for m in ('plain', 'ekd'):
        for graph in (False, True) if config.device == 'cuda' else (False,):
            teachers, manifests, memo = prepared.of(make_job(p, m, 0, 1., 'full'))
            dls = run_dls(p, data, train, valid, 0, config.device)
            learn, *_ = method_learner(p, method(m), data, dls, 0, teachers, manifests, memo)
            step = StaticStep(prepare_learner(learn, p, m, quiet), p.precision)
            step.model.to(step.device).train()
            batches = [b for b in epoch_batches(step.dl, step.memo) if b.shape[1] == p.bs]
            if graph and not step.capture(batches[0], log): continue
            rows[f'{m}, {"graph" if graph else "single kernels"}'] = timed(step, batches, seconds/4)
    return rows


def timed(step, batches, seconds):
    "Images a second, forward and backward"
    for b in batches[:3]: step(b)
    step.smooth.item()   # waits for the device
    n, start = 0, time.perf_counter()
    while time.perf_counter()-start < seconds:
        for _ in range(10):
            step(batches[n % len(batches)])
            n += 1
        step.smooth.item()
    per_step = (time.perf_counter()-start)/n
    return dict(step_s=per_step, images_per_s=batches[0].shape[1]/per_step)


class Jobs:
    "What is to be run, in the order of the plan"
    def __init__(self, names, config, have, deadline, most=None):
        self.names, self.config, self.deadline, self.most = names, config, deadline, most
        self.begun, self.cost = set(), {}
        self.before = self.in_folder(have) if have else {}

    def in_folder(self, folder):
        "(folder, name) -> record"
        found = {f: load_records(folder/f, preset='full') for f in ('runs', 'choices')}
        return {(f, record_name(r)): r for f, rs in found.items() for r in rs}

    def records(self):
        "All that has ended, here and before"
        return self.before | self.in_folder(self.config.out)

    def waves(self, records):
        "Lists of jobs, each begun when the one before has been handed out"
        for part, names in (('first', self.names), *((p, [n]) for n in self.names for p in PARTS[1:])):
            for name in names:
                choices = [r for (f, _), r in records.items() if f == 'choices' and r['data'] == name]
                yield plan_jobs(part, name, choices=choices)

    def next(self):
        "A job that nobody has begun and that would end in time, or None"
        if len(self.begun) == self.most: return None
        records = self.records()
        for jobs in self.waves(records):
            for j in jobs:
                done = j.done(records, self.config.images(j.protocol.data).fingerprint)
                known = self.cost.get((j.protocol.data, j.method)) or max(self.cost.values(), default=GUESS)
                if j in self.begun or done or elapsed()+1.2*known > self.deadline-5: continue
                self.begun.add(j)
                return j


def pack(out, folder):
    "All records in one file, the logits of each data set in another"
    if folder is None: return
    groups = {'records.tgz': [f for d in ('runs', 'choices', 'failed') for f in sorted((out/d).glob('*.json'))]}
    for f in sorted((out/'logits').glob('*.safetensors')):
        groups.setdefault(f'logits-{f.name.split("-")[0]}.tar', []).append(f)
    for name, files in groups.items():
        def write(path):
            with tarfile.open(path, 'w:gz' if name.endswith('gz') else 'w') as tar:
                for f in files: tar.add(f, f.relative_to(out))
        write_atomic(Path(folder)/name, write)


def serve(jobs, n_workers, config, paths, o):
    "Hand out jobs until none is left or the time is over; how many failed"
    context = mp.get_context('spawn')
    tasks, results, failed, busy, packed = context.Queue(), context.Queue(), 0, {}, elapsed()
    args = tasks, results, config, paths, o.threads, o.tiny
    workers = [context.Process(target=work, args=args, daemon=True) for _ in range(n_workers)]
    for w in workers: w.start()
    while True:
        while len(busy) < n_workers and (job := jobs.next()):
            busy[len(jobs.begun)] = job
            tasks.put((len(jobs.begun), job))
        if not busy: break
        i, accuracy, error, seconds, graph = results.get()
        job = busy.pop(i)
        key = job.protocol.data, job.method
        jobs.cost[key] = max(seconds, jobs.cost.get(key, 0))
        failed += error is not None
        log(f'{job.name}: {f"FAILED, {error}" if error else f"{accuracy:.2%}"}, {seconds:.1f} s. {graph}')
        if elapsed()-packed > 30:
            pack(config.out, o.pack)
            packed = elapsed()
    for _ in workers: tasks.put(None)
    return failed


def give_up(out, folder):
    "At the deadline: bring what there is, and end every process"
    log('deadline: stopped')
    pack(Path(out), folder)
    for w in mp.active_children(): w.kill()
    os._exit(3)


@call_parse
def main(
    data:str='cifar100,cifar10', # data sets, in this order
    out:Path='students',         # folder of records and logits
    have:Path='results',         # folder of records that need not be made again
    work_dir:Path='/dev/shm/ekd', # folder of the cache of teacher outputs
    pack_dir:Path=None,          # folder that gets everything in few files
    workers:int=6,               # processes
    threads:int=2,               # of each, for what the CPU does
    deadline:float=540,          # seconds after its start at which the script has ended
    profile_s:float=20,          # seconds for measuring the speed; 0: not at all
    most:int=None,               # runs, at most
    graph:bool=False,            # a step as one CUDA graph?
    tiny:bool=False              # rehearse with digits
):
    "Train the students of the plan on one GPU"
    o = SimpleNamespace(threads=threads, tiny=tiny, pack=pack_dir)
    setup(tiny)
    if tiny: data, have = 'digits', None
    stop = threading.Timer(deadline-elapsed(), give_up, (out, pack_dir))
    stop.daemon = True
    stop.start()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    static = 'graph' if graph and device == 'cuda' else 'fixed'
    config = GridConfig(Path(out), Path(work_dir), None, device, threads, static)
    names = data.split(',')
    paths = {n: Path(work_dir)/'memos'/f'{n}.safetensors' for n in names}
    prepared, about = Prepared(config, paths), dict(provenance(device), workers=workers, engine=static)
    for name in names:
        prepared.get(name)
        log(f'{name}: teachers and the cache of their outputs are ready')
        if profile_s and name == names[0]: about['profile'] = profile(name, config, prepared, profile_s)
    for what, v in about.get('profile', {}).items(): log(f'{what}: {v["images_per_s"]:,.0f} images/s')
    if pack_dir: write_json(Path(pack_dir)/'profile.json', about)
    prepared.ready = None
    if device == 'cuda': torch.cuda.empty_cache()
    failed = serve(Jobs(names, config, have, deadline, most), workers, config, paths, o)
    pack(Path(out), pack_dir)
    n = {f: len(load_records(Path(out)/f)) for f in ('runs', 'choices')}
    log(f'{n["runs"]} test runs, {n["choices"]} choices, {failed} failed')
    os._exit(int(bool(failed)))
