"""How far a run's processes yield to others on their machines.

Ray starts its workers at nice 15. Beside any other busy process a run then is slower by an order of magnitude, for its
ranks wait for one another all the time. Nothing here imports Ray: every process of a run reads it first.
"""

import os


def yield_no_more() -> int:
    """Give this process the niceness of the one that started it, where the system allows that.

    Returns:
        By how much it is nicer than that one afterwards: 0, or what Ray added and only an administrator may take back.
    """
    own, parents = (os.getpriority(os.PRIO_PROCESS, process) for process in (0, os.getppid()))
    if own > parents:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, parents)
        except PermissionError:
            return own - parents
    return 0
