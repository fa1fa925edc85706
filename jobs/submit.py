"""Run a job on a cluster: upload the code, start it on the head, follow it to its end.

usage: python jobs/submit.py [options] -- JOB ARGUMENTS        as in: jobs/submit.py -- train shapes --name mine
       python jobs/submit.py follow|stop NAME [--address URL]  NAME of a run, or of one of its jobs
       python jobs/submit.py list [--address URL]

options: --address URL      the head's dashboard; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, http://127.0.0.1:8265
         --working-dir DIR  what is uploaded; this checkout unless given
         --python PATH      the interpreter on the head (python)
         --no-follow        return once the job is submitted

Ctrl-C ends the following, not the job; `stop` lets it commit first. The exit status is that of the job.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mtl import cli
from mtl.errors import ConfigError
from mtl.on_ray import following, submission
from mtl.on_ray.head import connect
from mtl.on_ray.package import Package


def submit(address: str | None = None, working_dir: Path = ROOT, python: str = "python", follow: bool = True) -> int:
    """Check, show the plan, upload, start."""
    package = Package.scan(working_dir)
    job = submission.Command.parse(sys.argv[sys.argv.index("--") + 1 :], package)
    print(f"upload  {package.describe()}")
    package.check()
    head, about = connect(address)
    print(f"head    {head.address}: {about}")
    job_id = submission.choose_id(job, head.jobs(), print)
    print(f"job     {job_id}: {job.line(python)}", flush=True)
    submission.submit(head, job, job_id, package, python)
    print(f"        submitted; `jobs/submit.py follow {job_id}` shows it, `stop {job_id}` stops it", flush=True)
    return following.to_the_end(head, job_id) if follow else 0


def follow(name: str, /, address: str | None = None) -> int:
    """Show the log of a job until it ends, and exit as it does."""
    head, _ = connect(address)
    return following.to_the_end(head, submission.find(head.jobs(), name).id)


def stop(name: str, /, address: str | None = None) -> None:
    """Let a job commit, stop it, and say how it ended."""
    head, _ = connect(address)
    print(following.stop(head, submission.find(head.jobs(), name)))


def list_jobs(address: str | None = None) -> None:
    """Show the jobs of a head, oldest first."""
    for job in connect(address)[0].jobs():
        print(f"{job.id:<24}  {job.status.lower():<9}  {job.entrypoint}")


def main() -> int | None:
    """Submit where there is a --; otherwise do what the first word says."""
    import tyro

    own, verbs = sys.argv[1:], {"follow": follow, "stop": stop, "list": list_jobs}
    if "--" in own:
        return tyro.cli(submit, args=own[: own.index("--")], prog="submit.py")
    if not own or own[0] in ("-h", "--help"):
        print(__doc__)
        return None
    if own[0] not in verbs:
        raise ConfigError(
            f"'{own[0]}' is none of {', '.join(verbs)}.", do="put -- before a job: submit.py -- train ..."
        )
    return tyro.cli(verbs[own[0]], args=own[1:], prog=f"submit.py {own[0]}")


if __name__ == "__main__":
    cli.run(main)
