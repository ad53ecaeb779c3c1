"""Train one student with several processes, or with one: the same script, the same run.

    accelerate launch --multi_gpu --num_processes 2 examples/several_processes.py t0.safetensors t1.safetensors
    python examples/several_processes.py t0.safetensors t1.safetensors

The arguments are teachers of the digits, saved with `save_teacher`. Two processes on the CPU: the first line with
`--cpu` at its end (Accelerate starts several processes only with `--multi_gpu`, where there is no GPU, too).
"""
import argparse
from contextlib import nullcontext

import torch
from fastai.distributed import teardown_distrib   # and learn.distrib_ctx
from fastai.torch_core import num_distrib, rank_distrib
from ekd_nb.all import *


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('teachers', nargs='+', help='files of save_teacher')
    p.add_argument('--cpu', action='store_true', help='without GPUs')
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--bs', type=int, default=64, help='images of a step, over all processes')
    p.add_argument('--out', default='out', help='folder of the student')
    return p.parse_args()


def main():
    a, world = arguments(), max(num_distrib(), 1)
    if a.cpu: torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_images('digits')
    rows = stratified_subset(data.y_train, fraction=.25)
    dls = image_dls(data, rows, bs=a.bs//world, n_views=2, seed=0, device='cpu' if a.cpu else None)
    loss = EKDLoss(.1, .9, 1., hint_error='mse')   # the default's hints use each process's own images
    learn = ekd_learner(dls, 'resnet8-w8', a.teachers, loss_func=loss, memo=True, cbs=Checkpoint(f'{a.out}/run'))
    several = learn.distrib_ctx(cpu=a.cpu, sync_bn=not a.cpu) if world>1 else nullcontext()
    with several, learn.no_bar(): learn.fit_one_cycle(a.epochs, 1e-2)

    rank = rank_distrib()
    if world>1: torch.distributed.barrier()   # all are done; a group left open can abort a process that ends first
    teardown_distrib()
    if rank: return   # process 0 does the rest
    save_student(learn, a.out)
    accuracy = learn.recorder.values[-1][2]
    print(f'{world} process(es), {dls.bs} images each: {len(learn.recorder.losses)} steps, accuracy {accuracy:.3f}; '
          f'teachers ran here for {learn.distill.memo.misses} of {2*len(rows)} images')


if __name__ == '__main__': main()
