"""Submit a training run to SLURM: python tools/submit.py --help"""

import sys

from pretrain.launch.submit import main

if __name__ == "__main__":
    sys.exit(main())
