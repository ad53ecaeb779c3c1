"""Runs the plan of protocol `full` on one GPU, several students at a time: records, and logits of main methods.

    python tools/gpu.py students --data cifar100,cifar10 --graph --deadline 540 --out students --pack "$OUT"
    python tools/gpu.py students --tiny --out /tmp/students

Worker processes share the GPU. One more computes the teachers' outputs once for a data set and keeps them in a file in
`work_dir`, best in memory (/dev/shm); meanwhile students without teachers are trained. The order is that of
`ekd_nb.study.full`. A run writes its record when it ends. A second call goes on where the first stopped; what has a
record in `have` is not run again. No run begins that would not end before `deadline`. `pack_dir` gets all records in
one file and the logits in others, every half minute. Without git, `EKD_COMMIT` names the commit. `--tiny` goes the same
way with digits. With `--profile-s` the speed of one student is measured before others share the GPU.
"""
import time
START = time.perf_counter()
import gc, multiprocessing as mp, os, queue, tarfile, threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from fastcore.script import call_parse

from ekd_nb.core import write_atomic, write_json
from ekd_nb.study.full import MORE_SEEDS, plan_jobs
from ekd_nb.study.grid import GridConfig, make_job, run_job, uses_memo
from ekd_nb.study.methods import method
from ekd_nb.study.protocols import PROTOCOLS, protocol, training_rows
from ekd_nb.study.records import load_records, provenance, read_record, record_name
from ekd_nb.study.runs import method_learner
from ekd_nb.study.static import StaticStep, epoch_batches
from ekd_nb.study.training import fill_memo, get_teachers, make_memo, prepare_learner, run_dls

FILL_BS = 1024   # images at a time while the cache is filled
GUESS = 40.      # seconds of a run, before one has ended
PARTS = 'first,choices,rest,long,forms,more'


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


def memo_path(config, job):
    "File of the cache that serves a job: one for all seeds where all images are shown, else one for each seed"
    p = job.protocol
    return config.work/'memos'/f'{p.data}-{p.preset}-{"all" if p.per_class is None else job.seed}.safetensors'


class Prepared:
    "Teachers and the caches of their outputs; the last two are kept"
    def __init__(self, config): self.config, self.ready = config, {}

    def get(self, job):
        "(teachers, manifests, cache) for a job"
        path = memo_path(self.config, job)
        if path not in self.ready:
            while len(self.ready) > 1: self.ready.pop(next(iter(self.ready)))
            self.ready[path] = self.make(job, path)
        return self.ready[path]

    def make(self, job, path):
        c, p, data = self.config, job.protocol, self.config.images(job.protocol.data)
        teachers, manifests = get_teachers(p, data, job.seed, c.work/'teachers', 1., 'full', c.device, quiet)
        rows, _ = training_rows(p, data.y_train, job.seed)
        memo = make_memo(p, data, rows, teachers, c.device, True)
        fill_memo(memo, replace(p, bs=FILL_BS), data, rows, job.seed, path, c.device, quiet)
        return teachers, manifests, memo

    def of(self, job):
        "What a job needs of it"
        if not method(job.method).has_teacher: return None, (), None
        teachers, manifests, memo = self.get(job)
        return teachers, manifests, memo if uses_memo(job) else None


def broken(device):
    "Has an error left the GPU unusable for this process?"
    try:
        if device == 'cuda': torch.cuda.synchronize()
    except RuntimeError: return True
    return False


def work(tasks, results, config, tiny):
    "A worker: runs jobs until it gets None, or until its GPU is out of order"
    setup(tiny)
    torch.set_num_threads(config.threads)
    prepared = Prepared(config)
    for i, job in iter(tasks.get, None):
        results.put(('begun', i, os.getpid()))
        start, lines = time.perf_counter(), []
        try: _, record, error = run_job(job, config, lines.append, ready=prepared.of(job))
        except Exception as e: record, error = None, f'{type(e).__name__}: {e}'
        graph = next((s for s in lines if 'CUDA graph' in s), '')
        accuracy = record['test_accuracy'] if record else None
        results.put(('ended', i, accuracy, error, time.perf_counter()-start, graph))
        if error and broken(config.device): return
        gc.collect()   # a graph keeps its memory until it is gone
        if config.device == 'cuda': torch.cuda.empty_cache()


def fill(results, config, names, tiny, profile_s):
    "One more process: fills the caches, and measures the speed of a student"
    setup(tiny)
    torch.set_num_threads(config.threads)
    prepared = Prepared(config)
    for i, name in enumerate(names):
        try:
            prepared.get(make_job(protocol(name, 'full'), 'ekd', 0, 1., 'full'))
            rows = profile(name, config, prepared, profile_s) if profile_s and not i else {}
            results.put(('filled', name, rows, None))
        except Exception as e: results.put(('filled', name, {}, f'{type(e).__name__}: {e}'))


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
    def __init__(self, names, config, have, deadline, parts, most=None):
        self.names, self.config, self.deadline, self.parts, self.most = names, config, deadline, parts, most
        self.begun, self.cost, self.filling, self.seen, self.before = set(), {}, set(names), {}, {}
        for f in ('runs', 'choices') if have else ():
            self.before |= {(f, record_name(r)): r for r in load_records(Path(have)/f)}

    def records(self):
        "All that has ended, here and before: (folder, name) -> record"
        for f in ('runs', 'choices'):
            for path in (self.config.out/f).glob('*.json'):
                if path in self.seen: continue
                r = read_record(path)
                self.seen[path] = (f, record_name(r)), r
        return self.before | dict(self.seen.values())

    def waves(self, records):
        "Lists of jobs, each begun when the one before has been handed out"
        for part in self.parts:
            for name in self.names:
                choices = [r for (f, _), r in records.items() if f == 'choices' and r['data'] == name]
                yield plan_jobs(part, name, choices=choices)

    def waits(self, job):
        "Is the cache that a job needs still being filled?"
        p = job.protocol
        return p.per_class is None and p.data in self.filling and method(job.method).has_teacher

    def next(self):
        "A job that nobody has begun and that would end in time, or None"
        if len(self.begun) == self.most: return None
        records = self.records()
        for jobs in self.waves(records):
            for j in jobs:
                done = j.done(records, self.config.images(j.protocol.data).fingerprint)
                if j in self.begun or done or self.waits(j): continue
                known = self.cost.get(cost_key(j)) or max(self.cost.values(), default=GUESS)
                if elapsed()+1.2*known > self.deadline-5: continue
                self.begun.add(j)
                return j


def cost_key(job): return job.protocol.data, job.protocol.preset, job.protocol.epochs, job.method


def pack(out, folder):
    "All records in one file, the logits of each data set in one or two others"
    if folder is None: return
    Path(folder).mkdir(parents=True, exist_ok=True)
    groups = {'records.tgz': [f for d in ('runs', 'choices', 'failed') for f in sorted((out/d).glob('*.json'))]}
    for f in sorted((out/'logits').glob('*.safetensors')):
        more = '-more' if int(f.stem.rsplit('-s')[-1]) in MORE_SEEDS else ''
        groups.setdefault(f'logits-{f.name.split("-")[0]}{more}.tar', []).append(f)
    for name, files in groups.items():
        def write(path):
            with tarfile.open(path, 'w:gz' if name.endswith('gz') else 'w') as tar:
                for f in files: tar.add(f, f.relative_to(out))
        write_atomic(Path(folder)/name, write)


class Pool:
    "Worker processes, and the jobs they have"
    def __init__(self, n_workers, config, o):
        self.context = mp.get_context('spawn')
        self.tasks, self.results = self.context.Queue(), self.context.Queue()
        self.args = self.tasks, self.results, config, o.tiny
        self.workers, self.busy, self.pid = [self.start() for _ in range(n_workers)], {}, {}

    def start(self):
        w = self.context.Process(target=work, args=self.args, daemon=True)
        w.start()
        return w

    def fill(self, config, names, o):
        "Start the process that fills the caches"
        args = self.results, config, names, o.tiny, o.profile_s
        self.filler = self.context.Process(target=fill, args=args, daemon=True)
        self.filler.start()

    def give(self, i, job):
        self.busy[i] = job
        self.tasks.put((i, job))

    def replace_dead(self):
        "Start a worker for each that has ended; the jobs that died with them"
        dead = [w for w in self.workers if not w.is_alive()]
        self.workers = [w for w in self.workers if w.is_alive()] + [self.start() for _ in dead]
        gone = {w.pid for w in dead}
        return [i for i in self.busy if self.pid.get(i) in gone]

    def message(self):
        "The next message, or None after a second"
        try: return self.results.get(timeout=1)
        except queue.Empty: return None


def serve(jobs, pool, config, o, about):
    "Hand out jobs until none is left or the time is over; how many failed"
    failed, packed = 0, elapsed()
    def ended(i, accuracy, error, seconds, graph):
        job = pool.busy.pop(i, None)
        if job is None: return 0
        if not error: jobs.cost[cost_key(job)] = max(seconds, jobs.cost.get(cost_key(job), 0))
        log(f'{job.name}: {f"FAILED, {error}" if error else f"{accuracy:.2%}"}, {seconds:.1f} s. {graph}')
        return int(error is not None)
    def filled(name, rows, error):
        jobs.filling.discard(name)
        log(f'{name}: {error or "the cache of teacher outputs is ready"}')
        about['profile'] = about.get('profile', {}) | rows
        for what, v in rows.items(): log(f'{what}: {v["images_per_s"]:,.0f} images/s')
    while True:
        while len(pool.busy) < len(pool.workers) and (job := jobs.next()): pool.give(len(jobs.begun), job)
        if not pool.busy and not jobs.filling: break
        kind, *rest = pool.message() or ('nothing',)
        if kind == 'begun': pool.pid[rest[0]] = rest[1]
        if kind == 'filled': filled(*rest)
        if kind == 'ended': failed += ended(*rest)
        if kind == 'nothing' and jobs.filling and not pool.filler.is_alive():
            for name in list(jobs.filling): filled(name, {}, 'the cache: its process died, workers fill it')
        if kind == 'nothing': failed += sum(ended(i, None, 'its process died', 0., '') for i in pool.replace_dead())
        if elapsed()-packed > 30:
            pack(config.out, o.pack)
            packed = elapsed()
    for _ in pool.workers: pool.tasks.put(None)
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
    profile_s:float=0,           # seconds for measuring the speed; 0: not at all
    most:int=None,               # runs, at most
    parts:str=PARTS,             # of the plan, in this order
    graph:bool=False,            # a step as one CUDA graph?
    tiny:bool=False              # rehearse with digits
):
    "Train the students of the plan on one GPU"
    o = SimpleNamespace(tiny=tiny, pack=pack_dir, profile_s=profile_s)
    setup(tiny)
    if tiny: data, have, parts = 'digits', None, 'first,choices,rest'
    stop = threading.Timer(deadline-elapsed(), give_up, (out, pack_dir))
    stop.daemon = True
    stop.start()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    static = 'graph' if graph and device == 'cuda' else 'fixed'
    config, names = GridConfig(Path(out), Path(work_dir), None, device, threads, static), data.split(',')
    about = dict(provenance(device), workers=workers, engine=static)
    pool = Pool(workers, config, o)
    pool.fill(config, names, o)
    failed = serve(Jobs(names, config, have, deadline, parts.split(','), most), pool, config, o, about)
    pack(Path(out), pack_dir)
    if pack_dir: write_json(Path(pack_dir)/'profile.json', about)
    n = {f: len(load_records(Path(out)/f)) for f in ('runs', 'choices')}
    log(f'{n["runs"]} test runs, {n["choices"]} choices, {failed} failed')
    os._exit(int(bool(failed)))
