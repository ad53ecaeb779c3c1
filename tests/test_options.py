"Beyond the plain call: partial teachers, unlabelled images, weights of teachers, several labels, named layers, votes"
import copy, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, folder_dls, teachers
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedLin
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from fastai.data.core import DataLoaders
from ekd_nb.branches import StudentOutput
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, load_images
from ekd_nb.learner import ekd_learner, teacher_learner
from ekd_nb.losses import DistillLoss, EKDLoss
from ekd_nb.models import get_model
from ekd_nb.multilabel import MultiLabelEKDLoss
from ekd_nb.preflight import check_match
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble, TeacherOutput
from ekd_nb.unlabeled import NO_LABEL, UnlabeledImages
from ekd_nb.votes import BranchInterpretation, get_uncertainty, get_votes, show_disagreement

warnings.filterwarnings('ignore')
LOW, HIGH = [0, 1, 2, 3, 4, 5, *[None]*4], [*[None]*4, 2, 1, 0, 3, 4, 5]


def fit(l, n=1, **kw):
    with l.no_bar(), l.no_logging(): l.fit(n, 1e-2, **kw)
    return l

def bits(l): return torch.cat([v.flatten().double() for v in l.model.state_dict().values()])

def learner(d=None, ts=None, **kw):
    torch.manual_seed(0)
    return ekd_learner(d or dls(), SMALL, teachers() if ts is None else ts, judge=False, **kw)

def partial(): return TeacherEnsemble([get_model(SMALL, 6, 1), get_model(SMALL, 6, 1)], class_maps=[LOW, HIGH])

def softmax64(z, tau):
    e = np.exp((z-z.max(-1, keepdims=True))/tau)
    return e/e.sum(-1, keepdims=True)

def kl64(t, z, tau):
    p, q = softmax64(t, tau), softmax64(z, tau)
    return tau**2*(p*np.log(p/q)).sum(-1)


# ---- teachers of different classes

def test_partial_loss_in_float64():
    torch.manual_seed(0)
    z, t = torch.randn(2, 9, 4), torch.randn(3, 9, 4)*3
    known = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]).bool()
    y, lam, tau = torch.arange(9)%4, .3, 2.
    loss = EKDLoss(0., 1., 0., tau=tau, lam=lam, assign=[2, 0])
    got = loss(StudentOutput(z.mean(0), z, (), TeacherOutput(t, (), (), known)), y).item()
    z64, t64, total = z.double().numpy(), t.double().numpy(), 0.
    for b in range(9):
        knowing = [j for j in range(3) if known[j, y[b]]]
        for zi, own in ((z64[0, b], 2), (z64[1, b], 0), (z64.mean(0)[b], None)):
            w = [1/3 if own is None else lam*(j==own)+(1-lam)/3 for j in range(3)]
            for j in knowing:
                k = known[j].numpy()
                total += w[j]/sum(w[i] for i in knowing)*kl64(t64[j, b][k], zi[k], tau)
    assert got == pytest.approx(total/9, rel=1e-5)

def test_a_branch_learns_only_what_its_teacher_knows():
    z = torch.randn(2, 4, 10, requires_grad=True)
    t = torch.randn(2, 4, 10)
    known = torch.tensor([[c is not None for c in m] for m in (LOW, HIGH)])
    pred = StudentOutput(z.mean(0).detach(), z, (), TeacherOutput(t, (), (), known))
    EKDLoss(0., 1., 0., lam=1.)(pred, torch.tensor([0, 4, 9, 9])).backward()
    g = z.grad.abs()
    assert not g[0][:, 6:].any() and not g[1][:, :4].any(), 'no gradient for classes it does not know'
    assert not g[0][2:].any() and not g[1][0].any(), 'nor for images of them'
    assert g[0][:2].any(1).all() and g[1][1:].any(1).all()

@pytest.mark.parametrize('memo', [False, True])
def test_partial_teachers_train(memo):
    l = fit(learner(ts=partial(), memo=memo))
    assert l.distill.probe.known.sum(1).tolist() == [6, 6] and all(np.isfinite(v) for v in l.recorder.values[-1][:3])
    votes = get_votes(l)
    assert votes.teachers[0].argmax(-1).max() <= 5 and votes.teachers[0].isinf().any()

def test_cached_and_live_partial_teachers_agree():
    a, b = fit(learner(ts=partial(), memo=False)), None
    ts = partial()
    ts.load_state_dict(a.distill.teachers.state_dict())
    b = fit(learner(ts=a.distill.teachers, memo=True))
    assert (bits(a)-bits(b)).abs().max() < .02   # half precision in the cache

def test_partial_teachers_are_matched_by_name_and_mixed():
    d = dls()
    a, b = get_model(SMALL, 6, 1), get_model(SMALL, 6, 1)
    a.manifest, b.manifest = dict(classes=[str(c) for c in range(6)]), dict(classes=list('654789'))
    said = []
    ts = TeacherEnsemble([a, b]).check(d, log=lambda s: said.append(str(s)))
    assert ts.class_maps == [LOW, HIGH] and 'does not know 4 of 10 (6, 7, 8)' in said[0]
    assert all('images' in s for s in said[-2:]) and 0 < int(said[-1].split(' of ')[1].split()[0]) < 512
    fit(learner(d, ts, cbs=MixUp()))

def test_partial_teachers_are_refused_where_logits_are_averaged():
    class Mean(DistillLoss):
        term_names = ['x']
        def terms(self, pred, y): return dict(x=(pred.logits-pred.teacher.logits.mean(0)).square().mean(1))
    for loss in (Mean(), EKDLoss(teacher_weights='confidence')):
        with pytest.raises(EKDError, match='knows 6 of 10 classes'): learner(ts=partial(), loss_func=loss)
    with pytest.raises(EKDError, match='at least two known'):
        TeacherEnsemble([get_model(SMALL, 6, 1)], class_maps=[[0, *[None]*9]])
    with pytest.raises(EKDError, match='class map has index 7'):
        learner(ts=TeacherEnsemble([get_model(SMALL, 6, 1)], class_maps=[[7, 1, *[None]*8]]))


# ---- images without labels

class Batches(Callback):
    "Notes labels and pixels of every training batch, and of validation"
    order, run_valid = 20, True
    def __init__(self): self.y, self.x, self.valid = [], [], []
    def before_batch(self):
        if self.training: self.y.append(self.yb[0].clone()); self.x.append(self.xb[0].double().sum().item())
        else: self.valid.append((len(self.xb[0]), int(self.yb[0].min())))

def images(n=50): return data().x_train[-n:]

def test_batches_and_terms():
    look = Batches()
    l = fit(learner(dls(bs=16), cbs=[UnlabeledImages(images(), share=.5), look]))
    assert [int((y!=NO_LABEL).sum()) for y in look.y] == [16, 16, 8]
    assert [int((y==NO_LABEL).sum()) for y in look.y] == [8, 8, 4]
    assert all((y[:len(y)*2//3]>=0).all() for y in look.y), 'labelled images come first'
    assert all(low>=0 for _, low in look.valid) and not l.loss_func.has_unlabeled

def test_cross_entropy_is_the_mean_over_labels():
    torch.manual_seed(0)
    z, t = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    y, pred = torch.tensor([1, 2, 3, 0, NO_LABEL, NO_LABEL]), StudentOutput(z.mean(0), z, (), TeacherOutput(t))
    for w in (None, [1., 2., 3., 4., 5.]):
        loss = EKDLoss(1., 0., 0., weight=w, label_smoothing=.1)
        loss.has_unlabeled = True
        want = sum(F.cross_entropy(o[:4], y[:4], loss.class_weights, label_smoothing=.1) for o in (z.mean(0), *z))
        assert loss(pred, y).item() == pytest.approx(want.item(), rel=1e-5)
    both = EKDLoss(0., 1., 0.)
    both.has_unlabeled = True
    labelled = EKDLoss(0., 1., 0.)(pred, y.clamp_min(0)).item()
    assert both(pred, y).item() == pytest.approx(labelled, rel=1e-6), 'soft targets need no label'

def test_resumed_exactly(tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    def run(folder, *cbs):
        l = learner(cbs=[UnlabeledImages(images(), 1.), Checkpoint(folder), *cbs], memo=True)
        try: fit(l, 3)
        except KeyboardInterrupt: pass
        return l
    whole = run(tmp_path/'a')
    run(tmp_path/'b', Stop())
    assert torch.equal(bits(whole), bits(run(tmp_path/'b')))

def test_the_cache_serves_unlabelled_images_of_the_same_data(tmp_path):
    from ekd_nb.data import image_dls
    rest = image_dls(data(), range(200, 260), bs=16)
    def run(folder=None, memo=True, *cbs):
        cbs = [UnlabeledImages(rest), *([Checkpoint(folder)] if folder else []), *cbs]
        l = learner(cbs=cbs, memo=memo)
        try: fit(l, 3)
        except KeyboardInterrupt: pass
        return l
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    l = run()
    rows = l.distill.memo.images.tolist()
    assert l.unlabeled_images.in_cache and set(range(200, 260)) < set(rows) and len(rows) == 100
    assert l.distill.memo.hits+l.distill.memo.misses == 3*80 and l.unlabeled_images.loader is not rest.train
    assert (bits(l)-bits(run(memo=False))).abs().max() < .05, 'half precision in the cache'
    run(tmp_path, True, Stop())
    assert torch.equal(bits(l), bits(run(tmp_path)))

@pytest.mark.parametrize('loader', ['folder', 'torch', 'fastai'])
def test_sources(loader, tmp_path):
    look = Batches()
    if loader == 'folder':
        for i in range(6): Image.fromarray(data().x_train[i, :, :, 0]).save(tmp_path/f'{i}.png')
        l = learner(cbs=[UnlabeledImages(tmp_path), look])
    if loader == 'torch':
        x = torch.randn(20, 1, 8, 8)
        loader = DataLoader(TensorDataset(x), 7, shuffle=True, generator=torch.Generator())
        l = learner(cbs=[UnlabeledImages(loader), look])
    if loader == 'fastai':
        d = folder_dls()
        l = learner(d, [Net(3, 3), Net(3, 3)], cbs=[UnlabeledImages(d, share=1), look])
    fit(l, 2)
    assert all(2*int((y>=0).sum()) == len(y) for y in look.y) and len(set(look.x)) == len(look.x)

def test_wrong_unlabelled_images(tmp_path):
    cases = [(tmp_path, 'holds no image'), ('nowhere', 'is no folder'),
             ([], 'expected a folder'), (3, 'expected a folder'),
             (DataLoader(TensorDataset(torch.rand(8, 3, 9, 9)), 4), r'are \[3, 9, 9\], training images \[1, 8, 8\]'),
             (DataLoader(TensorDataset(torch.arange(8)), 4), 'holds no images')]
    for given, says in cases:
        with pytest.raises(EKDError, match=says): fit(learner(cbs=UnlabeledImages(given)))
    with pytest.raises(EKDError, match='nothing to learn'):
        fit(learner(cbs=UnlabeledImages(images()), loss_func=EKDLoss(1., 0., 0.)))
    for share in (0, -1, 'all', True):
        with pytest.raises(EKDError, match='share: got'): UnlabeledImages(images(), share)


# ---- teachers weighted by confidence

def test_confidence_in_float64():
    torch.manual_seed(0)
    z, t, y = torch.randn(2, 8, 5), torch.randn(3, 8, 5)*3, torch.randint(5, (8,))
    loss = EKDLoss(0., 1., 0., tau=3., lam=.4, teacher_weights='confidence')
    got = loss(StudentOutput(z.mean(0), z, (), TeacherOutput(t)), y).item()
    z, t, total = z.double().numpy(), t.double().numpy(), 0.
    for b in range(8):
        ce = -np.log(softmax64(t[:, b], 1.)[:, y[b]])
        w = (1-np.exp(ce)/np.exp(ce).sum())/2
        avg = (w[:, None]*t[:, b]).sum(0)
        total += kl64(avg, z.mean(0)[b], 3.) + sum(kl64(.4*t[i, b]+.6*avg, z[i, b], 3.) for i in range(2))
    assert got == pytest.approx(total/8, rel=1e-5)

def test_confidence_trains_and_wrong_names_are_refused():
    l = fit(learner(loss_func=EKDLoss(teacher_weights='confidence')))
    assert 'teachers by confidence' in repr(l.loss_func)
    with pytest.raises(EKDError, match="teacher_weights: got 'best'"): EKDLoss(teacher_weights='best')


# ---- several labels

def several_dls(n=48, c=4):
    torch.manual_seed(0)
    y = (torch.rand(n, c)<.4).float()
    x = torch.randn(n, 1, 12, 12)*.3 + (y@torch.arange(1., c+1))[:, None, None, None]/c
    loaders = DataLoaders.from_dsets(*[TensorDataset(x, y)]*2, bs=16, num_workers=0)
    loaders.vocab = list('abcd')
    return loaders

def nets(c=4): return [get_model('resnet8-w6', c, 1), Net(c)]

def test_several_labels_end_to_end():
    d = several_dls()
    t = fit(teacher_learner(d, SMALL, n_out=4))
    loss = MultiLabelEKDLoss(label_smoothing=.1, weight=[1, 2, 1, 1])
    l = fit(learner(d, [t, *nets()], loss_func=loss, cbs=MixUp()))
    last = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    assert {'accuracy_multi', 'branch_0', 'branch_2'} <= set(last)
    p, y = l.get_preds()
    assert l.validate()[0] == pytest.approx(F.binary_cross_entropy(p, y).item(), rel=1e-4)
    z = get_branches(l)
    right = ((z[1]>0)==(y>.5)).float().mean().item()
    assert last['branch_1'] == pytest.approx(right, abs=1e-5)

def get_branches(l):
    from ekd_nb.evaluate import get_logits
    return get_logits(l.model, l.dls.valid)[2]

def test_several_labels_without_some():
    torch.manual_seed(0)
    z, t = torch.randn(1, 5, 3), torch.randn(1, 5, 3)
    y = torch.tensor([[1., 0., 1.], [0., 0., 0.], [1., 1., 0.], [NO_LABEL]*3, [NO_LABEL]*3])
    loss = MultiLabelEKDLoss(1., 0., 0.)
    loss.has_unlabeled = True
    want = F.binary_cross_entropy_with_logits(z[0, :3], y[:3]).item()
    assert loss(StudentOutput(z[0], z, (), TeacherOutput(t)), y).item() == pytest.approx(want, rel=1e-5)

def test_several_labels_refused():
    d = several_dls()
    with pytest.raises(EKDError, match='MultiLabelEKDLoss'): learner(d, nets())
    with pytest.raises(EKDError, match='expected zeros and ones'): learner(loss_func=MultiLabelEKDLoss())
    with pytest.raises(EKDError, match='has 3 classes, the data has 4'):
        learner(d, nets(3), loss_func=MultiLabelEKDLoss(), n_out=4)
    with pytest.raises(EKDError, match='thresh: got 0'): MultiLabelEKDLoss(thresh=0)
    with pytest.raises(EKDError, match='weight: got 2 class weights'):
        learner(d, nets(), loss_func=MultiLabelEKDLoss(weight=[1, 2]))


# ---- hints at named layers

def pair(): return [get_model('resnet8-w6', 10, 1), Net()]

@pytest.mark.parametrize('memo', [False, True])
def test_named_layers_train(memo):
    ts = pair()
    l = fit(learner(ts=ts, hints=[('layer1', 'layer2'), 'body.2'], memo=memo), 2)
    x = next(iter(l.dls.train))[0].as_subclass(torch.Tensor)
    fs = l.distill.teachers(x).features
    assert torch.allclose(fs[0], F.adaptive_avg_pool2d(l.distill.teachers.models[0].stages[:3](x), 4), atol=1e-5)
    assert fs[1].shape[1] == 4 and not any(m._forward_hooks for m in l.model.modules())
    assert not any(p.maps for p in l.model.projections)
    kept = l.keep([1])
    fit(kept)
    assert kept.model.projections[0].layers == ['layer1', None]

def test_no_names_are_the_default():
    ts = pair()
    a, b = learner(ts=ts), learner(ts=ts, hints=[None, None])
    assert torch.equal(bits(fit(a)), bits(fit(b)))
    named = learner(ts=ts, hints=['layer3', None]).distill.teachers
    same = a.distill.teachers.fingerprint()
    assert b.distill.teachers.fingerprint() == same != named.fingerprint()

def test_named_layers_refused():
    first = "expected one of stages.stem, stages.layer1"
    cases = [(['layer9', None], r"layers: teacher 0 \(resnet8-w6\) has no layer 'layer9', " + first),
             ([('layer9', None), None], "neither the trunk nor branch 0 has a layer 'layer9', expected one of stem"),
             (['layer2'], 'got 1 entries, expected one for each of the 2 teachers'),
             ('layer2', "hints: got 'layer2'"), ([3, None], r'hints: got \[3, None\]')]
    for hints, says in cases:
        with pytest.raises(EKDError, match=says): learner(ts=pair(), hints=hints)
    with pytest.raises(EKDError, match='gamma above 0'):
        learner(ts=pair(), hints=[None, None], loss_func=EKDLoss(gamma=0))
    with pytest.raises(EKDError, match='teachers: got none|no teachers'):
        ekd_learner(dls(), SMALL, hints=['a'], loss_func=EKDLoss())


# ---- votes, uncertainty, picture

@pytest.fixture(scope='module')
def trained(): return fit(learner(dls(n=8)), 2)

def test_votes(trained):
    v = get_votes(trained)
    x = torch.cat([b[0] for b in trained.dls.valid])
    with torch.no_grad():
        assert torch.allclose(v.logits, trained.model.eval()(x), atol=1e-4)
        assert torch.allclose(v.teachers, trained.distill.teachers(x).logits, atol=1e-4)
    assert torch.equal(v.disagree, (v.classes!=v.classes[0]).any(0)) and len(v.classes) == 4
    assert len(get_votes(trained, teachers=False).teachers) == 0 and len(v.at(3).y) == 1

def test_disagreement_shows_the_most_disputed(trained):
    import matplotlib.pyplot as plt
    fig = show_disagreement(trained, n=3, cols=2)
    interp = BranchInterpretation.from_learner(trained)
    want = [str(int(interp.votes.y[i])) for i in interp.disagreements(3)[1]]
    assert [a.get_title() for a in fig.axes if a.images] == want
    plt.close('all')

def test_uncertainty(trained):
    u, v = get_uncertainty(trained), get_votes(trained, teachers=False)
    p = v.branches.double().softmax(-1)
    def h(p): return -(p*p.log()).sum(-1)
    assert torch.allclose(u['mutual_information'], (h(p.mean(0))-h(p).mean(0)).clamp(min=0), atol=1e-6)
    assert torch.allclose(u['entropy'], h(v.logits.double().softmax(-1)), atol=1e-6)
    assert torch.equal(u['prediction'], v.logits.argmax(-1))

def test_votes_refused(trained):
    with pytest.raises(EKDError, match='learn: got'): show_disagreement(trained.model)
    with pytest.raises(EKDError, match='ds_idx: got 9'): get_votes(trained, ds_idx=9)
    with pytest.raises(EKDError, match='teachers: got mine'): get_votes(trained, teachers='mine')
    with pytest.raises(EKDError, match='class numbers'): get_votes(trained, several_dls().valid)
    plain = fit(teacher_learner(dls(), SMALL))
    with pytest.raises(EKDError, match='expected several voters'): show_disagreement(plain)
    assert 'mutual_information' not in get_uncertainty(plain)

def test_picture(trained):
    import matplotlib.pyplot as plt
    texts = ' '.join(t.get_text() for t in trained.model.draw().axes[0].texts)
    assert 'learns from\n' in texts and 'layer3' in texts and 'multiply-adds' in texts
    kept = ' '.join(t.get_text() for t in branched_student(get_model('resnet8'), 2, size=32).draw().axes[0].texts)
    assert 'filled: pretrained weights' in kept
    with pytest.raises(EKDError, match='size: got'): trained.model.draw((1, 8))
    plt.close('all')

def few(**kw): return image_dls(load_images('digits'), idx=range(64), bs=16, device='cpu', **kw)

def test_a_share_without_an_image_and_two_callbacks_are_refused():
    more = image_dls(load_images('digits'), idx=range(64, 96), bs=8, device='cpu')
    teacher = get_model('resnet8-w4', 10, 1)
    for cbs,says in ((UnlabeledImages(more, .01), 'share: got 0.01, expected at least one'),
                     ([UnlabeledImages(more), UnlabeledImages(more)], 'cbs: got .*2 UnlabeledImages')):
        learn = ekd_learner(few(), 'resnet8-w4', [teacher], judge=False, cbs=cbs)
        with learn.no_bar(), learn.no_logging(), pytest.raises(EKDError, match=says): learn.fit(1)

def test_unlabelled_images_come_in_other_views_in_other_epochs():
    more = image_dls(load_images('digits'), idx=range(64, 96), bs=32, n_views=4, device='cpu')
    cb,seen = UnlabeledImages(more),[]
    learn = ekd_learner(few(), 'resnet8-w4', [get_model('resnet8-w4', 10, 1)], judge=False, cbs=cb)
    take = cb._take
    cb._take = lambda n, device: (lambda o: (seen.append(o[1]), o)[1])(take(n, device))
    with learn.no_bar(), learn.no_logging(): learn.fit(4)
    views = torch.cat(seen)
    assert len({int(v) for r,v in views if r==views[0,0]})>1

def test_a_copied_callback_keeps_its_images():
    cb = UnlabeledImages(few(), .5)
    assert copy.deepcopy(cb).images is cb.images and copy.deepcopy(cb).share==.5

def test_probabilities_are_not_fused_for_several_labels():
    net = branched_student('resnet8-w4', 2, 5, fusion='prob', in_channels=1)
    loss,found = MultiLabelEKDLoss(1, 0, 0),SimpleNamespace(n_teachers=0)
    with pytest.raises(EKDError, match="fusion: got 'prob'"): check_match(net, loss, found)

VOTES = [([], 'it gave no batch'), ('pictures', 'a batch holds str'), (3, "dl: got 'int'"),
         ([None], 'a batch holds NoneType'), ([(torch.full((2, 1, 8, 8), torch.nan),)], 'not finite')]

@pytest.mark.parametrize('f', [show_disagreement, get_uncertainty, get_votes])
@pytest.mark.parametrize('dl,says', VOTES, ids=[w for _,w in VOTES])
def test_votes_without_images_are_refused(f, dl, says):
    learn = ekd_learner(few(), 'resnet8-w4', n_branches=2, loss_func=EKDLoss(1, 0, 0))
    with pytest.raises(EKDError, match=says): f(learn, dl)

@pytest.mark.parametrize('f', [show_disagreement, get_uncertainty])
def test_votes_about_several_labels_are_refused(f):
    learn = ekd_learner(few(), 'resnet8-w4', n_branches=2, loss_func=EKDLoss(1, 0, 0))
    learn.loss_func = MultiLabelEKDLoss(1, 0, 0)
    with pytest.raises(EKDError, match='several labels'): f(learn, [(torch.zeros(2, 1, 8, 8),)])


@pytest.mark.parametrize('make,words', [
    (lambda: EKDLoss(tau=SchedLin(4, -1)), "tau: got 'a schedule with values from -1 to 4', expected a temperature"),
    (lambda: EKDLoss(gamma=lambda a, b: 1), "gamma: got '<lambda>, which is no function of a share of the training'"),
    (lambda: EKDLoss(gamma='cosine'), "gamma: got 'cosine', expected a weight of at least 0")])
def test_a_schedule_that_is_refused_is_said_in_words(make, words):
    with pytest.raises(EKDError) as e: make()
    assert words in str(e.value) and 'object at' not in str(e.value)


def test_onnx_of_a_learner_needs_no_images(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    from ekd_nb.deploy import save_onnx
    data = load_images('digits')
    dls = image_dls(data, range(60), bs=20, device='cpu')
    learn = ekd_learner(dls, 'resnet8-w4', [get_model('resnet8-w4', 10, 1)], n_branches=2, judge=False).keep(1)
    session = onnxruntime.InferenceSession(save_onnx(learn, tmp_path/'s.onnx'))
    x = dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:3]
    with torch.no_grad(): z = learn.model.eval()(x)
    assert (torch.from_numpy(session.run(None, dict(images=x.numpy()))[0])-z).abs().max() < 1e-4
    with pytest.raises(EKDError, match='x: got .NoneType., expected images'): save_onnx(learn.model, tmp_path/'s.onnx')
