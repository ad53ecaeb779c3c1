"""Trains one run of each main method again and compares it with its record, digit by digit.

    python tools/verify.py
    python tools/verify.py --data cifar10 --preset small --teacher-data full --work .work

The first takes about a minute on the embedded digits. Exactly equal numbers can be expected of the same version of
PyTorch on the same kind of processor with the same number of threads; the versions are printed where they differ. A
record that is known to be stale (`is_stale`) is named and does not count.
"""
import sys, tempfile
from pathlib import Path

from fastcore.script import call_parse

from ekd_nb.core import library_versions
from ekd_nb.study.grid import GridConfig, make_job, run_job
from ekd_nb.study.methods import MAIN_METHODS
from ekd_nb.study.protocols import protocol
from ekd_nb.study.records import read_record
from ekd_nb.study.tables import is_stale

ROOT = Path(__file__).resolve().parents[1]
KEYS = 'test_accuracy', 'nll', 'ece', 'branch_accuracy', 'disagreement', 'curves'   # that are compared


def differences(record, now):
    "Keys whose numbers are not the same"
    return [k for k in KEYS if record.get(k) != now.get(k)]


def verify(names, data, preset, seed, teacher_data, work, log=print):
    "Run each method again: (name, record, new record, keys that differ)"
    res = []
    with tempfile.TemporaryDirectory() as out:
        for m in names:
            job = make_job(protocol(data, preset), m, seed, 1., teacher_data)
            path = ROOT/'results'/job.folder/f'{job.name}.json'
            if not path.is_file(): log(f'{job.name}: no record'); continue
            record = read_record(path)
            threads = int(record['device'].split(',')[1].split()[0]) if ', ' in record['device'] else None
            _, now, error = run_job(job, GridConfig(Path(out), Path(work), None, 'cpu', threads))
            if error: raise SystemExit(f'{job.name}: {error}')
            res.append((job.name, record, now, differences(record, now)))
            log(text(*res[-1]))
    return res


def text(name, record, now, differ):
    "One line about one run"
    if not differ: return f'{name}: {100*now["test_accuracy"]:.2f} %, the same in every digit'
    old, new = (100*r['test_accuracy'] for r in (record, now))
    stale = ' (a stale record)' if is_stale(record) else ''
    versions = {k: (v, library_versions()[k]) for k, v in record['versions'].items() if library_versions().get(k) != v}
    other = f'; made with {versions}' if versions else ''
    return f'{name}: {old:.2f} % in the record, {new:.2f} % now{stale}; {", ".join(differ)} differ{other}'


@call_parse
def main(
    data:str='digits',            # or cifar10, cifar100
    preset:str='quick',           # of the protocol
    methods:str=','.join(MAIN_METHODS), # names
    seed:int=0,
    teacher_data:str='same',      # or full
    work:str=None                 # folder of teachers and caches, kept; by default a temporary one
):
    "Compare new runs with their records"
    with tempfile.TemporaryDirectory() as tmp:
        found = verify(methods.split(','), data, preset, seed, teacher_data, work or tmp)
    wrong = [name for name, record, _, differ in found if differ and not is_stale(record)]
    print(f'{len(found)-len(wrong)} of {len(found)} runs are the same or known to be stale')
    sys.exit(int(bool(wrong) or not found))
