"What a practitioner reaches for, each in at most three lines of his own code, on a folder of images"
import warnings

import numpy as np
import pytest, torch
from PIL import Image
from fastai.callback.schedule import SchedCos
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, MultiCategoryBlock, RandomSplitter, Resize,
                               get_image_files, load_learner, parent_label, resnet18, vision_learner)
from ekd_nb.all import (BranchInterpretation, EKDLoss, MultiLabelEKDLoss, UnlabeledImages, ekd_learner,
                        get_uncertainty, load_student, save_onnx, save_student, save_teacher, show_disagreement,
                        teacher_learner)
from ekd_nb.core import EKDError

warnings.filterwarnings('ignore')
ARCH = 'resnet8-w4'


def quick(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn


def loaders(folder, blocks=(ImageBlock, CategoryBlock), get_y=parent_label, files=get_image_files):
    block = DataBlock(blocks=blocks, get_items=files, get_y=get_y, splitter=RandomSplitter(.25, seed=0),
                      item_tfms=Resize(32))
    return block.dataloaders(folder, bs=8, num_workers=0, device=torch.device('cpu'))


@pytest.fixture(scope='module')
def names(tmp_path_factory):
    "What the snippets may use: a folder of images of three classes, its loaders, two teachers, a trained Learner"
    folder, rng = tmp_path_factory.mktemp('user'), np.random.default_rng(0)
    for c, name in enumerate('abc'):
        (folder/'images'/name).mkdir(parents=True)
        for i in range(16):
            noise = rng.integers(0, 90, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(noise+np.uint8(60*c)).save(folder/'images'/name/f'{i}.png')
    dls = loaders(folder/'images')
    def two(p): return [f for f in get_image_files(p) if f.parent.name != 'c']
    def labels(f): return [parent_label(f)] + (['even'] if int(f.stem)%2 == 0 else [])
    teachers = [quick(teacher_learner(dls, a)) for a in (ARCH, 'wrn_10_1')]
    learn = quick(ekd_learner(dls, ARCH, teachers, judge=False))
    of_two = quick(teacher_learner(loaders(folder/'images', files=two), ARCH))
    several = loaders(folder/'images', (ImageBlock, MultiCategoryBlock), labels)
    vision = vision_learner(dls, resnet18, pretrained=False)
    return globals() | dict(dls=dls, folder=folder, teachers=teachers, learn=learn, of_two=of_two, several=several,
                            vision=vision)


def new(**kwargs):
    given = ', '.join(f'{k}={v}' for k,v in kwargs.items())
    return f'found = quick(ekd_learner(dls, ARCH, teachers, {given}))'


SNIPPETS = {   # what is wanted -> (code, what is true afterwards)
    'save any teacher': ('''save_teacher(vision, folder/'t.safetensors')
found = ekd_learner(dls, ARCH, [folder/'t.safetensors', teachers[0]])''', 'len(found.distill.teachers)==2'),
    'a Learner read from its file as teacher': ('''teachers[0].export(folder/'t.pkl')
found = quick(ekd_learner(dls, ARCH, [load_learner(folder/'t.pkl')]))''', 'len(found.distill.teachers)==1'),
    'fewer branches': ('''found = learn.keep(1)
found.validate()
save_onnx(found, folder/'kept.onnx')''', "found.model.n_branches==1 and (folder/'kept.onnx').is_file()"),
    'a Learner as student': ('found = quick(ekd_learner(dls, learn.keep(2), teachers))', 'found.model.n_branches==2'),
    'what the student is made of': ('found = learn.model.summary()', "found.count(', learns from ')==2"),
    'hints at named layers': (new(hints="[('layer2', 'layer2'), None]"), "found.loss_func.needs_features"),
    'a schedule': (new(loss_func='EKDLoss(gamma=SchedCos(60, 0))'), "'gamma' in found.recorder.metric_names"),
    'images without labels': (new(cbs="UnlabeledImages(folder/'images')"),
                              "'UnlabeledImages' in [type(c).__name__ for c in found.cbs]"),
    'teachers by confidence': (new(loss_func="EKDLoss(teacher_weights='confidence')"),
                               "found.loss_func.teacher_weights=='confidence'"),
    'class weights and smoothing': (new(loss_func='EKDLoss(weight=[1., 2., 1.], label_smoothing=.1)'),
                                    'len(found.loss_func.class_weights)==3'),
    'several labels for an image': ('''ts = [quick(teacher_learner(several, ARCH)) for _ in range(2)]
found = quick(ekd_learner(several, ARCH, ts, loss_func=MultiLabelEKDLoss()))''', 'found.loss_func.multi_label'),
    'a teacher of other classes': ('found = quick(ekd_learner(dls, ARCH, [of_two, teachers[0]]))',
                                   'not found.distill.teachers.known.all()'),
    'where branches disagree': ('''show_disagreement(learn)
found = BranchInterpretation.from_learner(learn).confusion_matrix(0)''', 'found.shape==(3, 3)'),
    'uncertainty': ('found = get_uncertainty(learn)', "{'entropy', 'mutual_information'} <= set(found)"),
    'a student in a file': ('found = load_student(save_student(learn, folder/"student"))', 'found.n_branches==2')}


@pytest.mark.parametrize('wanted', SNIPPETS)
def test_three_lines_are_enough(names, wanted):
    code, says = SNIPPETS[wanted]
    assert len(code.splitlines()) <= 3
    space = dict(names)
    exec(code, space)
    assert eval(says, space), wanted


@pytest.mark.parametrize('kwargs, says', [
    (dict(builder=3), 'builder'), (dict(builder='torchvision.models.resnet18', builder_args=3), 'builder_args')])
def test_a_wrong_builder_is_one_sentence(names, kwargs, says):
    with pytest.raises(EKDError, match=says) as e:
        save_teacher(names['teachers'][0].model, names['folder']/'wrong.safetensors', **kwargs)
    assert '\n' not in str(e.value)
