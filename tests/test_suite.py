"The development suite: its plan is sealed, both families are tuned alike, and its rule is the one that is written down"
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ekd_nb.compare import KD_WEIGHTS
from ekd_nb.core import EKDError, digest_matches
from ekd_nb.losses import EKDLoss
from ekd_nb.study.problems import CANDIDATES, EKD_CANDIDATES, KD_CANDIDATES, REFERENCE, TASKS, THIRD_ROUND, tiny
from ekd_nb.study.rule import (AFTER, AGAIN, addition, gains, load_suite, plan, planned_runs, ranking,
                               records_of_choice)
from ekd_nb.study.suite import Jobs

ROOT = Path(__file__).parents[1]


def read_plan(name): return json.loads((ROOT/f'results/plans/{name}.json').read_text())


def test_plans_are_sealed_and_the_second_is_what_is_run_now():
    first, second = read_plan('suite'), read_plan('suite-2')
    assert digest_matches(first) and digest_matches(second)
    assert plan() == second
    assert all(first[k] == second[k] for k in ('rule', 'order', 'seeds', 'tasks'))
    assert first['candidates'] == second['candidates'][:len(first['candidates'])]
    assert len(TASKS) >= 8 and len(EKD_CANDIDATES) == len(KD_CANDIDATES)


def test_the_defaults_of_the_library_are_what_was_chosen():
    names = 'alpha beta gamma lam tau hint_error hint_schedule projection'.split()
    def numbers(loss): return {k: getattr(loss, k) for k in names}
    assert numbers(EKDLoss()) == numbers(EKDLoss(**CANDIDATES['std-5-fade-a0.7'].loss))
    kd = CANDIDATES['kd-t4-a0.5'].loss
    assert KD_WEIGHTS == dict(alpha=kd['alpha'], beta=kd['beta'], tau=kd['tau'])   # of compare


def test_records_are_sealed_of_a_known_plan_and_of_validation_images():
    records, plans = load_suite(ROOT/'results/suite'), {p['digest']: p for p in map(read_plan, ('suite', 'suite-2'))}
    assert len(records) == len(list((ROOT/'results/suite').glob('*.json'))) > 290
    for r in records:
        assert r['plan'] in plans and r['evaluated_on'] == 'valid' and not r['dirty']
        later = {c.name for c in THIRD_ROUND}   # in the plans of the third round
        assert r['candidate'] in {c['name'] for c in plans[r['plan']]['candidates']} | later
        assert (r['settings'] == json.loads(json.dumps(asdict(TASKS[r['task']]))) and
                r['loss'] == CANDIDATES[r['candidate']].loss)


@pytest.mark.parametrize('name', ['suite-3', 'suite-4', 'suite-6'])
def test_further_runs_are_planned_and_leave_the_choice_alone(name):
    names = {c['name'] for c in plan()['candidates']}
    more = read_plan(name)
    assert digest_matches(more) and more['adds_to'] == plan()['digest'] and 'not changed' in more['choice']
    assert all(r['task'] in TASKS and r['candidate'] in names and r['seed'] > 0 for r in more['runs'])
    digits = {'digits-more', 'digits-same'}
    assert {r['task'] for r in more['runs']} == (digits if name == 'suite-6' else set(TASKS)-digits)


def test_the_runs_that_kd_lacks_are_planned():
    "One run of every candidate of KD on every problem, as many runs as EKD has had; the choice of KD is made again"
    more, records = read_plan('suite-5'), load_suite(ROOT/'results/suite')
    runs = planned_runs(more)
    assert len(runs) == len(set(runs)) and all(CANDIDATES[c].family == 'kd' for _, c, _ in runs)
    assert 'of KD is made again' in more['choice'] and 'that of EKD is not changed' in more['choice']
    names = {f.stem for f in (ROOT/'results/plans').glob('suite-*.json')} - {'suite-2', 'suite-5', 'suite-7'}
    later = {run for n in names for run in planned_runs(read_plan(n))}
    have = {(r['task'], r['candidate'], r['seed']) for r in records} - later
    pairs = {(t, c) for t, c, _ in have | set(runs)}
    assert all((t, c.name) in pairs for t in TASKS for c in KD_CANDIDATES)
    n = {f: sum(CANDIDATES[c].family == f for _, c, _ in have | set(runs)) for f in ('ekd', 'kd')}
    assert n['kd'] >= n['ekd']


def test_the_runs_that_kd_lacks_are_planned_for_a_cpu_too():
    "The same candidates on the same tasks, with a seed that no other run has, and the reference that their gains need"
    gpu, cpu = (planned_runs(read_plan(n)) for n in ('suite-5', 'suite-7'))
    assert read_plan('suite-7')['choice'] == read_plan('suite-5')['choice'] and {s for *_, s in cpu} == {24}
    kd = {(t, c) for t, c, _ in cpu if c != REFERENCE['kd']}
    assert kd == {(t, c) for t, c, _ in gpu if not TASKS[t].on_cpu}
    assert {t for t, c, _ in cpu if c == REFERENCE['kd']} == {t for t, _ in kd}


def test_the_third_round_is_planned_with_its_candidates_for_both_families():
    "As many candidates each, on every problem; then the choice is made again"
    plans = [read_plan(n) for n in ('suite-8', 'suite-9')]
    stored = [c for p in plans for c in p['new_candidates']]
    assert all(map(digest_matches, plans)) and stored == [json.loads(json.dumps(asdict(c))) for c in THIRD_ROUND]
    assert all(p['choice'] == AGAIN for p in plans)
    for new, p in ((THIRD_ROUND[:3], plans[0]), (THIRD_ROUND[3:], plans[1])):
        runs = set(planned_runs(p))
        digits = {(t, c.name, s) for c in new for t in ('digits-more', 'digits-same') for s in range(24)}
        assert digits <= runs and {(t, c) for t, c, _ in runs if CANDIDATES[c] in new} == {
            (t, c.name) for t in TASKS for c in new}
        lone = {(t, s, c) for t, c, s in runs if not TASKS[t].on_cpu and CANDIDATES[c] in new}
        assert all((t, REFERENCE[CANDIDATES[c].family], s) in runs for t, s, c in lone)   # its gain can be counted


def test_fresh_seeds_are_planned_that_led_to_no_candidate():
    more = read_plan('suite-11')
    assert digest_matches(more) and more['choice'] == AFTER
    digits = {(t, s) for t, c, s in planned_runs(more) if TASKS[t].on_cpu}
    assert digits == {(t, s) for t in ('digits-more', 'digits-same') for s in range(25, 49)}
    assert {c for t, c, _ in planned_runs(more) if not TASKS[t].on_cpu} == {'ekd'}


def test_two_candidates_get_the_seeds_of_the_third_round_before_the_choice():
    runs = planned_runs(read_plan('suite-12'))
    assert read_plan('suite-12')['choice'] == AGAIN and {c for _, c, _ in runs} == {'cos-10-fade', 'cos-10-fade-a0.5'}
    third = {(t, s) for n in (8, 10) for t, c, s in planned_runs(read_plan(f'suite-{n}')) if c == 'std-5-fade-a0.7'}
    have = {(r['task'], r['candidate'], r['seed']) for r in load_suite(ROOT/'results/suite')}
    for c in ('cos-10-fade', 'cos-10-fade-a0.5'):
        assert all((t, c, s) in have for t, s in third if t.startswith('digits') or t == 'files')


def test_every_family_is_chosen_when_its_own_runs_have_ended():
    plans = [json.loads(f.read_text()) for f in sorted((ROOT/'results/plans').glob('suite*.json'))]
    best = ranking(records_of_choice(load_suite(ROOT/'results/suite'), plans)).iloc[0]
    assert best.name == 'std-5-fade-a0.7' and best['below'] == best['missing'] == 0


def test_a_plan_is_run_and_nothing_else(tmp_path):
    from ekd_nb.study.suite import _read_plan, run_plan
    plan = addition(['digits-more'], ['labels-wide'], [2], 'cpu', 'a test', also=[('digits-more', 1, 'kd-t1-a0.1')])
    (tmp_path/'plan.json').write_text(json.dumps(plan))
    log, plan = [], _read_plan(tmp_path/'plan.json')
    go = dict(workers=1, change=tiny, log=log.append)
    assert run_plan(plan, tmp_path/'out', **go) == 0
    found = load_suite(tmp_path/'out')
    assert [(r['candidate'], r['seed']) for r in found] == [('kd-t1-a0.1', 1), ('labels-wide', 2)]
    n = len(log)
    assert run_plan(plan, tmp_path/'out', **go) == 0 and len(log) == n   # all have records
    with pytest.raises(EKDError, match='expected a plan of further runs'): run_plan(read_plan('suite'), tmp_path/'out')
    with pytest.raises(EKDError, match='edited after it was written'): planned_runs(plan | dict(device='cuda'))
    with pytest.raises(EKDError, match='run: cannot read the plan'): _read_plan(tmp_path/'none.json')


def test_later_seeds_alone(tmp_path):
    jobs = Jobs({'grey': TASKS['grey']}, {'labels': CANDIDATES['labels']}, tmp_path, lambda task, seed: [], seeds=(2,))
    assert jobs.next_job(10**6) == ('run', 'grey', 'labels', 2) and jobs.next_job(10**6) is None


def record(task, candidate, accuracy, seed=0, device='cpu'):
    return dict(task=task, candidate=candidate, seed=seed, accuracy=accuracy, device=device)


def test_gains_are_differences_on_one_device():
    records = [record('grey', 'labels', .5), record('grey', 'ekd', .52), record('grey', 'ekd', .9, device='cuda')]
    assert gains(records, 'ekd').loc['ekd', 'grey'].round(6) == 2


def test_the_rule_prefers_no_harm_to_a_high_mean():
    records = [record(t, 'labels', .5) for t in ('grey', 'scale')]
    records += [record('grey', 'std-3', .9), record('scale', 'std-3', .49)]      # +40 and -1
    records += [record('grey', 'ekd', .51), record('scale', 'ekd', .497)]        # +1 and -0.3
    assert list(ranking(records).index) == ['ekd', 'std-3']
    assert list(ranking(records, limit=1.5).index) == ['std-3', 'ekd']


def test_a_candidate_without_a_task_comes_last():
    records = [record(t, 'labels', .5) for t in ('grey', 'scale')]
    records += [record('grey', 'std-3', .9), record('grey', 'ekd', .4), record('scale', 'ekd', .4)]
    assert list(ranking(records).index) == ['ekd', 'std-3']


def test_jobs_wait_for_teachers_and_stop_in_time(tmp_path):
    missing = [0]
    tasks = {'digits-more': tiny(TASKS['digits-more'])}
    jobs = Jobs(tasks, {'labels': CANDIDATES['labels']}, tmp_path, lambda task, seed: missing, seeds=(0,))
    assert jobs.next_job(100) == ('teacher', 'digits-more', 0, 0)
    assert jobs.next_job(100) is None          # its teacher is being trained
    missing.clear()
    assert jobs.next_job(.1) is None           # no time
    assert jobs.next_job(100) == ('run', 'digits-more', 'labels', 0)
    assert jobs.next_job(100) is None


def test_what_the_page_says_was_not_tried_was_not_tried():
    page = (ROOT/'nbs/results/defaults.ipynb').read_text()
    losses = [c.loss for c in CANDIDATES.values()]
    forms = {loss.get('hint_error') for loss in losses}
    assert forms <= {None, 'mse', 'standard', 'cosine'}   # no correlation
    levers = 'alpha beta gamma tau lam hint_error hint_schedule hint_end projection'   # no gradients, no stages
    assert {k for loss in losses for k in loss} <= set(levers.split())
    for idea in ('correlation', 'the ratio of gradients', 'several stages', 'statistics of the first epoch'):
        assert idea in page, idea
    records = load_suite(ROOT/'results/suite')
    for c in ('std-10-fade-mlp', 'std-10-fade-g1'): assert len({r['task'] for r in records if r['candidate'] == c}) == 1


def test_the_hints_cost_at_most_five_percent_of_a_step():
    cost = json.loads((ROOT/'results/benchmarks/hints-cpu.json').read_text())
    assert cost['steps'] and all(o['default']['to_mse']['median'] <= 1.05 for o in cost['steps'].values())
