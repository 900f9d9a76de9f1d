"""What the environment says of other processes of this run, and joining them.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   by hand, or by launch/local.sh
    SLURM, Open MPI, Kubernetes, Cloud TPU pods                  jax finds them by itself
    JAX_NUM_PROCESSES=1                                          alone, whatever else says

Anything else is a process alone: it connects to nothing.
"""

import glob
import importlib.util
import os
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightpaff_jax.errors import UserError

HAND = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# What a cluster sets for each process -> what says how many there are, if anything does.
CLUSTERS = {
    'SLURM_STEP_NODELIST': 'SLURM_NTASKS',
    'OMPI_COMM_WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
    'JOB_COMPLETION_INDEX': '',  # of an indexed Kubernetes job
    'TPU_PROCESS_ADDRESSES': '',
    'TPU_WORKER_HOSTNAMES': '',
}

# Seconds. Who starts processes by hand starts them together; those of a cluster may have to wait
# for each other's machines and images, and JAX itself gives them five minutes.
WAIT_BY_HAND = 60.0
WAIT_CLUSTER = 300.0
# After so long without a heartbeat the others end. A process that is alive sends one every few
# seconds, from a thread that needs neither Python nor the devices; JAX's 100 s leave a pod idle for
# longer, much less would not outlast a live migration of a machine.
SILENCE = 30


class Setting(NamedTuple):
    """How to find the others; what is None, jax finds."""

    address: str | None
    processes: int | None
    own: int | None


def setting(environment: Mapping[str, str]) -> Setting | None:
    """What the environment says of other processes; None where it names none.

    Raises:
      UserError: a variable is missing, or has a value that cannot be.
    """
    address, number, place = (environment.get(name, '') for name in HAND)
    processes = _whole('JAX_NUM_PROCESSES', number, 1)
    own = _whole('JAX_PROCESS_ID', place, 0)
    if processes is not None and own is not None and own >= processes:
        raise UserError(f'JAX_PROCESS_ID = {own}: must be below JAX_NUM_PROCESSES = {processes}')
    if processes == 1:
        return None
    if address:
        host, colon, port = address.rpartition(':')
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(f'JAX_COORDINATOR_ADDRESS = {address}: must be HOST:PORT')
    cluster = _cluster(environment)
    given = [name for name in HAND if environment.get(name)]
    if given and not cluster:
        for name in HAND:
            if name not in given:
                raise UserError(f'{name}: must be set too, as {given[0]} is')
    return Setting(address or None, processes, own) if given or cluster else None


def _whole(name: str, text: str, least: int) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise UserError(f'{name} = {text}: must be a whole number, at least {least}')
    return int(text)


def _cluster(environment: Mapping[str, str]) -> str:
    """The variable that shows several processes of a cluster, or 'TPU'; '' where nothing does."""
    for name, number in CLUSTERS.items():
        value = environment.get(name, '')
        several = ',' in value if name.startswith('TPU') else environment.get(number) != '1'
        if value and several:
            return name
    # A Cloud TPU machine knows from its metadata alone whether it is one of many.
    tpu = 'tpu' in (environment.get('JAX_PLATFORMS') or 'tpu').split(',')
    chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
    return 'TPU' if tpu and chips and importlib.util.find_spec('libtpu') else ''


def join(found: Setting) -> None:
    """Connects to the coordinator; a Cloud TPU machine may turn out to be alone.

    Raises:
      UserError: the coordinator cannot be, or jax does not know the cluster. Where the others do
        not come within WAIT_BY_HAND or WAIT_CLUSTER seconds, the process ends with one line and
        exit code 2.
    """
    import jax

    cluster = _cluster(os.environ)
    by_hand = None not in found
    options: dict[str, Any] = {'cluster_detection_method': 'deactivate'} if by_hand else {}
    bind = 'coordinator_bind_address'
    if found.address and found.address.startswith(('127.0.0.1:', 'localhost:')):
        options[bind] = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', found.address)
    limit = WAIT_BY_HAND if by_hand else WAIT_CLUSTER
    late = threading.Timer(limit, _give_up, (found, cluster, limit))
    late.daemon = True
    late.start()
    try:
        with warnings.catch_warnings(action='ignore'):  # what keeps jax from it is said below
            jax.distributed.initialize(
                *found,
                initialization_timeout=round(limit) + 60,  # `late` says it in one line before
                heartbeat_timeout_seconds=SILENCE,
                shutdown_timeout_seconds=SILENCE,  # all have come by `finish`
                **options,
            )
    except Exception as error:  # of sockets, of a cluster's interface, of the coordinator
        text = ' '.join(str(error).split())
        if 'coordinator_address should be defined' not in text:
            listen = 'Failed to start RPC server' in text
            text = 'cannot listen there, is the port in use?' if listen else text
            raise UserError(f'{_place(found, cluster)}: {text}') from error
        if cluster == 'TPU':
            return
        needs = ' without the package kubernetes' if cluster == 'JOB_COMPLETION_INDEX' else ''
        raise UserError(
            f'{cluster} = {os.environ[cluster]}: jax {jax.__version__} finds no cluster{needs}; set '
            f'{", ".join(HAND)}, or JAX_NUM_PROCESSES=1 for a process alone'
        ) from error
    finally:
        late.cancel()


def _place(found: Setting, cluster: str) -> str:
    return f'{HAND[0]} = {found.address}' if found.address else f'cluster of {cluster}'


def _give_up(found: Setting, cluster: str, limit: float) -> None:
    """Says who is missing, and ends: jax would abort with a page of its own."""
    host, _, port = (found.address or '').rpartition(':')
    missing = f'not all {found.processes or ""} processes came'.replace('  ', ' ')
    if host and found.own != 0:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
        except OSError as error:
            missing = f'process 0 does not answer ({error.strerror or error})'
    line = f'error: {_place(found, cluster)}: {missing} within {limit:.0f} s'
    print(line, file=sys.stderr, flush=True)
    os._exit(2)
