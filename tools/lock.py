"""The exact versions of this environment, written to constraints.txt: `make lock`.

    python tools/lock.py [--check]

Only what ekd_nb and its development requirements bring along. CUDA's packages are left out: each build of PyTorch
names its own.
"""
import argparse, platform, sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT/'constraints.txt'
CUDA = ('nvidia-', 'cuda-')


def direct(kinds=('requirements', 'dev_requirements')):
    "What settings.ini asks for"
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return [Requirement(r) for k in kinds for r in ini['DEFAULT'][k].split()]


def closure():
    "Name -> version of the requirements, and of theirs, as installed"
    found, todo = {}, [(r, e) for r in direct() for e in ('', *r.extras)]
    seen = set()
    while todo:
        req, extra = todo.pop()
        name = canonicalize_name(req.name)
        if (name, extra) in seen: continue
        seen.add((name, extra))
        try: d = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f'{name} is not installed: run `make .venv/.installed-dev` first.') from None
        found[name] = d.version.split('+')[0]   # without the name of PyTorch's build
        for r in map(Requirement, d.requires or ()):
            if r.marker is None or r.marker.evaluate({'extra': extra}): todo += [(r, e) for e in ('', *r.extras)]
    left_out = 'pip', 'setuptools', 'ekd-nb'
    return {k: v for k, v in sorted(found.items()) if not k.startswith(CUDA) and k not in left_out}


def text(pins):
    v = '.'.join(platform.python_version_tuple()[:2])
    made = f'# Written by tools/lock.py (make lock) from an environment of Python {v}'
    first = f'{made}: pip install -c constraints.txt -e .'
    return '\n'.join([first, *(f'{k}=={v}' for k, v in pins.items()), ''])


def read():
    "Name -> version of constraints.txt"
    return dict(l.split('==') for l in PATH.read_text().splitlines() if l and not l.startswith('#'))


def missing():
    "Requirements of settings.ini that constraints.txt does not meet"
    pins = read()
    pinned = lambda r: pins.get(canonicalize_name(r.name), '0.dev0')
    return [str(r) for r in direct() if not r.specifier.contains(pinned(r), prereleases=False)]


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--check', action='store_true',
                   help='write nothing; does constraints.txt meet the requirements of settings.ini?')
    if p.parse_args(args).check:
        if lost := missing(): print(f"constraints.txt does not meet {', '.join(lost)}: run `make lock`.")
        return bool(lost)
    part = PATH.with_name(PATH.name+'.part')
    part.write_text(text(pins := closure()))
    part.replace(PATH)
    print(f'{PATH.name}: {len(pins)} versions')


if __name__ == '__main__': sys.exit(main())
