"""From command-line options to an executor."""

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.work.base import default_workers
from avpipe.pipeline.work.ray_cluster import RayCluster


def open_executor(name: str, workers: int | None, ray_address: str | None) -> "int | RayCluster":
    """Return the executor for `run_parts`. Raises AvpipeError for options that contradict each other.

    `workers` None means one per core, of this machine or of the cluster at `ray_address`.
    """

    if name == "ray":
        return RayCluster(workers if ray_address else workers or default_workers(), ray_address)
    if name != "local":
        raise AvpipeError(f"--executor is `local` or `ray`, not {name!r}")
    if ray_address:
        raise AvpipeError("--ray-address only makes sense with --executor ray; add that, or leave the address out")
    return workers or default_workers()
