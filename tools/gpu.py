"""Trains large teachers for CIFAR on one GPU within minutes: for each its weights in fp16 and a manifest.

    python tools/gpu.py --data cifar100,cifar10 --deadline 420 --graph --out weights
    python tools/gpu.py --tiny --out /tmp/weights
    python tools/gpu.py students ...          # trains students instead: see tools/gpu_students.py

The teachers see all training images but the 5,000 that every run holds out. All images lie on the GPU as bytes; crop
and flip are done there. Forward and backward run in bfloat16, with `--graph` as one CUDA graph. Each teacher has its
share of the time until `--deadline`. Its speed is measured, then the number of epochs is fixed, so that the learning
rate always comes down to zero. A teacher that is in the folder already is not trained again: a second call goes on
where the first stopped. Without git, `EKD_COMMIT` names the commit. `--tiny` goes the same way with digits, tiny
networks and one epoch. The CUDA graph was used on an H200 for the teachers that come with the package.
"""
import time
START = time.perf_counter()
import math, os, sys, threading
from pathlib import Path
from types import SimpleNamespace

import torch, torch.nn.functional as F
from fastcore.script import call_parse

from ekd_nb.arrays import load_images, stratified_split
from ekd_nb.core import add_digest, write_json
from ekd_nb.data import crop_flip
from ekd_nb.evaluate import accuracy_score
from ekd_nb.models import get_model
from ekd_nb.study.records import provenance
from ekd_nb.teachers import load_teacher, read_manifest, save_teacher

ARCHS = 'wrn_16_4,resnet14x4,densenet_40_36'
TINY_ARCHS = 'wrn_10_1,resnet8-w4,densenet_10_4'
N_VALID = 5000              # held-out images, as in the protocols
MOMENTUM, WD = .9, 5e-4


def share(arch): return 1.6 if arch.startswith('densenet') else 1.   # of the time: a DenseNet moves more memory
def elapsed(): return time.perf_counter() - START
def log(text): print(f'[{elapsed():6.1f} s] {text}', flush=True)


class DeviceImages:
    "The training and held-out images of a data set on one device"
    def __init__(self,
        data,   # `ImageArrays`
        device, # where the images lie
        seed=0  # of order and views
    ):
        rows, held = stratified_split(data.y_train, min(N_VALID, len(data.y_train)//10))
        self.views, self.rng = data.views, torch.Generator(device).manual_seed(seed)
        mean, std = (torch.tensor(o, dtype=torch.float32, device=device).view(1, -1, 1, 1) for o in data.stats)
        self.mean, self.std = 255*mean, 255*std
        x, y = (torch.from_numpy(a).to(device) for a in (data.x_train, data.y_train))
        self.x, self.y = x[rows], y[rows]
        self.held_x, self.held_y = self.normalise(x[held].permute(0, 3, 1, 2)), y[held]

    def normalise(self, x): return (x.float() - self.mean) / self.std

    def draw_epoch(self, bs): # int64 [steps,2,bs]: row and view of each image; an incomplete batch is dropped
        n = len(self.y)//bs*bs
        draw = dict(device=self.y.device, generator=self.rng)
        rows = torch.randperm(len(self.y), **draw)[:n]
        views = torch.randint(self.views.n, (n,), **draw)
        return torch.stack([rows.view(-1, bs), views.view(-1, bs)], 1)

    def batch(self, drawn): # one step of `draw_epoch` -> images, labels
        rows, views = drawn
        return self.normalise(crop_flip(self.x[rows], views, self.views)), self.y[rows]


class TrainStep:
    "Forward and backward of one batch; after `capture` one CUDA graph over fixed buffers"
    def __init__(self,
        model,
        images,  # `DeviceImages`
        bs,      # images in a batch
        smooth=0 # label smoothing
    ):
        self.model, self.images, self.smooth, self.graph = model, images, smooth, None
        self.drawn = images.draw_epoch(bs)[0].clone()
        self.total = torch.zeros((), device=self.drawn.device) # sum of losses

    def compute(self):
        x, y = self.images.batch(self.drawn)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda, cache_enabled=False): z = self.model(x)
        loss = F.cross_entropy(z.float(), y, label_smoothing=self.smooth)
        loss.backward()
        self.total += loss.detach()

    def __call__(self, drawn):
        self.drawn.copy_(drawn)
        if self.graph: return self.graph.replay() # it overwrites every gradient
        self.model.zero_grad(set_to_none=True)
        self.compute()

    def check(self): # loss and norm of the gradient on the present batch
        self.total.zero_()
        self(self.drawn)
        return self.total.item(), torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item()

    def capture(self):
        "Capture the graph; go on without it, and print why, where that fails or changes the numbers"
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): eager = self.check()
        torch.cuda.current_stream().wait_stream(side)
        self.model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph): self.compute()
            self.graph = graph
            got = self.check()
            if any(not abs(a-b) <= tol*abs(b) for a, b, tol in zip(got, eager, (1e-3, 2e-2))):
                raise RuntimeError(f'loss and gradient {got}, expected {eager}')
            log(f'CUDA graph: loss {got[0]:.5f} (without {eager[0]:.5f}), gradient {got[1]:.4f} ({eager[1]:.4f})')
        except RuntimeError as e:
            self.graph = None
            log(f'no CUDA graph, single kernels instead: {str(e).splitlines()[0]}')
        self.model.load_state_dict(kept)


def optimizer(model):
    "SGD with Nesterov momentum; norms and biases do not decay"
    ps = list(model.parameters())
    groups = [dict(params=[p for p in ps if p.ndim > 1], weight_decay=WD),
              dict(params=[p for p in ps if p.ndim < 2], weight_decay=0.)]
    return torch.optim.SGD(groups, lr=0., momentum=MOMENTUM, nesterov=True, fused=True)


def one_cycle(t): # share of the training that is done -> share of the highest learning rate
    return .04 + .96*t/.2 if t < .2 else (1 + math.cos(math.pi*(t-.2)/.8))/2


def seconds_per_epoch(step, bs, seconds):
    "Measure the speed with a learning rate of 0; the statistics of the norms are put back"
    kept = {k: v.clone() for k, v in step.model.state_dict().items()}
    opt, epoch = optimizer(step.model), step.images.draw_epoch(bs)
    def steps(n):
        for i in range(n):
            step(epoch[i % len(epoch)])
            opt.step()
        step.total.item() # waits for the device
    steps(3)
    n, start = 0, time.perf_counter()
    while time.perf_counter()-start < seconds:
        steps(5)
        n += 5
    per_step = (time.perf_counter()-start)/n
    step.model.load_state_dict(kept)
    return per_step*len(epoch)


@torch.no_grad()
def held_out_accuracy(model, images, n=None): # -> accuracy on all or `n` held-out images, logits
    torch.backends.cudnn.benchmark = False    # not worth its time for a few batches
    z = torch.cat([model(x) for x in images.held_x[:n].split(500)])
    torch.backends.cudnn.benchmark = True
    return accuracy_score(z, images.held_y[:n]), z


def fit(step, what, budget, o):
    "Train as many epochs as fit into `budget` seconds; returns epochs done and planned"
    began, model, images = elapsed(), step.model, step.images
    end = min(began + 1.15*budget, o.deadline - 8)
    epoch_s, n_steps = seconds_per_epoch(step, o.bs, o.measure), len(images.y)//o.bs
    planned = epochs = max(o.least, min(o.most, int((began + budget - elapsed() - 2)/epoch_s)))
    log(f'{what}: {n_steps*o.bs/epoch_s:,.0f} images/s, {epochs} epochs in {epochs*epoch_s:.0f} s of {budget:.0f} s')
    opt, epoch, t, shown = optimizer(model), 0, 0., elapsed()
    while epoch < epochs:
        started, left = elapsed(), (epochs-epoch)*n_steps
        step.total.zero_()
        for drawn in images.draw_epoch(o.bs):
            for g in opt.param_groups: g['lr'] = o.lr*one_cycle(t)
            step(drawn)
            opt.step()
            t, left = t + (1-t)/left, left-1
        loss, epoch, now = step.total.item()/n_steps, epoch+1, elapsed()
        if not math.isfinite(loss): raise FloatingPointError(f'the loss is {loss} in epoch {epoch}')
        fits = epoch + int((end-now)/(now-started))
        if epoch < epochs and fits < epochs:
            epochs = max(epoch+1, fits)
            log(f'{what}: slower than measured, {epochs} epochs instead; the learning rate falls faster')
        if now-shown > 4 or epoch == epochs:
            acc, shown = held_out_accuracy(model.eval(), images, 1000)[0], now
            model.train()
            log(f'{what}: epoch {epoch}/{epochs}, loss {loss:.3f}, 1,000 held-out images {acc:.1%}, '
                f'{n_steps*o.bs/(now-started):,.0f} images/s')
    return epochs, planned


def train_teacher(arch, data, images, path, budget, o):
    "Train one teacher in about `budget` seconds and save it"
    began, device = elapsed(), images.y.device
    where = {k: v for k, v in provenance(device).items() if k != 'versions'}
    torch.manual_seed(o.seed)
    model = get_model(arch, data.n_classes, data.channels).to(device, memory_format=torch.channels_last)
    step = TrainStep(model, images, o.bs, o.smooth)
    if o.graph: step.capture()
    epochs, planned = fit(step, f'{data.name} {arch}', budget - (elapsed()-began), o)
    model.half().float().eval()
    how = dict(bs=o.bs, lr=o.lr, wd=WD, momentum=MOMENTUM, smooth=o.smooth, schedule='one_cycle',
               planned_epochs=planned, cuda_graph=step.graph is not None,
               precision='bfloat16' if device.type == 'cuda' else 'float32')
    save_teacher(model, path, accuracy=held_out_accuracy(model, images)[0], fingerprint=data.fingerprint, arch=arch,
                 half=True, epochs=epochs, n_train=len(images.y), n_valid=len(images.held_y), wall_s=elapsed()-began,
                 seed=o.seed, teacher_data='full', **how, **where)


def train_all(data, device, archs, out, o, later): # `later`: shares of the data sets that follow
    "Train the teachers of one data set, read them back, and measure them alone and together"
    images, logits, rows = DeviceImages(data, device, o.seed), [], []
    for i, arch in enumerate(archs):
        path, what = out/f'{data.name}-{arch}.safetensors', f'{data.name} {arch}'
        budget = min(o.seconds, (o.deadline - 12 - elapsed())*share(arch)/(sum(map(share, archs[i:])) + later))
        try:
            if not path.with_suffix('.json').is_file():
                if budget < o.shortest: log(f'{what}: left out, {budget:.0f} s are too few'); continue
                train_teacher(arch, data, images, path, budget, o)
            info = read_manifest(path)
            acc, z = held_out_accuracy(load_teacher(path).to(device), images)
        except Exception as e: log(f'{what}: FAILED, {type(e).__name__}: {e}'); continue # the next one may work
        logits.append(z)
        rows.append({k: info[k] for k in ('arch', 'epochs', 'wall_s', 'device', 'commit')} | dict(accuracy=acc))
        log(f'{what}: {acc:.2%} read back from fp16 ({info["accuracy"]:.2%} in its manifest), '
            f'{info["wall_s"]:.0f} s, {path.stat().st_size/1e6:.1f} MB')
    if not rows: return
    together = accuracy_score(torch.stack(logits).mean(0), images.held_y)
    write_json(out/f'{data.name}-teachers.json', add_digest(dict(data=data.name, fingerprint=data.fingerprint,
               n_valid=len(images.held_y), together=together, teachers=rows)))
    log(f'{data.name}: {len(rows)} teachers together {together:.2%} of {len(images.held_y):,} held-out images')


if __name__ == '__main__' and sys.argv[1:2] == ['students']:
    script = str(Path(__file__).with_name('gpu_students.py'))
    os.execv(sys.executable, [sys.executable, '-W', 'ignore', script, *sys.argv[2:]])


@call_parse
def main(
    data:str='cifar100,cifar10', # data sets, in this order
    archs:str=ARCHS,             # architectures, one teacher each
    out:Path='weights',          # folder of weights and manifests
    seconds:float=120,           # at most so many for one teacher
    deadline:float=420,          # seconds after its start at which the script has ended
    bs:int=512,                  # images in a batch
    lr:float=.4,                 # highest learning rate
    smooth:float=0.,             # label smoothing; 0 because teachers trained with it are worth less to students
    seed:int=0,                  # of weights, order and views
    graph:bool=False,            # forward and backward as one CUDA graph?
    tiny:bool=False              # rehearse: digits, tiny networks, one epoch
):
    "Train large teachers on one GPU"
    o = SimpleNamespace(bs=bs, lr=lr, smooth=smooth, seed=seed, seconds=seconds, deadline=deadline, graph=graph,
                        least=12, most=60, measure=2., shortest=20)
    if tiny:
        data, archs = 'digits', TINY_ARCHS
        o.__dict__.update(bs=128, lr=.1, least=1, most=1, measure=.2, shortest=0)
    stop = threading.Timer(deadline-elapsed(), lambda: (log('deadline: stopped'), os._exit(3)))
    stop.daemon = True
    stop.start()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if o.graph and device.type != 'cuda':
        log('no CUDA graph: there is no GPU')
        o.graph = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False # training is in bfloat16, the held-out images are measured in float32
    Path(out).mkdir(parents=True, exist_ok=True)
    names, archs = data.split(','), archs.split(',')
    for i, name in enumerate(names):
        train_all(load_images(name), device, archs, Path(out), o, (len(names)-1-i)*sum(map(share, archs)))
    missing = [f'{n}-{a}' for n in names for a in archs if not (Path(out)/f'{n}-{a}.json').is_file()]
    log(f'missing: {", ".join(missing)}' if missing else 'done')
    raise SystemExit(int(bool(missing)))
