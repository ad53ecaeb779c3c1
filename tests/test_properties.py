"Whatever the shapes, numbers of teachers, branches and classes"
import numpy as np, torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from ekd_nb.data import ViewKey, ViewSet, crop_flip, view_order
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo
from ekd_nb.student import Fusion, StudentOutput, branched_student
from ekd_nb.targets import branch_targets, resolve_assignment, soft_target_kl
from ekd_nb.teachers import TeacherEnsemble, TeacherOutput

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
very_few = settings(few, max_examples=8)
small = st.integers(1, 5)
seeds = st.integers(0, 2**20)


def case(n, t, b, c, seed, scale=3.):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    z = r(n, b, c)*scale
    # projected to 4 channels of each teacher
    fs, ts = tuple(r(b, 4*t, 1, 1) for _ in range(n)), tuple(r(b, 4, 1, 1) for _ in range(t))
    return StudentOutput(z.mean(0), z, fs, TeacherOutput(r(t, b, c)*scale, ts)), torch.randint(0, c, (b,), generator=g)


weights = st.floats(0, 5)
losses = st.fixed_dictionaries(dict(
    alpha=weights, beta=weights, gamma=weights, tau=st.floats(.5, 20), lam=st.floats(0, 1),
    branch_reduction=st.sampled_from(['sum', 'mean']), ensemble_weight=st.floats(0, 2),
    label_smoothing=st.floats(0, .9)))


# ---- loss

@few
@given(small, small, small, st.integers(2, 7), seeds, losses)
def test_loss_is_the_sum_of_its_parts_and_finite(n, t, b, c, seed, kw):
    pred, y = case(n, t, b, c, seed)
    loss = EKDLoss(**kw)
    total = loss(pred, y)
    assert total.isfinite() and total >= -1e-5
    assert torch.allclose(sum(loss.last_terms.values()), total, atol=1e-3, rtol=1e-4)
    assert list(loss.last_terms) == loss.term_names
    each = EKDLoss(**kw, reduction='none')(pred, y)
    assert each.shape == (b,) and torch.allclose(each.mean(), total, atol=1e-3, rtol=1e-4)


@few
@given(small, small, st.integers(2, 7), seeds, losses)
def test_renaming_branches_with_their_teachers_changes_nothing(n, b, c, seed, kw):
    pred, y = case(n, n, b, c, seed)
    p = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    features = tuple(torch.cat([pred.features[i].split(4, 1)[j] for j in p], 1) for i in p)
    teacher = TeacherOutput(pred.teacher.logits[p], tuple(pred.teacher.features[i] for i in p))
    q = StudentOutput(pred.logits, pred.branches[p], features, teacher)
    assert torch.allclose(EKDLoss(**kw)(pred, y), EKDLoss(**kw)(q, y), atol=1e-3, rtol=1e-4)


@few
@given(small, small, st.integers(2, 7), seeds, st.floats(.5, 20))
def test_soft_kl_is_a_divergence(b, n, c, seed, tau):
    pred, _ = case(n, n, b, c, seed)
    z, t = pred.branches, pred.teacher.logits
    assert (soft_target_kl(z, t, tau) >= -1e-3).all()
    assert soft_target_kl(z, z+5, tau).abs().max() < 1e-2   # a constant changes no softmax
    assert torch.allclose(soft_target_kl(z, t, tau), soft_target_kl(z+7, t-3, tau), atol=1e-2)


@few
@given(small, small, st.integers(2, 7), seeds, st.sampled_from([torch.float16, torch.bfloat16]), losses)
def test_half_precision_of_huge_logits_is_finite(n, b, c, seed, dtype, kw):
    pred, y = case(n, n, b, c, seed)
    z = (pred.branches.sign()*1e4).to(dtype).requires_grad_()
    teacher = TeacherOutput((pred.teacher.logits.sign()*1e4).to(dtype), pred.teacher.features)
    out = EKDLoss(**kw)(StudentOutput(z.mean(0), z, pred.features, teacher), y)
    out.backward()
    assert out.isfinite() and z.grad.isfinite().all()


@few
@given(small, small, seeds, st.floats(0, 1))
def test_targets_average_to_the_teachers_average(n, b, seed, lam):
    t = case(n, n, b, 4, seed)[0].teacher.logits
    assert torch.allclose(branch_targets(t, resolve_assignment(n, n), lam).mean(0), t.mean(0), atol=1e-4)


@few
@given(small, small, st.data())
def test_assignment_is_total_and_in_range(n, t, d):
    chosen = d.draw(st.lists(st.one_of(st.none(), st.integers(0, t-1)), min_size=n, max_size=n))
    assert resolve_assignment(n, t, chosen) == chosen
    default = resolve_assignment(n, t)
    assert len(default) == n and set(default) == set(range(min(n, t)))


# ---- fusion and student

@few
@given(small, small, st.integers(2, 7), seeds)
def test_fusions(n, b, c, seed):
    z, h = case(n, 1, b, c, seed)[0].branches, torch.rand(b, 3, 2, 2)
    assert torch.allclose(Fusion('mean', n)(z), z.mean(0))
    assert torch.allclose(Fusion('prob', n)(z).exp().sum(-1), torch.ones(b), atol=1e-4)
    g = Fusion('gate', n, 3)(z, h)
    assert (g <= z.max(0).values+1e-4).all() and (g >= z.min(0).values-1e-4).all()   # a weighted average
    for f in ('mean', 'prob'):
        p = torch.randperm(n)
        assert torch.allclose(Fusion(f, n)(z), Fusion(f, n)(z[p]), atol=1e-4)


@very_few
@given(st.integers(1, 4), st.integers(2, 6), st.integers(1, 3), st.sampled_from([0, 1, 2, 3, 4]),
       st.sampled_from(Fusion.names), st.integers(7, 12), seeds)
def test_student(n, c, channels, split, fusion, size, seed):
    torch.manual_seed(seed)
    s = branched_student('resnet8-w4', n, c, split=split, fusion=fusion, in_channels=channels)
    x = torch.randn(3, channels, size, size)
    out = s.train()(x)
    assert out.logits.shape == (3, c) and out.branches.shape == (n, 3, c) and len(out.features) == n
    s.eval()
    z = s(x)
    assert torch.allclose(s.keep(range(n))(x), z, atol=1e-5)
    k = s.keep([n-1])
    assert k.n_branches == 1 and torch.allclose(k(x).softmax(-1), s.branches[-1](s.trunk(x))[0].softmax(-1), atol=1e-4)


# ---- views

@few
@given(st.integers(0, 3), st.booleans(), st.integers(1, 6), st.integers(2, 9), st.integers(2, 9),
       st.sampled_from([1, 3]), seeds)
def test_crop_flip_is_pad_crop_mirror(pad, flip, b, h, w, c, seed):
    vs, rng = ViewSet(pad, flip), np.random.default_rng(seed)
    x, v = rng.integers(0, 256, (b, h, w, c), dtype=np.uint8), rng.integers(0, vs.n, b)
    got = crop_flip(torch.tensor(x), torch.tensor(v), vs).permute(0, 2, 3, 1).numpy()
    for i in range(b):
        dy, dx, f = vs.unpack(int(v[i]))
        one = np.pad(x[i], ((pad, pad), (pad, pad), (0, 0)))[dy:dy+h, dx:dx+w]
        assert np.array_equal(got[i], one[:, ::-1] if f else one)
    assert np.array_equal(crop_flip(torch.tensor(x), torch.full((b,), vs.identity), vs).permute(0, 2, 3, 1).numpy(), x)


@few
@given(st.integers(0, 2), st.booleans(), st.integers(1, 20), seeds, st.data())
def test_view_order_repeats_nothing(pad, flip, n, seed, d):
    vs = ViewSet(pad, flip)
    k = d.draw(st.integers(1, vs.n))
    o = view_order(n, vs, k, seed).long()
    assert o.shape == (n, k) and 0 <= int(o.min()) and int(o.max()) < vs.n
    assert all(len(set(row)) == k for row in o.tolist())
    assert torch.equal(o, view_order(n, vs, k, seed).long())


# ---- memo

class Table(nn.Module):
    "A teacher whose answer is the image's own first pixels, so that any mix-up shows"
    def __init__(self, c, k): super().__init__(); self.c, self.k = c, k
    def forward(self, x): return x.flatten(1)[:, :self.c]*self.k


image_and_view = st.tuples(st.integers(0, 7), st.integers(0, 8))

@few
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 9), st.integers(1, 8),
       st.lists(st.lists(image_and_view, min_size=1, max_size=9), min_size=1, max_size=6))
def test_memo_is_exact(t, c, n_views, n_images, batches):
    "Any sequence of batches, repeated images and views included, gets exactly what live teachers would say"
    vs = ViewSet(1, False)
    e = TeacherEnsemble([Table(c, k+1) for k in range(t)], feature_grid=0)
    memo = TeacherMemo(e, torch.arange(n_images), vs, n_views=n_views, dtype=torch.float32)
    x_of = lambda i, v: torch.arange(9.).view(1, 3, 3)+100*i+1000*v
    for batch in batches:
        batch = [(i % n_images, v) for i, v in batch]
        key = ViewKey(*map(torch.tensor, zip(*batch)))
        x = torch.stack([x_of(i, v) for i, v in batch])
        assert torch.equal(memo(key, x).logits, e(x).logits)
    seen = {(i % n_images, v) for b in batches for i, v in b}
    for i in range(n_images):   # of an image twice in a batch one view is kept
        assert int(memo.n_filled[i]) <= min(n_views, len({v for j, v in seen if j == i}))
    assert all(int(memo.n_filled[i]) >= 1 for i, _ in seen)
    assert memo.hits+memo.misses == sum(map(len, batches))
