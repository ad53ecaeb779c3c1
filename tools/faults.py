"""What happens to long runs, done on purpose: `make faults` prints how many trials succeeded, and records it.

    python tools/faults.py [--kills 20] [--damage 200] [--seed 0] [--out results/faults]

Each trial is a process of its own (forked, so that it starts at once). A run trains a small student with memo
and checkpoints.
"""
import argparse, io, json, os, random, resource, signal, sys, tempfile, time, warnings
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
from children import in_child
from compat import SMALL, dls, learner
from ekd_nb import checkpoint as checkpoint_module, core as core_module
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError, add_digest, write_json
from ekd_nb.study.records import provenance

EPOCHS = 4


def train(folder, epochs=EPOCHS, out=None):
    "One run, resumed if `folder` has checkpoints; its final weights as bytes"
    torch.manual_seed(1); np.random.seed(1); random.seed(1)
    learn = learner(dls(n=8, bs=16, n_views=2), memo=True, cbs=[Checkpoint(folder)])
    with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()): learn.fit_one_cycle(epochs, 1e-2)
    bits = b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())
    if out is not None:
        values = [[None if v is None else float(v) for v in row] for row in learn.recorder.values]
        write_json(out, add_digest(dict(weights=bits.hex(), values=values)))
    return bits


def wait(pid, timeout=120):
    "`'ok'`, `'failed'`, `'killed'`, or `'hung'` (then it is killed)"
    end = time.monotonic()+timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return 'killed' if os.WIFSIGNALED(status) else 'ok' if os.WEXITSTATUS(status) == 0 else 'failed'
        time.sleep(.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    return 'hung'


def die_at(step):
    "This process kills itself at its `step`-th act of writing: half a file, before a sync, around a rename"
    count = [0]
    def act(real, half=None):
        def g(*a, **kw):
            count[0] += 1
            if count[0] == step:
                if half: half(*a)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **kw)
        return g
    core_module.os.fsync, core_module.os.replace = act(os.fsync), act(os.replace)
    whole = Path.write_bytes
    Path.write_bytes = act(whole, lambda p, b: whole(p, bytes(b)[:len(b)//2]))


def kill_trials(n, seed=0, log=print, seen=None):
    "Kill `n` runs at a random moment or while they write, and resume them: do they end with the same bits?"
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        start = time.monotonic()
        assert wait(in_child(lambda: train(tmp/'whole', out=tmp/'whole.json'))) == 'ok', 'the undisturbed run failed'
        secs, want, held, died, late = time.monotonic()-start, (tmp/'whole.json').read_text(), 0, 0, 0
        while died < n and late < 5*n:
            folder, out = tmp/f'run{died+late}', tmp/f'run{died+late}.json'
            if died % 2:
                step = rng.randint(1, 3*2*EPOCHS)
                pid = in_child(lambda: (die_at(step), train(folder, out=out)))
                how = f'at act of writing {step}'
            else:
                pid, after = in_child(lambda: train(folder, out=out)), rng.random()*secs
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)
                how = f'after {after:.2f} s'
            if (end := wait(pid)) == 'ok': late += 1; continue   # it had finished: another moment
            again = wait(in_child(lambda: train(folder, out=out)))
            files = sorted(p.name for p in folder.iterdir())
            clean = sum(f.endswith('.pth') for f in files) == 2 and not any(f.endswith('.part') for f in files)
            same = out.exists() and out.read_text() == want
            held += (ok := end == 'killed' and again == 'ok' and same and clean)
            kind = 'in the middle of writing' if died % 2 else 'at a random moment'
            if seen is not None: seen.append(dict(kind=kind, how=how, held=ok))
            if not ok: log(f'  run {died}, {end} {how}, resumed: {again}, same bits and record: {same}, files: {files}')
            died += 1
        if late: log(f'  {late} runs had finished when they were to be killed, and were drawn again')
    return held, n


# ---- damage

class Payload:
    "A pickle that leaves a trace when it is executed"
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))


def kinds(tmp):
    "Kind of file -> (file, function that reads it and returns all it holds as text)"
    from ekd_nb import arrays
    from ekd_nb.memo import TeacherMemo, load_memo, save_memo
    from ekd_nb.models import get_model
    from ekd_nb.study.records import read_record
    from ekd_nb.teachers import TeacherEnsemble, load_teacher, save_teacher
    torch.manual_seed(0)
    def state(m): return repr([(k, v.numpy().tobytes()) for k, v in m.state_dict().items()])
    net = get_model(SMALL, 10, 1)
    weights = save_teacher(net, tmp/'t.safetensors', accuracy=.913)
    def read_weights():
        m = load_teacher(weights)
        return state(m)+json.dumps({k: v for k, v in m.manifest.items() if k != 'digest'}, sort_keys=True)

    d, ts = dls(), TeacherEnsemble([net, get_model(SMALL, 10, 1)])
    new = lambda: TeacherMemo(ts, d.train.rows, d.train.views, fingerprint='x')
    memo, b = new(), d.one_batch()[0]
    memo(b.key, b)
    memo_file = save_memo(memo, tmp/'memo.safetensors')
    def read_memo():
        m = load_memo(new(), memo_file)
        lists = [t.tolist() for t in (m.view_to_slot, m.n_filled, m.images)]
        return repr([m.table.numpy().tobytes(), *lists, m.shapes])

    rng = np.random.default_rng(0)
    npz, y = tmp/'cifar10.npz', np.arange(20) % 10
    x_train, x_test = (rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    np.savez(npz, x_train=x_train, y_train=y, x_test=x_test, y_test=y, classes=np.array(list('abcdefghij')))
    known = arrays.ImageArrays.from_arrays('cifar10', **arrays._read_npz(npz)).fingerprint
    def read_data():
        old = arrays.DATASETS['cifar10']
        arrays.DATASETS['cifar10'] = replace(old, fingerprint=known)
        try: a = arrays.load_images('cifar10', npz)
        finally: arrays.DATASETS['cifar10'] = old
        return repr([a.x_train.tobytes(), a.y_train.tobytes(), a.x_test.tobytes(), a.y_test.tobytes(), a.classes])

    folder = tmp/'run'
    train(folder, 1)
    ckpt = Checkpoint(folder).files()[-1]
    def read_checkpoint():
        c = Checkpoint(folder)
        c.n_fit, c.settings, c.learn = 0, [{}], learner(dls(n=8, bs=16, n_views=2))   # no settings to compare
        c.learn.n_epoch = 1
        s = c._newest()
        if s is None: raise EKDError('left out')
        out = io.BytesIO(); torch.save(s, out)
        return repr(out.getvalue())

    found = next(iter(sorted((ROOT/'results'/'runs').glob('*.json'))), None)
    record = tmp/(found.name if found else 'none.json')
    files = dict(weights=(weights, read_weights), manifest=(weights.with_suffix('.json'), read_weights),
                 memo=(memo_file, read_memo), data=(npz, read_data), checkpoint=(ckpt, read_checkpoint))
    if found:
        record.write_bytes(found.read_bytes())
        files['record'] = (record, lambda: json.dumps(read_record(record), sort_keys=True))
    return files


def read(reader):
    "What a file holds; `None` when it is refused with one of our sentences; the error when it is another"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return reader()
        except EKDError: return None
        except Exception as e: return e


def damage_trials(n, seed=0, log=print, seen=None):
    "`n` byte flips or truncations over every kind of file; how many were noticed or harmless"
    rng, held = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as tmp:
        files = kinds(Path(tmp))
        for kind in files: assert isinstance(read(files[kind][1]), str), (kind, read(files[kind][1]))
        for i in range(n):
            kind = list(files)[i % len(files)]
            path, reader = files[kind]
            good, want = path.read_bytes(), read(reader)
            bad, at = bytearray(good), rng.randrange(len(good))
            if rng.random() < .25: bad, what = bad[:at], f'cut at {at}'
            else:
                bit = 1 << rng.randrange(8)
                bad[at] ^= bit
                what = f'byte {at} ^ {bit}'
            path.write_bytes(bad)
            got = read(reader)
            path.write_bytes(good)
            held += (ok := got is None or got == want)
            how, end = 'cut short' if what.startswith('cut') else 'a bit flipped', 'harmless' if ok else 'wrong'
            if seen is not None: seen.append(dict(kind=kind, how=how, end='noticed' if got is None else end))
            if not ok: log(f'  {kind}, {what}: {"read as something else" if isinstance(got, str) else repr(got)}')
    return held, n


def payload_trials(log=print, seen=None):
    "A pickle with a payload in place of each kind of file: refused, and not executed"
    import pickle
    held = 0
    with tempfile.TemporaryDirectory() as tmp:
        files = kinds(Path(tmp))
        for kind, (path, reader) in files.items():
            trace, good = Path(tmp)/f'executed-{kind}', path.read_bytes()
            path.write_bytes(pickle.dumps(Payload(trace)))
            got = read(reader)
            path.write_bytes(good)
            held += (ok := got is None and not trace.exists())
            if seen is not None: seen.append(dict(kind=kind, held=ok))
            if not ok: log(f'  {kind}: {"executed" if trace.exists() else got!r}')
    return held, len(files)


# ---- the machine

def disk_full(tmp):
    "No file may grow beyond 20 kB: the run says so, ends, and leaves what was there"
    assert wait(in_child(lambda: train(tmp/'a', 1))) == 'ok'
    before = {p.name: p.read_bytes() for p in (tmp/'a').glob('*.pth')}
    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            train(tmp/'b', 2)
        texts = [str(w.message) for w in said]
        assert any('could not be written' in t and 'earlier checkpoints are intact' in t for t in texts)
    assert wait(in_child(run)) == 'ok'
    assert before == {p.name: p.read_bytes() for p in (tmp/'a').glob('*.pth')}
    assert not list((tmp/'b').glob('*.p*t*'))


def unwritable(tmp):
    "A folder that cannot be made, and one that may not be written to"
    (tmp/'file').touch()
    def refused(folder):
        try: train(folder, 1)
        except EKDError as e: assert 'cannot write checkpoints to' in str(e), e
        else: raise AssertionError('accepted')
    refused(tmp/'file')
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        locked = Path(open_to_all)/'locked'
        locked.mkdir(0o555)
        def as_nobody():
            if not os.geteuid():   # the administrator may write anywhere
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            refused(locked)
        assert wait(in_child(as_nobody)) == 'ok'
        assert not list(locked.iterdir())


def half_written(tmp):
    "What a killed process left half-written is removed, and never read"
    (tmp/'run').mkdir()
    (tmp/'run'/'.fit0-epoch0001-0123456789abcdef.pth.77.part').write_bytes(b'half')
    (tmp/'run'/'fit0-epoch0002-0123456789abcdef.pth').write_bytes(b'half')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert train(tmp/'run', 1) == train(tmp/'clean', 1)
    assert not list((tmp/'run').glob('.*.part'))


def clock_backwards(tmp):
    "The clock runs backwards, and files are dated in reverse: the newest checkpoint is that of the last epoch"
    real, step = time.time, [0]
    def back():
        step[0] += 1
        return real()-3600*step[0]
    want = train(tmp/'a')
    time.time = back
    try:
        train(tmp/'b')
        for i, p in enumerate(Checkpoint(tmp/'b').files()): os.utime(p, (1e9-i*1e6, 1e9-i*1e6))
        Checkpoint(tmp/'b').files()[-1].unlink()
        assert train(tmp/'b') == want
    finally: time.time = real


def two_runs(tmp):
    "A second run in the folder of a first is refused at once, names the first, and does not disturb it"
    r, w = os.pipe()
    def first():
        checkpoint_module.lock_folder((tmp/'run').absolute())
        os.write(w, b'x'); time.sleep(60)
    (tmp/'run').mkdir()
    pid = in_child(first)
    os.read(r, 1)
    start = time.monotonic()
    try: train(tmp/'run', 1)
    except EKDError as e: assert f'in use by another run (process {pid})' in str(e), e
    else: raise AssertionError('accepted')
    finally: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); os.close(r); os.close(w)
    assert time.monotonic()-start < 20
    train(tmp/'run', 1)   # the lock went with its process


MACHINE = (disk_full, unwritable, half_written, clock_backwards, two_runs)


KINDS = 'kind', 'how', 'end'   # of damage and what it led to

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=20)
    p.add_argument('--damage', type=int, default=200)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, default=ROOT/'results'/'faults', help='folder of records')
    a = p.parse_args(args)
    where, start = provenance('cpu'), time.perf_counter()
    kills, damage, payloads = [], [], []
    killed = 'killed with SIGKILL and resumed, weights and record bit for bit'
    results = {killed: kill_trials(a.kills, a.seed, seen=kills),
               'byte flips and truncations noticed or harmless': damage_trials(a.damage, a.seed, seen=damage),
               'pickles with a payload refused unexecuted': payload_trials(seen=payloads)}
    machine = []
    for f in MACHINE:
        with tempfile.TemporaryDirectory() as tmp:
            try: f(Path(tmp)); ok = 1
            except Exception as e: ok = 0; print(f'  {f.__name__}: {type(e).__name__}: {e}')
        results[f.__doc__] = ok, 1
        machine.append(dict(kind=f.__name__, what=f.__doc__, held=bool(ok)))
    for k, (held, n) in results.items(): print(f'{held:4} of {n:3}  {k}')
    a.out.mkdir(parents=True, exist_ok=True)
    kinds = Counter(tuple(d[k] for k in KINDS) for d in damage)
    write_json(a.out/f'kills{a.kills}-damage{a.damage}-s{a.seed}.json', add_digest(dict(
        schema=1, **where, seconds=round(time.perf_counter()-start, 1), seed=a.seed, epochs=EPOCHS,
        held={k: list(v) for k, v in results.items()}, kills=kills, payloads=payloads, machine=machine,
        damage=[dict(zip(KINDS, k), number=n) for k, n in sorted(kinds.items())])))
    return any(held < n for held, n in results.values())


if __name__ == '__main__': sys.exit(main())
