"`python -m ekd_nb`: the console script `ekd_reproduce`"
from ekd_nb.study.reproduce import main

if __name__=='__main__': raise SystemExit(main())
