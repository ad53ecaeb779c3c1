"""Trains the two students of the page `nbs/ask.ipynb` and writes what the page loads.

    python tools/browser_students.py --data ~/data
    python tools/browser_students.py --data ~/data --images 100 --epochs 1 --work /tmp/students --out /tmp/ask

EKD with branches and EKD with heads, taught by the package's small teachers with the default loss of `ekd_learner`.
Weights, manifest and model card of each go to `--work`; what is there already is not trained again. Then the page's
files go to `--out`: each student as operations and 16-bit weights, and the pictures with the teachers' votes for every
amount of noise. `tests/browser_logits.json` holds PyTorch's logits, which a test compares with those of the browser.
"""
import base64, json, time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse

from ekd_nb.arrays import load_images
from ekd_nb.browser import network_graph, save_graph
from ekd_nb.core import add_digest, sha256_file, tensor_digest, write_atomic, write_json
from ekd_nb.deploy import load_student, save_student
from ekd_nb.evaluate import evaluate_student
from ekd_nb.models import count_flops
from ekd_nb.pretrained import pretrained_teachers
from ekd_nb.study.methods import method
from ekd_nb.study.protocols import PRETRAINED_ARCHS, protocol, training_rows
from ekd_nb.study.records import provenance
from ekd_nb.study.runs import method_learner
from ekd_nb.study.training import (fill_memo, fit_schedule, get_teachers, is_resumed, make_memo, prepare_learner,
                                   run_dls, valid_dl)
from ekd_nb.uncertainty import auroc, entropy, mutual_information

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = dict(branches='ekd', heads='ekd_light')   # name -> method of the study
SEED = 0
KEPT = ('test_accuracy', 'branch_accuracy', 'disagreement', 'ece', 'nll')   # measures in the manifest
# (data set, row of the test images in canonical order), chosen by eye; those of CIFAR-100 are of unseen classes
PICTURES = [*(('cifar10', i) for i in (14, 45, 142, 174, 52, 69, 212, 13)),
            *(('cifar100', i) for i in (235, 26, 168, 1131))]
NOISE = [8*k for k in range(9)]   # standard deviations, of 255
LAMBDAS = (0., .25, .5, .75, 1.)
N_SPREAD = 2000   # test images on which targets are compared


def plan(images, epochs):
    "The protocol of both students: the default loss, the small teachers, few images"
    changes = dict(teachers=PRETRAINED_ARCHS, per_class=images, epochs=epochs, bs=32, n_views=2)
    return protocol('cifar10', 'full', **changes)


def measures(model, dl):
    "Accuracy and diversity on the images of a loader"
    found = evaluate_student(model, dl)
    return {k.removeprefix('test_'): found[k] for k in KEPT}


def train(name, p, data, teachers, manifests, memo, work, log):
    "Train one student and save it with its manifest"
    rows, held = training_rows(p, data.y_train, SEED, 1., data.classes)
    dls = run_dls(p, data, rows, held, SEED, 'cpu')
    learn, what, memo = method_learner(p, method(STUDENTS[name]), data, dls, SEED, teachers, manifests, memo)
    checkpoints = work/f'{name}.checkpoints'   # a killed run goes on
    prepare_learner(learn, p, name, log, checkpoints)
    where, resumed = provenance('cpu'), is_resumed(checkpoints)
    where.pop('versions')
    secs = fit_schedule(learn, p, p.epochs)
    student = learn.model.keep(learn.model.n_branches).eval()
    about = dict(method=STUDENTS[name], network=what, protocol=asdict(p), n_train=len(rows), n_valid=len(held),
                 teacher_manifests=manifests, wall_s=None if resumed else secs, memo_misses=memo.misses,
                 flops=count_flops(student), valid=measures(student, valid_dl(data, rows, held, 'cpu')),
                 test=measures(student, dls[-1]), **where)
    return save_student(learn, work, name, **about)


def normalised(pixels, data):
    "Float images [B,3,32,32] from bytes [B,32,32,3]"
    mean, std = (torch.tensor(o, dtype=torch.float32).view(1, -1, 1, 1) for o in data.stats)
    return (torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()/255-mean)/std


def noise(n=32*32*3):
    "The page's noise: mulberry32, twelve numbers of 16 bits for each nearly normal one"
    def times(a, b): return a*b & np.uint64(0xffffffff)
    a = times(np.arange(1, 12*n+1, dtype=np.uint64), np.uint64(0x6D2B79F5))
    t = times(a ^ a >> np.uint64(15), a | np.uint64(1))
    t = t ^ (t+times(t ^ t >> np.uint64(7), t | np.uint64(61)) & np.uint64(0xffffffff))
    drawn = ((t ^ t >> np.uint64(14)) >> np.uint64(16)).astype(np.float64).reshape(n, 12).sum(1)
    return ((drawn-12*32767.5)/65536).reshape(32, 32, 3)


def with_noise(pixels, sigma):
    "Bytes [B,32,32,3] with noise of this standard deviation, of 255"
    return np.floor(pixels+sigma*noise()+.5).clip(0, 255).astype(np.uint8)


def in_batches(f, x, bs=500):
    "f of all images, joined along dimension 1"
    with torch.no_grad(): return torch.cat([f(part) for part in x.split(bs)], 1)


def branch_logits(student, x):
    "Logits of each branch [N,B,C]"
    def compute(x):
        h = student.trunk(x)
        return torch.stack([b(h)[0] for b in student.branches])
    return in_batches(compute, x)


def quantiles(scores):
    "Values below which 0 %, 1 %, … 100 % of the scores lie"
    return [round(float(v), 5) for v in np.quantile(scores.numpy(), np.linspace(0, 1, 101))]


def target_spread(t, tau):
    "λ -> largest difference between two branches' targets in any class, mean over images"
    mean = t.mean(0, keepdim=True)
    targets = {lam: ((lam*t+(1-lam)*mean)/tau).softmax(-1) for lam in LAMBDAS}
    return {f'{lam:g}': round((u.max(0).values-u.min(0).values).max(-1).values.mean().item(), 5)
            for lam, u in targets.items()}


def doubts(student, seen, unseen):
    "How mutual information and entropy are spread over the test images, and how well they tell unseen classes"
    zs = [branch_logits(student, x).double() for x in (seen, unseen)]
    new = torch.arange(len(seen)+len(unseen)) >= len(seen)
    scores = dict(mutual_information=[mutual_information(z) for z in zs],
                  entropy=[entropy(z.mean(0).softmax(-1)) for z in zs])
    return dict(quantiles={k: quantiles(v[0]) for k, v in scores.items()},
                auroc_unseen={k: auroc(torch.cat(v), new) for k, v in scores.items()})


def packed(a, dtype): return base64.b64encode(np.ascontiguousarray(a, dtype).tobytes()).decode()


def chosen(arrays):
    "The page's pictures, bytes [P,32,32,3], and what is known of each"
    pixels = np.stack([arrays[d].x_test[i] for d, i in PICTURES])
    labels = [arrays[d].classes[arrays[d].y_test[i]] for d, i in PICTURES]
    about = [dict(data=d, row=i, label=l, seen=d == 'cifar10') for (d, i), l in zip(PICTURES, labels)]
    return pixels, about


def write_pictures(arrays, teachers, out):
    "Pictures and the teachers' votes for every amount of noise"
    pixels, about = chosen(arrays)
    noisy = [normalised(with_noise(pixels, s), arrays['cifar10']) for s in NOISE]
    votes = [in_batches(lambda x: teachers(x).logits, x) for x in noisy]
    content = pixels.tobytes() + np.ascontiguousarray(torch.stack(votes).permute(2, 0, 1, 3), '<f2').tobytes()
    write_atomic(out/'pictures.bin', lambda p: p.write_bytes(content))   # then votes [picture,noise,teacher,class]
    about = dict(schema=1, classes=arrays['cifar10'].classes, noise=NOISE, pictures=about,
                 teachers=list(teachers.names), sha256=sha256_file(out/'pictures.bin'))
    write_json(out/'pictures.json', add_digest(about))


def write_student(name, work, arrays, spread, seen, unseen, out):
    "One student for the page; PyTorch's logits of the trained student, [picture,noise,branch,class]"
    student, data = load_student(work/f'{name}.safetensors'), arrays['cifar10']
    info, (mean, std) = student.manifest, (o.tolist() for o in data.stats)
    keep = ('method', 'network', 'params', 'flops', 'n_train', 'n_valid', 'valid', 'test', 'protocol', 'versions',
            'device', 'started', 'wall_s', 'teacher_manifests', 'fingerprint')
    g = network_graph(student, seen[:64])
    about = dict(name=name, size=[3, 32, 32], mean=mean, std=std, target_spread=spread, n_spread=N_SPREAD,
                 sha256=tensor_digest(student.state_dict()), **doubts(student, seen, unseen),
                 **{k: info[k] for k in keep})
    save_graph(g, out/f'{name}.json', **about)
    pixels = chosen(arrays)[0]
    z = torch.stack([branch_logits(student, normalised(with_noise(pixels, s), data)) for s in NOISE])
    return z.permute(2, 0, 1, 3)


def write_page(work, arrays, out, expect_in, log):
    "Every file that the page loads, and what a test expects of it"
    teachers = pretrained_teachers('cifar10', PRETRAINED_ARCHS)
    seen, unseen = (normalised(arrays[d].x_test, arrays['cifar10']) for d in ('cifar10', 'cifar100'))
    write_pictures(arrays, teachers, out)
    tau = load_student(work/'branches.safetensors').manifest['protocol']['tau']
    spread = target_spread(in_batches(lambda x: teachers(x).logits, seen[:N_SPREAD]), tau)
    log(f'targets: {spread}')
    expected = {}
    for name in STUDENTS:
        z = write_student(name, work, arrays, spread, seen, unseen, out)
        expected[name] = packed(z.numpy(), '<f4')
        about = json.loads((out/f'{name}.json').read_text())
        log(f"{name}: {about['test']['accuracy']:.1%}, unseen {about['auroc_unseen']}")
    write_json(expect_in, add_digest(dict(schema=1, shape=list(z.shape), logits=expected)))


@call_parse
def main(
    data:str=None, # folder of `cifar10.npz` and `cifar100.npz`; None: where `load_images` looks
    images:int=2000, # of each class
    epochs:int=3,
    work:str='.work/students', # folder of weights and of the cache of teacher outputs
    out:str=None, # folder of the page's files; None: `nbs/ask`
    only:str=None, # train this student and stop: `branches` or `heads`
):
    torch.set_num_threads(1)
    start, work, own = time.perf_counter(), Path(work), bool(out)
    out = Path(out or ROOT/'nbs/ask')
    def log(text): print(f'[{time.perf_counter()-start:6.0f} s] {text}', flush=True)
    for d in (work, out): d.mkdir(parents=True, exist_ok=True)
    p, arrays = plan(images, epochs), {d: load_images(d, data) for d in ('cifar10', *(() if only else ('cifar100',)))}
    missing = [n for n in STUDENTS if only in (None, n) and not (work/f'{n}.safetensors').is_file()]
    if missing:
        setting = dict(teacher_data='full', device='cpu', log=log)
        teachers, manifests = get_teachers(p, arrays['cifar10'], SEED, work, **setting)
        rows, _ = training_rows(p, arrays['cifar10'].y_train, SEED, 1., arrays['cifar10'].classes)
        memo = make_memo(p, arrays['cifar10'], rows, teachers, 'cpu', features=True)
        fill_memo(memo, p, arrays['cifar10'], rows, SEED, work/'memo.safetensors', 'cpu', log)
    for n in missing: train(n, p, arrays['cifar10'], teachers, manifests, memo, work, log)
    if only: return
    for n in STUDENTS:
        found = load_student(work/f'{n}.safetensors').manifest
        log(f"{n}: validation {found['valid']['accuracy']:.1%}, test {found['test']['accuracy']:.1%}")
    write_page(work, arrays, out, out/'browser_logits.json' if own else ROOT/'tests/browser_logits.json', log)
