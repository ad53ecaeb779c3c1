"""The library's tests with the PyTorch of this interpreter, counted and recorded.

`make versions` runs it with torch 2.11 and torchvision 0.26.

    python tools/versions.py [--out results/versions] [argument of pytest ...]

Left out are the tests of the site, of tools and of constraints.txt. Tests that need CIFAR skip without `EKD_DATA`.
"""
import argparse, os, subprocess, sys, tempfile, time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_LIBRARY = ('test_preview.py', 'test_tools.py', 'test_lock.py', 'test_reliability.py')


def count(xml):
    "What pytest's JUnit file says: counts, names of what failed, what was skipped and why"
    cases = list(ET.parse(xml).iter('testcase'))
    name = lambda c: f"{c.get('classname').rsplit('.', 1)[-1]}::{c.get('name')}"
    failed = [name(c) for c in cases if c.find('failure') is not None or c.find('error') is not None]
    skipped = {name(c): c.find('skipped').get('message') for c in cases if c.find('skipped') is not None}
    return dict(passed=len(cases)-len(failed)-len(skipped), failed=len(failed), skipped=len(skipped),
                failures=failed, skips=skipped)


def tests(args=()):
    "Run pytest, and count"
    with tempfile.TemporaryDirectory() as tmp:
        xml, start = Path(tmp)/'tests.xml', time.perf_counter()
        what = args or [str(p) for p in sorted((ROOT/'tests').glob('test_*.py')) if p.name not in NOT_LIBRARY]
        options = '-q', '-p', 'no:cacheprovider', f'--junitxml={xml}'
        subprocess.run([sys.executable, '-m', 'pytest', *options, *what], cwd=ROOT)
        if not xml.exists(): raise SystemExit('pytest left no record of what it ran.')
        return dict(count(xml), seconds=round(time.perf_counter()-start, 1))


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, default=ROOT/'results'/'versions', help='folder of records')
    a, rest = p.parse_known_args(args)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    from ekd_nb.study.records import provenance
    from ekd_nb.core import add_digest, write_json
    where = provenance('cpu')   # before the tests: they take long, and the tree may change meanwhile
    found = tests(rest)
    short = lambda v: '.'.join(v.split('+')[0].split('.')[:2])
    path = a.out/f"torch-{short(where['versions']['torch'])}.json"
    if not rest:
        a.out.mkdir(parents=True, exist_ok=True)
        write_json(path, add_digest(dict(schema=1, **where, **found)))
    counts = ', '.join(f'{found[k]} {k}' for k in ('passed', 'failed', 'skipped'))
    print(f"torch {where['versions']['torch']}, torchvision {where['versions']['torchvision']}: {counts}")
    return found['failed'] > 0 or not found['passed']


if __name__ == '__main__': sys.exit(main())
