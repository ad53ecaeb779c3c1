"""Which networks of timm can be students: make one with two branches, train a step, and print a table.

    python tools/timm_students.py [--record] [name ...]

With `--record` the table is written to results/students."""
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from ekd_nb.core import EKDError, add_digest, write_json
from ekd_nb.models import count_params
from ekd_nb.student import branched_student
from ekd_nb.study.records import provenance

OUT = Path(__file__).resolve().parents[1]/'results'/'students'

# a small network of each family
NAMES = '''resnet10t resnetv2_18 seresnet18 skresnet18 resnest14d res2net50_14w_8s densenet121 dpn48b rexnet_100
gernet_s inception_v3 regnetx_002 regnety_002 repvgg_a0 mobileone_s0 efficientnet_lite0 efficientnet_b0
tf_efficientnetv2_b0 mnasnet_small mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050
mobilenetv4_conv_small_035 lcnet_035 tinynet_e ghostnet_050 ghostnetv2_100 hardcorenas_a hrnet_w18_small
convnext_atto convnextv2_atto dla46_c cspresnet50 ese_vovnet19b_slim_dw hgnetv2_b0 selecsls42
nf_regnet_b0 fastvit_t8 repvit_m0_9 starnet_s1 edgenext_xx_small mobilevit_xxs mambaout_femto
inception_next_atto vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256'''.split()
TARGETS = '''convnext_atto repvgg_a0 resnetv2_18 regnetx_002 efficientnet_b0 mobilenetv3_small_050 densenet121
mobilenetv2_035 swin_tiny_patch4_window7_224 vit_tiny_patch16_224 deit_tiny_patch16_224'''.split()


def side(name): return 128 if name in ('inception_v3', 'swinv2_tiny_window8_256') else 64


def try_student(name, n_branches=2, split=None):
    "(student after a step, tensors that have a gradient, tensors in all)"
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, side(name), side(name)), torch.arange(4)
    s = branched_student(name, n_branches, 4, split, size=side(name))
    opt = torch.optim.SGD(s.parameters(), 1e-3)
    out = s.train()(x)
    sum(nn.functional.cross_entropy(z, y) for z in out.branches).backward()
    opt.step()
    return s, sum(p.grad is not None for p in s.parameters()), len(list(s.parameters()))


def row(name):
    "What came of it: `end` is 'trained', 'refused' (with the sentence) or 'error'"
    try: s, learn, n = try_student(name)
    except EKDError as e: return dict(name=name, end='refused', sentence=str(e))
    except Exception as e: return dict(name=name, end='error', sentence=f'{type(e).__name__}: {e}')
    stages = [*s.trunk._modules, *s.branches[0].body._modules]
    return dict(name=name, end='trained', parameters=count_params(s), shared=len(s.trunk), stages=len(stages),
                learn=learn, tensors=n)


def text(r):
    "One line of the table"
    if r['end'] != 'trained': return f"| `{r['name']}` | {r['end']}: {r['sentence'][:200]} |"
    shared = f"{r['shared']} of {r['stages']} stages shared"
    return f"| `{r['name']}` | trained, {shared}, {r['learn']} of {r['tensors']} tensors learn |"


def main(names, record):
    warnings.simplefilter('ignore')
    where, rows = provenance('cpu'), []
    for n in names or NAMES:
        rows.append(row(n))
        print(text(rows[-1]), flush=True)
    trained = sum(r['end'] == 'trained' for r in rows)
    print(f'{trained} of {len(rows)} trained')
    if not record: return
    import timm
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT/f'timm-n{len(rows)}.json', add_digest(dict(
        schema=1, **where, timm=timm.__version__, branches=2, classes=4, trained=trained, rows=rows)))


if __name__ == '__main__': main([a for a in sys.argv[1:] if a != '--record'], '--record' in sys.argv)
