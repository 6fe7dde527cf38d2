"""The cron whose schedule is in the server."""

from pathlib import Path

from running import until


def crontab(directory: Path, every: int, command: str) -> Path:
    file = directory / "crontab.toml"
    file.write_text(f"[job]\nevery = {every}\ncommand = '{command}'\n")
    return file


def test_a_job_runs_once_each_time_however_many_crons_there_are(examples, tmp_path):
    runs = tmp_path / "runs"
    runs.touch()
    file = crontab(tmp_path, 1, f"echo $DUE >> {runs}")
    crons = [examples.start("cron.py", file) for _ in range(3)]

    def times() -> list[str]:
        return runs.read_text().splitlines()

    until(lambda: len(times()) >= 3, 30)
    assert len(times()) == len(set(times()))
    crons[0].kill()
    reached = len(times())
    until(lambda: len(times()) >= reached + 2, 30)
    again = len(times()) - len(set(times()))
    assert again <= 1, "more was run again than the killed cron had under way"


def test_the_schedule_outlives_crons_and_server(examples, tmp_path):
    runs = tmp_path / "runs"
    file = crontab(tmp_path, 1, f"echo run >> {runs}")
    cron = examples.start("cron.py", file)
    until(runs.exists, 20)
    cron.kill()
    examples.server.restart()
    reached = runs.read_text()
    examples.start("cron.py", file)
    until(lambda: runs.read_text() > reached, 20)


def test_a_job_that_fails_is_tried_again_and_ends_among_the_failed(configured_examples, tmp_path):
    cron = configured_examples.start("cron.py", crontab(tmp_path, 2, "exit 3"))
    for attempt in (1, 2, 3):
        cron.wait_for(f"attempt {attempt}: Command 'exit 3' returned non-zero exit status 3")
    until(lambda: configured_examples.server.stat("queue_jobs.failed_items"))
