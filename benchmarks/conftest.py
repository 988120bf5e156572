"""`pytest benchmarks`: options, one test per case, phase and number of threads, progress, and what the JSON says of the
machine. `make bench` and `make bench-quick` run it and make the report."""

import functools
import gc
import sys

import machine
import pytest
from tqdm import tqdm


def pytest_addoption(parser):
    parser.addoption("--threads", default="1,2", help="numbers of threads, as in 1,2 (the default)")
    parser.addoption("--budget", type=float, default=0.3, help="seconds of timing for each test (default: %(default)s)")
    parser.addoption("--compile", action="store_true", help="time torch.compile of every case too (of models it is)")
    parser.addoption("--no-compile", action="store_true", help="of models neither: compiling takes minutes")


def thread_counts(config):
    return [int(count) for count in config.getoption("--threads").split(",")]


@pytest.hookimpl(trylast=True)  # after the cases, so that all numbers of threads run on one case's inputs
def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        counts = thread_counts(metafunc.config)
        metafunc.parametrize("threads", counts, ids=[f"{count}T" for count in counts])


@functools.cache
def measured_roofline(threads):
    return machine.measure_roofline(threads)


@pytest.fixture
def roofline(threads):
    return measured_roofline(threads)


@pytest.fixture
def budget(request):
    return request.config.getoption("--budget")


@pytest.fixture
def compiled(request):
    return request.config.getoption("--compile")


@pytest.fixture
def compile_models(request, threads):
    """On most threads alone: it compiles anew for each number of them."""
    return not request.config.getoption("--no-compile") and threads == max(thread_counts(request.config))


def pytest_sessionstart(session):
    session.config.busy = [machine.busy_share()]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # which has the host's name
    machine_info.update(machine.describe())
    machine_info["busy"] = [*config.busy, machine.busy_share()]
    machine_info["roofline"] = {count: vars(measured_roofline(count)) for count in thread_counts(config)}


def pytest_benchmark_update_json(config, output_json):
    chosen = [config.option.markexpr, config.option.keyword]
    output_json["selection"] = " and ".join(text for text in chosen if text)


# ---- A progress bar in place of pytest's dots


class Progress:
    """Drawn between tests: within one, pytest captures what is written."""

    def __init__(self, tests):
        self.bar = tqdm(total=tests, unit="test", file=sys.__stderr__, dynamic_ncols=True)

    def pytest_runtest_logstart(self, location):
        name = location[2]
        self.bar.set_description(name[5:-1][:60].ljust(60))

    def pytest_runtest_logfinish(self):
        self.bar.update()


def pytest_collection_finish(session):
    if session.config.option.collectonly:
        return
    # What is alive by now stays: collecting it again before every measurement took longer than the measurements.
    gc.collect()
    gc.freeze()
    session.config.pluginmanager.register(Progress(len(session.items)))


def pytest_report_teststatus(report):
    if report.passed and report.when == "call":
        return "passed", "", ""
    return None
