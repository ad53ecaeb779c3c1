"ekd_learner: the contract of DESIGN.md section 3"
import inspect, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, learner, teachers, trained
from fastai.learner import Learner, load_learner
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, stratified_subset
from ekd_nb.learner import ekd_learner, first_batch, teacher_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.student import StudentOutput
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')


def test_signature_knows_the_learner_s_arguments():
    mine, theirs = inspect.signature(ekd_learner).parameters, inspect.signature(Learner.__init__).parameters
    assert list(mine)[:3] == ['dls', 'arch', 'teachers']
    assert {'opt_func', 'lr', 'wd', 'path', 'moms'} <= set(mine) and set(theirs)-{'self', 'model', 'kwargs'} <= set(mine)
    assert mine['n_branches'].kind is inspect.Parameter.KEYWORD_ONLY


def test_training_and_evaluation_outputs():
    l = learner()
    x, _ = first_batch(l.dls)
    out = l.model.train()(x)
    assert isinstance(out, StudentOutput) and out.branches.shape == (2, len(x), 10)
    z = l.model.eval()(x)
    assert type(z.as_subclass(torch.Tensor)) is torch.Tensor and z.shape == (len(x), 10)


def test_validation_loss_is_plain_cross_entropy_of_the_ensemble():
    l = trained()
    z, y = l.get_preds(act=lambda z: z)
    assert abs(F.cross_entropy(z, y).item()-l.validate()[0]) < 1e-4


def test_a_column_for_every_part():
    l = trained()
    names = list(l.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'ce_ens', 'ce_branch', 'kd_ens', 'kd_branch', 'hint', 'branch_0', 'branch_1', 'time']


def test_columns_are_the_loss():
    "Without momentum of the smooth average: the parts add up to the mean training loss of the epoch"
    from fastai.callback.core import Callback
    class Mean(Callback):
        run_valid, order = False, 70
        def before_fit(self): self.sum = self.n = 0
        def after_loss(self): self.sum += float(self.learn.loss.detach())*len(self.yb[0]); self.n += len(self.yb[0])
    l = trained(m := Mean())
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    assert abs(sum(row[p] for p in l.loss_func.term_names)-m.sum/m.n) < 1e-4


def test_memo_false_and_true_see_the_same_teachers():
    l = trained(memo=True)
    assert l.distill.memo.misses == 40


def test_learning_happens():
    torch.manual_seed(0)
    l = ekd_learner(image_dls(data(), stratified_subset(data().y_train, fraction=.5), bs=32), 'resnet8', [Net()], n_branches=2, loss_func=EKDLoss(1., 0., 0.))
    with l.no_bar(), l.no_logging(): l.fit_one_cycle(3, 1e-2)
    assert l.recorder.values[-1][2] > .8


def test_exported_student(tmp_path):
    l = trained(memo=True, path=tmp_path)
    x = data().x_test[:16]
    p = l.get_preds(dl=l.dls.test_dl(x))[0]
    l.export('e.pkl')
    raw = (tmp_path/'e.pkl').read_bytes()
    assert b'TeacherEnsemble' not in raw.replace(b'ekd_nb.teachers', b'') or len(raw) < 200_000
    m = load_learner(tmp_path/'e.pkl')
    assert m.distill.teachers is None and not m.distill.memo
    assert torch.equal(m.get_preds(dl=m.dls.test_dl(x))[0], p)
    assert m.predict(x[0])[1] == p[0].argmax()


def test_own_callbacks_are_not_doubled():
    from ekd_nb.callbacks import LossTermRecorder, StopOnNonFinite
    l = learner(cbs=[StopOnNonFinite(every=7), LossTermRecorder])
    assert len(l._grab_cbs(StopOnNonFinite)) == len(l._grab_cbs(LossTermRecorder)) == 1 and l.stop_on_non_finite.every == 7


def test_rehearsal_leaves_no_trace():
    torch.manual_seed(0)
    from ekd_nb.student import branched_student
    s = branched_student(SMALL, 2, 10, in_channels=1)
    before, rng = {k: v.clone() for k, v in s.state_dict().items()}, torch.get_rng_state()
    l = learner(arch=s, loss_func=EKDLoss())
    assert all(torch.equal(v, before[k]) for k, v in s.state_dict().items()) and s.training and all(m.training for m in s.modules())


def test_teacher_learner_refuses_a_network_of_other_classes():
    with pytest.raises(EKDError, match=r'expected logits \[B,10\]'): teacher_learner(dls(), Net(7))
    with pytest.raises(EKDError, match='cannot process images'): teacher_learner(dls(), Net(10, 3))


def test_import_is_light():
    "Importing the learner loads no other wing, no front door, no library that only some need; the package alone loads nothing"
    code = """if True:
        import sys, ekd_nb
        first = {m for m in sys.modules if m.startswith('ekd_nb.') or m in ('torch', 'fastai')}
        import ekd_nb.learner
        heavy = 'timm', 'onnx', 'fastai.vision.all', 'fastai.text.all', 'ekd_nb.all', 'ekd_nb.study', 'ekd_nb.baselines'
        print(sorted(first), [m for m in heavy if m in sys.modules])"""
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == '[] []', r.stderr


def test_front_door_knows_the_names_and_the_modules():
    import ekd_nb, ekd_nb.all, ekd_nb.study.runs
    from ekd_nb import TeacherEnsemble as ensemble, ekd_learner as same, losses
    assert same is ekd_learner is ekd_nb.all.ekd_learner and ensemble is TeacherEnsemble and losses.EKDLoss is EKDLoss
    assert ekd_nb.learner.ekd_learner is same and all(getattr(ekd_nb.all, n) is not None for n in ekd_nb.all.__all__)
    with pytest.raises(ImportError, match='no_such_name'): from ekd_nb import no_such_name
    assert not hasattr(ekd_nb, '_private')


def test_the_package_runs_as_the_command_line():
    r = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'ekd_nb', '--help'], capture_output=True, text=True)
    assert r.returncode == 0 and '--preset' in r.stdout
    assert (Path(__file__).parents[1]/'ekd_nb/py.typed').exists()


@pytest.mark.parametrize('split, trunk', [(None, ['stem']), ('heads', ['stem', 'layer1', 'layer2', 'layer3'])])
def test_branches_are_the_default_and_both_kinds_survive_saving(split, trunk, tmp_path):
    from ekd_nb.deploy import load_student, save_student
    l = learner(split=split)
    assert [n for n, _ in l.model.trunk.named_children()] == trunk
    assert l.model.kind == ('heads' if split else 'branches')
    x = torch.randn(3, 1, 8, 8)
    for k in (l.model.n_branches, 1):
        student = l.model.keep(k)
        assert torch.equal(load_student(save_student(student, tmp_path/str(k)))(x), student.eval()(x))