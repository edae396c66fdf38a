"""Submits this checkout as a job to a Ray cluster, follows its log and exits as it did.

    python sweeps/submit.py --address http://127.0.0.1:8265 -- python sweeps/ablation.py --study table4 \\
        --storage /shared/results --data-root /data --tracking-uri http://127.0.0.1:5000

`ray job submit --working-dir . -- python sweeps/ablation.py ...` does the same with less: this also checks before the
upload that it is small enough and names what is large, lets the job's runs know the commit, and passes the exit status
on. The cluster's token is taken from ~/.ray/auth_token, or from the file that $RAY_AUTH_TOKEN_PATH names. Secrets for
the job (MLflow's password, S3 keys) belong on the cluster: whatever is submitted can be read in its dashboard.
Exit status: the job's; 2 nothing was submitted, 130 the job was stopped or is no longer followed.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from relvit.files import folder
from relvit.host import ensure_home
from sweeps.cluster import jobs
from sweeps.cluster.jobs import DEFAULT_ADDRESS, INTERRUPTED
from sweeps.cluster.machine import open_to_others

NOT_SUBMITTED = 2


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS), metavar="URL",
        help=f"Ray's dashboard (default: $RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS})",
    )  # fmt: skip
    parser.add_argument(
        "--working-dir", type=folder, default=Path(__file__).resolve().parents[1], metavar="DIR",
        help="what is uploaded, and where the command runs (default: this checkout)",
    )  # fmt: skip
    parser.add_argument("--submission-id", metavar="ID", help="the job's name (default: one of Ray's making)")
    parser.add_argument("--no-wait", action="store_true", help="exit when the job is submitted")
    parser.add_argument("entrypoint", nargs="+", metavar="COMMAND", help="what runs on the cluster, after --")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    note = ensure_home()
    if note:
        print(f"note: {note}", file=sys.stderr)
    jobs.use_token()
    problems = jobs.secret_problems(options.entrypoint)
    problems += jobs.upload_problems(options.working_dir)
    problems += jobs.address_problems(options.address)
    if problems:
        return refuse(problems)
    try:
        client = jobs.connect(options.address)
        for note in jobs.version_notes(client):
            print(f"note: {note}")
        job_id = jobs.submit(client, options.working_dir, options.entrypoint, options.submission_id)
    except jobs.SubmitError as error:
        return refuse([str(error)])
    print(f"job {job_id} submitted to {options.address}", flush=True)
    for line in open_to_others([Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()]):
        print(f"note: {line}")
    if options.no_wait:
        return 0
    try:
        return jobs.follow(client, job_id)
    except (KeyboardInterrupt, jobs.NotFollowedError) as error:
        if isinstance(error, jobs.NotFollowedError):
            print(f"\nthe connection to {options.address} was lost ({error}), the job was not", end="")
        print(f"\nthe job goes on; `ray job logs --follow {job_id}` follows it, `ray job stop {job_id}` ends it")
        return INTERRUPTED


def refuse(problems: list[str]) -> int:
    """Say all that is wrong, once."""
    print("\n".join(["nothing was submitted:", *(f"  - {each}" for each in problems)]), file=sys.stderr)
    return NOT_SUBMITTED


if __name__ == "__main__":
    sys.exit(main())
