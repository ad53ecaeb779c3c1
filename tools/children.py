"A function in a forked process of its own, which starts at once"
import os, sys, traceback, warnings


def in_child(f, quiet=True, errors=None):
    "Start `f` in a forked process; its id. What it prints is thrown away (`quiet`); its errors can go to a file"
    sys.stdout.flush(); sys.stderr.flush()
    if pid := os.fork(): return pid
    code = 1
    try:
        warnings.simplefilter('ignore')
        if quiet: os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)
        if errors: os.dup2(os.open(errors, os.O_WRONLY|os.O_CREAT), 2)
        f()
        code = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(code)
