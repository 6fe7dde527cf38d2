"""`python -m darner.work`, which is the command `darner work`."""

from darner.work.command import work

if __name__ == "__main__":
    work(prog_name="python -m darner.work")
