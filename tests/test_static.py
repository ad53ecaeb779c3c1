"A step over fixed buffers computes what fastai's loop computes"
from functools import partial
import pytest, torch
from ekd_nb.core import EKDError
from ekd_nb.data import load_images
from ekd_nb.study.methods import method
from ekd_nb.study.protocols import protocol, training_rows
from ekd_nb.study.runs import method_learner
from ekd_nb.study.static import StaticStep, epoch_batches, fit_static, hyperparameters
from ekd_nb.study.training import fill_memo, fit_schedule, get_teachers, make_memo, prepare_learner, run_dls

P = protocol('digits', teachers=('resnet8-w8', 'wrn_10_1'), per_class=5, epochs=2, teacher_epochs=1, n_views=2, tau=4.,
             alpha=.5, beta=.5, gamma=10., hint_error='standard', hint_schedule='cosine', own_weight=.3)
DATA = load_images('digits')
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='a CUDA graph needs a GPU')


def quiet(*args): pass


@pytest.fixture(scope='module')
def shared(tmp_path_factory): return prepared(tmp_path_factory.mktemp('teachers'), 'cpu')

def prepared(folder, device):
    "Training rows, held-out rows, teachers, manifests, cache"
    rows, held = training_rows(P, DATA.y_train, 0)
    teachers, manifests = get_teachers(P, DATA, 0, folder, device=device, log=quiet)
    memo = make_memo(P, DATA, rows, teachers, device, True)
    memo = fill_memo(memo, P, DATA, rows, 0, folder/f'{device}.safetensors', device, quiet)
    return rows, held, teachers, manifests, memo

def learner(shared, name, p=P, device='cpu'):
    rows, held, teachers, manifests, memo = shared
    dls = run_dls(p, DATA, rows, held, 0, device)
    learn, *_ = method_learner(p, method(name), DATA, dls, 0, teachers, manifests, memo)
    return prepare_learner(learn, p, name, quiet)

def weights(learn): return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])


@pytest.mark.parametrize('name', ['ekd', 'camkd', 'fitnet', 'one', 'separate'])
def test_a_training_is_the_same(shared, name):
    "With and without a cache, with and without teachers; the last batch of an epoch is smaller"
    learns = {fit: learner(shared, name) for fit in (fit_schedule, partial(fit_static, log=quiet))}
    for fit, learn in learns.items():
        with learn.no_bar(): fit(learn, P, P.epochs)
    a, b = learns.values()
    assert a.recorder.metric_names == b.recorder.metric_names
    assert torch.allclose(weights(a), weights(b), atol=1e-4)
    for va, vb in zip(a.recorder.values, b.recorder.values): assert list(map(float, va)) == pytest.approx(vb, abs=2e-3)


def test_both_schedules_are_those_of_the_loop():
    def funcs(schedule): return hyperparameters(protocol('digits', schedule=schedule, lr=.1), (.95, .85, .95))
    one, steps = map(funcs, ('one_cycle', 'steps'))
    assert one['lr'](0.) == pytest.approx(.004) and one['lr'](.25) == pytest.approx(.1)
    assert one['momentum'](.25) == pytest.approx(.85)
    assert [steps['lr'](s) for s in (.6, .63, .8, .9)] == pytest.approx([.1, .01, .001, 1e-4])


def test_an_epoch_has_all_images_in_the_order_of_the_loader(shared):
    learn = learner(shared, 'ekd')
    batches = epoch_batches(learn.dls.train, shared[-1])
    seen = [x.key.idx for x, _ in learn.dls.train]
    assert [b[0].tolist() for b in batches] == [s.tolist() for s in seen]


def test_without_a_gpu_there_is_no_graph_and_nothing_changes(shared):
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    learn, lines = learner(shared, 'ekd'), []
    before, step = weights(learn), StaticStep(learn)
    assert not step.capture(epoch_batches(step.dl, step.memo)[0], lines.append)
    assert lines == ["no CUDA graph: graph: got 'cpu', expected a GPU"] and torch.equal(before, weights(learn))


def test_what_cannot_be_held_in_buffers_is_refused(shared):
    learn = learner(shared, 'ekd')
    learn.loss_func.alpha = lambda share: 1-share
    with pytest.raises(EKDError, match='no schedules but that of the hints'): StaticStep(learn)


@GPU
@pytest.mark.parametrize('name', ['plain', 'ekd', 'kd_wide_hint', 'camkd', 'one'])
def test_a_replayed_graph_gives_the_loss_and_gradients_of_single_kernels(tmp_path, name):
    shared, lines = prepared(tmp_path, 'cuda'), []
    learn = learner(shared, name, device='cuda')
    step = StaticStep(learn)
    step.model.to('cuda').train()
    batches = epoch_batches(step.dl, step.memo)
    assert step.capture(batches[0], lines.append), lines
    for b in batches[:2]:
        step(b, .3)
        replayed = [p.grad.clone() for p in step.model.parameters()]
        graph, step.graph = step.graph, None
        step(b, .3)
        step.graph = graph
        for u, p in zip(replayed, step.model.parameters()): assert torch.allclose(u, p.grad, rtol=1e-2, atol=1e-4)
