"""Finds the other processes of a run in the environment, and joins them.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   set by hand or by launch/local.sh
    SLURM, Open MPI, Kubernetes, Cloud TPU pods                  jax detects them
    JAX_NUM_PROCESSES=1                                          one process, whatever else is set

In any other environment a run has one process, which connects to nothing.
"""

import functools
import glob
import importlib.util
import os
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightpaff_jax.errors import UserError, one_line, whole_number
from lightpaff_jax.runtime import interrupts, storage

VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# Variable that a cluster sets for each process -> variable with the number of processes, if any.
CLUSTERS = {
    'SLURM_STEP_NODELIST': 'SLURM_NTASKS',
    'OMPI_COMM_WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
    'JOB_COMPLETION_INDEX': '',  # set by Kubernetes in an indexed job
    'TPU_PROCESS_ADDRESSES': '',
    'TPU_WORKER_HOSTNAMES': '',
}

# Seconds to wait for all processes. By hand they are started together. A cluster may first have to
# provide machines and images, for which JAX allows five minutes too.
JOIN_TIMEOUT = 60.0
CLUSTER_JOIN_TIMEOUT = 300.0
# Seconds without a heartbeat after which a process is considered dead and the others exit. A thread
# that needs neither Python nor the devices sends a heartbeat every few seconds. JAX's default of
# 100 s would leave a pod idle for longer; much less would not survive a live migration.
HEARTBEAT_TIMEOUT = 30


class Cluster(NamedTuple):
    """The arguments of jax.distributed.initialize; jax detects those that are None."""

    address: str | None
    process_count: int | None
    process_id: int | None


def detect(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster that the environment describes, or None for a run of one process.

    Raises:
      UserError: a variable is missing or has an invalid value.
    """
    count = _integer(environment, 'JAX_NUM_PROCESSES', 1)
    index = _integer(environment, 'JAX_PROCESS_ID', 0)
    if count is not None and index is not None and index >= count:
        raise UserError(f'JAX_PROCESS_ID = {index}: must be below JAX_NUM_PROCESSES = {count}')
    if count == 1:
        return None
    address = environment.get('JAX_COORDINATOR_ADDRESS')
    if address:
        host, _, port = address.rpartition(':')
        if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 1 << 16:
            raise UserError(f'JAX_COORDINATOR_ADDRESS = {address:.80}: must be HOST:PORT')
    present = [name for name in VARIABLES if environment.get(name)]
    if not _cluster_variable(environment):
        if not present:
            return None
        for name in VARIABLES:
            if name not in present:
                raise UserError(f'{name}: must be set too, as {present[0]} is')
    return Cluster(address or None, count, index)


def _integer(environment: Mapping[str, str], name: str, least: int) -> int | None:
    text = environment.get(name)
    return whole_number(name, text, least) if text else None


def _cluster_variable(environment: Mapping[str, str]) -> str:
    """Returns the variable that shows a cluster of several processes, 'TPU', or ''."""
    for name, number in CLUSTERS.items():
        value = environment.get(name, '')
        several = ',' in value if name.startswith('TPU') else environment.get(number) != '1'
        if value and several:
            return name
    # Only the metadata server of a Cloud TPU machine knows whether it belongs to a pod.
    tpu = 'tpu' in (environment.get('JAX_PLATFORMS') or 'tpu').split(',')
    chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
    return 'TPU' if tpu and chips and importlib.util.find_spec('libtpu') else ''


def join(cluster: Cluster) -> None:
    """Connects to the coordinator. A Cloud TPU machine may turn out to be the only one.

    If the other processes do not arrive in time (JOIN_TIMEOUT, CLUSTER_JOIN_TIMEOUT), the process
    ends with one line and exit code 2.

    Raises:
      UserError: the address cannot be used, or jax does not detect the cluster.
    """
    import jax

    variable = _cluster_variable(os.environ)
    place = f'{VARIABLES[0]} = {cluster.address}' if cluster.address else f'cluster of {variable}'
    by_hand = None not in cluster
    options: dict[str, Any] = {'cluster_detection_method': 'deactivate'} if by_hand else {}
    bind = 'coordinator_bind_address'
    if cluster.address and cluster.address.startswith(('127.0.0.1:', 'localhost:')):
        options[bind] = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', cluster.address)
    timeout = JOIN_TIMEOUT if by_hand else CLUSTER_JOIN_TIMEOUT
    timer = threading.Timer(timeout, _exit_incomplete, (cluster, place, timeout))
    timer.daemon = True
    timer.start()
    try:
        with warnings.catch_warnings(action='ignore'):  # the errors below replace them
            connect = functools.partial(
                jax.distributed.initialize,
                *cluster,
                initialization_timeout=round(timeout) + 60,  # `timer` ends the process before
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,  # `shutdown` has waited for all before
                **options,
            )
            storage.call_within(timeout + 60, place, connect)  # in a thread: it reacts to no signal
    except interrupts.Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
        os._exit(stop.code)  # without waiting for the thread
    except Exception as error:  # from sockets, from the cluster's interface, from the coordinator
        text = one_line(error)
        if 'coordinator_address should be defined' not in text:
            if 'Failed to start RPC server' in text:
                text = 'cannot listen there, is the port in use?'
            raise UserError(f'{place}: {text}') from error
        if variable != 'TPU':
            needs = ' without the package kubernetes' if variable == 'JOB_COMPLETION_INDEX' else ''
            raise UserError(
                f'{variable} = {os.environ[variable]}: jax {jax.__version__} finds no '
                f'cluster{needs}; set {", ".join(VARIABLES)}, or JAX_NUM_PROCESSES=1 for a run of '
                'one process'
            ) from error
    finally:
        timer.cancel()


def _exit_incomplete(cluster: Cluster, place: str, timeout: float) -> None:
    """Reports missing processes in one line and exits; jax would abort with a page of text."""
    host, _, port = (cluster.address or '').rpartition(':')
    count = f'{cluster.process_count} ' if cluster.process_count else ''
    problem = f'not all {count}processes came'
    if host and cluster.process_id != 0:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
        except OSError as error:
            problem = f'process 0 does not answer ({one_line(error)})'
    print(f'error: {place}: {problem} within {timeout:.0f} s', file=sys.stderr, flush=True)
    os._exit(2)
