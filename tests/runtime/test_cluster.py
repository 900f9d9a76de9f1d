"""The environment names the other processes of a run, or none."""

import os
import subprocess
import sys

import jax
import pytest
from helpers.processes import environment

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import cluster, distributed
from lightpaff_jax.runtime.cluster import Cluster, detect

BY_HAND = {
    'JAX_COORDINATOR_ADDRESS': 'host:1234',
    'JAX_NUM_PROCESSES': '4',
    'JAX_PROCESS_ID': '3',
}


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, None),
        ({'JAX_PLATFORMS': ''}, None),
        (BY_HAND, Cluster('host:1234', 4, 3)),
        (BY_HAND | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}, None),
        ({'SLURM_STEP_NODELIST': 'a,b', 'SLURM_NTASKS': '2'}, Cluster(None, None, None)),
        ({'SLURM_STEP_NODELIST': 'a', 'SLURM_NTASKS': '1'}, None),
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'}, None),  # in a batch script, without srun
        ({'SLURM_STEP_NODELIST': 'a,b', 'SLURM_NTASKS': '2', 'JAX_NUM_PROCESSES': '1'}, None),
        (BY_HAND | {'SLURM_STEP_NODELIST': 'a,b', 'SLURM_NTASKS': '2'}, Cluster('host:1234', 4, 3)),
        (
            {'JAX_COORDINATOR_ADDRESS': '[::1]:9', 'JOB_COMPLETION_INDEX': '0'},
            Cluster('[::1]:9', None, None),
        ),
        ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),  # not a pod of an indexed job
        ({'OMPI_COMM_WORLD_SIZE': '2'}, Cluster(None, None, None)),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, Cluster(None, None, None)),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ],
)
def test_the_environment_determines_the_cluster(variables, expected):
    assert detect(variables) == expected


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        (
            {'JAX_NUM_PROCESSES': 'two'},
            'JAX_NUM_PROCESSES = two: must be a whole number, at least 1',
        ),
        ({'JAX_NUM_PROCESSES': '0'}, 'JAX_NUM_PROCESSES = 0: must be a whole number, at least 1'),
        ({'JAX_PROCESS_ID': '-1'}, 'JAX_PROCESS_ID = -1: must be a whole number, at least 0'),
        *(
            ({name: 5000 * '1'}, f'{name} = {40 * "1"}: must be a whole number, at least {least}')
            for name, least in (('JAX_NUM_PROCESSES', 1), ('JAX_PROCESS_ID', 0))
        ),
        (
            {'JAX_COORDINATOR_ADDRESS': 'host:' + 5000 * '1'},
            f'JAX_COORDINATOR_ADDRESS = host:{75 * "1"}: must be HOST:PORT',
        ),
        ({'JAX_PROCESS_ID': '4'}, 'JAX_PROCESS_ID = 4: must be below JAX_NUM_PROCESSES = 4'),
        (
            {'JAX_PROCESS_ID': ''},
            'JAX_PROCESS_ID: must be set too, as JAX_COORDINATOR_ADDRESS is',
        ),
        (
            {'JAX_COORDINATOR_ADDRESS': ''},
            'JAX_COORDINATOR_ADDRESS: must be set too, as JAX_NUM_PROCESSES is',
        ),
        *(
            (
                {'JAX_COORDINATOR_ADDRESS': address},
                f'JAX_COORDINATOR_ADDRESS = {address}: must be HOST:PORT',
            )
            for address in ('host', ':1', 'host:', 'host:port', 'host:65536', 'host:0')
        ),
    ],
)
def test_an_invalid_variable_is_a_user_error(changes, line):
    with pytest.raises(UserError) as raised:
        detect(BY_HAND | changes)
    assert str(raised.value) == line


def test_a_cluster_that_jax_does_not_find_is_a_user_error(monkeypatch):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    monkeypatch.setattr(jax.distributed, 'initialize', refuse)
    with pytest.raises(UserError, match=r'OMPI_COMM_WORLD_SIZE = 2: jax .* finds no cluster; set'):
        cluster.join(detect(os.environ))


def refuse(*args, **options):
    raise ValueError('coordinator_address should be defined.')


@pytest.mark.e2e
def test_a_single_process_does_not_import_jax():
    code = (
        'import sys\n'
        'from lightpaff_jax.runtime import distributed\n'
        'distributed.initialize()\n'
        'distributed.assert_equal({"a": 1}, "")\n'
        'distributed.sync_devices()\n'
        'distributed.shutdown()\n'
        'd = distributed\n'
        'values = d.process_count(), d.process_index(), d.is_primary(), d.all_gather(3)\n'
        'print(*values, d.broadcast_from_primary(lambda: 4), "jax" in sys.modules)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '1 0 True [3] 4 False\n'


def test_assert_equal_names_the_process_that_differs(monkeypatch):
    monkeypatch.setattr(
        distributed, 'all_gather', lambda value: [value, value, {'a': 1, 'data_hash': 'y'}]
    )
    with pytest.raises(UserError) as raised:
        distributed.assert_equal({'a': 1, 'data_hash': 'x'}, 'all processes must read the same')
    assert str(raised.value) == (
        'process 2: data_hash = y, process 0 has x: all processes must read the same'
    )


def test_an_error_of_a_single_process_returns_its_exit_code(capsys):
    assert distributed.exit_with_error('config.x = 3: must be 4', 2) == 2
    assert capsys.readouterr() == ('', 'error: config.x = 3: must be 4\n')
    assert not distributed.is_peer_failure(RuntimeError('Gloo AllGather failed'))
