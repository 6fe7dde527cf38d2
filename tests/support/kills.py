"""Work in a process that is killed at one of its steps."""

import itertools
import os
import signal


def killed_at(step, work, count) -> bool:
    """Do work in a process that is killed at a step; return False if it ended before that.

    `count` is called there with what makes a function two steps, one before it and one after it.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        steps = itertools.count(1)

        def counted(function):
            def call(*args, **options):
                before, after = next(steps), next(steps)
                if before == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **options)
                if after == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        count(counted)
        work()
        os._exit(0)
    except BaseException as error:  # nothing of pytest may run in the child
        print(repr(error), flush=True)
        os._exit(1)
