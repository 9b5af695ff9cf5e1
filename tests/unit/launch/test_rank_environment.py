import os
import subprocess
from contextlib import suppress

import pytest

from pretrain import train
from pretrain.errors import UserError
from pretrain.launch.environment import (
    RankEnvironment,
    export,
    process_threads,
    rank_environment,
    speaks,
    threads_per_process,
)

DEEPSPEED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "LOCAL_SIZE": "4",
}
# What srun of SLURM 22.05 sets for the fourth of five tasks, on the second of two nodes.
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[06-09]",
}


class Scontrol:
    """A stand-in for the scontrol command that notes what it was asked."""

    def __init__(self, *answers: str):
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def __call__(self, command):
        self.asked.append(list(command))
        return self.answers.pop(0)


def never(command):
    raise AssertionError(f"{command} was run")


def step(run=None, known=lambda host: True, **changes: str | None) -> RankEnvironment:
    environ = {name: value for name, value in {**STEP, **changes}.items() if value is not None}
    return rank_environment(environ, run=run or Scontrol("gpu07\ngpu08\n"), known=known)


def test_deepspeed_launcher():
    found = rank_environment(DEEPSPEED, run=never)
    assert found == RankEnvironment(5, 8, 1, 4, "10.0.0.1", 29500, "deepspeed")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"LOCAL_SIZE": None}, 4),
        ({"LOCAL_SIZE": None, "CROSS_SIZE": None}, 8),
    ],
)
def test_local_world_size_without_local_size(changes, expected):
    environ = {name: value for name, value in {**DEEPSPEED, **changes}.items() if value is not None}
    assert rank_environment(environ).local_world_size == expected


def test_launcher_variables_win_over_a_surrounding_step():
    assert rank_environment({**STEP, **DEEPSPEED}, run=never).launcher == "deepspeed"


def test_slurm_step():
    run = Scontrol("gpu07\ngpu08\n")
    found = step(run)
    assert found == RankEnvironment(
        3, 5, 0, 2, "gpu07", 20000 + (123456 + 7 * 2) % 10000, "slurm", "slurm-123456.2-0", found.spare_ports
    )
    # The step's nodes, not the job's: a step may leave out the job's first node.
    assert run.asked == [["scontrol", "show", "hostnames", "gpu[07-08]"]]


def test_slurm_job_nodes_stand_in_for_the_steps():
    run = Scontrol("gpu06\ngpu07\n")
    assert step(run, SLURM_STEP_NODELIST=None).master_addr == "gpu06"
    assert run.asked[0][-1] == "gpu[06-09]"


def test_slurm_node_without_a_name_service_entry():
    run = Scontrol(
        "gpu07\ngpu08\n", "NodeName=gpu07 Arch=x86_64\n   NodeAddr=10.1.2.3 NodeHostName=gpu07 Version=22.05"
    )
    assert step(run, known=lambda host: False).master_addr == "10.1.2.3"


def test_slurm_task_counts_are_expanded():
    def counts(listed, node):
        return step(SLURM_STEP_TASKS_PER_NODE=listed, SLURM_NODEID=node).local_world_size

    assert [counts("4(x2),3", node) for node in "012"] == [4, 4, 3]


def test_slurm_one_node_needs_no_scontrol():
    assert step(never, SLURM_STEP_NUM_NODES="1").master_addr == "127.0.0.1"


def test_slurm_meeting_point_may_be_stated():
    found = step(never, MASTER_ADDR="head", MASTER_PORT="12345")
    assert (found.master_addr, found.ports) == ("head", (12345,)), "what the user states is not replaced"
    assert step(MASTER_PORT="").ports == step().ports, "empty is not stated"


def test_derived_ports_have_spares_and_their_job_tells_restarts_apart():
    first, again = step(), step(SLURM_RESTART_COUNT="1")
    assert first.ports == step(SLURM_PROCID="0", SLURM_NODEID="0").ports, "all ranks agree"
    assert len(set(first.ports)) == 16
    assert all(20000 <= port <= 29999 for port in first.ports)
    assert (first.job, again.job) == ("slurm-123456.2-0", "slurm-123456.2-1")


def test_slurm_ports_of_neighbouring_jobs_and_steps_differ():
    ports = {
        step(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(number)).master_port
        for job in range(9998, 10005)
        for number in range(4)
    }
    assert len(ports) == 7 * 4
    assert all(20000 <= port <= 29999 for port in ports)


@pytest.mark.parametrize("left_out", ["SLURM_STEP_ID", "SLURM_PROCID"])
def test_plain_python_in_an_allocation_is_one_process(left_out):
    environ = {name: value for name, value in STEP.items() if name != left_out}
    assert rank_environment(environ, run=never) == RankEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "single")


def test_interactive_step_is_one_process():
    # salloc with use_interactive_step: a step of one task, while SLURM_NTASKS tells the allocation's.
    found = step(never, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_STEP_ID="4294967290", SLURM_NODEID="0")
    assert (found.rank, found.world_size) == (0, 1)


# What mpirun of Open MPI 4.1.4 sets for the second of two processes of one host.
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "2035220481",
    "PMIX_RANK": "1",
}
# What mpiexec.hydra of MPICH 4.0.2 sets there.
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "8"}


def place_of(environ, **changes: str | None) -> RankEnvironment:
    return rank_environment({k: v for k, v in {**environ, **changes}.items() if v is not None}, run=never)


def test_open_mpi_on_one_host_meets_there_at_a_port_of_its_job():
    found = place_of(OPEN_MPI)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 2, 1, 2)
    assert (found.master_addr, found.launcher, len(set(found.ports))) == ("127.0.0.1", "mpirun", 16)
    zero = place_of(OPEN_MPI, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="0", PMIX_RANK="0")
    assert (zero.ports, zero.job) == (found.ports, found.job)
    assert place_of(OPEN_MPI, PMIX_NAMESPACE="prterun-vm-7@1").ports != found.ports


def test_open_mpi_meeting_point_may_be_stated():
    found = place_of(OPEN_MPI, OMPI_COMM_WORLD_LOCAL_SIZE="1", OMPI_COMM_WORLD_LOCAL_RANK="0", MASTER_ADDR="head")
    assert (found.master_addr, found.local_world_size) == ("head", 1)
    assert place_of(OPEN_MPI, MASTER_PORT="12345").ports == (12345,)


def test_mpich_needs_a_port():
    assert place_of(HYDRA, MASTER_PORT="12345") == RankEnvironment(1, 2, 1, 2, "127.0.0.1", 12345, "mpirun")
    with pytest.raises(UserError, match="set MASTER_PORT to a free one"):
        place_of(HYDRA)
    assert place_of(HYDRA, PMI_RANK="0", PMI_SIZE="1", MPI_LOCALRANKID="0", MPI_LOCALNRANKS="1").world_size == 1


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({**STEP, **OPEN_MPI}, "mpirun"),  # mpirun starts its daemons on other nodes through srun
        ({**STEP, **HYDRA, "MASTER_PORT": "1"}, "mpirun"),
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "5", "MASTER_ADDR": "gpu07"}, "slurm"),  # srun --mpi=pmi2
        ({**OPEN_MPI, **DEEPSPEED}, "deepspeed"),  # mpirun starts a launcher on each host
        ({**OPEN_MPI, **DEEPSPEED, "CROSS_SIZE": None, "LOCAL_SIZE": None, "TORCHELASTIC_RUN_ID": "x"}, "deepspeed"),
    ],
)
def test_the_innermost_launcher_counts(environ, launcher):
    assert place_of(environ).launcher == launcher


OWN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_ranks_that_a_script_took_over_from_mpirun_are_taken():
    assert place_of({**OPEN_MPI, **OWN}).rank == 1
    # Each process sees a GPU of its own, as number 0.
    assert place_of({**OPEN_MPI, **OWN}, LOCAL_RANK="0").local_rank == 0


@pytest.mark.parametrize(
    ("left", "named", "speakers"),
    [
        ({"RANK": "0"}, "RANK=0 but OMPI_COMM_WORLD_RANK=", [1]),  # rank 0 itself cannot see it
        ({"RANK": "1"}, "RANK=1 but OMPI_COMM_WORLD_RANK=", [0]),
        ({"RANK": "0", "WORLD_SIZE": "8"}, "WORLD_SIZE=8 but OMPI_COMM_WORLD_SIZE=3", [0]),
    ],
)
def test_variables_left_by_an_earlier_job_are_refused_by_one_voice(left, named, speakers):
    refusals = {}
    for rank in range(3):
        local = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
        sizes = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
        environ = {**OPEN_MPI, **OWN, "WORLD_SIZE": "3", **left, **local, **sizes}
        with suppress(UserError):
            rank_environment(environ, run=never)
            continue
        with pytest.raises(UserError, match=r"unset RANK WORLD_SIZE LOCAL_RANK") as caught:
            rank_environment(environ, run=never)
        refusals[rank] = str(caught.value), speaks(environ)
    assert any(named in line for line, _ in refusals.values())
    assert [rank for rank, (_, loud) in refusals.items() if loud] == speakers


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "1 of 2 processes on this host and MASTER_ADDR is not set"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK set but not OMPI_COMM_WORLD_SIZE"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "PMI_RANK set but not MPI_LOCALRANKID, MPI_LOCALNRANKS"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "x"}, "OMPI_COMM_WORLD_SIZE='x' is no whole number"),
    ],
)
def test_half_told_mpi_places_are_one_line(environ, message):
    with pytest.raises(UserError, match=message) as caught:
        rank_environment(environ, run=never)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "loud"),
    [
        ({}, True),
        (OPEN_MPI, False),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0"}, True),
        (HYDRA, False),
        (STEP, False),
        ({**STEP, "SLURM_PROCID": "0"}, True),
        (DEEPSPEED, False),
        ({**OPEN_MPI, **DEEPSPEED, "RANK": "0"}, True),  # a launcher on each host: OMPI rank 1 starts RANK 0 here
    ],
)
def test_rank_0_speaks(environ, loud):
    assert speaks(environ) is loud


def test_a_rank_that_nobody_ends_says_itself_what_is_wrong_with_its_variables(monkeypatch, capsys):
    monkeypatch.setattr(train, "PATIENCE", 0.0)
    for name, value in {**OPEN_MPI, **OWN, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not speaks(os.environ), "process 0 of mpirun would; but this may be a shell that process 1 left behind"
    assert train.main(["--recipe", "demo"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: RANK=0 but OMPI_COMM_WORLD_RANK=1: unset ")
    assert said.count("\n") == 1


def test_torchrun_listens_itself_where_it_says_so():
    assert place_of(DEEPSPEED, TORCHELASTIC_USE_AGENT_STORE="True").hosted
    assert not place_of(DEEPSPEED, TORCHELASTIC_USE_AGENT_STORE="False").hosted


def test_nothing_set_is_one_process_whatever_meeting_point_is_stated():
    environ = {"MASTER_ADDR": "head", "MASTER_PORT": "1"}
    assert rank_environment(environ) == RankEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "single")


@pytest.mark.parametrize("left_out", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_set_launcher_variables_are_named(left_out):
    environ = {name: value for name, value in DEEPSPEED.items() if name != left_out}
    with pytest.raises(UserError, match=rf"set but not {left_out}: ") as caught:
        rank_environment(environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["SLURM_LOCALID", "SLURM_JOB_ID"])
def test_half_set_step_variables_are_named(left_out):
    with pytest.raises(UserError, match=f"but not {left_out}"):
        step(**{left_out: None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "8"}, "RANK 8 of WORLD_SIZE 8"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK 4 of LOCAL_WORLD_SIZE 4"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no whole number"),
        ({"RANK": "-1"}, "RANK='-1' is no whole number"),
        ({"MASTER_PORT": ""}, "MASTER_PORT='' is no whole number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        rank_environment({**DEEPSPEED, **changes})


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("scontrol"),
        subprocess.CalledProcessError(1, "scontrol"),
        subprocess.TimeoutExpired("scontrol", 60),
        IndexError("nothing printed"),
    ],
)
def test_scontrol_that_fails_is_one_line_with_a_cure(failure):
    def run(command):
        raise failure

    with pytest.raises(UserError, match=r"SLURM_STEP_NODELIST=gpu\[07-08\].*set MASTER_ADDR"):
        step(run)


def test_export_is_read_back_as_the_same_place():
    found = step()
    again = rank_environment(export(found), run=never)
    assert vars(again) == {**vars(found), "launcher": "deepspeed", "job": "", "spare_ports": ()}


def test_threads():
    assert [threads_per_process(cores, size) for cores, size in ((8, 2), (2, 2), (2, 3), (64, 0))] == [4, 1, 1, 64]
    assert process_threads(step(), {}, cores=8) == 4
    assert process_threads(step(), {"SLURM_CPUS_PER_TASK": "8"}, cores=8) == 8
    assert process_threads(step(), {"SLURM_CPUS_PER_TASK": "8"}, cores=6) == 6
