"Evaluate: what is no lesson in nbs/13_evaluate.ipynb"
import json, math, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score
from torch import nn
from ekd_nb import evaluate as E, uncertainty as U
from ekd_nb.study import corruptions as C
from ekd_nb.core import EKDError
from ekd_nb.data import ImageArrays
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble

def made_up(seed, n=300, c=7, branches=3):
    g = torch.Generator().manual_seed(seed)
    return 3*torch.randn(branches, n, c, generator=g), torch.randint(c, (n,), generator=g)

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 20))
def test_bins_against_a_loop_and_sklearn(seed, n_bins):
    z, y = made_up(seed, branches=1); z = z[0]
    conf, pred = z.double().softmax(-1).max(-1)
    b = E.reliability_bins(z, y, n_bins)
    total = 0
    for m in range(n_bins):
        inside = (conf>m/n_bins) & (conf<=(m+1)/n_bins)
        assert b['n'][m] == inside.sum()
        if inside.any():
            total += inside.sum().item()/len(y)*(((pred==y)[inside].double().mean()-conf[inside].mean()).abs()).item()
    assert E.ece(z, y, n_bins) == pytest.approx(total, abs=1e-12) and sum(b['n']) == len(y)
    acc, mean_conf = calibration_curve((pred==y).int(), conf, n_bins=n_bins)
    full = [i for i in range(n_bins) if b['n'][i]]
    assert ([b['accuracy'][i] for i in full] == pytest.approx(list(acc)) and
            [b['confidence'][i] for i in full] == pytest.approx(list(mean_conf)))

def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    z = torch.tensor([[0.,0.], [0.,-99.]])   # confidences exactly 1/2 and 1
    assert (E.reliability_bins(z, torch.tensor([0,0]), 2)['n'] == [1,1] and
            E.reliability_bins(z, torch.tensor([0,0]), 4)['n'] == [0,1,0,1])

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2,6))
def test_identities(seed, n):
    z, y = made_up(seed, branches=n)
    d, r = E.disagreement(z), E.error_correlation(z, y)
    assert (torch.equal(d, d.T) and (d.diag()==0).all() and torch.allclose(r, r.T) and
            torch.allclose(r.diag(), torch.ones(n)))
    assert E.nll(z.mean(0), y) == pytest.approx(sum(E.nll(b, y) for b in z)/n - E.diversity(z), abs=1e-5)
    order = torch.randperm(n)
    assert torch.equal(E.disagreement(z[order]), d[order][:,order])
    assert (E.diversity(z+torch.randn(n, z.shape[1], 1)) == pytest.approx(E.diversity(z), abs=1e-4) and
            E.diversity(z[:1].repeat(n,1,1)) == pytest.approx(0, abs=1e-6))

def test_large_logits_and_half_precision():
    z, y = made_up(0); z = z[0]
    assert math.isfinite(E.nll(z*1e4, y)) and 0 <= E.ece(z*1e4, y) <= 1
    assert E.accuracy_score(z.bfloat16(), y) == pytest.approx((z.bfloat16().argmax(1)==y).float().mean().item())
    assert E.nll(z.half(), y) == pytest.approx(E.nll(z, y), abs=5e-3)

def test_error_correlation_of_a_branch_that_is_never_wrong():
    z, y = made_up(0)
    z[0] = 50*nn.functional.one_hot(y, 7)
    r = E.error_correlation(z, y)
    assert r[0].isnan().all() and not r[1:,1:].isnan().any() and E.mean_off_diagonal(r) == pytest.approx(r[1,2].item())
    assert E.mean_off_diagonal(r[:2,:2]) is None and E.mean_off_diagonal(torch.ones(1,1)) is None

@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2,40), st.integers(1,60), st.integers(1,60))
def test_cka_against_centred_gram_matrices(seed, n, p, q):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, k, generator=g).double() for k in (p,q))
    H = torch.eye(n).double() - 1/n
    K, L = H@a@a.T@H, H@b@b.T@H
    assert E.linear_cka(a, b) == pytest.approx(((K*L).sum()/(K.norm()*L.norm())).item(), abs=1e-9)

@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1,5))
def test_curve_of_branches(seed, n):
    z, y = made_up(seed, branches=n)
    c = E.branch_curve(z, y)
    assert c['first'] == [E.accuracy_score(z[:k].mean(0), y) for k in range(1, n+1)]
    assert (all(lo <= m+1e-12 and m <= hi+1e-12 and
            lo <= f <= hi for lo,m,hi,f in zip(c['min'], c['mean'], c['max'], c['first'])))
    assert len({c[k][-1] for k in c}) == 1 and c['mean'][0] == pytest.approx(sum(E.accuracy_score(b, y) for b in z)/n)
    order = torch.randperm(n)
    again = E.branch_curve(z[order], y)
    assert all(again[k] == pytest.approx(c[k]) for k in ('mean','min','max'))

def student(n=3, fusion='mean'):
    torch.manual_seed(0)
    return branched_student('resnet8-w4', n_branches=n, n_out=5, split='heads' if n>1 else None, in_channels=1,
                            fusion=fusion)

def batches(n=23, size=8): 
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(k,1,size,size,generator=g), torch.randint(5,(k,),generator=g)) for k in (10,10,n-20)]

@pytest.mark.parametrize('fusion', ['mean', 'prob', 'gate'])
def test_a_real_student(fusion):
    m, dl = student(fusion=fusion).train(), batches()
    m.trunk.eval()
    before = {k: v.clone() for k,v in m.state_dict().items()}
    r = E.evaluate_student(m, dl)
    assert m.training and not m.trunk.training and not m.fusion._forward_pre_hooks
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items())
    assert r['n_images'] == 23 and len(r['branch_accuracy']) == 3 and 0 <= r['disagreement'] <= 1
    assert json.loads(json.dumps(r)) == r
    z, y, b = E.get_logits(m, dl)
    m.eval()
    alone = [torch.cat([m.keep([i])(x) for x,_ in dl]).detach() for i in range(3)]
    assert r['branch_accuracy'] == [E.accuracy_score(a, y) for a in alone]
    torch.testing.assert_close(z, torch.cat([m(x) for x,_ in dl]).detach())
    if fusion=='mean': assert r['nll'] == pytest.approx(sum(r['branch_nll'])/3 - r['diversity'], abs=1e-5)

def test_one_branch_is_no_pair():
    r = E.evaluate_student(student(1), batches())
    assert (r['branch_accuracy'] == [r['test_accuracy']] and
            r['disagreement'] is r['diversity'] is r['error_correlation'] is None)

@pytest.mark.parametrize('grouped', [False, True])
def test_similarity_to_teachers(grouped):
    m, dl = student(), batches(40)
    m.grouped = grouped
    teachers = TeacherEnsemble([student(1).keep(1), nn.Sequential(nn.Flatten(), nn.Linear(64,5))])
    s = E.teacher_similarity(m.train(), teachers, dl, n_images=25)
    x = torch.cat([x for x,_ in dl])[:25]
    m.eval()
    with torch.no_grad(): f = [b(m.trunk(x))[1].mean((2,3)) for b in m.branches]
    assert s.shape == (3,2) and [E.linear_cka(o, x) for o in f] == pytest.approx(s[:,1].tolist(), abs=1e-5)
    assert E.teacher_similarity(m, m, dl).diag().tolist() == pytest.approx([1]*3, abs=1e-5)
    assert [o.shape[1] for o in E.pooled_features(E.MeanEnsemble([m.keep([i]) for i in range(3)]),
                                                  x)] == [f[0].shape[1]]*3

def test_a_dead_branch_resembles_no_teacher():
    m = student()
    with torch.no_grad():
        for p in m.branches[1].body.parameters(): p.zero_()
    s = E.teacher_similarity(m, m, batches(40))
    assert s[1].isnan().all() and s[:, 1].isnan().all() and not s[0, [0, 2]].isnan().any()
    assert E.matrix_to_json(s)[1] == [None]*3

def test_networks_as_one():
    m, dl = student(), batches()
    apart = E.MeanEnsemble([m.keep([i]) for i in range(3)])
    a, b = E.evaluate_student(m, dl), E.evaluate_student(apart, dl)
    assert (a['branch_curve'] == b['branch_curve'] and a['nll'] == pytest.approx(b['nll'], abs=1e-5) and
            a['error_correlation_matrix'] == b['error_correlation_matrix'])

def test_costs_of_kept_branches():
    c = E.branch_costs(student(), (1,8,8))
    assert [o['branches'] for o in c] == [1,2,3] and c[2]['flops']-c[1]['flops'] == c[1]['flops']-c[0]['flops'] > 0

def test_batch_size_does_not_matter():
    m, dl = student(), batches()
    whole = [tuple(map(torch.cat, zip(*dl)))]
    a, b = E.evaluate_student(m, dl), E.evaluate_student(m, whole)
    assert a['branch_accuracy'] == b['branch_accuracy'] and a['nll'] == pytest.approx(b['nll'], abs=1e-6)

def test_latencies_leave_the_mode_and_come_in_order():
    m = student().train()
    r = E.latency(m, torch.randn(2,1,8,8), repeats=3, warmup=1)
    assert (m.training and 0 < r['low_s'] <= r['median_s'] <= r['high_s'] and
            r['images_per_s'] == pytest.approx(2/r['median_s']) and json.dumps(r))

@pytest.mark.parametrize('bad, says', [
    (lambda: E.nll(torch.full((3,2), float('nan')), torch.zeros(3).long()), 'logits holds 6 NaN'),
    (lambda: E.accuracy_score(torch.zeros(3), torch.zeros(3)), r'logits has shape \[3\]'),
    (lambda: E.accuracy_score(torch.zeros(3,2), torch.zeros(4)), r'y has shape \[4\]'),
    (lambda: E.nll(torch.zeros(0,2), torch.zeros(0)), 'y holds no labels'),
    (lambda: E.disagreement(torch.zeros(3,2)), r'branch_logits has shape \[3, 2\]'),
    (lambda: E.linear_cka(torch.zeros(3,2), torch.zeros(4,2)), '4 images'),
    (lambda: E.linear_cka(torch.zeros(3,2), torch.zeros(3,2)), 'the same for every image'),
    (lambda: E.linear_cka(torch.full((3,2), float('nan')), torch.zeros(3,2)), 'a holds 6 NaN'),
    (lambda: E.branch_curve(torch.zeros(11,3,2), torch.zeros(3).long()), '11 branches'),
    (lambda: E.MeanEnsemble([]), 'no network'),
    (lambda: E.pooled_features(nn.Conv2d(1,1,1), torch.zeros(1,1,2,2)), 'no feature layer'),
    (lambda: E.teacher_similarity(student(), student(), batches(), n_images=1), 'n_images=1'),
    (lambda: E.latency(nn.Identity(), torch.zeros(1), repeats=0), 'repeats=0'),
    (lambda: E.evaluate_student(nn.Identity(), []), 'dl gave no batch')])
def test_refusals(bad, says):
    with pytest.raises(EKDError, match=says): bad()

def pictures(n=6, channels=3, size=(9,12)):
    return np.random.default_rng(0).integers(0, 256, (n,*size,channels), dtype=np.uint8)

@pytest.mark.parametrize('name', list(C.CORRUPTIONS))
@pytest.mark.parametrize('channels', [1,3])
def test_corruptions_of_any_size_are_seeded_and_leave_the_images_alone(name, channels):
    x = pictures(channels=channels)
    was = x.copy()
    out = C.corrupt(x, name, 4)
    assert (out.dtype == torch.uint8 and tuple(out.shape) == x.shape and (x==was).all() and
            not torch.equal(out, torch.tensor(x)))
    assert torch.equal(C.corrupt(torch.tensor(x), name, 4), out) and torch.equal(C.corrupt(x[:2], name, 4), out[:2])
    assert torch.equal(C.corrupt(x, name, 4, seed=1),
                       out) == (name not in ('gaussian_noise', 'shot_noise', 'impulse_noise'))

class Reddest(nn.Module):
    def forward(self, x): return torch.stack((x[:,0].mean((1,2)), -x[:,0].mean((1,2))), 1)

def test_accuracy_under_corruptions():
    data = ImageArrays.from_arrays('made up', pictures(8), np.arange(8)%2, pictures(40, size=(9,12)), np.arange(40)%2,
                                   ['a','b'])
    r = C.corruption_accuracy(Reddest(), data, ['jpeg', 'shot_noise'], (1,5), n_images=30, bs=7)
    assert list(r) == ['clean', 'jpeg', 'shot_noise'] and [len(v) for v in r.values()] == [1,2,2] and json.dumps(r)
    assert r == C.corruption_accuracy(Reddest(), data, ['jpeg', 'shot_noise'], (1,5), n_images=30, bs=50)
    held = C.corruption_accuracy(Reddest(), data, [], rows=np.array([1,3,5]))
    x = torch.tensor(data.x_train[[1,3,5]]).float()/255
    norm = (x-torch.tensor(data.stats[0]))/torch.tensor(data.stats[1])
    assert held == {'clean': [E.accuracy_score(Reddest()(norm.permute(0,3,1,2)), torch.tensor(data.y_train[[1,3,5]]))]}

@pytest.mark.parametrize('bad, says', [
    (lambda: C.corrupt(pictures()/255, 'jpeg', 1), 'x is float64'),
    (lambda: C.corrupt(pictures()[0], 'jpeg', 1), r'uint8 \[9, 12, 3\]'),
    (lambda: C.corrupt(pictures(), 'rain', 1), "name='rain'"), (lambda: C.corrupt(pictures(), 'jpeg', 6), 'severity=6'),
    (lambda: C.corruption_accuracy(Reddest(), None, n_images=0), 'n_images=0')])
def test_refused_corruptions(bad, says):
    with pytest.raises(EKDError, match=says): bad()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_auroc_against_sklearn(seed, decimals):
    g = torch.Generator().manual_seed(seed)
    score = torch.randn(80, generator=g).round(decimals=decimals)   # with ties
    wrong = torch.rand(80, generator=g)<.3
    if 0<wrong.sum()<80: assert U.auroc(score, wrong) == pytest.approx(roc_auc_score(wrong, score), abs=1e-12)

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_mutual_information_is_between_zero_and_log_n(seed, n):
    z,_ = made_up(seed, branches=n)
    mi = U.mutual_information(z)
    assert (mi>=0).all() and (mi<=math.log(n)+1e-9).all()
    assert U.mutual_information(z[:1].repeat(n,1,1)).max() < 1e-9

def test_a_perfect_score_of_errors():
    z,y = made_up(3)
    wrong = z.mean(0).argmax(-1)!=y
    perfect = wrong.double()
    assert U.auroc(perfect, wrong)==1 and U.auroc(1-perfect, wrong)==0
    curve = U.risk_coverage(perfect, wrong, n=10)
    right = 1-wrong.double().mean().item()
    assert (all(r==0 for c,r in zip(curve['coverage'], curve['risk']) if c<=right) and
            curve['risk'][-1]==pytest.approx(1-right))

def test_a_record_of_uncertainty_is_json():
    z,y = made_up(5)
    r = U.uncertainty_record(z.mean(0), y, z, z[:2,:100])
    assert json.loads(json.dumps(r))==r and -1<=r['teacher_rank_correlation']<=1
    assert [k['branches'] for k in r['keep_metrics']]==[1,2,3]
    assert r['keep_metrics'][2]['accuracy']==E.accuracy_score(z.mean(0), y)
