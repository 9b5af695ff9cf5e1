"""Whether a run is to be started again: python tools/again.py --help"""

import sys

from pretrain.launch.again import main

if __name__ == "__main__":
    sys.exit(main())
