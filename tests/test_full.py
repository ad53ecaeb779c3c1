"The plan of all of CIFAR: sealed, an equal number of candidates for every method, winners chosen on held-out images"
import json
from dataclasses import asdict
from pathlib import Path
import pytest
from ekd_nb.core import EKDError, digest_matches
from ekd_nb.study.full import (CHOICE_SEED, DATA, LIMITED, LONG, METHOD_ORDER, PARTS, RIVALS, SEEDS, candidate_jobs,
                               plan, plan_jobs, test_jobs as jobs_of, winner)
from ekd_nb.study.methods import METHODS, make_loss, method, relevant_fields
from ekd_nb.study.protocols import protocol
from ekd_nb.study.records import load_records, read_record, record_name

ROOT = Path(__file__).resolve().parents[1]
STORED = json.loads((ROOT/'results/plans/full.json').read_text())


def choices(best=2):
    "Made-up validation records in which one candidate of each method wins"
    def record(m, i, w, tau):
        protocol_ = dict(own_weight=w, tau=tau)
        accuracy = .6 if i == best else .5
        return dict(method=m, seed=CHOICE_SEED, evaluated_on='valid', test_accuracy=accuracy, protocol=protocol_)
    return [record(m, i, *c) for m, cs in RIVALS.items() for i, c in enumerate(cs)]


def test_the_plan_is_sealed_and_still_the_same():
    now = plan()
    assert digest_matches(STORED)
    for k in ('data', 'seeds', 'choice_seed', 'first', 'methods', 'candidates', 'chosen', 'rule', 'long', 'limited'):
        assert STORED[k] == now[k], k
    for d, p in STORED['protocols'].items(): assert p == {k: now['protocols'][d][k] for k in p}


def test_every_rival_has_as_many_candidates():
    assert {len(set(c)) for c in RIVALS.values()} == {4}
    assert set(METHOD_ORDER) <= set(METHODS) and len(set(METHOD_ORDER)) == len(METHOD_ORDER)
    for d in DATA:
        jobs = candidate_jobs(d)
        assert {j.on for j in jobs} == {'valid'} and {j.seed for j in jobs} == {CHOICE_SEED}
        assert len({j.name for j in jobs}) == len(jobs) == 4*len(RIVALS)


def test_candidates_differ_in_their_loss():
    for m in RIVALS:
        losses = {repr(make_loss(j.protocol, method(m), 0)) for j in candidate_jobs('cifar10', [m])}
        assert len(losses) == 4, m


def test_the_authors_weight_is_one():
    "With labels and teachers alike, `own_weight=1` is the ratio to the labels that the authors have"
    p = protocol('cifar100', 'full', own_weight=1.)
    def loss(m): return make_loss(p, method(m), 0)
    assert loss('fitnet').weight == pytest.approx(100) and loss('rkd').distance == pytest.approx(25)
    assert loss('dkd').nckd == pytest.approx(2) and loss('camkd').weight == pytest.approx(50/3)
    assert loss('one').beta == 1 and p.alpha == p.beta


def test_the_winner_is_the_best_on_held_out_images():
    assert all(winner(m, choices()) == cs[2] for m, cs in RIVALS.items())
    assert winner('rkd', choices(best=None)) == RIVALS['rkd'][0], 'of equal ones the first'
    assert winner('rkd', [r for r in choices() if r['protocol']['tau'] == 4]) is None, 'one candidate is missing'


def test_test_runs_wait_for_the_choices():
    without, with_them = (jobs_of('cifar100', METHOD_ORDER, c) for c in ((), choices()))
    assert not {j.method for j in without} & set(RIVALS)
    assert len(with_them) == len(SEEDS)*len(METHOD_ORDER) and {j.seed for j in with_them} == set(SEEDS)
    assert all(j.protocol.own_weight == RIVALS[j.method][2][0] for j in with_them if j.method in RIVALS)
    assert len({j.name for j in with_them}) == len(with_them)


def test_records_of_before_need_no_own_weight():
    p = {k: v for k, v in asdict(protocol('cifar10', 'small')).items() if k != 'own_weight'}
    for m in METHODS.values(): assert relevant_fields(p, m) == relevant_fields(protocol('cifar10', 'small'), m)


def test_parts():
    assert [len(plan_jobs(part, 'cifar100', ROOT/'results')) > 0 for part in PARTS] == [p != 'long' for p in PARTS]
    with pytest.raises(EKDError, match="part: got 'all', expected one of first"): plan_jobs('all', 'cifar10')


def test_stored_runs_of_the_plan_are_those_that_were_planned():
    "Every test record of `full` was planned; another method's weight is that of the winner on held-out images"
    for d in DATA:
        choices_, names = load_records(ROOT/'results/choices', data=d, preset='full'), set()
        for part in PARTS: names |= {j.name for j in plan_jobs(part, d, ROOT/'results')}
        for r in load_records(ROOT/'results/runs', data=d):
            if r['preset'] != 'full' and r.get('variant') not in (LONG, LIMITED): continue
            assert record_name(r) in names
            if r['method'] in RIVALS and r['preset'] == 'full':
                assert (r['protocol']['own_weight'], r['protocol']['tau']) == winner(r['method'], choices_)


def test_stored_logits_belong_to_a_record():
    from ekd_nb.study.verdicts import stored_logits   # late: needs safetensors only here
    files = {p.name for p in (ROOT/'results/logits').glob('*.safetensors')}
    records = [read_record(p) for p in (ROOT/'results/runs').glob('*-full-*.json')]
    kept = {r['logits']['file'] for r in records if r.get('logits') and stored_logits(r, ROOT/'results') is not None}
    assert files == kept
