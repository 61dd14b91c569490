"""What a worker is told of an attempt at a job: its fit, with the paths of all that it reads and writes."""

from app.jobs.attempt import Attempt
from app.jobs.data_files import NamedFiles
from app.jobs.resources import Resources
from app.worker.messages import INIT_METHODS, CheckpointPlace, Fit

NOT_THE_WORKERS = ("clip", "files", "online", "epochs", "ranks")  # what else is on record of a job's parameters


def fit_message(resources: Resources, attempt: Attempt) -> Fit:
    record = attempt.record
    data = record.data
    parameters = {name: value for name, value in record.job.parameters.items() if name not in NOT_THE_WORKERS}
    if parameters["init"] not in INIT_METHODS:
        parameters |= {"init": "auto", "start": parameters["init"]}
    online = data.get("epochs") is not None
    return Fit(
        job=record.job.id,
        path="" if online else str(resources.uploads.path(data["file"]).absolute()),
        data_offset=0 if online else data["data_offset"],
        rows=data["rows"],
        n_features=data["n_features"],
        data_sha256=data.get("sha256", ""),
        checkpoint=_checkpoint_place(resources, attempt),
        online=resources.data_files.in_place(NamedFiles.of_record(data)) if online else None,
        **parameters,
    )


def _checkpoint_place(resources: Resources, attempt: Attempt) -> CheckpointPlace | None:
    interval = resources.settings.checkpoint_interval_seconds
    if interval == 0:
        return None
    job, checkpoints = attempt.job.id, resources.checkpoints
    path, staged = checkpoints.path(job).absolute(), checkpoints.staged(job).absolute()
    return CheckpointPlace(str(path), str(staged), interval, checkpoints.shared_as(job), attempt.objects_before)
