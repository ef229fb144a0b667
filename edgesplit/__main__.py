"""python -m edgesplit"""

from edgesplit.cli import main

main()
