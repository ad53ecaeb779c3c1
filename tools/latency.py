"""Times every student of a protocol, what is left of it when it keeps fewer branches, and its teachers.

    python tools/latency.py [--data cifar10] [--preset small] [--device cpu]

Writes results/benchmarks/latency-<device>.json. Weights are random, which does not change their cost. All take turns,
round after round, one image at a time and in batches; one thread on the CPU.
"""
import argparse, os, sys
from pathlib import Path

import torch
from ekd_nb.arrays import DATASETS
from ekd_nb.evaluate import MeanEnsemble, latencies
from ekd_nb.models import get_model
from ekd_nb.study.methods import METHODS, make_student
from ekd_nb.study.protocols import protocol
from ekd_nb.study.records import provenance
from ekd_nb.core import add_digest, write_json
from ekd_nb.teachers import TeacherEnsemble

ROOT = Path(__file__).resolve().parents[1]


def networks(p):
    "Name in records -> network"
    n_out, nets = DATASETS[p.data].n_classes, {}
    for m in METHODS.values():
        if m.student is None: continue
        student, name = make_student(p, m, n_out)
        nets[name] = student
        if not m.several or m.many_networks: continue
        nets |= {f'{name}, {k} kept': student.keep(k) for k in range(1, student.n_branches)}
    teachers = {a: get_model(a, n_out) for a in p.teachers}
    ensemble = TeacherEnsemble(list(teachers.values()), feature_grid=0)
    return nets | teachers | {'+'.join(p.teachers): MeanEnsemble(ensemble)}


def main(args):
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(data='cifar10', preset='small', device='cpu').items():
        a.add_argument(f'--{name}', default=default)
    a.add_argument('--rounds', type=int, default=30)
    a.add_argument('--out', default=ROOT/'results/benchmarks', type=Path)
    a = a.parse_args(args)
    torch.set_num_threads(1)
    p, device, before = protocol(a.data, a.preset), torch.device(a.device), os.getloadavg()
    nets = {n: m.to(device, memory_format=torch.channels_last).eval() for n, m in networks(p).items()}
    where, cases = provenance(device), {n: {} for n in nets}
    for bs in (1, 100):
        x = torch.randn(bs, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        for n, t in latencies(nets, x, a.rounds).items():
            cases[n][str(bs)] = {k: t[k] for k in ('median_s', 'low_s', 'high_s')}
    path = a.out/f'latency-{a.data}-{a.preset}-{device.type}.json'
    load = dict(before=before, after=os.getloadavg())
    write_json(path, add_digest(dict(schema=1, data=a.data, preset=a.preset, rounds=a.rounds, threads=1, cases=cases,
                                     loadavg=load, **where)))
    print(path)


if __name__ == '__main__': main(sys.argv[1:])
