"""A small part of `make fuzz`: fixed combinations either train or are refused with one sentence"""
import json, sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import fuzz
from ekd_nb.core import digest_matches
from ekd_nb.student import branched_student

USUAL = dict(i=0, seed=0, size=8, channels=1, classes=4, data='arrays, one view', student='resnet8-w4',
             teachers=['resnet8-w6', 'own network'], split='None', branches='None', fusion='mean', loss='hints',
             cbs='none', memo='on', precision='float32', fit='fit', layers='last',
             export='none')

TRAINED = [
    dict(export='save_student'),
    dict(export='resume', cbs='MixUp', loss='hints, SchedCos'),
    dict(data='torch, subset sampler', memo='off', export='fold', student='own module', split='heads', fit='fine_tune'),
    dict(data='folder', channels=3, export='learner', teachers=['adapter', 'file'], loss='class weights'),
    dict(precision='bf16', loss='hints, cosine', export='keep', fusion='gate', split='1'),
    dict(data='arrays, Rotate', loss='dkd', branches='1', export='fused'),
    dict(student='finished student, grouped', export='onnx'),
    dict(data='torch', memo='None', export='learner', teachers=['file of a student']),
    dict(data='arrays, a function as after_batch', export='learner'),
    dict(data='folder', channels=3, cbs='unlabelled', loss='teachers by confidence'),
    dict(teachers=['resnet8-w6', 'resnet8-w6'], layers='?layer2', export='resume'),
]
REFUSED = [
    (dict(data='!torch, NaN images'), 'not finite'),
    (dict(data='!torch, three items'), 'three|3 items'),
    (dict(loss='!negative alpha'), 'alpha: got -1'),
    (dict(split='!tail'), 'tail'),
    (dict(teachers=['!other classes']), 'has 5 classes, the data has 4'),
    (dict(student='!no such name'), 'resnet9000x'),
    (dict(layers='!nowhere'), 'nowhere'),
    (dict(layers='!a number'), 'hints: got 7'),
    (dict(cbs='!unlabelled, no share'), 'share: got 0'),
]


@pytest.mark.parametrize('changes', TRAINED, ids=str)
def test_trains(changes): assert fuzz.outcome(USUAL | changes)==('trained', '')


@pytest.mark.parametrize('changes,says', REFUSED, ids=str)
def test_is_refused(changes, says):
    end,sentence = fuzz.outcome(USUAL | changes)
    assert end=='refused' and any(s in sentence for s in says.split('|')), sentence


def test_draws_do_not_change():
    assert fuzz.draw(0, 7)==fuzz.draw(0, 7)!=fuzz.draw(0, 8)
    assert all(set(fuzz.draw(1, i))>=set(fuzz.PARTS) for i in range(20))


def test_kinds_of_sentences():
    assert fuzz.kind("bs: got -4 and 'a', expected 1.5 (of 3)")=='bs: got # and …, expected # …'


def test_a_fault_is_seen(monkeypatch):
    "A wrong value that is accepted, and an error that is not ours, are both faults"
    monkeypatch.setitem(fuzz.parts.DATA, 'broken', lambda c: 1/0)
    assert fuzz.outcome(USUAL | dict(data='broken'))[0]=='fault'
    monkeypatch.setitem(fuzz.parts.CALLBACKS, '!none', lambda c: [])
    assert fuzz.outcome(USUAL | dict(cbs='!none'))==('fault', 'Fault: accepted: !none')


def test_no_branch_writes_over_the_trunk():
    "Each branch begins with an activation in place, which twice is not the same as once"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(inplace=True), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, 4))
    student,x = branched_student(net, 2, 4, split=1, size=16).eval(),torch.randn(3, 3, 16, 16)
    h = student.trunk(x)
    want = torch.stack([b(h.clone())[0] for b in student.branches]).mean(0)
    assert torch.equal(student(x), want)


@pytest.mark.parametrize('bs', [0, -4, '10', 2.5])
def test_batch_sizes(bs):
    with pytest.raises(fuzz.EKDError, match='bs: got'): fuzz.parts.image_dls(context().arrays, bs=bs)


def test_held_out_images_are_counted():
    with pytest.raises(fuzz.EKDError, match='n_valid: got 2.5'): fuzz.parts.image_dls(context().arrays, valid=2.5)


@pytest.mark.parametrize('kw', [dict(label_smoothing='0.1'), dict(hint_end='1'), dict(label_smoothing=None)], ids=str)
def test_shares_are_numbers(kw):
    with pytest.raises(fuzz.EKDError, match=f'{[*kw][0]}: got'): fuzz.parts.EKDLoss(**kw)


def test_images_that_are_too_small_for_the_last_stage():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 4))
    with pytest.raises(fuzz.EKDError, match='cannot process images of'): branched_student(net, 2, 4, size=6)


def context(): return fuzz.parts.Context(Path('.'), 8, 1, 2, 0)


@pytest.mark.parametrize('path', sorted((fuzz.ROOT/'results'/'fuzz').glob('*.json')), ids=lambda p: p.stem)
def test_records_add_up(path):
    r = json.loads(path.read_text())
    assert digest_matches(r) and not r['dirty']
    assert r['trained']+sum(r['refused'].values())+len(r['other'])==r['n']

def test_one_record_of_500_combinations_has_no_other_end():
    records = [json.loads(f.read_text()) for f in (fuzz.ROOT/'results'/'fuzz').glob('*.json')]
    assert any(r['n']>=500 and not r['other'] for r in records)
